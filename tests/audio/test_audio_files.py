"""Sound files."""

import errno
import os
import re
import struct
import sys
import threading
import warnings

import numpy as np
import pytest
import soundfile

from mgjax.audio import files as audio_files
from mgjax.audio.waveform import PEAK_REFUSED, check, resample, to_channels


def tone(seconds=1.0, sample_rate=32_000, channels=1, amplitude=0.3, frequency=440.0):
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    wave = amplitude * np.sin(2 * np.pi * frequency * time)
    return np.stack([wave * (1 - 0.2 * c) for c in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_round_trip(tmp_path, suffix, channels):
    path = tmp_path / f"a.{suffix}"
    sound = tone(channels=channels)
    audio_files.write(path, sound, 32_000)
    back, rate = audio_files.read(path)
    assert rate == 32_000
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, sound, atol=1.5 / 32768)  # 16 bits; measured 3.0e-5
    assert audio_files.info(path) == (32_000, channels, 32_000)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_lossy_round_trip(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    sound = tone(seconds=3)
    audio_files.write(path, sound, 32_000)
    back, rate = audio_files.read(path)
    assert rate == 32_000
    assert len(back) == len(sound)
    assert np.corrcoef(back[8000:80_000, 0], sound[8000:80_000, 0])[0, 1] > 0.999


def test_what_is_too_loud_is_clipped_not_wrapped(tmp_path):
    audio_files.write(tmp_path / "a.wav", np.array([2.0, -2.0, 0.5], np.float32), 32_000)
    np.testing.assert_allclose(audio_files.read(tmp_path / "a.wav")[0][:, 0], [1, -1, 0.5], atol=1e-4)


def test_read_a_stretch(tmp_path):
    sound = tone(seconds=2, channels=2)
    audio_files.write(tmp_path / "a.wav", sound, 32_000)
    part, _ = audio_files.read(tmp_path / "a.wav", start_seconds=0.5, seconds=1.0)
    np.testing.assert_allclose(part, sound[16_000:48_000], atol=1e-4)
    short, _ = audio_files.read(tmp_path / "a.wav", start_seconds=1.5, seconds=10.0)
    assert len(short) == 16_000
    with pytest.raises(ValueError, match=r"a\.wav: cannot start at 2 s, the file ends at 2 s"):
        audio_files.read(tmp_path / "a.wav", start_seconds=2.0)
    for seconds in [0, float("nan"), float("inf")]:
        with pytest.raises(ValueError, match="seconds must be a finite number"):
            audio_files.read(tmp_path / "a.wav", seconds=seconds)
    assert len(audio_files.read(tmp_path / "a.wav", seconds=1e300)[0]) == 64_000
    with pytest.raises(ValueError, match="start_seconds must be 0 or more"):
        audio_files.read(tmp_path / "a.wav", start_seconds=-1.0)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("this is not sound, not at all, and it is long enough to look at")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "song.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 32_000)
    soundfile.write(tmp_path / "nan.wav", np.full((100, 1), np.nan), 32_000, subtype="FLOAT")
    for name in ["text.wav", "empty.wav", "song.raw"]:
        with pytest.raises(ValueError, match=re.escape(name) + ": is damaged, or no sound file"):
            audio_files.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        audio_files.read(tmp_path / "missing.wav")
    with pytest.raises(IsADirectoryError):
        audio_files.read(tmp_path)
    for read in [
        audio_files.read,
        lambda path: list(audio_files.blocks(path, 1.0)),
        lambda path: list(audio_files.blocks(path, 1.0, 8000)),
    ]:
        with pytest.raises(ValueError, match=r"none\.wav: there is no sound"):
            read(tmp_path / "none.wav")
        with pytest.raises(ValueError, match=r"nan\.wav: holds NaN"):
            read(tmp_path / "nan.wav")


def test_a_damaged_file_is_an_error(tmp_path):
    audio_files.write(tmp_path / "whole.flac", tone(seconds=4), 32_000)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    for read in [audio_files.read, lambda path: list(audio_files.blocks(path, 1.0))]:
        with pytest.raises(ValueError, match=r"cut\.flac: is damaged"):
            read(tmp_path / "cut.flac")


@pytest.mark.parametrize("seconds", [0.37, 0.001])
@pytest.mark.parametrize(("target", "channels"), [(None, None), (32_000, 1), (48_000, 2), (11_025, None)])
def test_blocks_are_the_whole_file(tmp_path, target, channels, seconds):
    path = tmp_path / "a.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100 * 3 + 17, 2))
    soundfile.write(path, noise, 44_100, subtype="FLOAT")
    whole, rate = audio_files.read(path)
    whole = whole if channels is None else to_channels(whole, channels)
    whole = resample(whole, rate, target or rate)
    pieces = list(audio_files.blocks(path, seconds, target, channels))
    assert {len(piece) for piece in pieces[:-1]} == {round(seconds * (target or rate))}
    assert 0 < len(pieces[-1]) <= len(pieces[0])
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_blocks_close_the_file_when_left_early(tmp_path):
    audio_files.write(tmp_path / "a.wav", tone(), 32_000)
    sound = audio_files.blocks(tmp_path / "a.wav", 0.1)
    next(sound)
    sound.close()
    for seconds in [0.0, float("nan"), float("inf"), 1e15]:
        with pytest.raises(ValueError, match="seconds_per_block"):
            next(audio_files.blocks(tmp_path / "a.wav", seconds))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.wav"
    audio_files.write(path, tone(), 32_000)
    before = path.read_bytes()
    with pytest.raises(error), audio_files.writer(path, 32_000, 1) as file:  # noqa: PT012
        file.write(tone())
        assert len(os.listdir(tmp_path)) == 2
        raise error
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_the_writer_joins_its_pieces(tmp_path):
    sound = tone(seconds=5)
    with audio_files.writer(tmp_path / "a.flac", 32_000, 1) as file:
        for start in range(0, len(sound), 10_001):
            file.write(sound[start : start + 10_001])
        assert not (tmp_path / "a.flac").exists()
    np.testing.assert_allclose(audio_files.read(tmp_path / "a.flac")[0], sound, atol=1e-4)


def test_a_minute_of_ogg_in_one_call(tmp_path):
    audio_files.write(tmp_path / "a.ogg", tone(seconds=60), 32_000)
    assert audio_files.info(tmp_path / "a.ogg").num_samples == 60 * 32_000


def test_a_wav_ends_before_its_header_overflows(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_files, "_LARGEST_WAV", 100_000)
    with pytest.raises(ValueError, match="at most 4 GB"):
        audio_files.write(tmp_path / "a.wav", tone(seconds=2), 32_000)
    audio_files.write(tmp_path / "a.flac", tone(seconds=2), 32_000)
    assert os.listdir(tmp_path) == ["a.flac"]


def test_places_that_cannot_be_written(tmp_path):
    for name in ["a.aac", "a"]:
        with pytest.raises(ValueError, match=r"choose from \.wav, \.flac, \.ogg, \.mp3"):
            audio_files.write(tmp_path / name, tone(), 32_000)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        audio_files.write(tmp_path / "no" / "a.wav", tone(), 32_000)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        *(("a.mp3", rate, 1) for rate in (4000, 44_101, 96_000)),
        ("a.mp3", 32_000, 5),
        ("a.ogg", 200_001, 1),  # the encoder crashes
        ("a.ogg", 1_000_000, 1),
        ("a.flac", 655_351, 1),
        ("a.flac", 65_537, 1),  # the decoder cannot read it
        ("a.flac", 44_100, 9),
    ],
)
def test_what_encoders_cannot_take_is_refused(tmp_path, name, rate, channels):
    with pytest.raises(ValueError, match=re.escape(name) + ": cannot be written with .* takes up to"):
        audio_files.write(tmp_path / name, tone(0.01, channels=channels), rate)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "rate"), [("a.flac", 65_540), ("a.ogg", 200_000), ("a.mp3", 11_025), ("a.wav", 8e3)])
def test_what_encoders_can_take_is_written(tmp_path, name, rate):
    audio_files.write(tmp_path / name, tone(0.5, rate), rate)
    assert audio_files.info(tmp_path / name) == (rate, 1, rate // 2)


@pytest.mark.parametrize("rate", [2**63, 10**400, 999, 0, -1, 44_100.5, float("nan")])
def test_rates_that_no_file_has(tmp_path, rate):
    with pytest.raises(ValueError, match=r"a\.wav: the sample rate must be a"):
        audio_files.write(tmp_path / "a.wav", tone(0.01), rate)


@pytest.mark.parametrize("stem", ["n" * 251, "漢" * 83])
def test_a_name_may_be_as_long_as_file_systems_allow(tmp_path, stem):
    audio_files.write(tmp_path / f"{stem}.wav", tone(0.01), 32_000)
    with pytest.raises(ValueError, match="the name has more than 255 bytes"):
        audio_files.write(tmp_path / f"{stem}漢.wav", tone(0.01), 32_000)
    assert os.listdir(tmp_path) == [f"{stem}.wav"]


@pytest.mark.parametrize("fails", ["write", "close"])
def test_a_full_disk_is_said(tmp_path, monkeypatch, fails):
    usage, close = audio_files.shutil.disk_usage(tmp_path), soundfile.SoundFile.close

    def fail(file, *_):
        is_open = not file.closed
        close(file)
        if is_open:
            raise soundfile.LibsndfileError(2)  # "System error"

    monkeypatch.setattr(soundfile.SoundFile, fails, fail)
    with pytest.raises(ValueError, match=r"a\.wav: cannot be written \(System error"):
        audio_files.write(tmp_path / "a.wav", tone(0.01), 32_000)
    monkeypatch.setattr(audio_files.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    with pytest.raises(OSError, match="the disk is full") as caught:
        audio_files.write(tmp_path / "a.wav", tone(0.01), 32_000)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.wav"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x20ftypM4A " + bytes(100), "MP4.*ffmpeg"),
        (b"\x1aE\xdf\xa3" + bytes(100), "WebM.*ffmpeg"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "WMA.*ffmpeg"),
        (b"\xff\xf1\x50\x80" + bytes(100), "AAC.*ffmpeg"),
        (b"ID3\4\0\0\0\0\1\0" + bytes(128) + b"\xff\xf1\x50\x80", "AAC.*ffmpeg"),
        (b"\n<!DOCTYPE html><html>" + bytes(3000), "HTML.*fetch the file again"),
    ],
)
def test_what_is_read_by_others_is_named(tmp_path, content, kind):
    (tmp_path / "a.mp3").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp3: is " + kind):
        audio_files.info(tmp_path / "a.mp3")


def test_what_cannot_be_sought_in_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2, 8000), 8000, subtype="GSM610")
    whole = np.concatenate(list(audio_files.blocks(tmp_path / "a.wav", 0.3)))
    np.testing.assert_array_equal(audio_files.read(tmp_path / "a.wav")[0], whole)
    part, _ = audio_files.read(tmp_path / "a.wav", start_seconds=0.5, seconds=0.25)
    np.testing.assert_array_equal(part, whole[4000:6000])


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_pipes_are_read(tmp_path, suffix):
    audio_files.write(tmp_path / f"a.{suffix}", tone(0.5), 32_000)
    os.mkfifo(tmp_path / "pipe")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    writing = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(content))
    writing.start()
    sound, rate = audio_files.read(tmp_path / "pipe")
    writing.join()
    assert rate == 32_000
    np.testing.assert_array_equal(sound, audio_files.read(tmp_path / f"a.{suffix}")[0])


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero"])
def test_devices_are_no_sound(device):
    with pytest.raises(OSError, match="is a device"):
        audio_files.read(device)


def patched(path, offset, form, value):
    """The file with a number of its header replaced."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (24, "<I", 2**31 - 1, "its sample rate must be .* got 2147483647"),
        (24, "<I", 1, "its sample rate must be .* got 1"),
        (22, "<H", 1024, "has 1024 channels"),
    ],
)
def test_claims_that_no_music_makes(tmp_path, offset, form, value, message):
    audio_files.write(tmp_path / "a.wav", tone(1), 32_000)
    patched(tmp_path / "a.wav", offset, form, value)
    for read in [audio_files.info, audio_files.read, lambda path: list(audio_files.blocks(path, 1.0))]:
        with pytest.raises(ValueError, match=r"a\.wav: " + message):
            read(tmp_path / "a.wav")


def test_nothing_is_allocated_for_a_length_that_is_claimed(tmp_path):
    audio_files.write(tmp_path / "a.flac", tone(0.5), 32_000)
    patched(tmp_path / "a.flac", 21, ">B", 0xFF)
    patched(tmp_path / "a.flac", 22, ">I", 2**32 - 1)
    assert audio_files.info(tmp_path / "a.flac").num_samples == 2**36 - 1
    for read in [audio_files.read, lambda path: list(audio_files.blocks(path, 3600.0))]:
        with pytest.raises(ValueError, match=r"a\.flac: is damaged"):
            read(tmp_path / "a.flac")


def test_what_is_too_long_to_be_read_at_once(tmp_path, monkeypatch):
    audio_files.write(tmp_path / "a.wav", tone(channels=2), 32_000)
    monkeypatch.setattr(audio_files, "_LARGEST_READ", 2 * 31_999)
    with pytest.raises(ValueError, match=r"a\.wav: is longer than"):
        audio_files.read(tmp_path / "a.wav")
    assert len(audio_files.read(tmp_path / "a.wav", seconds=0.5)[0]) == 16_000
    monkeypatch.setattr(audio_files, "_LARGEST_READ", 2 * 32_000)
    assert len(audio_files.read(tmp_path / "a.wav")[0]) == 32_000


def test_sound_beyond_full_scale(tmp_path):
    """In the scale of 16 bits it is refused, wherever in a file; a little beyond 1 it is said, once."""
    sound = tone(amplitude=0.9)
    soundfile.write(tmp_path / "quiet.wav", sound, 32_000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", 2 * sound, 32_000, subtype="FLOAT")
    sound[20_000:] *= 32_768
    soundfile.write(tmp_path / "huge.wav", sound, 32_000, subtype="FLOAT")

    def blocks(path):
        return np.concatenate(list(audio_files.blocks(path, 0.1))), 32_000

    for read in [audio_files.read, blocks]:
        read(tmp_path / "quiet.wav")
        with pytest.raises(ValueError, match=r"huge\.wav: has a peak of 29\d\d\d.*divide it by"):
            read(tmp_path / "huge.wav")
        with pytest.warns(UserWarning, match=r"loud\.wav: has a peak of 1\.8") as caught:
            found, _ = read(tmp_path / "loud.wav")
        assert len(caught) == 1
        assert np.abs(found).max() > 1.79
    with pytest.raises(ValueError, match=r"the audio for .*has a peak of"):
        audio_files.write(tmp_path / "a.wav", sound, 32_000)
    check(np.array([8.0, 8.0], np.float32) / 8, "at full scale")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(np.array([PEAK_REFUSED]))
    with pytest.raises(ValueError, match=r"a peak of 8\.01"):
        check(np.array([-8.01]))


def test_what_is_decoded_from_lossy_files_may_go_beyond_full_scale(tmp_path):
    square = np.sign(tone(amplitude=1.0))
    audio_files.write(tmp_path / "a.mp3", square, 32_000)
    assert np.abs(audio_files.read(tmp_path / "a.mp3")[0]).max() > 1.01  # and no warning


def test_surround_is_mixed_down_as_the_standard_has_it(tmp_path):
    """ITU-R BS.775, nothing can clip, and mono is the mean of left and right. Said once for all blocks of a file."""
    sound = np.eye(6, dtype=np.float32).repeat(2000, axis=0)
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="FLOAT")
    half = np.sqrt(0.5)
    expected = np.array([[1, 0], [0, 1], [half, half], [0, 0], [half, 0], [0, half]]) / (1 + 2 * half)
    with pytest.warns(UserWarning, match=r"a\.wav: 6 channels are mixed down to 2") as caught:
        stereo = np.concatenate(list(audio_files.blocks(tmp_path / "a.wav", 0.1, channels=2)))
    assert len(caught) == 1
    np.testing.assert_allclose(stereo[::2000], expected, atol=1e-7)
    with pytest.warns(UserWarning, match="6 channels are mixed down to 1"):
        np.testing.assert_allclose(to_channels(sound, 1)[::2000, 0], expected.mean(axis=1), atol=1e-7)
    with pytest.warns(UserWarning, match="3 channels are mixed down to 2"):
        mixed = to_channels(np.array([[0.3, 0.6, 0.9]], np.float32), 2)
    np.testing.assert_allclose(mixed, [[0.6, 0.6]])


def test_what_libraries_write_about_junk_is_not_shown(tmp_path, capfd):
    audio_files.write(tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, (40_000, 1)), 44_100)
    content = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[:3000] + b"junk" * 20 + content[3000:])
    audio_files.read(tmp_path / "a.mp3")
    with soundfile.SoundFile(tmp_path / "a.mp3") as file:
        assert capfd.readouterr().err == ""
        file.read()
    assert "Note" in capfd.readouterr().err  # mpg123 has something to say


def test_another_file_in_the_place_of_the_terminal_is_let_be(tmp_path, monkeypatch):
    audio_files.write(tmp_path / "a.wav", np.full((800, 1), 0.1), 8000)
    with monkeypatch.context() as patch:  # pytest itself needs dup2 afterwards
        patch.setattr(sys, "__stderr__", None)  # as Python has it where it begins with `2>&-`
        patch.setattr(os, "dup2", lambda *_: pytest.fail("a file was moved"))
        assert len(audio_files.read(tmp_path / "a.wav")[0]) == 800
