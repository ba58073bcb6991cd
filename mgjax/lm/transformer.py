"""The causal transformer of MusicGen: pre-norm layers of self-attention, cross-attention and feed-forward.

Keys and values are cached head-major, `[b, h, m, e]`: decoding reads them once per step, and in this order those of
each head are one contiguous run (four times faster than `[b, m, h, e]` on CPU).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, Shaped

from mgjax.config.model import LMConfig
from mgjax.devices import sharding
from mgjax.lm.attention import attend, attend_causally, attend_to_cache, attend_to_condition
from mgjax.lm.slots import Slots, stored
from mgjax.nn import Dense, Initializer, LayerNorm, symmetric_uniform

LayerIndex = int | Int[Array, ""]  # of a layer; its initialisation alone depends on it


class KeyValue(NamedTuple):
    """Keys and values of one layer: of its self-attention's cache, or of its cross-attention."""

    key: Slots
    value: Slots


class SelfAttention(nn.Module):
    """Causal self-attention, over its input or over a cache, into which its keys and values are written first."""

    config: LMConfig
    layer: LayerIndex

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        valid: Bool[Array, "b m"] | None,
        cache: KeyValue | None,
        first_slot: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b s d"], KeyValue]:
        """Returns the output, and the keys and values that were attended to.

        `cache` holds those of the steps before; those of this input are written there first, from `first_slot` on.
        `valid` is which slots (steps, without a cache) are not padding then; None for all.
        """
        heads = (self.config.num_heads, self.config.head_dim)
        # The packed projection keeps the uniform initialisation of a bare parameter, as the published recipe did.
        qkv_init = symmetric_uniform(self.config.dim)
        qkv = Dense((self.config.dim,), (3, *heads), kernel_init=qkv_init, name="qkv")(x)
        key, value = (jnp.swapaxes(qkv[:, :, n], 1, 2) for n in (1, 2))
        if cache is None:
            written = KeyValue(key, value)
            y = attend_causally(qkv[:, :, 0], key, value, valid)
        else:
            new = KeyValue(stored(key, cache.key.dtype), stored(value, cache.value.dtype))
            leaves, structure = jax.tree.flatten(cache)
            pairs = [_written(*pair, first_slot) for pair in zip(leaves, jax.tree.leaves(new), strict=True)]
            written, attended = (jax.tree.unflatten(structure, part) for part in zip(*pairs, strict=True))
            y = attend_to_cache(qkv[:, :, 0], attended.key, attended.value, first_slot, valid)
        out_init = residual_init(self.layer, in_axis=(0, 1))
        return Dense(heads, (self.config.dim,), kernel_init=out_init, name="out")(y), written


def _written(
    cached: Shaped[Array, "b h m e"], new: Shaped[Array, "b h s e"], first_slot: Int[Array, ""] | int
) -> tuple[Shaped[Array, "b h m e"], Shaped[Array, "b h m e"]]:
    """The cache with new steps in it, to keep and to attend to: the same numbers.

    Memory of TPUs is in tiles of 128 numbers. Left alone, XLA puts the width of a head last, because a slot is then
    quickly written, and half of each tile stays empty: the cache takes twice the room and the time to read it. And
    where attention reads what was written, XLA reads the cache into its fast memory first, writes the slot there, and
    then the whole cache back; so attention reads the cache before, and the slot from the new step.
    """

    def anywhere(cached: Array, new: Array) -> tuple[Array, Array]:
        written = jax.lax.dynamic_update_slice_in_dim(cached, new, first_slot, axis=2)
        return written, written

    def on_tpu(cached: Array, new: Array) -> tuple[Array, Array]:
        written = with_layout_constraint(anywhere(cached, new)[0], Layout(major_to_minor=(0, 1, 3, 2)))
        if new.shape[2] > 1:
            return written, written
        is_new = (jnp.arange(cached.shape[2]) == first_slot)[None, None, :, None]
        return written, jnp.where(is_new, new, cached)

    return jax.lax.platform_dependent(cached, new, tpu=on_tpu, default=anywhere)


class CrossAttention(nn.Module):
    """Attention to the keys and values of a condition, which `project` computes once for all steps."""

    config: LMConfig
    layer: LayerIndex

    def setup(self) -> None:
        """The projections of the steps, of the condition and of the result."""
        dim, heads = self.config.dim, (self.config.num_heads, self.config.head_dim)
        uniform = symmetric_uniform(dim)
        self.query = Dense((dim,), heads, kernel_init=uniform)
        self.kv = Dense((dim,), (2, *heads), kernel_init=uniform)
        self.out = Dense(heads, (dim,), kernel_init=residual_init(self.layer, in_axis=(0, 1)))

    def project(self, condition: Float[Array, "b l d"]) -> KeyValue:
        """The keys and values of a condition."""
        kv = self.kv(condition)
        return KeyValue(*(jnp.swapaxes(kv[:, :, n], 1, 2) for n in (0, 1)))

    def __call__(
        self, x: Float[Array, "b s d"], cross: KeyValue, mask: Bool[Array, "b l"], decodes: bool
    ) -> Float[Array, "b s d"]:
        """The output of `s` steps, of decoding or of a whole sequence; a row whose mask is all False gets zeros."""
        if decodes:
            return self.out(attend_to_condition(self.query(x), *cross, mask))
        return self.out(attend(self.query(x), *cross, mask[:, None, None, :]))


class FeedForward(nn.Module):
    """Two matrices around an exact (erf) GELU."""

    config: LMConfig
    layer: LayerIndex

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """The output of each step."""
        dim, wide = self.config.dim, self.config.ffn_dim
        y = Dense((dim,), (wide,), kernel_init=residual_init(self.layer), name="up")(x)
        y = jax.nn.gelu(y, approximate=False)
        return Dense((wide,), (dim,), kernel_init=residual_init(self.layer), name="down")(y)


class Layer(nn.Module):
    """x + self-attention, x + cross-attention, x + feed-forward, each of a normalised x."""

    config: LMConfig
    layer: LayerIndex

    def setup(self) -> None:
        """The three parts and their norms; cross-attention where the config has it."""
        self.self_norm = LayerNorm()
        self.self_attn = SelfAttention(self.config, self.layer)
        if self.config.cross_attention:
            self.cross_norm = LayerNorm()
            self.cross_attn = CrossAttention(self.config, self.layer)
        self.ffn_norm = LayerNorm()
        self.ffn = FeedForward(self.config, self.layer)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        valid: Bool[Array, "b m"] | None,
        cross: KeyValue | None,
        cross_mask: Bool[Array, "b l"],
        cache: KeyValue | None,
        first_slot: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "b s d"], KeyValue]:
        """Returns the output, and the keys and values of self-attention; the others are as for `SelfAttention`.

        `cross` is the condition's keys and values, by `cross_attn.project`, or None for no cross-attention.
        """
        x = sharding.by_rows(x)
        y, written = self.self_attn(self.self_norm(x), valid, cache, first_slot)
        x = x + y
        if cross is not None:
            x = x + self.cross_attn(self.cross_norm(x), cross, cross_mask, cache is not None)
        return x + self.ffn(self.ffn_norm(x)), written


def residual_init(layer: LayerIndex, in_axis: tuple[int, ...] = (0,)) -> Initializer:
    """The published initialisation of a matrix in a layer: truncated normal, narrower with depth.

    Standard deviation 1 / sqrt(fan_in) before the cut at three deviations, divided by sqrt(2 (layer + 1)).
    """
    return functools.partial(_residual_init, layer, in_axis)


def _residual_init(
    layer: LayerIndex, in_axis: tuple[int, ...], key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> Array:
    deviation = (math.prod(shape[axis] for axis in in_axis) * 2 * (layer + 1)) ** -0.5
    return deviation * jax.random.truncated_normal(key, -3.0, 3.0, shape, dtype)
