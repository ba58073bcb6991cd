"""HuBERT (Hsu et al. 2021), an encoder of audio; MERT (Li et al. 2023) has its architecture, trained on music."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.conditioning.roberta import FeedForward
from mgjax.config.conditioning import HubertConfig
from mgjax.nn import Dense, LayerNorm, attention

_NORMALIZE_EPS = 1e-7
_Conv = functools.partial(nn.Conv, dtype=jnp.float32, precision="highest")


class Hubert(nn.Module):
    """The encoder's last hidden states, float32 [b, t, d], of audio float32 [b, n] at `config.sample_rate`.

    All clips of a batch have one length; t is `num_frames(config, n)`. All is float32.

    Raises:
      ValueError: The audio is shorter than a frame.
    """

    config: HubertConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "b n"]) -> Float[Array, "b t d"]:
        """The hidden states of t frames."""
        config = self.config
        _check_length(config, audio.shape[1])
        x = _normalized(audio) if config.normalize else audio
        x = _features(config, x.astype(jnp.float32)[:, :, None])
        x = LayerNorm(config.norm_eps, name="features_norm")(x)
        x = Dense(x.shape[-1:], (config.dim,), True, name="features_proj")(x)
        x = x + _Positions(config, name="positions")(x)
        # Post-norm layers take a normalised stream; that of pre-norm layers is normalised last.
        norm = LayerNorm(config.norm_eps, name="norm")
        x = x if config.pre_norm else norm(x)
        for i in range(config.num_layers):
            x = _Layer(config, name=f"layer{i}")(x)
        return norm(x) if config.pre_norm else x


def num_frames(config: HubertConfig, num_samples: int) -> int:
    """The number of frames of `num_samples` samples; 0 or below where these are too few."""
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def _check_length(config: HubertConfig, num_samples: int) -> None:
    if num_frames(config, num_samples) >= 1:
        return
    shortest = 1
    for kernel, stride in zip(reversed(config.conv_kernels), reversed(config.conv_strides), strict=True):
        shortest = (shortest - 1) * stride + kernel
    raise ValueError(
        f"the audio has {num_samples} samples, and one frame of features needs {shortest} "
        f"({1000 * shortest / config.sample_rate:.0f} ms at {config.sample_rate} Hz): give a longer piece"
    )


def _normalized(audio: Float[Array, "b n"]) -> Float[Array, "b n"]:
    centred = audio - jnp.mean(audio, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=1, keepdims=True) + _NORMALIZE_EPS)


def _features(config: HubertConfig, x: Float[Array, "b n 1"]) -> Float[Array, "b t c"]:
    """Convolutions that turn samples into frames."""
    for i, (dim, width, stride) in enumerate(
        zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)
    ):
        x = _Conv(dim, (width,), stride, "VALID", use_bias=config.conv_bias, name=f"conv{i}")(x)
        if config.conv_norm == "layer":
            x = LayerNorm(name=f"conv{i}_norm")(x)
        elif i == 0:
            x = LayerNorm(axis=1, name="conv0_norm")(x)  # a group norm of one group for each channel
        x = jax.nn.gelu(x, approximate=False)
    return x


class _Positions(nn.Module):
    """Position embeddings: a wide convolution over neighbouring frames."""

    config: HubertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        width, groups = self.config.position_kernel, self.config.position_groups
        padding = [(width // 2, width - 1 - width // 2)]
        conv = _Conv(self.config.dim, (width,), padding=padding, feature_group_count=groups, name="conv")
        return jax.nn.gelu(conv(x), approximate=False)


class _Layer(nn.Module):
    """Self-attention and feed-forward, each added to its input and normalised before (`pre_norm`) or after."""

    config: HubertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        attn = _SelfAttention(self.config, name="attn")
        ffn = FeedForward(self.config.ffn_dim, name="ffn")
        for layer in (attn, ffn):
            norm = LayerNorm(self.config.norm_eps, name=f"{layer.name}_norm")
            x = x + layer(norm(x)) if self.config.pre_norm else norm(x + layer(x))
        return x


class _SelfAttention(nn.Module):
    config: HubertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dim, heads = self.config.dim, self.config.num_heads
        shape = (heads, dim // heads)
        qkv = Dense((dim,), (3, *shape), use_bias=True, name="qkv")(x)
        y = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], scale=shape[1] ** -0.5)
        return Dense(shape, (dim,), use_bias=True, name="out")(y)
