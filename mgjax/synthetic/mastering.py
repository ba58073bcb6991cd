"""The room that players sit in, and what is done to a mix: compression, loudness, a limiter.

Sounds here are `[c, n]`, channel by channel.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float32
from scipy import fft, signal

Mix = Float32[np.ndarray, "c n"]

LOUDNESS = -14.0  # LUFS
PEAK = 0.89  # -1 dB

# Walls: milliseconds after the sound itself, and their share; the channels hear them a little apart.
_REFLECTIONS = ((11, 0.6), (17, -0.5), (23, 0.45), (31, -0.35), (41, 0.3), (53, 0.22), (67, -0.16))
# Of the reverberation that follows: hertz from and to, its loudness, and how soon it dies beside the whole.
_BANDS = ((160, 700, 1.0, 1.0), (700, 2500, 0.8, 0.8), (2500, 6000, 0.3, 0.5))
_RATIO = 0.4  # decibels less for each decibel above the usual level
_MOST, _LEAST = 3.0, -5.0  # decibels that the compressor adds


@functools.lru_cache(maxsize=32)
def room(seconds: float, channels: int, sample_rate: int) -> Mix:
    """What a room answers to a click, with an energy of 1 in each channel: reflections, then reverberation.

    Args:
      seconds: In which its lower tones die by 60 dB; higher ones die sooner.
      channels: Each hears it from another place.
      sample_rate: In hertz.
    """
    length = round(seconds * sample_rate)
    time = np.arange(length, dtype=np.float32) / np.float32(sample_rate)
    swell = np.minimum(time / np.float32(0.06), 1)  # it gathers while the reflections are heard
    rng = np.random.default_rng(0)
    answer = np.zeros((channels, length), np.float32)
    for low, high, loud, share in _BANDS:
        if low < 0.45 * sample_rate:
            band = signal.butter(1, (low, min(high, 0.48 * sample_rate)), "bandpass", fs=sample_rate)
            noise = signal.lfilter(*band, rng.standard_normal((channels, length)))
            fall = swell * 10 ** (-3 * time / np.float32(seconds * share))
            answer += (loud * noise / np.sqrt(np.square(noise * fall).sum(axis=1, keepdims=True)) * fall).astype("f4")
    for channel, row in enumerate(answer):
        for milliseconds, gain in _REFLECTIONS:
            place = round((1 + 0.07 * channel) * milliseconds / 1000 * sample_rate)
            row[place : place + 1] += np.float32(gain)
    # Walls take the highest tones, and low ones would only be mud.
    answer = signal.lfilter(*signal.butter(1, min(5000, 0.4 * sample_rate), fs=sample_rate), answer)
    answer = signal.lfilter(*signal.butter(1, 180, "highpass", fs=sample_rate), answer)
    return (answer / np.sqrt(np.square(answer).sum(axis=1, keepdims=True))).astype(np.float32)


def mastered(mix: Mix, sample_rate: int) -> Mix:
    """The mix at -14 LUFS, its level evened out; what would pass `PEAK` is turned down some milliseconds before."""
    # Some samples of the font are not centred on zero.
    pole = np.exp(-2 * np.pi * 20 / sample_rate)
    mix = signal.lfilter(np.float32([1, -1]), np.float32([1, -pole]), mix).astype(np.float32)
    size = sample_rate // 200
    blocks = -(-mix.shape[1] // size)
    whole = np.zeros((len(mix), blocks, size), np.float32)
    whole.reshape(len(mix), -1)[:, : mix.shape[1]] = mix
    _turn(whole, _compression(np.einsum("cbn,cbn->b", whole, whole)))
    whole *= np.float32(10 ** ((LOUDNESS - loudness(whole.reshape(len(mix), -1), sample_rate)) / 20))
    _turn(whole, _limits(np.abs(whole).max(axis=(0, 2))))
    return np.clip(whole, -PEAK, PEAK).reshape(len(mix), -1)[:, : mix.shape[1]]


def _turn(blocks: Float32[np.ndarray, "c b n"], gains: np.ndarray) -> None:
    """Multiplies with a gain for the middle of each block and straight lines between."""
    gains = gains.astype(np.float32)
    edges = np.concatenate([gains[:1], (gains[1:] + gains[:-1]) / 2, gains[-1:]])[:, None]
    along = np.arange(blocks.shape[2], dtype=np.float32) / np.float32(blocks.shape[2])
    blocks *= edges[:-1] + (edges[1:] - edges[:-1]) * along


def _compression(energy: np.ndarray) -> np.ndarray:
    """Gains, block by block, that bring the level of a third of a second nearer to that of the whole."""
    window = np.hanning(67)[1:-1]
    level = 10 * np.log10(np.convolve(energy, window / window.sum(), "same") + 1e-12)
    usual = 10 * np.log10(energy[energy > 1e-2 * energy.max()].mean())
    return 10 ** (np.clip(_RATIO * (usual - level), _LEAST, _MOST) / 20)


def _limits(peaks: np.ndarray) -> np.ndarray:
    """Gains, block by block, that keep the peaks below `PEAK`."""
    needed = np.minimum(1.0, PEAK / np.maximum(peaks, 1e-9))
    reach = 8  # blocks; the gain of a block is the least of those around, so that its smoothed curve is never above
    around = np.pad(needed, 2 * reach, constant_values=1.0)
    least = np.lib.stride_tricks.sliding_window_view(around, 2 * reach + 1).min(axis=1)
    window = np.hanning(2 * reach + 1)[1:-1]
    return np.convolve(least, window / window.sum(), "same")[reach:-reach]


@functools.lru_cache(maxsize=8)
def _weighting(sample_rate: int, size: int) -> Float32[np.ndarray, "f"]:
    """What BS.1770-4 makes of the power of each frequency of a Fourier transform of `size` samples."""
    import pyloudnorm

    hertz = np.arange(size // 2 + 1) * sample_rate / size
    weights = np.full(len(hertz), 2 / size**2)  # so that powers add up to the mean square
    for stage in pyloudnorm.Meter(sample_rate)._filters.values():
        weights *= np.square(np.abs(signal.freqz(stage.b, stage.a, hertz, fs=sample_rate)[1]))
    return weights.astype(np.float32)


def loudness(sound: Mix, sample_rate: int) -> float:
    """Loudness in LUFS by ITU-R BS.1770-4, its filters applied to tenths of a second at a time.

    Within 0.1 dB of what the filters give when they run through, and several times as fast.
    """
    size = sample_rate // 10
    count = max(sound.shape[1] // size, 4)
    tenths = np.zeros((len(sound), count * size), np.float32)
    tenths[:, : sound.shape[1]] = sound[:, : tenths.shape[1]]
    spectrum = fft.rfft(tenths.reshape(len(sound), count, size))
    power = ((np.square(spectrum.real) + np.square(spectrum.imag)) @ _weighting(sample_rate, size)).sum(axis=0)
    blocks = np.convolve(power, np.full(4, 0.25), "valid")
    blocks = blocks[blocks > 10 ** ((-70 + 0.691) / 10)]
    return float(-0.691 + 10 * np.log10(blocks[blocks > 0.1 * blocks.mean()].mean()))
