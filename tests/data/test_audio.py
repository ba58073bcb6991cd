"""Sound files and audio arithmetic."""

import os
import re

import numpy as np
import pytest
import soundfile

from mgjax.data import audio


def tone(seconds=1.0, sample_rate=32_000, channels=1, amplitude=0.3, frequency=440.0):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = amplitude * np.sin(2 * np.pi * frequency * time)
    return np.stack([wave * (1 - 0.2 * c) for c in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_round_trip(tmp_path, suffix, channels):
    path = tmp_path / f"a.{suffix}"
    sound = tone(channels=channels)
    audio.write(path, sound, 32_000)
    back, rate = audio.read(path)
    assert rate == 32_000
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, sound, atol=1.5 / 32768)  # 16 bits; measured 3.0e-5
    assert audio.info(path) == (32_000, channels, 32_000)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_lossy_round_trip(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    sound = tone(seconds=3)
    audio.write(path, sound, 32_000)
    back, rate = audio.read(path)
    assert rate == 32_000
    assert len(back) == len(sound)
    assert np.corrcoef(back[8000:80_000, 0], sound[8000:80_000, 0])[0, 1] > 0.999


def test_what_is_too_loud_is_clipped_not_wrapped(tmp_path):
    audio.write(tmp_path / "a.wav", np.array([2.0, -2.0, 0.5], np.float32), 32_000)
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav")[0][:, 0], [1, -1, 0.5], atol=1e-4)


def test_read_a_stretch(tmp_path):
    sound = tone(seconds=2, channels=2)
    audio.write(tmp_path / "a.wav", sound, 32_000)
    part, _ = audio.read(tmp_path / "a.wav", start_seconds=0.5, seconds=1.0)
    np.testing.assert_allclose(part, sound[16_000:48_000], atol=1e-4)
    short, _ = audio.read(tmp_path / "a.wav", start_seconds=1.5, seconds=10.0)
    assert len(short) == 16_000
    with pytest.raises(ValueError, match=r"a\.wav: cannot start at 2 s, the file ends at 2 s"):
        audio.read(tmp_path / "a.wav", start_seconds=2.0)
    with pytest.raises(ValueError, match="seconds must be above 0"):
        audio.read(tmp_path / "a.wav", seconds=float("nan"))
    with pytest.raises(ValueError, match="start_seconds must be 0 or more"):
        audio.read(tmp_path / "a.wav", start_seconds=-1.0)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("this is not sound, not at all, and it is long enough to look at")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "song.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 32_000)
    soundfile.write(tmp_path / "nan.wav", np.full((100, 1), np.nan), 32_000, subtype="FLOAT")
    for name in ["text.wav", "empty.wav", "song.raw"]:
        with pytest.raises(ValueError, match=re.escape(name) + ": is damaged, or no sound file"):
            audio.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        audio.read(tmp_path / "missing.wav")
    with pytest.raises(IsADirectoryError):
        audio.read(tmp_path)
    for read in [
        audio.read,
        lambda path: list(audio.blocks(path, 1.0)),
        lambda path: list(audio.blocks(path, 1.0, 8000)),
    ]:
        with pytest.raises(ValueError, match=r"none\.wav: there is no sound"):
            read(tmp_path / "none.wav")
        with pytest.raises(ValueError, match=r"nan\.wav: holds NaN"):
            read(tmp_path / "nan.wav")


def test_a_damaged_file_is_an_error(tmp_path):
    audio.write(tmp_path / "whole.flac", tone(seconds=4), 32_000)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    for read in [audio.read, lambda path: list(audio.blocks(path, 1.0))]:
        with pytest.raises(ValueError, match=r"cut\.flac: is damaged"):
            read(tmp_path / "cut.flac")


@pytest.mark.parametrize(("rate", "target"), [(44_100, 32_000), (48_000, 32_000), (22_050, 32_000), (96_000, 8_000)])
def test_resampling_keeps_a_tone_and_rounds_up(rate, target):
    for num_samples in [1, 3, 9_999, 10_007]:
        result = audio.resample(np.ones((num_samples, 2), np.float32), rate, target)
        assert result.shape == (-(-num_samples * target // rate), 2)
        assert result.dtype == np.float32
    result = audio.resample(tone(sample_rate=rate), rate, target)
    middle = slice(target // 10, -target // 10)
    np.testing.assert_allclose(result[middle], tone(sample_rate=target)[middle], atol=1e-6)  # measured 3.0e-8


def test_resampling_leaves_no_aliases():
    result = audio.resample(tone(sample_rate=48_000, frequency=20_000, amplitude=1.0), 48_000, 32_000)
    assert np.abs(result[3000:-3000]).max() < 1e-6  # measured 8.9e-9


def test_resampling_to_the_same_rate_changes_nothing():
    sound = tone()
    assert audio.resample(sound, 32_000, 32_000) is sound
    with pytest.raises(ValueError, match="sample rates must be 1 or more"):
        audio.resample(sound, 32_000, 0)


@pytest.mark.parametrize("seconds", [0.37, 0.001])
@pytest.mark.parametrize(("target", "channels"), [(None, None), (32_000, 1), (48_000, 2), (11_025, None)])
def test_blocks_are_the_whole_file(tmp_path, target, channels, seconds):
    path = tmp_path / "a.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100 * 3 + 17, 2))
    soundfile.write(path, noise, 44_100, subtype="FLOAT")
    whole, rate = audio.read(path)
    whole = whole if channels is None else audio.to_channels(whole, channels)
    whole = audio.resample(whole, rate, target or rate)
    pieces = list(audio.blocks(path, seconds, target, channels))
    assert {len(piece) for piece in pieces[:-1]} == {round(seconds * (target or rate))}
    assert 0 < len(pieces[-1]) <= len(pieces[0])
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_blocks_close_the_file_when_left_early(tmp_path):
    audio.write(tmp_path / "a.wav", tone(), 32_000)
    sound = audio.blocks(tmp_path / "a.wav", 0.1)
    next(sound)
    sound.close()
    with pytest.raises(ValueError, match="seconds_per_block"):
        next(audio.blocks(tmp_path / "a.wav", 0.0))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.wav"
    audio.write(path, tone(), 32_000)
    before = path.read_bytes()
    with pytest.raises(error), audio.writer(path, 32_000, 1) as file:  # noqa: PT012
        file.write(tone())
        assert len(os.listdir(tmp_path)) == 2
        raise error
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_the_writer_joins_its_pieces(tmp_path):
    sound = tone(seconds=5)
    with audio.writer(tmp_path / "a.flac", 32_000, 1) as file:
        for start in range(0, len(sound), 10_001):
            file.write(sound[start : start + 10_001])
        assert not (tmp_path / "a.flac").exists()
    np.testing.assert_allclose(audio.read(tmp_path / "a.flac")[0], sound, atol=1e-4)


def test_a_minute_of_ogg_in_one_call(tmp_path):
    audio.write(tmp_path / "a.ogg", tone(seconds=60), 32_000)
    assert audio.info(tmp_path / "a.ogg").num_samples == 60 * 32_000


def test_a_wav_ends_before_its_header_overflows(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_LARGEST_WAV", 100_000)
    with pytest.raises(ValueError, match="at most 4 GB"):
        audio.write(tmp_path / "a.wav", tone(seconds=2), 32_000)
    audio.write(tmp_path / "a.flac", tone(seconds=2), 32_000)
    assert os.listdir(tmp_path) == ["a.flac"]


def test_places_that_cannot_be_written(tmp_path):
    for name in ["a.aac", "a"]:
        with pytest.raises(ValueError, match=r"choose from \.wav, \.flac, \.ogg, \.mp3"):
            audio.write(tmp_path / name, tone(), 32_000)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        audio.write(tmp_path / "no" / "a.wav", tone(), 32_000)
    with pytest.raises(ValueError, match=r"a\.mp3: cannot be written"):
        audio.write(tmp_path / "a.mp3", tone(channels=5), 32_000)
    assert os.listdir(tmp_path) == []


def test_channels():
    stereo = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(audio.to_channels(stereo, 1), [[0.5], [0.5]])
    np.testing.assert_array_equal(audio.to_channels(stereo[:, :1], 2), [[1, 1], [0.5, 0.5]])
    assert audio.to_channels(stereo, 2) is stereo
    with pytest.raises(ValueError, match="audio of 6 channels cannot be made into 2"):
        audio.to_channels(np.zeros((5, 6), np.float32), 2)


def test_check_converts_what_has_a_full_scale():
    np.testing.assert_array_equal(audio.check(np.array([-32768, 16384], np.int16)), [[-1], [0.5]])
    np.testing.assert_array_equal(audio.check(np.array([-(2**31), 2**30], np.int32)), [[-1], [0.5]])
    np.testing.assert_array_equal(audio.check(np.array([0, 192], np.uint8)), [[-1], [0.5]])
    assert audio.check([0.5, 0.25]).dtype == np.float32
    assert audio.check(np.zeros((5, 2), np.float16)).shape == (5, 2)


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
        audio.check(value, "the melody")
