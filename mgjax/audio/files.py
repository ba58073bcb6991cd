"""Reads and writes sound files by libsndfile (the soundfile package), as the arrays of `mgjax.audio.waveform`.

No ffmpeg is needed. soundfile is imported where it is used, so that `import mgjax` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from mgjax.audio.waveform import MOST_CHANNELS, Audio, check, regrouped, resampled, to_channels
from mgjax.inputs import arguments, files
from mgjax.storage import paths
from mgjax.storage.paths import PathLike

# Suffix -> libsndfile's container and coding.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

_LARGEST_WAV = 2**32 - 4096  # bytes; a wav header counts in 32 bits
_LARGEST_READ = 1 << 30  # numbers that are read at once: three hours of stereo
_FRAMES_AT_ONCE = 1 << 16  # the Vorbis encoder overflows its stack on minutes at once
_FRAMES_READ = 1 << 20  # read in pieces, for the length in a header may be wrong and must not decide what is allocated
_LONGEST_BLOCK = 3600  # seconds
_LONGEST_NAME = 255  # bytes, on all common file systems
_FULL_DISK = 1 << 20  # free bytes
# Decoding these goes beyond 1 where the original was just below, which is no reason for a warning.
_LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")

# The channels and sample rates that encoders support: some crash beyond them, or write files that cannot be read.
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

# The first bytes of formats that libsndfile cannot read.
_FOREIGN = re.compile(
    rb"(?s)(?P<MP4>.{4}ftyp)|(?P<WebM>\x1aE\xdf\xa3)|(?P<WMA>0&\xb2u\x8ef\xcf\x11)|(?P<AAC>\xff[\xf1\xf9])|(?P<HTML>\s*<)"
)


class Info(NamedTuple):
    """The header of a sound file."""

    sample_rate: int
    channels: int
    num_samples: int


def info(path: PathLike) -> Info:
    """The sample rate in hertz, the channels and the length in samples of a file. Raises as `read`."""
    with _open(path) as file:
        return Info(file.samplerate, file.channels, file.frames)


def read(path: PathLike, *, start_seconds: float = 0.0, seconds: float | None = None) -> tuple[Audio, int]:
    """The sound of a file as float32 `[n, c]`, and its sample rate in hertz.

    Args:
      path: A file of any kind that libsndfile knows: wav, flac, ogg, mp3, aiff and others; or a pipe.
      start_seconds: Where to start reading.
      seconds: How much to read; None for all. The result is shorter if the file ends before.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: It is no sound file, is damaged, holds NaN or a peak beyond `waveform.PEAK_REFUSED`, ends before
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
            with _translating_errors(path):
                file.seek(start)
        elif start:
            for _ in _read_blocks(file, path, _FRAMES_READ, limit=start):
                pass
        too_many = _LARGEST_READ // file.channels + 1
        limit = too_many if seconds is None else min(too_many, round(seconds * file.samplerate))
        audio = np.concatenate(list(_read_blocks(file, path, _FRAMES_READ, limit=limit)))
        if len(audio) == too_many:
            raise ValueError(f"{path}: is longer than {too_many // file.samplerate} s; read parts of it, or its blocks")
        return audio, file.samplerate


def blocks(
    path: PathLike,
    seconds_per_block: float,
    sample_rate: float | None = None,
    channels: int | None = None,
    warned: set[str] | None = None,
) -> Iterator[Audio]:
    """Streams the sound of a file as blocks float32 `[n_i, c]`; a few of them are in memory at a time.

    Concatenated, the blocks are exactly `resample(to_channels(read(path)))`. Each lasts `seconds_per_block`, but for
    the last.

    Blocks last an hour at most. They are converted to `sample_rate` (in hertz) and `channels`, the file's own where
    None. `warned` is as for `check`.

    Raises:
      OSError, ValueError: As `read`, when the block is read.
    """
    if arguments.seconds(seconds_per_block, "seconds_per_block") > _LONGEST_BLOCK:
        raise ValueError(f"seconds_per_block must be at most {_LONGEST_BLOCK}, got {seconds_per_block}")
    with _open(path) as file:
        rate = file.samplerate if sample_rate is None else sample_rate
        size = max(1, round(seconds_per_block * file.samplerate))
        stream = _read_blocks(file, path, min(size, _FRAMES_READ), channels, warned=warned)
        if rate != file.samplerate:
            stream = resampled(stream, file.samplerate, rate)
        yield from regrouped(stream, max(1, round(seconds_per_block * rate)))


@contextlib.contextmanager
def writer(path: PathLike, sample_rate: float, channels: int) -> Iterator[Writer]:
    """A `Writer` for a sound file that is written block by block.

    The file gets its name once it is complete. On any error, Ctrl-C included, nothing is left behind and an existing
    file stays as it was.

    The suffix of `path` (.wav, .flac, .ogg, .mp3) is the format; wav and flac hold 16 bits. The rate is in hertz.

    Raises:
      ValueError: The suffix or the combination of rate and channels cannot be written, or the name is too long.
      OSError: The folder is missing or may not be written to, or the disk is full.
    """
    import soundfile

    path = paths.path(path)
    kind, subtype = writable_format(path)
    sample_rate = arguments.rate(sample_rate, f"{path}: the sample rate")
    max_channels, rates, is_allowed = _ENCODERS[kind]
    if not (0 < channels <= max_channels and is_allowed(sample_rate)):
        raise ValueError(
            f"{path}: cannot be written with {channels} channels at {sample_rate} hertz; {kind} takes up to "
            f"{max_channels} channels and the rates {rates}"
        )
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ValueError(f"{path}: the name has more than {_LONGEST_NAME} bytes; choose a shorter one")
    if not (paths.is_remote(path) or path.parent.is_dir()):
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    quality = {"compression_level": 0.0, "bitrate_mode": "CONSTANT"} if kind == "MP3" else {}
    with files.replacing(path) as temporary:
        with _translating_errors(path, writing=True):
            name = _native(temporary.name)
            file = soundfile.SoundFile(name, "w", sample_rate, channels, subtype, format=kind, **quality)
        with file:
            yield Writer(file, path)
            with _translating_errors(path, writing=True):
                file.close()


class Writer:
    """Writes the blocks of a sound file in order; `writer` opens one."""

    def __init__(self, file: Any, path: paths.Path):
        self._file = file
        self._path = path
        self._num_samples = 0

    def write(self, audio: Audio) -> None:
        """Appends float32 `[n, c]`, clipped to -1 and 1."""
        self._num_samples += len(audio)
        if self._file.format == "WAV" and 2 * self._num_samples * self._file.channels > _LARGEST_WAV:
            raise ValueError(f"{self._path}: a wav file holds at most 4 GB; choose a name that ends in .flac")
        with _translating_errors(self._path, writing=True):
            for start in range(0, len(audio), _FRAMES_AT_ONCE):
                self._file.write(audio[start : start + _FRAMES_AT_ONCE])


def write(path: PathLike, audio: Any, sample_rate: float) -> None:
    """Writes an array `[n, c]` or `[n]` that `check` accepts, clipped to -1 and 1, as a sound file; see `writer`."""
    audio = check(audio, f"the audio for {path}", {"loud"})  # a model's output goes a little beyond 1
    with writer(path, sample_rate, audio.shape[1]) as file:
        file.write(audio)


def writable_format(path: PathLike) -> tuple[str, str]:
    """The container and the coding for the suffix of `path`, by libsndfile's names.

    Raises:
      ValueError: The suffix is unknown, or the libsndfile of this machine cannot write it.
    """
    import soundfile

    suffix = Path(path).suffix.lower()
    known = {name: kind for name, kind in FORMATS.items() if soundfile.check_format(*kind)}
    if suffix not in known:
        raise ValueError(f"{path}: cannot write {suffix or 'a name without suffix'!r}; choose from {', '.join(known)}")
    return known[suffix]


@contextlib.contextmanager
def _open(path: PathLike) -> Iterator[Any]:
    """The open `soundfile.SoundFile`, with errors that name the file."""
    import soundfile

    with files.opened(path) as content:
        foreign = _FOREIGN.match(_head(content))
        if foreign:
            convert = "convert it to wav or flac, e.g. by ffmpeg -i IN OUT.flac"
            advice = "fetch the file again" if foreign.lastgroup == "HTML" else convert
            raise ValueError(f"{path}: is {foreign.lastgroup}, which cannot be read here; {advice}")
        is_copy = content.name != os.fspath(path)  # of a pipe, or of an object in a bucket
        with _translating_errors(path):
            file = soundfile.SoundFile(content if is_copy else _native(path))
        with file:
            arguments.rate(file.samplerate, f"{path}: its sample rate")
            if file.channels > MOST_CHANNELS:
                raise ValueError(f"{path}: has {file.channels} channels, the most that are read are {MOST_CHANNELS}")
            yield file


def _native(path: PathLike) -> str | bytes:
    """The path for libsndfile, which need not be UTF-8."""
    return os.fsencode(path) if os.name == "posix" else os.fspath(path)


def _head(file: IO[bytes]) -> bytes:
    """The first 16 bytes of a file, or those after the ID3 tag that mp3 and AAC files can start with."""
    head = file.read(16)
    if head.startswith(b"ID3"):
        file.seek(10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10])))
        head = file.read(16)
    file.seek(0)
    return head


@contextlib.contextmanager
def _translating_errors(path: PathLike, *, writing: bool = False) -> Iterator[None]:
    """Turns libsndfile's errors into a ValueError that names the file, or an OSError if the disk is full."""
    import soundfile

    try:
        with _stderr_silenced():
            yield
    # TypeError: soundfile takes an unknown suffix for raw. AssertionError: fewer samples were written than passed.
    # ValueError: its position is beyond the end that the header claims.
    except (soundfile.LibsndfileError, TypeError, AssertionError, ValueError) as error:
        folder = tempfile.gettempdir() if paths.is_remote(path) else Path(path).parent
        if writing and shutil.disk_usage(folder).free < _FULL_DISK:
            raise OSError(errno.ENOSPC, "the disk is full", os.fspath(path)) from None
        problem = "cannot be written" if writing else "is damaged, or no sound file that can be read"
        reason = str(getattr(error, "error_string", error))
        reason = "Format not recognised." if "possibly a pipe" in reason else reason
        raise ValueError(f"{path}: {problem} ({reason})") from error


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Discards what mpg123 writes to stderr about junk in a file. In a thread, stderr is left as it is."""
    # If the process started without stderr, another file may have its number.
    if sys.__stderr__ is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with open(os.devnull, "wb") as null:
        saved = os.dup(2)
        try:
            os.dup2(null.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _read_blocks(
    file: Any,
    path: PathLike,
    size: int,
    channels: int | None = None,
    limit: float = math.inf,
    warned: set[str] | None = None,
) -> Iterator[Audio]:
    """Blocks of `size` samples from the current position of the open file, `limit` samples in all."""
    warned = (warned or set()) | ({"loud"} if file.subtype in _LOSSY else set())
    num_samples = 0
    while True:
        with _translating_errors(path):
            block = file.read(min(size, limit - num_samples), dtype="float32", always_2d=True)
        if not len(block) and num_samples:
            return
        num_samples += len(block)
        block = check(block, str(path), warned)
        yield block if channels is None else to_channels(block, channels, str(path), warned)
