"""The discriminators that the codec is trained against.

Over spectrograms (Défossez et al. 2022, section 3.4), and as options over the waveform at several rates (MelGAN, Kumar
et al. 2019) and folded by several periods (HiFi-GAN, Kong et al. 2020).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.codec import weight_norm
from mgjax.codec.spectrogram import stft
from mgjax.config.serialization import ranged
from mgjax.errors import ConfigError
from mgjax.nn import symmetric_uniform

FAMILIES = ("stft", "scale", "period")

# Of one discriminator: its scores, and its feature maps, the outputs of the layers before.
Output = tuple[Float[Array, "..."], list[Float[Array, "..."]]]

_torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The families of discriminators and their sizes.

    Attributes:
      families: Of "stft", "scale" and "period"; each has an adversarial and a feature loss of its own.
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
    slope: float = 0.3
    stft_sizes: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    stft_filters: int = 32
    num_scales: int = 3
    scale_filters: int = 16
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_filters: int = 32
    max_filters: int = 1024

    def __post_init__(self) -> None:
        if set(self.families) - set(FAMILIES) or len(set(self.families)) != len(self.families):
            raise ConfigError(f"discriminator.families must be different ones of {FAMILIES}, got {self.families}")
        if any(size < 16 or size % 4 for size in self.stft_sizes) or not self.stft_sizes:
            raise ConfigError(f"discriminator.stft_sizes must be multiples of 4 from 16 on, got {self.stft_sizes}")
        ranged(self, "1 or more", "num_scales stft_filters scale_filters period_filters max_filters", "discriminator.")
        if not self.periods or min(self.periods) < 1:
            raise ConfigError(f"discriminator.periods must be 1 or more, got {self.periods}")

    @property
    def least_samples(self) -> int:
        """The shortest audio that all of them can take."""
        return max(self.stft_sizes) if "stft" in self.families else max(self.periods)


class Discriminator(nn.Module):
    """All discriminators of a config: audio `b n c` to the outputs of each family."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> dict[str, list[Output]]:
        """The outputs of each discriminator, by family."""
        config, outputs = self.config, {}
        if "stft" in config.families:
            outputs["stft"] = [
                SpectralDiscriminator(config, size, name=f"stft{size}")(audio) for size in config.stft_sizes
            ]
        if "scale" in config.families:
            outputs["scale"], scaled = [], audio
            for i in range(config.num_scales):
                outputs["scale"].append(ScaleDiscriminator(config, name=f"scale{i}")(scaled))
                # Half the rate: means of four samples, every second one, with two zeros at each end.
                scaled = nn.avg_pool(scaled, (4,), (2,), [(2, 2)])
        if "period" in config.families:
            outputs["period"] = [
                PeriodDiscriminator(config, period, name=f"period{period}")(audio) for period in config.periods
            ]
        return outputs


class SpectralDiscriminator(nn.Module):
    """2D convolutions over the complex spectrogram, a picture of time by frequency; the parts are its channels."""

    config: DiscriminatorConfig
    size: int

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> Output:
        """Scores `b t f 1` and feature maps `b t f filters`."""
        b, n, c = audio.shape
        real, imaginary = stft(jnp.moveaxis(audio, 2, 1).reshape(b * c, n), self.size)
        # All channels' real parts, then their imaginary parts.
        x = jnp.stack([real, imaginary]).reshape(2, b, c, *real.shape[1:])
        x = jnp.transpose(x, (1, 3, 4, 0, 2)).reshape(b, *real.shape[1:], 2 * c)
        conv = functools.partial(Conv, self.config.stft_filters)
        convs = [conv((3, 9), weight_norm=False, name="conv0")]
        convs += [conv((3, 9), stride=2, dilation=2**i, name=f"conv{1 + i}") for i in range(3)]
        return _scored(x, [*convs, conv((3, 3), name="conv4")], Conv(1, (3, 3), name="score"), self.config.slope)


class ScaleDiscriminator(nn.Module):
    """Strided, grouped 1D convolutions over the waveform."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> Output:
        """Scores `b t 1` and feature maps `b t filters`."""
        config = self.config
        before = min(config.scale_filters, config.max_filters)
        convs = [Conv(before, (15,), pad=False, name="conv0")]
        for i in range(1, 5):
            filters = min(4 * before, config.max_filters)
            groups = math.gcd(max(1, before // 4), filters)
            convs.append(Conv(filters, (41,), stride=4, groups=groups, name=f"conv{i}"))
            before = filters
        convs.append(Conv(min(2 * before, config.max_filters), (5,), name="conv5"))
        x = jnp.pad(audio, ((0, 0), (7, 7), (0, 0)), mode="reflect")
        return _scored(x, convs, Conv(1, (3,), name="score"), config.slope)


class PeriodDiscriminator(nn.Module):
    """Strided convolutions along every `period`-th sample; the samples between are rows that share the kernels."""

    config: DiscriminatorConfig
    period: int

    @nn.compact
    def __call__(self, audio: Float[Array, "b n c"]) -> Output:
        """Scores `b*period t 1` and feature maps `b*period t filters`."""
        config = self.config
        b, n, c = audio.shape
        x = jnp.pad(audio, ((0, 0), (0, -n % self.period), (0, 0)), mode="reflect")
        x = jnp.moveaxis(x.reshape(b, -1, self.period, c), 2, 1).reshape(b * self.period, -1, c)
        widths = [min(config.period_filters * 4**i, config.max_filters) for i in range(5)]
        convs = [Conv(width, (5,), stride=3 if i < 4 else 1, name=f"conv{i}") for i, width in enumerate(widths)]
        return _scored(x, convs, Conv(1, (3,), name="score"), config.slope)


def _scored(x: Array, convs: Sequence[Conv], score: Conv, slope: float) -> Output:
    """The scores, and the feature maps: what each convolution gives after a leaky ReLU."""
    maps = []
    for conv in convs:
        x = nn.leaky_relu(conv(x), slope)
        maps.append(x)
    return score(x), maps


class Conv(nn.Module):
    """A convolution in one or two dimensions, padded by zeros so that stride 1 keeps the size.

    Under weight norm the kernel is `scale * kernel / |kernel|` for each output channel.
    """

    features: int
    kernel: tuple[int, ...]
    stride: int = 1  # of the last dimension
    dilation: int = 1  # of the first dimension
    groups: int = 1
    pad: bool = True
    weight_norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The convolution of x: rows, one or two dimensions, channels."""
        rank = len(self.kernel)
        shape = (*self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", _torch_init, shape)
        bias = self.param("bias", symmetric_uniform(math.prod(shape[:-1])), (self.features,))
        if self.weight_norm:
            scale = self.param("scale", lambda _: weight_norm.norm(kernel, axis=-1))
            kernel = weight_norm.normalized(kernel, scale, axis=-1)
        dilation = (self.dilation, *(1,) * (rank - 1))
        around = tuple((width - 1) * step // 2 * self.pad for width, step in zip(self.kernel, dilation, strict=True))
        y = convolve(x, kernel, self.stride, dilation, around, self.groups)
        return y + jnp.expand_dims(bias, range(rank + 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolve(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."],
    stride: int,
    dilation: tuple[int, ...],
    around: tuple[int, ...],
    groups: int = 1,
) -> Float[Array, "..."]:
    """The convolution of `x` (rows, one or two dimensions, channels) with `kernel` (dimensions, inputs, outputs).

    There are `around` zeros before and after each dimension; `stride` is that of the last one.
    """
    rank = len(around)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (*(1,) * (rank - 1), stride),
        [(space, space) for space in around],
        rhs_dilation=dilation,
        dimension_numbers=("NHC", "HIO", "NHC") if rank == 1 else ("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _convolve_forward(x: Array, kernel: Array, *options: Any) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, *options), (x, kernel)


def _convolve_backward(
    stride: int,
    dilation: tuple[int, ...],
    around: tuple[int, ...],
    groups: int,
    saved: tuple[Array, Array],
    gradient: Array,
) -> tuple[Array, Array]:
    """The gradients. That of the input of a strided convolution is ten times faster by `_merged` on CPU."""
    x, kernel = saved
    native = functools.partial(convolve.fun, stride=stride, dilation=dilation, around=around, groups=groups)

    def by(function: Callable[[Array, Array], Array]) -> Callable[[], Array]:
        return lambda: jax.linear_transpose(lambda x: function(x, kernel), x)(gradient)[0]

    if stride == 1 or groups > 1:
        x_gradient = by(native)()
    else:
        merged = functools.partial(_merged, stride=stride, dilation=dilation, around=around)
        x_gradient = jax.lax.platform_dependent(cpu=by(merged), default=by(native))
    return x_gradient, jax.linear_transpose(lambda kernel: native(x, kernel), kernel)(gradient)[0]


convolve.defvjp(_convolve_forward, _convolve_backward)


def _merged(x: Array, kernel: Array, stride: int, dilation: tuple[int, ...], around: tuple[int, ...]) -> Array:
    """A strided convolution as one of stride 1, with `stride` neighbouring samples as the channels of one."""
    *_, size, channels = x.shape
    *_, width, _, features = kernel.shape
    taps = -(-width // stride)
    outputs = (size + 2 * around[-1] - width) // stride + 1
    whole = (outputs - 1 + taps) * stride
    around_last = [(space, space, 0) for space in around[:-1]]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(0, 0, 0), *around_last, (around[-1], whole - size - around[-1], 0), (0, 0, 0)])
    x = x.reshape(*x.shape[:-2], whole // stride, stride * channels)
    kernel = jax.lax.pad(
        kernel, zero, [(0, 0, 0)] * (kernel.ndim - 3) + [(0, taps * stride - width, 0), (0, 0, 0), (0, 0, 0)]
    )
    kernel = kernel.reshape(*kernel.shape[:-3], taps, stride * channels, features)
    return convolve.fun(x, kernel, 1, dilation, (0,) * len(around))
