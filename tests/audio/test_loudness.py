"""Loudness by the standard, and how it is reached without clipping."""

import numpy as np
import pyloudnorm
import pytest

from mgjax.audio.loudness import LoudnessMeter, limited, normalized


def tone(seconds=1.0, sample_rate=32_000, channels=1, amplitude=0.3, frequency=440.0):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = amplitude * np.sin(2 * np.pi * frequency * time)
    return np.stack([wave * (1 - 0.2 * c) for c in range(channels)], axis=1).astype(np.float32)


def beats(sample_rate=24_000, peak=1.0):
    """A quiet chord with loud clicks of 2 ms, six a second, the first channel louder."""
    sound = tone(4, sample_rate, 2, 0.1)
    for start in range(sample_rate // 10, len(sound), sample_rate // 6):
        sound[start : start + sample_rate // 500] += peak * np.array([1.0, 0.8])
    return sound


def lufs(sound, sample_rate):
    return pyloudnorm.Meter(sample_rate).integrated_loudness(sound)


def test_loudness_of_the_standard_s_own_signal():
    # BS.1770: a full-scale 1 kHz sine in one of two front channels reads -3.01 LUFS; in one channel alone likewise.
    sine = tone(seconds=4, sample_rate=48_000, amplitude=1.0, frequency=997)
    result = normalized(sine, 48_000, -23.0)
    assert 20 * np.log10(np.abs(result).max()) == pytest.approx(-23 + 3.01, abs=0.1)  # the standard's; measured 0.04


@pytest.mark.parametrize("channels", [1, 2])
def test_loudness_reaches_its_target(channels):
    result = normalized(0.05 * tone(seconds=3, channels=channels), 32_000)
    assert lufs(result, 32_000) == pytest.approx(-14, abs=0.01)
    assert result.dtype == np.float32


def test_peaks_are_limited_and_the_loudness_is_reached_still():
    sound = beats()
    result = normalized(sound, 24_000, -12.0)
    assert lufs(sound, 24_000) < -17
    assert lufs(result, 24_000) == pytest.approx(-12, abs=0.15)
    assert np.abs(result).max() <= 0.98


def test_what_cannot_be_as_loud_stays_below():
    loud = normalized(tone(seconds=3, frequency=997), 32_000, target_lufs=3.0)
    assert np.abs(loud).max() <= 0.98
    assert -3.5 < lufs(loud, 32_000) < -2.5  # that of a sine at full scale


def test_loudness_leaves_silence_and_clicks_alone():
    silence = tone(seconds=3, amplitude=0.002)
    click = tone(seconds=0.39)
    unheard = tone(seconds=3, amplitude=0.004, frequency=1 / 6)  # so low that nothing passes the standard's filter
    for sound in [silence, click, unheard, np.zeros((64_000, 1), np.float32)]:
        assert normalized(sound, 32_000) is sound


def test_the_limiter_touches_nothing_but_the_surroundings_of_peaks():
    sound = 2 * beats()
    result = limited(sound, 24_000)
    assert np.abs(result).max() <= 0.98
    peaks = np.abs(sound).max(axis=1) > 0.98
    near = np.convolve(peaks, np.ones(4 * 120 + 1), mode="same") > 0  # 5 ms, of the least and of the mean
    assert 0.05 < near.mean() < 0.5
    np.testing.assert_array_equal(result[~near], sound[~near])
    gain = result / np.where(np.abs(sound) > 1e-3, sound, np.nan)
    np.testing.assert_allclose(gain[:, 0], gain[:, 1], rtol=1e-5)  # the picture of stereo does not move
    assert np.nanmax(np.abs(np.diff(gain[:, 0]))) < 0.02  # smoothly; clipping jumps by 0.5
    assert limited(sound / 4, 24_000) is not sound
    quiet = sound / 4
    assert limited(quiet, 24_000) is quiet


@pytest.mark.parametrize("rate", [11_025, 32_000])
def test_loudness_of_blocks_is_that_of_the_whole(rate):
    random = np.random.default_rng(rate)
    for length in (rate // 2, rate * 3 + 77):
        sound = (random.standard_normal((length, 2)) * np.linspace(0, 0.2, length)[:, None]).astype(np.float32)
        meter = LoudnessMeter(rate)
        for block in np.array_split(sound, sorted(random.integers(1, length, 5))):
            if len(block):
                meter.push(block)
        expected = pyloudnorm.Meter(rate, block_size=0.4).integrated_loudness(sound)
        assert meter.lufs() == pytest.approx(expected, abs=1e-4)  # measured: 5e-7
    quiet = LoudnessMeter(rate)
    quiet.push(np.zeros((rate, 1), np.float32))
    assert quiet.lufs() is None
