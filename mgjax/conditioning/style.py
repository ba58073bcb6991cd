"""The style conditioner (Rouard et al. 2024): encodes a few seconds of music as a few vectors of its style.

Features of an excerpt (of MERT, see hubert.py, or the codec's codes) pass a small transformer, a batch normalisation
and a residual vector quantizer, and are downsampled in time. Through this bottleneck the style passes and the melody
does not: the fewer codebooks, the less is left of the excerpt.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.config.conditioning import StyleConfig
from mgjax.nn import Dense, LayerNorm, attention, codebook_shapes, dequantize, quantize, sinusoidal_positions

_MOMENTUM = 0.1  # the share of a batch in the running statistics
_BATCH_EPS = 1e-5
_SILENCE = 1e-5  # of full scale; samples below are no sound
_DRAWS = 100  # of an excerpt, until one is not silent

Inputs = Float[Array, "b t c"] | Int[Array, "b t k"]  # features, or codes


class StyleConditioner(nn.Module):
    """The style, float32 [b, ceil(t / downsample), dim], of an excerpt's features [b, t, d] or codes [b, t, k].

    Of the codes the first `config.num_code_streams` codebooks are read. All is float32: codes are hard decisions.

    Collections: "params"; "batch_stats", the running `mean` and `var` of the batch normalisation; "codebooks", the
    quantizer in the form of `mgjax.codec.rvq_training`.

    Training takes the parts one by one, since its quantizer is updated with them: `latents(..., training=True)` with
    `mutable=["batch_stats"]`, then `rvq_training.quantize` of all codebooks, then `keep`.
    """

    config: StyleConfig

    def setup(self) -> None:
        """The transformer, the statistics of the batch normalisation and the codebooks."""
        config = self.config
        self.encoder = _Encoder(config)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (config.dim,))
        self.var = self.variable("batch_stats", "var", jnp.ones, (config.dim,))
        shapes = codebook_shapes(config.num_codebooks, config.codebook_size, config.dim)
        self.codebooks = {name: self.variable("codebooks", name, jnp.zeros, shape) for name, shape in shapes.items()}

    def __call__(self, inputs: Inputs) -> Float[Array, "b l d"]:
        """The style through the first `config.eval_codebooks` codebooks, as at generation."""
        latents = self.latents(inputs)
        _, total, _ = quantize(latents, self.codebooks["embed"].value[: self.config.eval_codebooks])
        return keep(total, self.config)

    def latents(self, inputs: Inputs, training: bool = False) -> Float[Array, "b t d"]:
        """The quantizer's input: the transformer's output after batch normalisation.

        In training it is normalised by the mean and variance of the batch, which also move the running ones, else by
        the running ones. All rows count, so they should all hold an excerpt: a style is dropped by its mask, later.
        """
        x = self.encoder(inputs)
        mean, var = self.mean.value, self.var.value
        if training:
            mean, var = jnp.mean(x, axis=(0, 1)), jnp.var(x, axis=(0, 1))
            if not self.is_initializing():
                count = x.shape[0] * x.shape[1]
                fixed = jax.lax.stop_gradient((mean, var * (count / max(count - 1, 1))))  # without bias, as in torch
                self.mean.value += _MOMENTUM * (fixed[0] - self.mean.value)
                self.var.value += _MOMENTUM * (fixed[1] - self.var.value)
        return (x - mean[None, None]) * jax.lax.rsqrt(var + _BATCH_EPS)[None, None]


def keep(latents: Float[Array, "b t d"], config: StyleConfig) -> Float[Array, "b l d"]:
    """Every `config.downsample`-th frame, from the first."""
    return latents[:, :: config.downsample]


class _Encoder(nn.Module):
    """Features or codes through the transformer, which is bidirectional and has no norm at its end."""

    config: StyleConfig

    @nn.compact
    def __call__(self, inputs: Inputs) -> Float[Array, "b t d"]:
        config = self.config
        if config.features is not None:
            x = Dense((config.features.dim,), (config.dim,), use_bias=True, name="embed")(inputs.astype(jnp.float32))
        else:
            x = _CodeEmbedding(config, name="embed")(inputs)
        x = x + sinusoidal_positions(jnp.arange(x.shape[1])[None], config.dim)
        for i in range(config.num_layers):
            x = _Layer(config, name=f"layer{i}")(x)
        return x


class _CodeEmbedding(nn.Module):
    """The sum of a learned vector for each of the first codes of a frame."""

    config: StyleConfig

    @nn.compact
    def __call__(self, codes: Int[Array, "b t k"]) -> Float[Array, "b t d"]:
        k, v = self.config.num_code_streams, self.config.code_size
        table = self.param("embedding", nn.initializers.normal(1.0), (k, v, self.config.dim)).astype(jnp.float32)
        return dequantize(codes[:, :, :k], table)


class _Layer(nn.Module):
    """x + self-attention, x + feed-forward, each of a normalised x, without biases."""

    config: StyleConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dim, wide = self.config.dim, self.config.ffn_dim
        heads = (self.config.num_heads, dim // self.config.num_heads)
        qkv = Dense((dim,), (3, *heads), name="qkv")(LayerNorm(name="attn_norm")(x))
        y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], scale=heads[1] ** -0.5)
        x = x + Dense(heads, (dim,), name="out")(y)
        y = Dense((dim,), (wide,), name="up")(LayerNorm(name="ffn_norm")(x))
        return x + Dense((wide,), (dim,), name="down")(jax.nn.gelu(y, approximate=False))


def excerpt(audio: np.ndarray, sample_rate: int, seconds: float, seed: int) -> np.ndarray:
    """Cuts `seconds` seconds out of `audio` [n] or [n, c], at a place that `seed` draws.

    Silent excerpts are never chosen, unless all of the audio is silent. Audio that is too short is repeated.
    """
    length = round(seconds * sample_rate)
    sounds = np.abs(audio).reshape(len(audio), -1).max(axis=1) > _SILENCE
    if len(audio) < length:
        whole = -(-length // len(audio))
        return np.concatenate([audio] * whole)[:length]
    starts = np.random.default_rng(seed).integers(len(audio) - length + 1, size=_DRAWS)
    around_a_sound = np.clip(np.argmax(sounds) - length // 2, 0, len(audio) - length)
    start = next((start for start in starts if sounds[start : start + length].any()), around_a_sound)
    return audio[start : start + length]
