"""Memory for weights that are read again at every step, and for what XLA computes."""

from __future__ import annotations

import ctypes
import math
import sys

import numpy as np
from jax.typing import DTypeLike

_BLOCK = 64 << 20
_ALIGNED = 64  # bytes: XLA on CPU uses such memory as it is, and copies other


# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees, up to 2 GB; for commands, before XLA is started.

    XLA on CPU takes memory for each call and frees it again, and Linux fills each page anew with zeros: in the codec's
    decoder of 5 s of music, 41,000 times, a tenth to a fifth of its time. Nothing is done without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_ARENA_MAX, 1)


class Blocks:
    """Hands out arrays from large blocks, which numpy asks Linux to keep in pages of 2 MB.

    Weights in pages of 4 KB are read at 0.75 to 0.9 times the speed. A block is free again when all its arrays are.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array with no values yet; what nothing is written to takes no memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size + _ALIGNED > self._block.size:
            self._block = np.empty(max(_BLOCK, size + _ALIGNED), np.uint8)
        begin = -self._block.ctypes.data % _ALIGNED
        array = self._block[begin : begin + size].view(dtype).reshape(shape)
        self._block = self._block[begin + size :]
        return array
