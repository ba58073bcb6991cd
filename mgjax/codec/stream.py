"""Running a part of the codec over a signal that arrives in blocks, with the result of running it over the whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from mgjax.codec.conv import paddings, trims
from mgjax.config.model import CodecConfig


@dataclasses.dataclass(frozen=True)
class Reach:
    """How much of its input a part needs, in frames.

    `left` and `right` are what a frame needs before and after it, and `start` is what must be there before the first
    frame: where the start is padded by reflection, it needs what comes later even in a causal codec.
    """

    left: int
    right: int
    start: int


class _Needs:
    """The samples [low, high) that some output needs, and the first `start` that the signal's start needs.

    Walked from the output back to the input, one layer at a time.
    """

    def __init__(self, config: CodecConfig, high: int):
        self.config, self.low, self.high, self.start = config, 0, high, high

    def conv(self, width: int, stride: int = 1, dilation: int = 1) -> None:
        span = (width - 1) * dilation + 1
        left, right = paddings(self.config, span, stride)
        reflect = self.config.pad_mode == "reflect"
        # At the end of the signal, the samples that are mirrored may lie further back than those of the kernel.
        self.low = self.low * stride - max(left, right + stride - 1 if reflect else 0)
        self.high = (self.high - 1) * stride - left + span
        self.start = max((self.start - 1) * stride - left + span, left + 1 if reflect else 0)

    def transpose(self, width: int, stride: int) -> None:
        left, _ = trims(self.config, width, stride)
        self.low = math.ceil((self.low + left - width + 1) / stride)
        self.high = (self.high - 1 + left) // stride + 1
        self.start = (self.start - 1 + left) // stride + 1

    def residual(self) -> None:
        for j in reversed(range(self.config.num_residual_layers)):
            self.conv(self.config.residual_kernel_size, dilation=self.config.dilation_growth**j)

    def fold(self) -> None:
        phases = self.config.phases
        self.low, self.high, self.start = self.low * phases, self.high * phases, self.start * phases

    def unfold(self) -> None:
        phases = self.config.phases
        self.low, self.high, self.start = self.low // phases, -(-self.high // phases), -(-self.start // phases)

    def reach(self, unit: int) -> Reach:
        return Reach(math.ceil(-self.low / unit), math.ceil(self.high / unit) - 1, math.ceil(self.start / unit))


def conv_reach(config: CodecConfig, width: int) -> Reach:
    """The reach of one convolution over frames."""
    needs = _Needs(config, 1)
    needs.conv(width)
    return needs.reach(1)


def downsample_reach(config: CodecConfig) -> Reach:
    """The reach of the encoder before its LSTM."""
    needs = _Needs(config, 1)
    for ratio in config.ratios:
        needs.conv(2 * ratio, ratio)
        needs.residual()
    needs.conv(config.kernel_size)
    needs.fold()
    return needs.reach(config.hop_length)


def upsample_reach(config: CodecConfig) -> Reach:
    """The reach of the decoder after its LSTM."""
    needs = _Needs(config, config.hop_length)
    needs.unfold()
    needs.conv(config.last_kernel_size)
    for ratio in reversed(config.ratios):
        needs.residual()
        needs.transpose(2 * ratio, ratio)
    return needs.reach(1)


def bucket(units: int) -> int:
    """The buffer size for `units`: at least 8 and at most a quarter more, so that few programs serve all lengths."""
    step = 2 ** max(1, (units - 1).bit_length() - 3)
    return max(8, math.ceil(units / step) * step)


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """`x` with zeros after it, up to `size` along the second axis."""
    return np.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


class Windows:
    """A part with a limited reach, run over windows that hold each stretch and what it needs around it.

    Args:
      run: (buffer [b, size * unit_in, ...], length) -> [b, size * unit_out, ...]; `length` of the buffer counts.
      reach: What `run` needs around each frame.
      unit_in: Input samples per frame.
      unit_out: Output samples per frame.
      most: The most frames in one window.
      one_size: Whether all buffers are as large as the largest, so that one program serves them all.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray, int], np.ndarray],
        reach: Reach,
        unit_in: int,
        unit_out: int,
        most: int,
        one_size: bool = False,
    ):
        self._run, self._reach, self._unit_in, self._unit_out = run, reach, unit_in, unit_out
        self._most = max(most, 2 * (reach.left + reach.right + reach.start))
        self._least = self._most if one_size else 0
        self._held = None
        self._origin = 0  # the frame at which what is held begins
        self._done = 0  # frames that were put out

    def push(self, x: np.ndarray | None, final: bool) -> list[np.ndarray]:
        """What can be put out now that `x` (None: nothing) follows; all of the rest if `final`."""
        if x is not None:
            self._held = x if self._held is None else np.concatenate([self._held, x], axis=1)
        if self._held is None:
            return []
        outputs = []
        while True:
            held = self._held.shape[1]
            last = final and held <= self._most * self._unit_in
            frames = math.ceil(held / self._unit_in) if last else min(held // self._unit_in, self._most)
            end = self._origin + frames
            ready = end if last else end - self._reach.right
            if ready <= self._done or (not last and end < self._reach.start):
                return outputs
            window = self._held[:, : frames * self._unit_in]
            y = np.asarray(self._run(padded(window, bucket(max(frames, self._least)) * self._unit_in), window.shape[1]))
            outputs.append(y[:, (self._done - self._origin) * self._unit_out : (ready - self._origin) * self._unit_out])
            self._done = ready
            origin = max(0, ready - self._reach.left)
            self._held = self._held[:, (origin - self._origin) * self._unit_in :]
            self._origin = origin


class Recurrence:
    """A part that sees only what came before, through a state that is carried along.

    Args:
      run: (buffer [b, size, ...], length, state or None) -> ([b, size, ...], state).
      most: The most frames in one buffer.
      one_size: As for `Windows`.
    """

    def __init__(
        self, run: Callable[[np.ndarray, int, object], tuple[np.ndarray, object]], most: int, one_size: bool = False
    ):
        self._run, self._most, self._state = run, most, None
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
        """What can be put out now that `x` (None: nothing) follows; all of the rest if `final`."""
        outputs = []
        for piece in self._before.push(x, final):
            outputs += self._after.push(self._middle.push(piece), False)
        return outputs + self._after.push(None, True) if final else outputs
