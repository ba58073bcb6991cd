"""The language model: embeddings of K codebooks, conditions, transformer, and K heads (Copet et al. 2023, section 2).

Three ways in, all of the same weights: `__call__` predicts a whole sequence at once (training, scoring), `begin` and
`extend` run it piece by piece over an explicit cache (generation), `context` turns conditions into what both read.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mgjax.conditioning.condition import Condition
from mgjax.config import LMConfig
from mgjax.lm.stack import REMAT, Stack
from mgjax.lm.transformer import KeyValue, Layer
from mgjax.nn import Dense, LayerNorm, sinusoidal_positions, symmetric_uniform

Cache = tuple[KeyValue, ...]  # one of each layer; the slots are the prefix, then the steps of the music


@struct.dataclass
class Context:
    """The conditions of a batch, ready to be read at every step.

    Attributes:
      prefix: What stands before the music in the sequence (length 0 for none).
      prefix_mask: Which slots of the prefix are there; the others take no position and are not attended.
      cross: Keys and values for cross-attention, one pair per layer (empty for none). In training form one pair for all
        layers, stacked.
      cross_mask: Which of them are there. A row without any gets exactly zero from cross-attention.
    """

    prefix: Float[Array, "b p d"]
    prefix_mask: Bool[Array, "b p"]
    cross: tuple[KeyValue, ...] | KeyValue
    cross_mask: Bool[Array, "b l"]


class LM(nn.Module):
    """The causal transformer over steps of K codes.

    `dtype` is the type of activations and cache (the parameters' own where None); positions, norms, attention weights
    and logits are float32 always. `scan_layers` is the training form, over parameters with their layers stacked (see
    stack.py), which cannot generate. `remat`, one of REMAT, says what is stored for the backward pass.
    """

    config: LMConfig
    dtype: jnp.dtype | None = None
    scan_layers: bool = False
    remat: str = "none"

    def setup(self):
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
        if config.text_dim is not None:
            self.text_proj = _projection(config.text_dim, config.dim)
        if config.num_chroma:
            self.chroma_proj = _projection(config.num_chroma, config.dim)

    def __call__(self, tokens: Int[Array, "b s k"], context: Context) -> Float[Array, "b s k v"]:
        """Logits of the step after each of `s` steps, float32."""
        x = jnp.concatenate([context.prefix.astype(self._dtype), self._embed(tokens, context, 0)], axis=1)
        x = x.at[:, : context.prefix.shape[1]].add(self._prefix_positions(context))
        num_slots = x.shape[1]
        causal = jnp.tril(jnp.ones((num_slots, num_slots), bool))
        mask = causal[None, None] & _slots(context, tokens.shape[1])[:, None, None, :]
        x, _ = self._transform(x, mask, context, None, 0)
        return self._logits(x[:, context.prefix.shape[1] :])

    def context(
        self,
        text: Condition | None,
        chroma: Condition | None = None,
        *,
        batch: int = 1,
        attended: Bool[Array, "b l"] | None = None,
    ) -> Context:
        """Conditions as the transformer reads them.

        Args:
          text: The text encoder's output; None for no text in the whole batch, which skips cross-attention.
          chroma: Pitch classes of the melody, for models with a melody prefix.
          batch: Number of rows where there is neither.
          attended: Which positions of the text are attended to. Where that is more than `text.mask`, the rest are
            zero vectors, as the published models see padding; by default it is `text.mask`.
        """
        prefixes: list[Condition] = []
        cross: tuple[KeyValue, ...] | KeyValue = ()
        cross_mask = jnp.zeros((batch, 0), bool)
        if chroma is not None:
            prefixes.append(_silence(self.chroma_proj(chroma.tokens.astype(self._dtype)), chroma.mask))
        if text is not None:
            # Zeroed after the projection, not before: the bias must not be left in a null row.
            projected = _silence(self.text_proj(text.tokens.astype(self._dtype)), text.mask)
            if attended is not None:
                projected = projected.replace(mask=attended)
            if self.config.cross_attention:
                cross = self._project(projected.tokens)
                cross_mask = projected.mask
            else:
                prefixes.append(projected)
        if not prefixes:
            empty = jnp.zeros((cross_mask.shape[0], 0, self.config.dim), self._dtype)
            return Context(empty, jnp.zeros(empty.shape[:2], bool), cross, cross_mask)
        prefix = jnp.concatenate([part.tokens for part in prefixes], axis=1)
        prefix_mask = jnp.concatenate([part.mask for part in prefixes], axis=1)
        if not cross:
            cross_mask = jnp.zeros((prefix.shape[0], 0), bool)
        return Context(prefix, prefix_mask, cross, cross_mask)

    def begin(self, context: Context, capacity: int) -> Cache:
        """A cache with room for `capacity` steps of music, after the prefix has been read."""
        rows, prefix_length = context.prefix_mask.shape
        shape = (rows, self.config.num_heads, prefix_length + capacity, self.config.head_dim)
        empty = jnp.zeros(shape, self._dtype)
        cache = tuple(KeyValue(empty, empty) for _ in range(self.config.num_layers))
        if prefix_length:
            x = context.prefix.astype(self._dtype) + self._prefix_positions(context)
            reach = jnp.arange(prefix_length)[:, None] >= jnp.arange(shape[2])[None, :]
            mask = reach[None, None] & _slots(context, capacity)[:, None, None, :]
            _, cache = self._transform(x, mask, context, cache, 0)
        return cache

    def extend(
        self, tokens: Int[Array, "b s k"], context: Context, cache: Cache, step: Int[Array, ""] | int
    ) -> tuple[Float[Array, "b s k v"], Cache]:
        """Logits of the step after each of `s` steps, of which `step` is the first, and the cache with them in it."""
        index = step + context.prefix.shape[1]
        num_slots = cache[0].key.shape[2]
        reach = (index + jnp.arange(tokens.shape[1]))[:, None] >= jnp.arange(num_slots)[None, :]
        mask = reach[None, None] & _slots(context, num_slots - context.prefix.shape[1])[:, None, None, :]
        x, cache = self._transform(self._embed(tokens, context, step), mask, context, cache, index)
        return self._logits(x), cache

    @property
    def _dtype(self) -> jnp.dtype:
        return self.dtype or self.embed.dtype

    @property
    def _layers(self) -> list[Layer]:
        return [getattr(self, f"layer{i}") for i in range(self.config.num_layers)]

    def _embed(self, tokens: Array, context: Context, step: Array | int) -> Float[Array, "b s d"]:
        """Embeddings and positions. Positions count the prefix, slots that are not there excepted."""
        offset = jnp.sum(context.prefix_mask, axis=1, dtype=jnp.int32) + step
        positions = offset[:, None] + jnp.arange(tokens.shape[1])[None, :]
        return (self.embed(tokens) + sinusoidal_positions(positions, self.config.dim)).astype(self._dtype)

    def _prefix_positions(self, context: Context) -> Float[Array, "b p d"]:
        positions = jnp.maximum(jnp.cumsum(context.prefix_mask, axis=1) - 1, 0)
        return sinusoidal_positions(positions, self.config.dim).astype(self._dtype)

    def _project(self, text: Float[Array, "b l d"]) -> tuple[KeyValue, ...] | KeyValue:
        if self.scan_layers:
            return self.layers.project(text)
        return tuple(layer.cross_attn.project(text) for layer in self._layers)

    def _transform(self, x, mask, context: Context, cache: Cache | None, index):
        if self.scan_layers:
            return self.layers(x, mask, context.cross or None, context.cross_mask), ()
        memories = []
        for i, layer in enumerate(self._layers):
            cross = context.cross[i] if context.cross else None
            x, memory = layer(x, mask, cross, context.cross_mask, cache[i] if cache else None, index)
            memories.append(memory)
        return x, tuple(memories)

    def _logits(self, x: Float[Array, "b s d"]) -> Float[Array, "b s k v"]:
        return self.head(self.out_norm(x))


class Embedding(nn.Module):
    """The sum of K embeddings, one per codebook. The last row of each table is the special token's."""

    config: LMConfig

    def setup(self):
        config = self.config
        shape = (config.num_codebooks, config.codebook_size + 1, config.dim)
        init = nn.initializers.truncated_normal(config.dim**-0.5, lower=-3.0, upper=3.0)
        self.embedding = self.param("embedding", init, shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self.embedding.dtype

    def __call__(self, tokens: Int[Array, "b s k"]) -> Float[Array, "b s d"]:
        codebooks = jnp.arange(self.config.num_codebooks)[None, None, :]
        return jnp.sum(self.embedding[codebooks, tokens].astype(jnp.float32), axis=2)


def _projection(width: int, dim: int) -> Dense:
    """A condition's way into the model, initialised as the published recipe left it: torch's default."""
    uniform = symmetric_uniform(width)
    return Dense((width,), (dim,), use_bias=True, kernel_init=uniform, bias_init=uniform)


def _silence(tokens: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Condition:
    return Condition(jnp.where(mask[..., None], tokens, jnp.zeros_like(tokens)), mask)


def _slots(context: Context, num_steps: int) -> Bool[Array, "b m"]:
    """Which slots of a cache of `num_steps` steps hold something that may be attended to, once written."""
    rows = context.prefix_mask.shape[0]
    return jnp.concatenate([context.prefix_mask, jnp.ones((rows, num_steps), bool)], axis=1)
