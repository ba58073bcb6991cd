"""Sound as arrays: checked, resampled, in other channels."""

import numpy as np
import pytest

from mgjax.audio.waveform import check, resample, to_channels


def tone(seconds=1.0, sample_rate=32_000, channels=1, amplitude=0.3, frequency=440.0):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = amplitude * np.sin(2 * np.pi * frequency * time)
    return np.stack([wave * (1 - 0.2 * c) for c in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize(("rate", "target"), [(44_100, 32_000), (48_000, 32_000), (22_050, 32_000), (96_000, 8_000)])
def test_resampling_keeps_a_tone_and_rounds_up(rate, target):
    for num_samples in [1, 3, 9_999, 10_007]:
        result = resample(np.ones((num_samples, 2), np.float32), rate, target)
        assert result.shape == (-(-num_samples * target // rate), 2)
        assert result.dtype == np.float32
    result = resample(tone(sample_rate=rate), rate, target)
    middle = slice(target // 10, -target // 10)
    np.testing.assert_allclose(result[middle], tone(sample_rate=target)[middle], atol=1e-6)  # measured 3.0e-8


def test_resampling_leaves_no_aliases():
    result = resample(tone(sample_rate=48_000, frequency=20_000, amplitude=1.0), 48_000, 32_000)
    assert np.abs(result[3000:-3000]).max() < 1e-6  # measured 8.9e-9


def test_resampling_to_the_same_rate_changes_nothing():
    sound = tone()
    assert resample(sound, 32_000, 32_000) is sound
    for rates in [(32_000, 0), (32_000, 10**12), (2**63, 32_000), (1, 32_000)]:
        with pytest.raises(ValueError, match="must be a whole number of hertz from 1000 to 1000000"):
            resample(sound, *rates)


def test_channels():
    stereo = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(to_channels(stereo, 1), [[0.5], [0.5]])
    np.testing.assert_array_equal(to_channels(stereo[:, :1], 2), [[1, 1], [0.5, 0.5]])
    assert to_channels(stereo, 2) is stereo
    for given, asked in [(2, 6), (1, 0), (1, 2**40)]:
        with pytest.raises(ValueError, match=f"the song: {given} channels cannot be made into {asked}"):
            to_channels(np.zeros((5, given), np.float32), asked, "the song")


def test_check_converts_what_has_a_full_scale():
    np.testing.assert_array_equal(check(np.array([-32768, 16384], np.int16)), [[-1], [0.5]])
    np.testing.assert_array_equal(check(np.array([-(2**31), 2**30], np.int32)), [[-1], [0.5]])
    np.testing.assert_array_equal(check(np.array([0, 192], np.uint8)), [[-1], [0.5]])
    assert check([0.5, 0.25]).dtype == np.float32
    assert check(np.zeros((5, 2), np.float16)).shape == (5, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "there is no sound"),
        (np.zeros((1, 1, 5)), r"got the shape \(1, 1, 5\)"),
        (np.float32(1), r"got the shape \(\)"),
        (np.zeros((2, 3200)), "transpose it"),
        ([0.0, float("nan")], "NaN or infinity"),
        ([0.0, float("inf")], "NaN or infinity"),
        (np.zeros(5, np.int64), "got int64"),
        (np.zeros(5, bool), "got bool"),
        (np.zeros(5, complex), "got complex128"),
    ],
)
def test_check_refuses(value, message):
    with pytest.raises(ValueError, match="the melody: .*" + message):
        check(value, "the melody")
