"""Convolutions of EnCodec over `b n c`: the original's padding, at a right edge that may be known only at run time.

Every layer takes `length`, the number of valid samples of its buffer; what lies beyond is padding and ignored, whatever
it holds. So one compiled program serves every length up to its buffer's, and still pads at the true end as the original
does.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.codec import layers, weight_norm
from mgjax.config.model import CodecConfig

Length = int | Int[Array, ""]

_EPS = 1e-5  # of the group norm


def masked(x: Float[Array, "b n c"], length: Length) -> Float[Array, "b n c"]:
    """`x` with zeros in the place of its padding, from `length` on."""
    if isinstance(length, int) and length >= x.shape[1]:
        return x
    return jnp.where((jnp.arange(x.shape[1]) < length)[None, :, None], x, 0)


def paddings(config: CodecConfig, span: int, stride: int) -> tuple[int, int]:
    """(left, right) padding of a convolution whose kernel spans `span` samples."""
    total = span - stride
    right = 0 if config.causal else total // 2
    return total - right, right


def trims(config: CodecConfig, width: int, stride: int) -> tuple[int, int]:
    """(left, right) samples that are cut off the output of a transposed convolution."""
    total = width - stride
    right = math.ceil(total * config.trim_right_ratio) if config.causal else total // 2
    return total - right, right


def reflect(x: Float[Array, "b n c"], length: Length, left: int, right: int, stride: int) -> Float[Array, "b m c"]:
    """`x` with `left` mirrored samples before it and `right` after it, as if its length were whole strides.

    It is mirrored at the first sample and at sample `length - 1`; a signal too short to be mirrored is first lengthened
    with zeros, as in the original.
    """
    n = x.shape[1]
    x = masked(x, length)
    most = right + stride - 1  # mirrored samples that the last stride may need
    longest = max(n, left + 1, most + 1)
    x = jnp.pad(x, ((0, 0), (0, longest + most - n), (0, 0)))
    head = jnp.flip(x[:, 1 : left + 1], axis=1)
    if most:
        last = jnp.maximum(length - 1, jnp.maximum(left, right + -length % stride))
        mirrored = jnp.take(x, last - 1 - jnp.arange(most), axis=1, mode="clip")
        x = jax.lax.dynamic_update_slice_in_dim(x, mirrored, last + 1, axis=1)
    return jnp.concatenate([head, x[:, : n + right]], axis=1)


def convolve(
    x: Float[Array, "b n c"], kernel: Float[Array, "w c f"], stride: int, dilation: int, zeros: tuple[int, int]
) -> Float[Array, "b m f"]:
    """The convolution of `x`, with `zeros` before and after it, with `kernel`."""
    if kernel.shape[0] == 1 and stride == 1:
        return jnp.einsum("bnc,cf->bnf", x, kernel[0])
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), [zeros], rhs_dilation=(dilation,), dimension_numbers=("NHC", "HIO", "NHC")
    )


def convolve_padded(
    x: Float[Array, "b n c"],
    length: Length,
    kernel: Float[Array, "w c f"],
    stride: int,
    dilation: int,
    config: CodecConfig,
) -> Float[Array, "b m f"]:
    """The convolution of `x`, whose first `length` samples are valid, padded at both ends as in the original.

    Padding by reflection would copy the whole signal for the sake of a few samples at its ends: instead all is padded
    with zeros, which costs nothing, and the ends are computed again from short pieces that are padded in full.
    """
    span = (kernel.shape[0] - 1) * dilation + 1
    left, right = paddings(config, span, stride)
    head, tail = math.ceil(left / stride), math.ceil((right + stride - 1) / stride)  # outputs that see an end
    piece = (2 * (head + tail) + math.ceil(span / stride) + 2) * stride
    if config.pad_mode == "reflect" and x.shape[1] <= 2 * piece:
        return convolve(reflect(x, length, left, right, stride), kernel, stride, dilation, (0, 0))
    y = convolve(masked(x, length), kernel, stride, dilation, (left, right))
    if config.pad_mode == "constant" or span == stride:
        return y

    def edge(start: Length) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, start, piece, axis=1)
        part = reflect(part, jnp.minimum(length - start, piece), left, right, stride)
        return convolve(part, kernel, stride, dilation, (0, 0))

    end = -(-length // stride)
    start = jnp.maximum(end - piece // stride, 0)
    last = jnp.maximum(end - tail, 0)
    y = jax.lax.dynamic_update_slice_in_dim(
        y, jax.lax.dynamic_slice_in_dim(edge(start * stride), last - start, tail, axis=1), last, axis=1
    )
    return jax.lax.dynamic_update_slice_in_dim(y, edge(0)[:, :head], 0, axis=1)


def convolve_transpose(x: Float[Array, "b n c"], kernel: Float[Array, "w c f"], stride: int) -> Float[Array, "b m f"]:
    """The whole transposed convolution of `x` with `kernel`, up to a whole stride.

    Each stride of output is an ordinary convolution of the few inputs that it sees, with `stride` times the features.
    """
    b, n, channels = x.shape
    width, _, features = kernel.shape
    taps = -(-width // stride)
    kernel = jnp.pad(kernel, ((0, taps * stride - width), (0, 0), (0, 0))).reshape(taps, stride, channels, features)
    kernel = jnp.swapaxes(jnp.flip(kernel, axis=0), 1, 2).reshape(taps, channels, stride * features)
    # Padded beforehand: the kernel's gradient by a convolution that pads is a hundred times slower on CPU.
    y = convolve(jnp.pad(x, ((0, 0), (taps - 1, taps - 1), (0, 0))), kernel, 1, 1, (0, 0))
    return y.reshape(b, (n + taps - 1) * stride, features)


class Conv(nn.Module):
    """A convolution, `b n c` to `b n/stride f`, or a transposed one, `b n c` to `b n*stride f`; `n` is whole strides.

    It is padded, or trimmed, as in the original. Returns the buffer and how many samples of it are valid.
    """

    config: CodecConfig
    layer: layers.Conv

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> tuple[Float[Array, "b m f"], Length]:
        """The convolution of the first `length` samples, then the norm; see the class."""
        config, layer = self.config, self.layer
        init = nn.initializers.variance_scaling(layer.gain, "fan_in", "normal")
        kernel = self.param("kernel", init, (layer.width, layer.inputs, layer.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (layer.features,))
        if config.norm == "weight_norm":
            scale = self.param("scale", lambda _: weight_norm.norm(kernel, layer.norm_axis))
            kernel = weight_norm.normalized(kernel, scale, layer.norm_axis)
        if layer.transposed:
            y = convolve_transpose(masked(x, length), kernel, layer.stride) + bias[None, None]
            y = self._time_group_norm(y, (length - 1) * layer.stride + layer.width)
            left, _ = trims(config, layer.width, layer.stride)
            return jax.lax.slice_in_dim(y, left, left + x.shape[1] * layer.stride, axis=1), length * layer.stride
        y = convolve_padded(x, length, kernel, layer.stride, layer.dilation, config) + bias[None, None]
        length = -(-length // layer.stride)
        return self._time_group_norm(y, length), length

    def _time_group_norm(self, y: Float[Array, "b n c"], length: Length) -> Float[Array, "b n c"]:
        """`y` normalised over time and channels together, where the config asks for it."""
        if self.config.norm != "time_group_norm":
            return y
        scale = self.param("norm_scale", nn.initializers.ones_init(), (self.layer.features,))
        bias = self.param("norm_bias", nn.initializers.zeros_init(), (self.layer.features,))
        count = length * self.layer.features
        mean = jnp.sum(masked(y, length), axis=(1, 2), keepdims=True) / count
        variance = jnp.sum(jnp.square(masked(y - mean, length)), axis=(1, 2), keepdims=True) / count
        return (y - mean) * jax.lax.rsqrt(variance + _EPS) * scale[None, None] + bias[None, None]
