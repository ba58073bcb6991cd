"""Weights in fewer bytes, for models that come in a package: stored small, whole again when they are read.

Two forms, whose arrays tell by their names and types how they were stored. Codebooks and running statistics stay as
they are, because codes are hard decisions; only the sums that codebooks are averages of are left out and made again.
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

FORMS = ("bfloat16", "int8")

_GROUP = 64  # numbers that share a scale
_LARGEST = 127
_HALF = ml_dtypes.bfloat16
_WHOLE, _SCALE = ":int8", ":scale"  # after the name of an array that is stored as whole numbers times scales
_SUMS, _MEANS, _COUNTS = "codebooks/embed_avg", "codebooks/embed", "codebooks/cluster_size"
_EXACT = {"codebooks", "batch_stats", "stats"}


def pack(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """The tensors of a file in mgjax's own form, in fewer bytes.

    Args:
      tensors: By path, joined with "/".
      form: "bfloat16": 2 bytes a number. "int8": 1 byte, and a scale for every 64 of an array; vectors and tables that
        are smaller than that are kept in bfloat16.

    Raises:
      ValueError: There is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"compact must be one of {', '.join(FORMS)}, or None for weights as they are, got {form!r}")
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_SUMS):
            continue
        if not _EXACT.isdisjoint(name.split("/")):
            packed[name] = tensor
        elif form == "int8" and len(tensor.shape) > 1 and math.prod(tensor.shape) >= _GROUP:
            packed[name + _WHOLE] = _changed(tensor, tensor.shape, np.int8, lambda array: _quantized(array)[0])
            packed[name + _SCALE] = _changed(tensor, _groups(tensor.shape), _HALF, lambda array: _quantized(array)[1])
        else:
            packed[name] = _changed(tensor, tensor.shape, _HALF, lambda array: array.astype(_HALF))
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `pack` was given, up to rounding; tensors that were not packed as they are.

    Raises:
      CheckpointError: There are not as many scales as an array needs.
    """
    unpacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removesuffix(_WHOLE)
        if name.endswith(_WHOLE) and plain + _SCALE in tensors:
            scale, needed = tensors[plain + _SCALE], _groups(tensor.shape)
            if scale.shape != needed:
                raise CheckpointError(
                    f"{scale.file}: {plain} needs scales of the shape {needed}, found {scale.shape}: it is damaged"
                )
            read = functools.partial(_restored, tensor, scale)
            unpacked[plain] = Tensor(tensor.shape, np.dtype(np.float32), tensor.file, read)
        elif not (name.endswith(_SCALE) and name.removesuffix(_SCALE) + _WHOLE in tensors):
            unpacked[name] = tensor
    for name in [name for name in unpacked if name.endswith(_COUNTS)]:
        sums, means = name.removesuffix(_COUNTS) + _SUMS, name.removesuffix(_COUNTS) + _MEANS
        if sums not in unpacked and means in unpacked:
            means = unpacked[means]
            read = functools.partial(_sums, means, unpacked[name])
            unpacked[sums] = Tensor(means.shape, means.dtype, means.file, read)
    return unpacked


def _groups(shape: Shape) -> Shape:
    """The shape of the scales of an array."""
    return (-(-math.prod(shape) // _GROUP),)


def _changed(tensor: Tensor, shape: Shape, dtype: Any, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return Tensor(shape, np.dtype(dtype), tensor.file, lambda: change(tensor.read()))


def _quantized(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from -127 to 127 in the shape of `array`, and the scale of each group of them."""
    flat = np.ravel(array).astype(np.float32)
    groups = np.pad(flat, (0, -flat.size % _GROUP)).reshape(-1, _GROUP)
    scale = (np.abs(groups).max(axis=1) / _LARGEST).astype(_HALF)
    steps = groups / np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)[:, None]
    whole = np.clip(np.rint(steps), -_LARGEST, _LARGEST).astype(np.int8)
    return whole.reshape(-1)[: flat.size].reshape(array.shape), scale


def _restored(whole: Tensor, scale: Tensor) -> np.ndarray:
    flat = whole.read().reshape(-1).astype(np.float32)
    scales = np.repeat(scale.read().astype(np.float32), _GROUP)[: flat.size]
    return (flat * scales).reshape(whole.shape)


def _sums(means: Tensor, counts: Tensor) -> np.ndarray:
    return means.read() * counts.read()[..., None]
