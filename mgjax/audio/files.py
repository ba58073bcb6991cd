"""Sound files in and out, as the arrays of `mgjax.audio.waveform`.

Nothing here needs ffmpeg: files are read
and written by libsndfile, which comes with the soundfile package. The libraries are imported where they are used, so
that `import mgjax` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mgjax.audio.waveform import MOST_CHANNELS, Audio, check, resampled, to_channels
from mgjax.inputs import arguments, files

PathLike = str | os.PathLike[str]

# What a suffix means to libsndfile.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

_LARGEST_WAV = 2**32 - 4096  # bytes; a wav header counts in 32 bits
_LARGEST_READ = 1 << 30  # numbers that are read at once: three hours of stereo
_FRAMES_AT_ONCE = 1 << 16  # the Vorbis encoder overflows its stack when it is handed minutes at once
_FRAMES_READ = 1 << 20  # what a header says of the length may be a lie: no more is allocated for it
_LONGEST_BLOCK = 3600  # seconds
_LONGEST_NAME = 255  # bytes, on all common file systems
_FULL_DISK = 1 << 20  # free bytes
# What is decoded from these goes beyond 1 where the original was just below: no reason to say anything.
_LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")

# The channels and rates that encoders can take: some crash beyond them, or write what cannot be read.
_ENCODERS = {
    "WAV": (MOST_CHANNELS, "from 1000 to 1000000", lambda rate: True),
    "FLAC": (8, "up to 655350, above 65535 in steps of 10", lambda rate: rate <= (655_350, 65_535)[rate % 10 > 0]),
    "OGG": (MOST_CHANNELS, "up to 200000", lambda rate: rate <= 200_000),
    "MP3": (
        2,
        "8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100 and 48000",
        (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000).__contains__,
    ),
}

# How files begin that libsndfile cannot read.
_FOREIGN = re.compile(
    rb"(?s)(?P<MP4>.{4}ftyp)|(?P<WebM>\x1aE\xdf\xa3)|(?P<WMA>0&\xb2u\x8ef\xcf\x11)|(?P<AAC>\xff[\xf1\xf9])|(?P<HTML>\s*<)"
)


class Info(NamedTuple):
    """What a sound file says about itself."""

    sample_rate: int
    channels: int
    num_samples: int


def info(path: PathLike) -> Info:
    """The sample rate in hertz, the channels and the length in samples of a file, without reading its sound.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: It is not a sound file, or one of a rate or with channels that no music has.
    """
    with _open(path) as file:
        return Info(file.samplerate, file.channels, file.frames)


def read(path: PathLike, *, start_seconds: float = 0.0, seconds: float | None = None) -> tuple[Audio, int]:
    """The sound of a file as float32 `[n, c]`, and its sample rate in hertz.

    Args:
      path: A file of any kind that libsndfile knows: wav, flac, ogg, mp3, aiff and others; or a pipe.
      start_seconds: Where to begin.
      seconds: How much to read; None for all. Less comes back where the file ends before.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: It is no sound file, is damaged, holds NaN or a peak beyond `sound.PEAK_REFUSED`, ends before
        `start_seconds`, or is too long to be read at once.
    """
    if not (arguments.number(start_seconds, "start_seconds") >= 0):
        raise ValueError(f"start_seconds must be 0 or more, got {start_seconds}")
    seconds = None if seconds is None else arguments.seconds(seconds, "seconds")
    with _open(path) as file:
        if start_seconds and start_seconds * file.samplerate >= file.frames:
            length = file.frames / file.samplerate
            raise ValueError(f"{path}: cannot start at {start_seconds:g} s, the file ends at {length:g} s")
        start = round(start_seconds * file.samplerate)
        if start and file.seekable():
            with _explained(path):
                file.seek(start)
        elif start:
            for _ in _read_on(file, path, _FRAMES_READ, most=start):
                pass
        most = _LARGEST_READ // file.channels + 1
        wanted = most if seconds is None else min(most, round(seconds * file.samplerate))
        audio = np.concatenate(list(_read_on(file, path, _FRAMES_READ, most=wanted)))
        if len(audio) == most:
            raise ValueError(f"{path}: is longer than {most // file.samplerate} s; read parts of it, or its blocks")
        return audio, file.samplerate


def blocks(
    path: PathLike,
    seconds_per_block: float,
    sample_rate: float | None = None,
    channels: int | None = None,
    said: set[str] | None = None,
) -> Iterator[Audio]:
    """The sound of a file in order, as float32 `[n_i, c]`, in the memory of a few blocks however long the file is.

    Joined, the blocks are exactly `resample(to_channels(read(path)))`. Each holds `seconds_per_block`, the last what
    is left.

    Args:
      path: As for `read`.
      seconds_per_block: Length of a block, at most an hour.
      sample_rate: Rate to resample to, in hertz; None to keep the file's.
      channels: Channels to convert to; None to keep the file's.
      said: As for `check`: what is not to be said of it.

    Raises:
      OSError, ValueError: As `read`, where the trouble is met.
    """
    if arguments.seconds(seconds_per_block, "seconds_per_block") > _LONGEST_BLOCK:
        raise ValueError(f"seconds_per_block must be at most {_LONGEST_BLOCK}, got {seconds_per_block}")
    with _open(path) as file:
        rate = file.samplerate if sample_rate is None else sample_rate
        size = max(1, round(seconds_per_block * file.samplerate))
        sound = _read_on(file, path, min(size, _FRAMES_READ), channels, said=said)
        if rate != file.samplerate:
            sound = resampled(sound, file.samplerate, rate)
        yield from _regrouped(sound, max(1, round(seconds_per_block * rate)))


@contextlib.contextmanager
def writer(path: PathLike, sample_rate: float, channels: int) -> Iterator[Writer]:
    """A `Writer` for a sound file that is made piece by piece.

    The file appears under its name when the block ends well, complete. Where anything goes wrong, Ctrl-C included,
    nothing is left behind and a file that was there before stays as it was.

    Args:
      path: Where to; the suffix (.wav, .flac, .ogg, .mp3) says what is written. Wav and flac hold 16 bits.
      sample_rate: In hertz.
      channels: Channels of all that will be written.

    Raises:
      ValueError: The suffix or the combination of rate and channels cannot be written, or the name is too long.
      OSError: The folder is missing or may not be written to, or the disk is full.
    """
    import soundfile

    path = Path(path)
    kind, subtype = writable_format(path)
    sample_rate = arguments.rate(sample_rate, f"{path}: the sample rate")
    most, rates, is_allowed = _ENCODERS[kind]
    if not (0 < channels <= most and is_allowed(sample_rate)):
        raise ValueError(
            f"{path}: cannot be written with {channels} channels at {sample_rate} hertz; {kind} takes up to {most} "
            f"channels and the rates {rates}"
        )
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ValueError(f"{path}: the name has more than {_LONGEST_NAME} bytes; choose a shorter one")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    quality = {"compression_level": 0.0, "bitrate_mode": "CONSTANT"} if kind == "MP3" else {}
    with files.replacing(path) as place:
        with _explained(path, writing=True):
            name = _native(place.name)
            file = soundfile.SoundFile(name, "w", sample_rate, channels, subtype, format=kind, **quality)
        with file:
            yield Writer(file, path)
            with _explained(path, writing=True):
                file.close()


class Writer:
    """Takes the pieces of a sound file in order; `writer` makes one."""

    def __init__(self, file: Any, path: Path):
        self._file = file
        self._path = path
        self._num_samples = 0

    def write(self, audio: Audio) -> None:
        """Appends float32 `[n, c]`; what lies beyond -1 and 1 is clipped."""
        self._num_samples += len(audio)
        if self._file.format == "WAV" and 2 * self._num_samples * self._file.channels > _LARGEST_WAV:
            raise ValueError(f"{self._path}: a wav file holds at most 4 GB; choose a name that ends in .flac")
        with _explained(self._path, writing=True):
            for start in range(0, len(audio), _FRAMES_AT_ONCE):
                self._file.write(audio[start : start + _FRAMES_AT_ONCE])


def write(path: PathLike, audio: Any, sample_rate: float) -> None:
    """Writes `[n, c]` or `[n]` as a sound file, whole or not at all.

    Args:
      path: Where to; the suffix (.wav, .flac, .ogg, .mp3) says what is written. Wav and flac hold 16 bits.
      audio: What `check` accepts; what lies beyond -1 and 1 is clipped.
      sample_rate: In hertz.

    Raises:
      OSError, ValueError: As `writer` and `check`.
    """
    audio = check(audio, f"the audio for {path}", {"loud"})  # what a model makes is a little beyond 1
    with writer(path, sample_rate, audio.shape[1]) as file:
        file.write(audio)


def writable_format(path: PathLike) -> tuple[str, str]:
    """libsndfile's names for the container and the coding that the suffix of `path` asks for.

    Raises:
      ValueError: The suffix is unknown, or the libsndfile of this machine cannot write it.
    """
    import soundfile

    suffix = Path(path).suffix.lower()
    able = {name: kind for name, kind in FORMATS.items() if soundfile.check_format(*kind)}
    if suffix not in able:
        raise ValueError(f"{path}: cannot write {suffix or 'a name without suffix'!r}; choose from {', '.join(able)}")
    return able[suffix]


@contextlib.contextmanager
def _open(path: PathLike) -> Iterator[Any]:
    """The open `soundfile.SoundFile`, with the usual troubles named."""
    import soundfile

    with files.opened(path) as content:
        foreign = _FOREIGN.match(_head(content))
        if foreign:
            raise ValueError(
                f"{path}: is {foreign.lastgroup}, which cannot be read here; "
                + (
                    "fetch the file again"
                    if foreign.lastgroup == "HTML"
                    else "convert it to wav or flac, e.g. by ffmpeg -i IN OUT.flac"
                )
            )
        is_copy = content.name != os.fspath(path)  # of a pipe
        with _explained(path):
            file = soundfile.SoundFile(content if is_copy else _native(path))
        with file:
            arguments.rate(file.samplerate, f"{path}: its sample rate")
            if file.channels > MOST_CHANNELS:
                raise ValueError(f"{path}: has {file.channels} channels, the most that are read are {MOST_CHANNELS}")
            yield file


def _native(path: PathLike) -> str | bytes:
    """The path as libsndfile takes it: names need not be UTF-8."""
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def _head(file: IO[bytes]) -> bytes:
    """The first bytes of a file, or those after its ID3 tag, which stands before mp3 and AAC."""
    head = file.read(16)
    if head.startswith(b"ID3"):
        file.seek(10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10])))
        head = file.read(16)
    file.seek(0)
    return head


@contextlib.contextmanager
def _explained(path: PathLike, *, writing: bool = False) -> Iterator[None]:
    """Turns libsndfile's errors into a ValueError that names the file, or an OSError where the disk is full."""
    import soundfile

    try:
        with _without_notes():
            yield
    # TypeError: soundfile takes an unknown suffix for raw. AssertionError: less was written than there was. ValueError:
    # it stands behind the end that the file says it has.
    except (soundfile.LibsndfileError, TypeError, AssertionError, ValueError) as error:
        if writing and shutil.disk_usage(Path(path).parent).free < _FULL_DISK:
            raise OSError(errno.ENOSPC, "the disk is full", os.fspath(path)) from None
        trouble = "cannot be written" if writing else "is damaged, or no sound file that can be read"
        words = str(getattr(error, "error_string", error))
        words = "Format not recognised." if "possibly a pipe" in words else words
        raise ValueError(f"{path}: {trouble} ({words})") from error


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Keeps from the terminal what mpg123 writes there about junk in a file; threads leave the terminal as it is."""
    # Where the process began without a terminal, another file may have its number.
    if sys.__stderr__ is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _read_on(
    file: Any,
    path: PathLike,
    size: int,
    channels: int | None = None,
    most: float = math.inf,
    said: set[str] | None = None,
) -> Iterator[Audio]:
    """The open file from where it stands, `size` samples at a time, `most` in all."""
    said = (said or set()) | ({"loud"} if file.subtype in _LOSSY else set())
    found = 0
    while True:
        with _explained(path):
            block = file.read(min(size, most - found), dtype="float32", always_2d=True)
        if not len(block) and found:
            return
        found += len(block)
        block = check(block, str(path), said)
        yield block if channels is None else to_channels(block, channels, str(path), said)


def _regrouped(sound: Iterable[Audio], size: int) -> Iterator[Audio]:
    """`sound` in pieces of exactly `size` samples, but for the last."""
    pending = None
    for block in sound:
        pending = block if pending is None or not len(pending) else np.concatenate([pending, block])
        while len(pending) >= size:
            yield pending[:size]
            pending = pending[size:]
    if pending is not None and len(pending):
        yield pending
