"""HuBERT (Hsu et al. 2021), an encoder of audio; MERT (Li et al. 2023) has its architecture, trained on music."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.conditioning.roberta import FeedForward
from mgjax.config.conditioning import HubertConfig
from mgjax.nn import Dense, LayerNorm, attention

_FEATURE_EPS = 1e-5  # of the norms between the convolutions
_NORMALIZE_EPS = 1e-7


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
        x = _Conv(dim, width, stride, use_bias=config.conv_bias, name=f"conv{i}")(x)
        if config.conv_norm == "layer":
            x = LayerNorm(_FEATURE_EPS, name=f"conv{i}_norm")(x)
        elif i == 0:
            x = _TimeNorm(name="conv0_norm")(x)
        x = jax.nn.gelu(x, approximate=False)
    return x


class _Conv(nn.Module):
    """A convolution over time, without padding or with `padding` zeros before and after. Returns float32."""

    dim: int
    width: int
    stride: int = 1
    groups: int = 1
    padding: tuple[int, int] = (0, 0)
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b t d"]:
        shape = (self.width, x.shape[-1] // self.groups, self.dim)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = jax.lax.conv_general_dilated(
            x.astype(jnp.float32),
            kernel.astype(jnp.float32),
            (self.stride,),
            (self.padding,),
            dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=self.groups,
            precision="highest",
        ).astype(jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.dim,))
            y = y + bias.astype(jnp.float32)[None, None]
        return y


class _TimeNorm(nn.Module):
    """Each channel of each clip brought to mean 0 and variance 1 over time."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        centred = x - jnp.mean(x, axis=1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + _FEATURE_EPS)
        return y * scale.astype(jnp.float32)[None, None] + bias.astype(jnp.float32)[None, None]


class _Positions(nn.Module):
    """Position embeddings: a wide convolution over neighbouring frames."""

    config: HubertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        width, groups = self.config.position_kernel, self.config.position_groups
        padding = (width // 2, width - 1 - width // 2)
        conv = _Conv(self.config.dim, width, groups=groups, padding=padding, name="conv")
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
