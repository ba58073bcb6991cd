"""The discriminators that judge the codec's audio.

Over spectrograms (Défossez et al. 2022, section 3.4), and as options over the waveform at several rates (MelGAN, Kumar
et al. 2019) and folded by several periods (HiFi-GAN, Kong et al. 2020).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.codec.spectrogram import stft
from mgjax.config import ConfigError

FAMILIES = ("stft", "scale", "period")

# Of one discriminator: its scores, and what each layer before them put out.
Judgement = tuple[Float[Array, "..."], list[Float[Array, "..."]]]

_torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Which discriminators there are.

    Attributes:
      families: Of "stft", "scale" and "period"; each has an adversarial and a feature loss of its own.
      start: The first step at which they judge and learn; before it the codec learns from the other losses alone,
        in steps that take a fraction of the time.
      slope: Of the leaky ReLU, below zero.
      stft_sizes: Windows of the spectrograms in samples, one discriminator each.
      stft_filters: Channels of its layers.
      num_scales: Discriminators of the waveform, each at half the rate of the one before.
      scale_filters: Channels of their first layer.
      periods: Of the folded waveforms in samples, one discriminator each.
      period_filters: Channels of their first layer.
      max_filters: Channels of the later layers, at most; of scales and periods.
    """

    families: tuple[str, ...] = ("stft",)
    start: int = 0
    slope: float = 0.3
    stft_sizes: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    stft_filters: int = 32
    num_scales: int = 3
    scale_filters: int = 16
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_filters: int = 32
    max_filters: int = 1024

    def __post_init__(self):
        if set(self.families) - set(FAMILIES) or len(set(self.families)) != len(self.families):
            raise ConfigError(f"discriminator.families must be different ones of {FAMILIES}, got {self.families}")
        if any(size < 16 or size % 4 for size in self.stft_sizes) or not self.stft_sizes:
            raise ConfigError(f"discriminator.stft_sizes must be multiples of 4 from 16 on, got {self.stft_sizes}")
        if not self.periods or min(self.periods) < 1 or self.num_scales < 1 or self.start < 0:
            raise ConfigError(f"discriminator: periods and num_scales must be 1 or more, start 0 or more, got {self}")
        if min(self.stft_filters, self.scale_filters, self.period_filters, self.max_filters) < 1:
            raise ConfigError(f"discriminator: filters must be 1 or more, got {self}")

    @property
    def least_samples(self) -> int:
        """The shortest audio that all of them can judge."""
        return max(self.stft_sizes) if "stft" in self.families else max(self.periods)


class Discriminator(nn.Module):
    """All discriminators of a configuration: audio `b n c` to the judgements of each family."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> dict[str, list[Judgement]]:
        config, judged = self.config, {}
        if "stft" in config.families:
            judged["stft"] = [
                SpectralDiscriminator(config, size, name=f"stft{size}")(audio) for size in config.stft_sizes
            ]
        if "scale" in config.families:
            judged["scale"], heard = [], audio
            for i in range(config.num_scales):
                judged["scale"].append(ScaleDiscriminator(config, name=f"scale{i}")(heard))
                heard = _halved(heard)
        if "period" in config.families:
            judged["period"] = [
                PeriodDiscriminator(config, period, name=f"period{period}")(audio) for period in config.periods
            ]
        return judged


class SpectralDiscriminator(nn.Module):
    """2D convolutions over the complex spectrogram, a picture of time by frequency; the parts are its channels."""

    config: DiscriminatorConfig
    size: int

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> Judgement:
        b, n, c = audio.shape
        real, imaginary = stft(jnp.moveaxis(audio, 2, 1).reshape(b * c, n), self.size)
        # All channels' real parts, then their imaginary parts.
        x = jnp.stack([real, imaginary]).reshape(2, b, c, *real.shape[1:])
        x = jnp.transpose(x, (1, 3, 4, 0, 2)).reshape(b, *real.shape[1:], 2 * c)
        filters, maps = self.config.stft_filters, []

        def layer(x, kernel, **options):
            x = Conv(filters, kernel, name=f"conv{len(maps)}", **options)(x)
            maps.append(nn.leaky_relu(x, self.config.slope))
            return maps[-1]

        x = layer(x, (3, 9), weight_norm=False)
        for dilation in (1, 2, 4):
            x = layer(x, (3, 9), strides=(1, 2), dilation=(dilation, 1))
        x = layer(x, (3, 3))
        return Conv(1, (3, 3), name="score")(x), maps


class ScaleDiscriminator(nn.Module):
    """Strided, grouped 1D convolutions over the waveform."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> Judgement:
        config, maps = self.config, []

        def layer(x, filters, kernel, **options):
            x = Conv(min(filters, config.max_filters), (kernel,), name=f"conv{len(maps)}", **options)(x)
            maps.append(nn.leaky_relu(x, config.slope))
            return maps[-1]

        x = jnp.pad(audio, ((0, 0), (7, 7), (0, 0)), mode="reflect")
        x = layer(x, config.scale_filters, 15, pad=False)
        for _ in range(4):
            groups = math.gcd(max(1, x.shape[-1] // 4), min(4 * x.shape[-1], config.max_filters))
            x = layer(x, 4 * x.shape[-1], 41, strides=(4,), groups=groups)
        x = layer(x, 2 * x.shape[-1], 5)
        return Conv(1, (3,), name="score")(x), maps


class PeriodDiscriminator(nn.Module):
    """Strided convolutions along every `period`-th sample; the samples between are rows that share the kernels."""

    config: DiscriminatorConfig
    period: int

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> Judgement:
        config, maps = self.config, []
        b, n, c = audio.shape
        x = jnp.pad(audio, ((0, 0), (0, -n % self.period), (0, 0)), mode="reflect")
        x = x.reshape(b, -1, self.period, c)
        for i in range(5):
            filters = min(config.period_filters * 4**i, config.max_filters)
            x = Conv(filters, (5, 1), strides=(3 if i < 4 else 1, 1), name=f"conv{i}")(x)
            x = nn.leaky_relu(x, config.slope)
            maps.append(x)
        return Conv(1, (3, 1), name="score")(x), maps


class Conv(nn.Module):
    """A convolution in one or two dimensions, padded by zeros so that stride 1 keeps the size.

    Under weight norm the kernel is `scale * kernel / |kernel|` for each output channel.
    """

    features: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    groups: int = 1
    pad: bool = True
    weight_norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        rank = len(self.kernel)
        dilation = self.dilation or (1,) * rank
        shape = (*self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", _torch_init, shape)
        bias = self.param("bias", _uniform(math.prod(shape[:-1])), (self.features,))
        if self.weight_norm:
            scale = self.param("scale", lambda _: _norm(kernel))
            kernel = kernel * jnp.expand_dims(scale / _norm(kernel), range(rank + 1))
        around = [(width - 1) * step // 2 if self.pad else 0 for width, step in zip(self.kernel, dilation, strict=True)]
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            self.strides or (1,) * rank,
            [(space, space) for space in around],
            rhs_dilation=dilation,
            dimension_numbers=("NHC", "HIO", "NHC") if rank == 1 else ("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y + jnp.expand_dims(bias, range(rank + 1))


def _uniform(fan_in: int) -> Callable[..., Array]:
    """Uniform within 1 / sqrt(fan_in) of zero, as torch draws the biases of convolutions."""

    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

    return init


def _norm(kernel: Float[Array, "..."]) -> Float[Array, " f"]:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))))


def _halved(audio: Float[Array, "b n c"]) -> Float[Array, "b m c"]:
    """The audio at half its rate: means of four samples, every second one, with two zeros at each end."""
    return nn.avg_pool(audio, (4,), (2,), [(2, 2)])
