"""HTSAT (Chen et al. 2022), the audio tower of CLAP: a Swin transformer (Liu et al. 2021) over log-mel spectrograms."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from mgjax.conditioning.roberta import FeedForward
from mgjax.config.conditioning import ClapAudioConfig
from mgjax.nn import Dense, LayerNorm, attention


class HTSAT(nn.Module):
    """One vector for each spectrogram (decibels, `log_mel`), float32 [b, d]: the mean of the last stage's vectors.

    All is float32. The statistics of the first norm are the collection "stats" and do not change.
    """

    config: ClapAudioConfig

    @nn.compact
    def __call__(self, mels: Float[Array, "b f m"]) -> Float[Array, "b d"]:
        """The vector of each row of f frames of m mel bands."""
        config, side = self.config, self.config.patch_size
        image = _image(_FrozenBatchNorm(name="mel_norm")(mels), config)
        b, size, _ = image.shape
        squares = jnp.moveaxis(image.reshape(b, size // side, side, size // side, side), 2, 3)
        x = Dense((side, side), (config.dim,), True, name="patch")(squares)
        x = LayerNorm(name="patch_norm")(x)
        for i, (depth, num_heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            if i > 0:
                x = _Merge(name=f"stage{i}_merge")(x)
            for j in range(depth):
                shifted = j % 2 == 1 and x.shape[1] > config.window
                x = _Block(config, num_heads, shifted, name=f"stage{i}_block{j}")(x)
        return jnp.mean(LayerNorm(name="final_norm")(x), axis=(1, 2))


class _FrozenBatchNorm(nn.Module):
    """Each mel band brought to what was mean 0 and variance 1 in training, then scaled and moved."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b f m"]) -> Float[Array, "b f m"]:
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), shape).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape).astype(jnp.float32)
        mean = self.variable("stats", "mean", jnp.zeros, shape).value.astype(jnp.float32)
        variance = self.variable("stats", "var", jnp.ones, shape).value.astype(jnp.float32)
        gain = scale * jax.lax.rsqrt(variance + self.eps)
        return (x.astype(jnp.float32) - mean[None, None]) * gain[None, None] + bias[None, None]


def _image(x: Float[Array, "b f m"], config: ClapAudioConfig) -> Float[Array, "b i i"]:
    """The spectrogram's time in `image_size / num_mels` parts on top of each other, low bands first in each."""
    b, frames, num_mels = x.shape
    if frames > config.most_frames or num_mels != config.num_mels:
        raise ValueError(
            f"the audio tower takes up to {config.most_frames} frames of {config.num_mels} mel bands, got {frames} of "
            f"{num_mels}: cut the clip, and use log_mel with the same config"
        )
    if frames < config.most_frames:
        indices, weights = _bicubic(frames, config.most_frames)
        x = jnp.einsum("btpm,tp->btm", x[:, indices], weights, precision="highest")
    parts = x.reshape(b, config.image_size // num_mels, config.image_size, num_mels)
    return jnp.swapaxes(parts, 2, 3).reshape(b, config.image_size, config.image_size)


@functools.cache
def _bicubic(size: int, target: int) -> tuple[Int32[np.ndarray, "{target} 4"], Float32[np.ndarray, "{target} 4"]]:
    """For each of `target` points spread from the first of `size` to the last: four neighbours, and their weights.

    Keys's cubic convolution with a = -0.75, the ends repeated. The places are float32, as in torch.
    """
    place = np.arange(target, dtype=np.float32) * np.float32((size - 1) / max(target - 1, 1))
    left = np.floor(place)
    distance = np.abs((place - left)[:, None].astype(np.float64) - np.arange(-1, 3))
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    indices = np.clip(left.astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32), 0, size - 1)
    return indices, np.where(distance <= 1, near, far).astype(np.float32)


class _Merge(nn.Module):
    """Four neighbours become one vector, twice as wide."""

    @nn.compact
    def __call__(self, x: Float[Array, "b g g d"]) -> Float[Array, "b g2 g2 d2"]:
        b, side, _, d = x.shape
        x = x.reshape(b, side // 2, 2, side // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)  # the column counts before the row
        x = LayerNorm(name="norm")(x.reshape(b, side // 2, side // 2, 4 * d))
        return Dense((4 * d,), (2 * d,), False, name="reduce")(x)


class _Block(nn.Module):
    config: ClapAudioConfig
    num_heads: int
    shifted: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b g g d"]) -> Float[Array, "b g g d"]:
        eps, window = self.config.norm_eps, self.config.window
        shift = window // 2 if self.shifted else 0
        x = x + self._attended(LayerNorm(eps, name="attn_norm")(x), window, shift)
        feed_forward = FeedForward(int(self.config.mlp_ratio * x.shape[-1]), name="ffn")
        return x + feed_forward(LayerNorm(eps, name="ffn_norm")(x))

    def _attended(self, x: Float[Array, "b g g d"], window: int, shift: int) -> Float[Array, "b g g d"]:
        """Attention within windows. Where the side is no multiple of them, it is padded with zeros, without a mask."""
        b, side, _, d = x.shape
        count = -(-side // window)
        fill = count * window - side
        x = jnp.pad(x, ((0, 0), (0, fill), (0, fill), (0, 0)))
        x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
        x = x.reshape(b, count, window, count, window, d).swapaxes(2, 3).reshape(-1, window * window, d)
        mask = jnp.tile(_together(count, window, shift)[:, None], (b, 1, 1, 1)) if shift else None
        x = _WindowAttention(self.config, self.num_heads, name="attn")(x, mask)
        x = x.reshape(b, count, count, window, window, d).swapaxes(2, 3).reshape(b, side + fill, side + fill, d)
        return jnp.roll(x, (shift, shift), axis=(1, 2))[:, :side, :side]


class _WindowAttention(nn.Module):
    config: ClapAudioConfig
    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "w q d"], mask: Bool[Array, "w 1 q q"] | None) -> Float[Array, "w q d"]:
        d, heads, window = x.shape[-1], (self.num_heads, x.shape[-1] // self.num_heads), self.config.window
        bias = self.config.qkv_bias
        query, key, value = (Dense((d,), heads, bias, name=name)(x) for name in ("query", "key", "value"))
        by_distance = self.param("position_bias", nn.initializers.zeros_init(), ((2 * window - 1) ** 2, self.num_heads))
        position_bias = jnp.moveaxis(by_distance.astype(jnp.float32)[_distances(window)], 2, 0)[None]
        y = attention(query, key, value, mask=mask, bias=position_bias, scale=heads[1] ** -0.5)
        return Dense(heads, (d,), True, name="out")(y)


@functools.cache
def _distances(window: int) -> Int32[np.ndarray, "q q"]:
    """For each pair of places in a window, the row of the bias table for their distance."""
    row, column = np.divmod(np.arange(window * window), window)
    rows = row[:, None] - row[None] + window - 1
    columns = column[:, None] - column[None] + window - 1
    return (rows * (2 * window - 1) + columns).astype(np.int32)


@functools.cache
def _together(count: int, window: int, shift: int) -> Bool[np.ndarray, "w q q"]:
    """Which places of each of `count * count` windows were neighbours before the shift brought both edges together."""
    place = np.arange(count * window)
    edge = np.int32(place >= (count - 1) * window) + (place >= count * window - shift)
    regions = (3 * edge[:, None] + edge[None]).reshape(count, window, count, window)
    region = regions.swapaxes(1, 2).reshape(count * count, window * window)
    return region[:, :, None] == region[:, None, :]
