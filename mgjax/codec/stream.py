"""Running a part of the codec over a signal that arrives in blocks, with the result of running it over the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mgjax.codec import layers
from mgjax.codec.conv import paddings, trims
from mgjax.codec.lstm import State
from mgjax.config.model import CodecConfig


class ReceptiveField(NamedTuple):
    """How much of its input a part of the codec sees, in frames.

    Attributes:
      left: Frames that a frame depends on before it.
      right: And after it.
      start: Frames that the first frame depends on: padded by reflection, it depends on later ones even in a causal
        codec.
      unit_in: Input samples per frame.
      unit_out: Output samples per frame.
    """

    left: int
    right: int
    start: int
    unit_in: int
    unit_out: int


def receptive_field(config: CodecConfig, part: Sequence[layers.Layer]) -> ReceptiveField:
    """The receptive field of a part of the codec, such as `layers.encoder(config).before`."""
    convs = [layer for layer in layers.flat(part) if not isinstance(layer, layers.ELU)]
    unit_in, unit_out = (math.prod(layer.stride for layer in convs if layer.transposed is up) for up in (False, True))
    # The samples [low, high) that the last frame depends on, and the first `start` that the first one does, walked from
    # the output back to the input.
    low, high, start = 0, unit_out, unit_out
    for layer in reversed(convs):
        if isinstance(layer, layers.Fold) and layer.transposed:
            low, high, start = low // layer.stride, -(-high // layer.stride), -(-start // layer.stride)
        elif isinstance(layer, layers.Fold):
            low, high, start = low * layer.stride, high * layer.stride, start * layer.stride
        elif layer.transposed:
            left, _ = trims(config, layer.width, layer.stride)
            low = math.ceil((low + left - layer.width + 1) / layer.stride)
            high, start = ((end - 1 + left) // layer.stride + 1 for end in (high, start))
        else:
            span = (layer.width - 1) * layer.dilation + 1
            left, right = paddings(config, span, layer.stride)
            reflects = config.pad_mode == "reflect"
            # At the end of the signal, the samples that are mirrored may lie further back than those of the kernel.
            low = low * layer.stride - max(left, right + layer.stride - 1 if reflects else 0)
            high, start = ((end - 1) * layer.stride - left + span for end in (high, start))
            start = max(start, left + 1 if reflects else 0)
    frames = math.ceil(-low / unit_in), math.ceil(high / unit_in) - 1, math.ceil(start / unit_in)
    return ReceptiveField(*frames, unit_in, unit_out)


def bucket(units: int) -> int:
    """The buffer size for `units`: at least 8 and at most a quarter more, so that few programs serve all lengths."""
    step = 2 ** max(1, (units - 1).bit_length() - 3)
    return max(8, math.ceil(units / step) * step)


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """`x` with zeros after it, up to `size` along the second axis."""
    return np.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


class Windows:
    """A part with a limited receptive field, run over windows that hold some frames and their receptive field.

    Args:
      run: (buffer [b, size * unit_in, ...], length) -> [b, size * unit_out, ...]; `length` of the buffer is valid.
      field: The receptive field of `run`.
      most: The most frames in one window.
      one_size: Whether all buffers are as large as the largest, so that one program serves them all.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray, int], np.ndarray | jax.Array],
        field: ReceptiveField,
        most: int,
        one_size: bool = False,
    ):
        self._run, self._field = run, field
        self._most = max(most, 2 * (field.left + field.right + field.start))
        self._least = self._most if one_size else 0
        self._held: np.ndarray | None = None  # input that later output depends on
        self._origin = 0  # its first frame
        self._done = 0  # frames that were returned

    def push(self, x: np.ndarray | None, final: bool) -> list[np.ndarray]:
        """The output that is complete once `x` (None: nothing) has followed; all of the rest if `final`."""
        if x is not None:
            self._held = x if self._held is None else np.concatenate([self._held, x], axis=1)
        if self._held is None:
            return []
        outputs: list[np.ndarray] = []
        unit_in, unit_out = self._field.unit_in, self._field.unit_out
        while True:
            held = self._held.shape[1]
            last = final and held <= self._most * unit_in
            frames = math.ceil(held / unit_in) if last else min(held // unit_in, self._most)
            end = self._origin + frames
            ready = end if last else end - self._field.right
            if ready <= self._done or (not last and end < self._field.start):
                return outputs
            window = self._held[:, : frames * unit_in]
            y = np.asarray(self._run(padded(window, bucket(max(frames, self._least)) * unit_in), window.shape[1]))
            outputs.append(y[:, (self._done - self._origin) * unit_out : (ready - self._origin) * unit_out])
            self._done = ready
            origin = max(0, ready - self._field.left)
            self._held = self._held[:, (origin - self._origin) * unit_in :]
            self._origin = origin


class Recurrence:
    """A part that depends on earlier frames alone, through a state that is carried along.

    Args:
      run: (buffer [b, size, ...], length, state or None) -> ([b, size, ...], state); `length` of the buffer is valid.
      most: The most frames in one buffer.
      one_size: As for `Windows`.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray, int, State | None], tuple[np.ndarray | jax.Array, State]],
        most: int,
        one_size: bool = False,
    ):
        self._run, self._most = run, most
        self._state: State | None = None
        self._least = most if one_size else 0

    def push(self, x: np.ndarray) -> np.ndarray:
        """The output for the frames `x` that follow."""
        outputs = []
        for start in range(0, x.shape[1], self._most):
            piece = x[:, start : start + self._most]
            y, self._state = self._run(
                padded(piece, bucket(max(piece.shape[1], self._least))), piece.shape[1], self._state
            )
            outputs.append(np.asarray(y)[:, : piece.shape[1]])
        return np.concatenate(outputs, axis=1)


class Chain:
    """Windows, recurrence, windows: either half of the codec over a signal in blocks."""

    def __init__(self, before: Windows, middle: Recurrence, after: Windows):
        self._before, self._middle, self._after = before, middle, after

    def push(self, x: np.ndarray | None, final: bool) -> list[np.ndarray]:
        """The output that is complete once `x` (None: nothing) has followed; all of the rest if `final`."""
        outputs = []
        for piece in self._before.push(x, final):
            outputs += self._after.push(self._middle.push(piece), False)
        return outputs + self._after.push(None, True) if final else outputs
