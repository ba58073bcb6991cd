"""Convolutions of EnCodec over `b n c`: the original's padding, at a right edge that may be known only at run time.

Every layer takes `length`, the number of samples that count; what lies beyond is ignored, whatever it holds. So one
compiled program serves every length up to its buffer's, and still pads at the true end as the original does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.config.model import CodecConfig

Length = int | Int[Array, ""]

_EPS = 1e-5  # of the group norm


def keep(x: Float[Array, "b n c"], length: Length) -> Float[Array, "b n c"]:
    """`x` with zeros from `length` on."""
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
    x = keep(x, length)
    reach = right + stride - 1  # the last stride may need this many mirrored samples
    longest = max(n, left + 1, reach + 1)
    x = jnp.pad(x, ((0, 0), (0, longest + reach - n), (0, 0)))
    head = jnp.flip(x[:, 1 : left + 1], axis=1)
    if reach:
        last = jnp.maximum(length - 1, jnp.maximum(left, right + -length % stride))
        mirrored = jnp.take(x, last - 1 - jnp.arange(reach), axis=1, mode="clip")
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
    """The convolution of `x`, whose first `length` samples count, padded at both ends as in the original.

    Padding by reflection would copy the whole signal for the sake of a few samples at its ends: instead all is padded
    with zeros, which costs nothing, and the ends are computed again from short pieces that are padded in full.
    """
    span = (kernel.shape[0] - 1) * dilation + 1
    left, right = paddings(config, span, stride)
    head, tail = math.ceil(left / stride), math.ceil((right + stride - 1) / stride)  # outputs that see an end
    piece = (2 * (head + tail) + math.ceil(span / stride) + 2) * stride
    if config.pad_mode == "reflect" and x.shape[1] <= 2 * piece:
        return convolve(reflect(x, length, left, right, stride), kernel, stride, dilation, (0, 0))
    y = convolve(keep(x, length), kernel, stride, dilation, (left, right))
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

    Each stride of output is an ordinary convolution of the few inputs that reach it, with `stride` times the features.
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
    """A strided or dilated convolution, `b n c` to `b n/stride features`; `n` is a multiple of the stride.

    Returns ceil(length / stride) samples that count. New kernels let about `gain` of the input's power through.
    """

    config: CodecConfig
    features: int
    width: int
    stride: int = 1
    dilation: int = 1
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Float[Array, "b m f"]:
        kernel, bias = _weights(self, x.shape[-1], axis=2, gain=self.gain)
        y = convolve_padded(x, length, kernel, self.stride, self.dilation, self.config) + bias[None, None]
        return _time_group_norm(self, y, -(-length // self.stride))


class ConvTranspose(nn.Module):
    """A transposed convolution, `b n c` to `b n*stride features`, trimmed at its ends as in the original.

    Returns length * stride samples that count.
    """

    config: CodecConfig
    features: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Float[Array, "b m f"]:
        kernel, bias = _weights(self, x.shape[-1], axis=1)
        y = convolve_transpose(keep(x, length), kernel, self.stride) + bias[None, None]
        y = _time_group_norm(self, y, (length - 1) * self.stride + self.width)
        left, _ = trims(self.config, self.width, self.stride)
        return jax.lax.slice_in_dim(y, left, left + x.shape[1] * self.stride, axis=1)


def _weights(module: Conv | ConvTranspose, inputs: int, axis: int, gain: float = 1.0) -> tuple[Array, Array]:
    """The kernel and bias; under weight norm the kernel is `scale * kernel / |kernel|` for each index of `axis`."""
    init = nn.initializers.variance_scaling(gain, "fan_in", "normal")
    kernel = module.param("kernel", init, (module.width, inputs, module.features))
    bias = module.param("bias", nn.initializers.zeros_init(), (module.features,))
    if module.config.norm == "weight_norm":
        scale = module.param("scale", lambda _: _norm(kernel, axis))
        kernel = kernel * jnp.expand_dims(scale / _norm(kernel, axis), _others(axis))
    return kernel, bias


def _time_group_norm(module: Conv | ConvTranspose, y: Float[Array, "b n c"], length: Length) -> Float[Array, "b n c"]:
    """`y` normalised over time and channels together, where the configuration asks for it."""
    if module.config.norm != "time_group_norm":
        return y
    scale = module.param("norm_scale", nn.initializers.ones_init(), (module.features,))
    bias = module.param("norm_bias", nn.initializers.zeros_init(), (module.features,))
    count = length * module.features
    mean = jnp.sum(keep(y, length), axis=(1, 2), keepdims=True) / count
    variance = jnp.sum(jnp.square(keep(y - mean, length)), axis=(1, 2), keepdims=True) / count
    return (y - mean) * jax.lax.rsqrt(variance + _EPS) * scale[None, None] + bias[None, None]


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _norm(kernel: Float[Array, "w c f"], axis: int) -> Float[Array, " d"]:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=_others(axis)))


def fold_weight_norm(config: CodecConfig, params: dict) -> tuple[CodecConfig, dict]:
    """The same codec with the norms multiplied into its kernels, and with `norm="none"`; other norms are left alone."""
    if config.norm != "weight_norm":
        return config, params

    def fold(layer: dict, axis: int) -> dict:
        kernel = layer["kernel"]
        scale = jnp.expand_dims(layer["scale"] / _norm(kernel, axis), _others(axis))
        return {"kernel": kernel * scale, "bias": layer["bias"]}

    # One program for all layers: a hundred small ones would take seconds to compile.
    folded = jax.jit(lambda params: _map_convolutions(params, fold))(params)
    return dataclasses.replace(config, norm="none"), folded


def _map_convolutions(tree: dict, change: Callable[[dict, int], dict]) -> dict:
    """`tree` with `change(layer, axis)` for each convolution; `axis` of the kernel has a scale of its own."""
    mapped = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            mapped[name] = value
        elif "kernel" in value:
            # The first axis of torch's kernel: the input channels of a transposed convolution, else the outputs.
            mapped[name] = change(value, 1 if name == "up" else 2)
        else:
            mapped[name] = _map_convolutions(value, change)
    return mapped
