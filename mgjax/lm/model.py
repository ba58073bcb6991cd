"""The language model: embeddings of K codebooks, conditions, transformer, and K heads (Copet et al. 2023, section 2).

Three ways in, all of the same weights: `__call__` predicts a whole sequence at once, teacher-forced (training,
scoring); `prefill` and `decode` run it step by step over an explicit KV cache (generation); `context` projects the
conditions that both read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mgjax.conditioning.condition import Condition
from mgjax.config.model import FUSES, LMConfig
from mgjax.devices import sharding
from mgjax.lm.slots import empty, stored
from mgjax.lm.stack import REMAT, Stack
from mgjax.lm.transformer import KeyValue, Layer
from mgjax.nn import Dense, LayerNorm, sinusoidal_positions, symmetric_uniform


@struct.dataclass
class Cache:
    """The KV cache of decoding: keys and values of each layer."""

    layers: tuple[KeyValue, ...]  # those of self-attention; the slots are the prefix, then the sequence steps
    cross: tuple[KeyValue | None, ...]  # those of the condition of cross-attention, computed once; None for none

    def grown(self, num_steps: int) -> Cache:
        """The cache with room for `num_steps` more steps."""
        room = ((0, 0), (0, 0), (0, num_steps), (0, 0))
        return dataclasses.replace(self, layers=jax.tree.map(lambda cached: jnp.pad(cached, room), self.layers))


@struct.dataclass
class AddedCondition:
    """A condition that is added to the embedded steps."""

    vectors: Float[Array, "b a d"]  # one for the whole piece, or one after the other
    rate: Float[Array, ""]  # vectors per step; 0 for one for all

    def at(self, steps: Int[Array, " s"]) -> Float[Array, "b s d"]:
        """The vector that is added to each of `steps`. Step 1 is the first with a code: it gets the first vector."""
        index = jnp.floor((steps - 1) * self.rate).astype(jnp.int32)
        return jnp.take(self.vectors, jnp.clip(index, 0, self.vectors.shape[1] - 1), axis=1)


@struct.dataclass
class Context:
    """The conditions of a batch, projected to the model's width."""

    prefix: Float[Array, "b p d"]  # the vectors before the music in the sequence; length 0 for none
    prefix_mask: Bool[Array, "b p"]  # False for padding, which takes no position and is not attended to
    cross: Float[Array, "b l d"]  # the vectors of cross-attention in every layer; length 0 for none
    cross_mask: Bool[Array, "b l"]  # False for padding; a row of nothing else gets exactly zero from cross-attention
    added: tuple[AddedCondition, ...] = ()  # to the embedded steps


class LM(nn.Module):
    """The causal transformer over steps of K codes.

    `dtype` is the type of activations and cache (the parameters' own where None); positions, norms, attention weights
    and logits are float32 always. `scan_layers` is the training form, over parameters with their layers stacked (see
    stack.py), which cannot generate. `remat`, one of REMAT, is what is stored for the backward pass. `cache_dtype` is
    the type of keys and values between two steps, which may be int8 (`dtype` where None).
    """

    config: LMConfig
    dtype: jnp.dtype | None = None
    scan_layers: bool = False
    remat: str = "none"
    cache_dtype: str | None = None

    def setup(self) -> None:
        """Embedding, layers, norm, heads, and a projection for each condition."""
        config = self.config
        streams = (config.num_codebooks, config.codebook_size)
        narrow = nn.initializers.truncated_normal(config.dim**-0.5, lower=-3.0, upper=3.0)
        self.embed = Embedding(config)
        if self.scan_layers:
            self.layers = Stack(config, self.remat)
        else:
            kind = Layer if self.remat == "none" else nn.remat(Layer, policy=REMAT[self.remat])
            # Attributes, not a list: the tables of checkpoints name each layer alone.
            for i in range(config.num_layers):
                setattr(self, f"layer{i}", kind(config, i))
        self.out_norm = LayerNorm()
        self.head = Dense((config.dim,), streams, result_dtype=jnp.float32, kernel_init=narrow)
        for condition in config.conditions:
            setattr(self, f"{condition.name}_proj", _projection(condition.dim, config.dim))

    def __call__(self, tokens: Int[Array, "b s k"], context: Context) -> Float[Array, "b s k v"]:
        """Logits of the step after each of `s` steps, float32."""
        return self.logits(self.hidden(tokens, context))

    def hidden(self, tokens: Int[Array, "b s k"], context: Context) -> Float[Array, "b s d"]:
        """The last layer's output at each of `s` steps, from which `logits` predicts the next."""
        x = jnp.concatenate([context.prefix.astype(self._dtype), self._embed(tokens, context, 0)], axis=1)
        x = x.at[:, : context.prefix.shape[1]].add(self._prefix_positions(context))
        valid = _valid(context, tokens.shape[1]) if context.prefix.shape[1] else None
        x, _ = self._transform(x, valid, context, None, 0)
        return x[:, context.prefix.shape[1] :]

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s k v"]:
        """Logits of the step after each of `s` steps, float32."""
        return self.head(self.out_norm(sharding.by_rows(hidden)))

    def context(self, conditions: Mapping[str, Condition], *, batch: int = 1) -> Context:
        """Projects some of `config.conditions`, by name, to the model's width, and joins those with the same `fuse`.

        Without any for cross-attention, that is skipped; `batch` is the number of rows where there are none at all.
        """
        unknown = conditions.keys() - {fused.name for fused in self.config.conditions}
        if unknown:
            raise ValueError(f"the model has no conditions {sorted(unknown)}")
        rows = next((condition.mask.shape[0] for condition in conditions.values()), batch)
        # So that there is always a part to join.
        empty = Condition(jnp.zeros((rows, 0, self.config.dim), self._dtype), jnp.zeros((rows, 0), bool))
        parts = {fuse: [empty] for fuse in FUSES}
        for fused in self.config.conditions:
            if fused.name in conditions:
                parts[fused.fuse].append(self._projected(fused.name, conditions[fused.name]))
        prefix, cross = _joined(parts["prefix"]), _joined(parts["cross"])
        for part in parts["interpolate"][1:]:
            if part.rate is None:
                raise ValueError("a condition that goes along with the music needs a rate")
        added = [
            AddedCondition(jnp.sum(part.tokens, axis=1, keepdims=True), jnp.float32(0)) for part in parts["sum"][1:]
        ]
        added += [AddedCondition(part.tokens, jnp.float32(part.rate)) for part in parts["interpolate"][1:]]
        return Context(prefix.tokens, prefix.mask, cross.tokens, cross.mask, tuple(added))

    def _projected(self, name: str, condition: Condition) -> Condition:
        """The condition in the model's width."""
        projected = getattr(self, f"{name}_proj")(condition.tokens.astype(self._dtype))
        # Zeroed after the projection, not before: the bias must not be left in a null row.
        projected = jnp.where(condition.mask[..., None], projected, jnp.zeros_like(projected))
        mask = condition.mask if condition.attention_mask is None else condition.attention_mask
        return Condition(projected, mask, rate=condition.rate)

    def prefill(self, context: Context, capacity: int) -> Cache:
        """A cache with room for `capacity` steps of music, with the conditions in it."""
        rows, prefix_length = context.prefix_mask.shape
        shape = (rows, self.config.num_heads, prefix_length + capacity, self.config.head_dim)
        dtype = jnp.dtype(self.cache_dtype or self._dtype)
        if dtype == jnp.bfloat16 and self._dtype == jnp.float32:
            dtype = jnp.dtype(jnp.uint16)  # its bits (slots.py)
        blank = empty(shape, dtype)
        cross = jax.tree.map(lambda x: stored(x, dtype), tuple(self._cross(layer, context) for layer in self._layers))
        cache = Cache(tuple(KeyValue(blank, blank) for _ in self._layers), cross)
        if prefix_length:
            x = context.prefix.astype(self._dtype) + self._prefix_positions(context)
            _, layers = self._transform(x, _valid(context, capacity), context, cache, 0)
            cache = dataclasses.replace(cache, layers=layers)
        return cache

    def decode(
        self, tokens: Int[Array, "b s k"], context: Context, cache: Cache, step: Int[Array, ""] | int
    ) -> tuple[Float[Array, "b s k v"], Cache]:
        """Logits of the step after each of `s` steps, of which `step` is the first, and the cache with them in it."""
        first_slot = step + context.prefix.shape[1]
        num_steps = cache.layers[0].key.shape[2] - context.prefix.shape[1]
        valid = _valid(context, num_steps) if context.prefix.shape[1] else None
        x, layers = self._transform(self._embed(tokens, context, step), valid, context, cache, first_slot)
        return self.logits(x), dataclasses.replace(cache, layers=layers)

    @property
    def _dtype(self) -> jnp.dtype:
        return self.dtype or self.embed.embedding.dtype

    @property
    def _layers(self) -> list[Layer]:
        return [getattr(self, f"layer{i}") for i in range(self.config.num_layers)]

    def _embed(self, tokens: Array, context: Context, step: Array | int) -> Float[Array, "b s d"]:
        """Embeddings and positions. Positions count the prefix, but not its padding."""
        offset = jnp.sum(context.prefix_mask, axis=1, dtype=jnp.int32) + step
        positions = offset[:, None] + jnp.arange(tokens.shape[1])[None, :]
        x = self.embed(tokens)
        for condition in context.added:
            x = x + condition.at(step + jnp.arange(tokens.shape[1]))
        return (x + sinusoidal_positions(positions, self.config.dim)).astype(self._dtype)

    def _prefix_positions(self, context: Context) -> Float[Array, "b p d"]:
        positions = jnp.maximum(jnp.cumsum(context.prefix_mask, axis=1) - 1, 0)
        return sinusoidal_positions(positions, self.config.dim).astype(self._dtype)

    def _cross(self, layer: Layer, context: Context) -> KeyValue | None:
        """A layer's keys and values for cross-attention; None without a condition."""
        return layer.cross_attn.project(context.cross) if context.cross.shape[1] else None

    def _transform(
        self,
        x: Float[Array, "b s d"],
        valid: Bool[Array, "b m"] | None,
        context: Context,
        cache: Cache | None,
        first_slot: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b s d"], tuple[KeyValue, ...]]:
        """The layers, over `x` itself or over a cache; and the keys and values of their self-attention."""
        if self.scan_layers:
            condition = context.cross if context.cross.shape[1] else None
            return self.layers(x, valid, condition, context.cross_mask), ()
        # One trace for all layers, which differ in their parameters alone.
        alike = Layer(self.config, 0, parent=None)
        decode = jax.jit(lambda variables, *inputs: alike.apply(variables, *inputs))
        written = []
        for i, layer in enumerate(self._layers):
            if cache is None:
                x, keys_and_values = layer(x, valid, self._cross(layer, context), context.cross_mask, None, first_slot)
            else:
                inputs = (x, valid, cache.cross[i], context.cross_mask, cache.layers[i], first_slot)
                x, keys_and_values = decode(layer.variables, *inputs)
            written.append(keys_and_values)
        return x, tuple(written)


class Embedding(nn.Module):
    """The sum of K embeddings, one per codebook. The last row of each table is the special token's."""

    config: LMConfig

    def setup(self) -> None:
        """The table `k v+1 d`."""
        config = self.config
        shape = (config.num_codebooks, config.codebook_size + 1, config.dim)
        init = nn.initializers.truncated_normal(config.dim**-0.5, lower=-3.0, upper=3.0)
        self.embedding = self.param("embedding", init, shape)

    def __call__(self, tokens: Int[Array, "b s k"]) -> Float[Array, "b s d"]:
        """The embeddings of the steps, float32."""
        codebooks = jnp.arange(self.config.num_codebooks)[None, None, :]
        table = sharding.gathered("lm/embed/embedding", self.embedding)
        return sharding.by_rows(jnp.sum(table[codebooks, tokens].astype(jnp.float32), axis=2))


def _projection(width: int, dim: int) -> Dense:
    """The projection of a condition to the model's width, initialised as the published recipe left it: by torch."""
    uniform = symmetric_uniform(width)
    return Dense((width,), (dim,), use_bias=True, kernel_init=uniform, bias_init=uniform)


def _joined(parts: list[Condition]) -> Condition:
    tokens = jnp.concatenate([part.tokens for part in parts], axis=1)
    return Condition(tokens, jnp.concatenate([part.mask for part in parts], axis=1))


def _valid(context: Context, num_steps: int) -> Bool[Array, "b m"]:
    """Which slots of a prefix and `num_steps` steps are not padding."""
    rows = context.prefix_mask.shape[0]
    return jnp.concatenate([context.prefix_mask, jnp.ones((rows, num_steps), bool)], axis=1)
