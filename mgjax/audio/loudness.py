"""Measures loudness (ITU-R BS.1770-4), and normalizes audio to a loudness without clipping."""

from __future__ import annotations

import importlib
import threading

import numpy as np

from mgjax.audio.waveform import Audio

_BLOCK = 0.4  # seconds; BS.1770 measures in blocks of this length
_SILENCE_RMS = 2e-3
_CEILING = 0.98
_RAMP = 0.005  # seconds before and after a peak in which the limiter's gain falls and rises
_ROUNDS = 4
_TOLERANCE = 0.1  # LU
_MOST_EXTRA = 6.0  # dB of gain beyond the difference between the target and the loudness before the limiter


def prepare() -> None:
    """Imports what measuring needs, half a second of work, on a thread of its own."""
    threading.Thread(target=importlib.import_module, args=("pyloudnorm",), daemon=True).start()


def normalized(audio: Audio, sample_rate: int, target_lufs: float | None = -14.0) -> Audio:
    """`audio` at a loudness of `target_lufs` (as it is where None), its peaks limited to 0.98 of full scale.

    Audio shorter than 0.4 s, which cannot be measured, and silence (a root mean square below 0.002) are returned
    unchanged. If peaks leave no room, the loudness stays below the target.
    """
    if target_lufs is None or np.sqrt(np.mean(np.square(audio))) < _SILENCE_RMS:
        return audio
    lufs = _lufs(audio, sample_rate)
    if lufs is None:
        return audio
    gain, most_gain = 0.0, target_lufs - lufs + _MOST_EXTRA
    # The limiter lowers the loudness, so the gain is raised in a few rounds.
    for _ in range(_ROUNDS):
        gain = min(gain + target_lufs - lufs, most_gain)
        louder = limited(audio * np.float32(10 ** (gain / 20)), sample_rate)
        lufs = _lufs(louder, sample_rate)
        if lufs is None or abs(target_lufs - lufs) < _TOLERANCE:
            break
    return louder


def limited(audio: Audio, sample_rate: int) -> Audio:
    """A limiter: `audio` with a gain, the same for all channels, that falls smoothly around peaks beyond 0.98."""
    from scipy.ndimage import convolve1d, minimum_filter1d

    peaks = np.abs(audio).max(axis=1)
    if peaks.max() <= _CEILING:
        return audio
    needed = np.minimum(1.0, _CEILING / np.maximum(peaks, _CEILING))
    width = 2 * max(1, round(_RAMP * sample_rate)) + 1
    window = np.hanning(width + 2)[1:-1]
    # A weighted mean of running minima is nowhere above the gain that is needed.
    gain = convolve1d(minimum_filter1d(needed, width, mode="nearest"), window / window.sum(), mode="nearest")
    return np.clip(audio * gain[:, None].astype(np.float32), -_CEILING, _CEILING)  # rounding errors


def _lufs(audio: Audio, sample_rate: int) -> float | None:
    meter = LoudnessMeter(sample_rate)
    meter.push(audio)
    return meter.lufs()


class LoudnessMeter:
    """Measures the loudness (ITU-R BS.1770-4) of a mono or stereo stream, in the memory of one block.

    The result is that of pyloudnorm for the whole, whose filters it uses. The sample rate is in hertz.
    """

    def __init__(self, sample_rate: int):
        import pyloudnorm

        self._rate = sample_rate
        filters = pyloudnorm.Meter(sample_rate, block_size=_BLOCK)._filters.values()
        self._filters = [(stage.b, stage.a) for stage in filters]
        self._states: list[np.ndarray] = []  # of the filters, from the first block on
        self._squares = np.zeros(0)  # of the filtered signal, summed over channels, from sample `_origin` on
        self._origin = self._num_samples = 0
        self._powers: list[float] = []

    def push(self, audio: Audio) -> None:
        """Adds the next block `[n, c]` of the stream."""
        from scipy.signal import lfilter

        if not self._states:
            self._states = [np.zeros((2, audio.shape[1])) for _ in self._filters]
        x = audio.astype(np.float64)
        for i, (b, a) in enumerate(self._filters):
            x, self._states[i] = lfilter(b, a, x, axis=0, zi=self._states[i])
        self._num_samples += len(audio)
        self._squares = np.concatenate([self._squares, np.square(x).sum(axis=1)])
        while self._bounds()[1] <= self._num_samples:
            self._measure()
        start = self._bounds()[0] - self._origin
        self._squares, self._origin = self._squares[start:], self._origin + start

    def lufs(self) -> float | None:
        """The loudness in LUFS of all blocks so far; None if they are shorter than 0.4 s or too quiet to measure."""
        hop = _BLOCK / 4
        blocks = round((self._num_samples / self._rate - _BLOCK) / hop) + 1
        if self._num_samples < _BLOCK * self._rate:
            return None
        while len(self._powers) < blocks:  # the last block may end a little after the sound
            self._measure()
        powers = np.array(self._powers)
        powers = powers[powers >= 10 ** ((-70 + 0.691) / 10)]  # the absolute gate, then the relative one
        powers = powers[powers > 0.1 * powers.mean()] if len(powers) else powers
        return float(-0.691 + 10 * np.log10(powers.mean())) if len(powers) else None

    def _bounds(self) -> tuple[int, int]:
        """First and last sample of the block that is measured next; blocks overlap by three quarters."""
        number = len(self._powers)
        return int(_BLOCK * (number * 0.25) * self._rate), int(_BLOCK * (number * 0.25 + 1) * self._rate)

    def _measure(self) -> None:
        low, high = (bound - self._origin for bound in self._bounds())
        self._powers.append(self._squares[low:high].sum() / (_BLOCK * self._rate))
