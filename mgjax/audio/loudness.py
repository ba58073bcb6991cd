"""How loud sound is (ITU-R BS.1770-4), and how it is brought to a loudness without clipping."""

from __future__ import annotations

import numpy as np

from mgjax.audio.waveform import Audio

_BLOCK = 0.4  # seconds; BS.1770 measures in blocks of this length
_SILENCE_RMS = 2e-3
_CEILING = 0.98
_REACH = 0.005  # seconds around a peak in which the limiter goes down and up again
_ROUNDS = 4
_NEAR = 0.1  # LU
_MOST = 6.0  # dB that the limiter may be driven harder than the loudness as it was asks for


def normalized(audio: Audio, sample_rate: int, target_lufs: float = -14.0) -> Audio:
    """`audio` at a loudness of `target_lufs`, its peaks limited to 0.98 of full scale.

    Audio of less than 0.4 s cannot be measured, and silence (a root mean square below 0.002) would become loud noise:
    both come back as they are. Where peaks leave no room for the loudness, it stays below the target.
    """
    if np.sqrt(np.mean(np.square(audio))) < _SILENCE_RMS:
        return audio
    found = _lufs(audio, sample_rate)
    if found is None:
        return audio
    gain, made, most = 0.0, audio, target_lufs - found + _MOST
    # What the limiter takes is given back, and limited again: a few rounds come as near as peaks allow.
    for _ in range(_ROUNDS):
        gain = min(gain + target_lufs - found, most)
        made = limited(audio * np.float32(10 ** (gain / 20)), sample_rate)
        found = _lufs(made, sample_rate)
        if abs(target_lufs - found) < _NEAR:
            break
    return made


def limited(audio: Audio, sample_rate: int, ceiling: float = _CEILING) -> Audio:
    """`audio` with no sample beyond `ceiling`: turned down smoothly around its peaks, all channels alike.

    Between peaks it is as it was, so that unlike clipping it adds no edges.
    """
    from scipy.ndimage import convolve1d, minimum_filter1d

    peaks = np.abs(audio).max(axis=1)
    if peaks.max() <= ceiling:
        return audio
    needed = np.minimum(1.0, ceiling / np.maximum(peaks, ceiling))
    width = 2 * max(1, round(_REACH * sample_rate)) + 1
    window = np.hanning(width + 2)[1:-1]
    # The least of all within reach, and a mean of these: nowhere above what is needed.
    gain = convolve1d(minimum_filter1d(needed, width, mode="nearest"), window / window.sum(), mode="nearest")
    return np.clip(audio * gain[:, None].astype(np.float32), -ceiling, ceiling)  # of rounding alone


def _lufs(audio: Audio, sample_rate: int) -> float | None:
    meter = LoudnessMeter(sample_rate)
    meter.push(audio)
    return meter.lufs()


class LoudnessMeter:
    """The loudness (ITU-R BS.1770-4) of mono or stereo that comes in blocks, in the memory of one block.

    As pyloudnorm measures the whole, whose filters it uses.
    """

    def __init__(self, sample_rate: int):
        """Takes the rate in hertz of what will come."""
        import pyloudnorm

        self._rate = sample_rate
        filters = pyloudnorm.Meter(sample_rate, block_size=_BLOCK)._filters.values()
        self._filters = [(stage.b, stage.a) for stage in filters]
        self._states = None
        self._squares = np.zeros(0)  # of the filtered signal, summed over channels, from sample `_origin` on
        self._origin = self._num_samples = 0
        self._powers: list[float] = []

    def push(self, audio: Audio) -> None:
        """Takes the next block."""
        from scipy.signal import lfilter

        if self._states is None:
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
        """The loudness of all that came; None if it is shorter than 0.4 s or too quiet to be measured."""
        hop = _BLOCK / 4
        blocks = round((self._num_samples / self._rate - _BLOCK) / hop) + 1
        if self._num_samples < _BLOCK * self._rate:
            return None
        while len(self._powers) < blocks:  # the last one may end a little after the sound
            self._measure()
        powers = np.array(self._powers)
        powers = powers[powers >= 10 ** ((-70 + 0.691) / 10)]  # the absolute gate, then the relative one
        powers = powers[powers > 0.1 * powers.mean()] if len(powers) else powers
        return float(-0.691 + 10 * np.log10(powers.mean())) if len(powers) else None

    def _bounds(self) -> tuple[int, int]:
        """First and last sample of the block that is measured next; blocks overlap by three quarters."""
        number = len(self._powers)
        return tuple(int(_BLOCK * (number * 0.25 + shift) * self._rate) for shift in (0, 1))

    def _measure(self) -> None:
        low, high = (bound - self._origin for bound in self._bounds())
        self._powers.append(self._squares[low:high].sum() / (_BLOCK * self._rate))
