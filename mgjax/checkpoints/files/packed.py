"""Compact weights for bundled models: stored as bfloat16 or int8 with scales, and dequantized when they are read.

The names and dtypes of arrays say how they are stored. Codebooks and running statistics stay exact, because codes are
hard decisions; only the sums of the codebooks' moving averages are left out, and computed from the means.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mgjax.checkpoints.files.torch_file import Shape, Tensor
from mgjax.errors import CheckpointError

DTYPES = ("bfloat16", "int8")

_GROUP = 64  # numbers that share a scale
_LARGEST = 127
_HALF = ml_dtypes.bfloat16
_INT8, _SCALE = ":int8", ":scale"  # suffixes of the names of quantized arrays and of their scales
_SUMS, _MEANS, _COUNTS = "codebooks/embed_avg", "codebooks/embed", "codebooks/cluster_size"
_EXACT = {"codebooks", "batch_stats", "stats"}


def pack(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors of a file in mgjax's own format, in fewer bytes.

    The dtype "bfloat16" has 2 bytes per number; "int8" has 1, and a scale for every 64 numbers of an array, but for
    vectors and smaller arrays, which are stored as bfloat16.

    Raises:
      ValueError: There is no such dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"compact must be one of {', '.join(DTYPES)}, or None for weights as they are, got {dtype!r}")
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_SUMS):
            continue
        if not _EXACT.isdisjoint(name.split("/")):
            packed[name] = tensor
        elif dtype == "int8" and len(tensor.shape) > 1 and math.prod(tensor.shape) >= _GROUP:
            packed[name + _INT8] = _mapped(tensor, tensor.shape, np.int8, lambda array: _quantized(array)[0])
            packed[name + _SCALE] = _mapped(tensor, _groups(tensor.shape), _HALF, lambda array: _quantized(array)[1])
        else:
            packed[name] = _mapped(tensor, tensor.shape, _HALF, lambda array: array.astype(_HALF))
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack` up to rounding; others stay. Raises CheckpointError where scales do not fit their array."""
    unpacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removesuffix(_INT8)
        if name.endswith(_INT8) and plain + _SCALE in tensors:
            scale, needed = tensors[plain + _SCALE], _groups(tensor.shape)
            if scale.shape != needed:
                raise CheckpointError(
                    f"{scale.file}: {plain} needs scales of the shape {needed}, found {scale.shape}: it is damaged"
                )
            read = functools.partial(_dequantized, tensor, scale)
            unpacked[plain] = Tensor(tensor.shape, np.dtype(np.float32), tensor.file, read)
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) + _INT8 in tensors):
            unpacked[name] = tensor
    for name in [name for name in unpacked if name.endswith(_COUNTS)]:
        prefix, counts = name.removesuffix(_COUNTS), unpacked[name]
        means = unpacked.get(prefix + _MEANS)
        if prefix + _SUMS not in unpacked and means is not None:
            read = functools.partial(lambda means, counts: means.read() * counts.read()[..., None], means, counts)
            unpacked[prefix + _SUMS] = Tensor(means.shape, means.dtype, means.file, read)
    return unpacked


def _groups(shape: Shape) -> Shape:
    """The shape of the scales of an array."""
    return (-(-math.prod(shape) // _GROUP),)


def _mapped(tensor: Tensor, shape: Shape, dtype: Any, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return Tensor(shape, np.dtype(dtype), tensor.file, lambda: function(tensor.read()))


def _quantized(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers from -127 to 127 in the shape of `array`, and the scale of each group of them."""
    flat = np.ravel(array).astype(np.float32)
    groups = np.pad(flat, (0, -flat.size % _GROUP)).reshape(-1, _GROUP)
    scale = (np.abs(groups).max(axis=1) / _LARGEST).astype(_HALF)
    steps = groups / np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)[:, None]
    integers = np.clip(np.rint(steps), -_LARGEST, _LARGEST).astype(np.int8)
    return integers.reshape(-1)[: flat.size].reshape(array.shape), scale


def _dequantized(integers: Tensor, scale: Tensor) -> np.ndarray:
    flat = integers.read().reshape(-1).astype(np.float32)
    scales = np.repeat(scale.read().astype(np.float32), _GROUP)[: flat.size]
    return (flat * scales).reshape(integers.shape)
