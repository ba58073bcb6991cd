"""Sound files in and out, and the little arithmetic that audio needs before and after a model.

Audio is float32 `[n, c]` (samples, channels) with full scale at -1 and 1. Nothing here needs ffmpeg: files are read
and written by libsndfile, which comes with the soundfile package. The libraries are imported where they are used, so
that `import mgjax` stays quick.
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

Audio = Float32[np.ndarray, "n c"]
PathLike = str | os.PathLike[str]

# What a suffix means to libsndfile.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

_MOST_CHANNELS = 64  # more than this is an array that stands on its side
_LARGEST_WAV = 2**32 - 4096  # bytes; a wav header counts in 32 bits
_FRAMES_AT_ONCE = 1 << 16  # the Vorbis encoder overflows its stack when it is handed minutes at once


class Info(NamedTuple):
    """What a sound file says about itself."""

    sample_rate: int
    channels: int
    num_samples: int


def info(path: PathLike) -> Info:
    """The sample rate in hertz, the channels and the length in samples of a file, without reading its sound.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: It is not a sound file.
    """
    with _open(path) as file:
        return Info(file.samplerate, file.channels, file.frames)


def read(path: PathLike, *, start_seconds: float = 0.0, seconds: float | None = None) -> tuple[Audio, int]:
    """The sound of a file as float32 `[n, c]`, and its sample rate in hertz.

    Args:
      path: A file of any kind that libsndfile knows: wav, flac, ogg, mp3, aiff and others.
      start_seconds: Where to begin.
      seconds: How much to read; None for all. Less comes back where the file ends before.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: It is no sound file, is damaged, holds NaN, or ends before `start_seconds`.
    """
    if not (math.isfinite(start_seconds) and start_seconds >= 0):
        raise ValueError(f"start_seconds must be 0 or more, got {start_seconds}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    with _open(path) as file:
        start = round(start_seconds * file.samplerate)
        if start and start >= file.frames:
            length = file.frames / file.samplerate
            raise ValueError(f"{path}: cannot start at {start_seconds:g} s, the file ends at {length:g} s")
        with _explained(path):
            file.seek(start)
            audio = file.read(
                -1 if seconds is None else round(seconds * file.samplerate), dtype="float32", always_2d=True
            )
        return check(audio, str(path)), file.samplerate


def blocks(
    path: PathLike, seconds_per_block: float, sample_rate: int | None = None, channels: int | None = None
) -> Iterator[Audio]:
    """The sound of a file in order, as float32 `[n_i, c]`, in the memory of a few blocks however long the file is.

    Joined, the blocks are exactly `resample(to_channels(read(path)))`. Each holds `seconds_per_block`, the last what
    is left.

    Args:
      path: As for `read`.
      seconds_per_block: Length of a block.
      sample_rate: Rate to resample to, in hertz; None to keep the file's.
      channels: Channels to convert to; None to keep the file's.

    Raises:
      OSError, ValueError: As `read`, where the trouble is met.
    """
    if not seconds_per_block > 0:
        raise ValueError(f"seconds_per_block must be above 0, got {seconds_per_block}")
    with _open(path) as file:
        rate = file.samplerate if sample_rate is None else sample_rate
        sound = _read_on(file, path, max(1, round(seconds_per_block * file.samplerate)), channels)
        if rate != file.samplerate:
            sound = _resampled(sound, file.samplerate, rate)
        yield from _regrouped(sound, max(1, round(seconds_per_block * rate)))


@contextlib.contextmanager
def writer(path: PathLike, sample_rate: int, channels: int) -> Iterator[Writer]:
    """A `Writer` for a sound file that is made piece by piece.

    The file appears under its name when the block ends well, complete. Where anything goes wrong, Ctrl-C included,
    nothing is left behind and a file that was there before stays as it was.

    Args:
      path: Where to; the suffix (.wav, .flac, .ogg, .mp3) says what is written. Wav and flac hold 16 bits.
      sample_rate: In hertz.
      channels: Channels of all that will be written.

    Raises:
      ValueError: The suffix or the combination of rate and channels cannot be written.
      OSError: The folder is missing or may not be written to.
    """
    import soundfile

    path = Path(path)
    kind, subtype = writable_format(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    # In the same folder, because only a rename within one file system is atomic.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    quality = {"compression_level": 0.0, "bitrate_mode": "CONSTANT"} if kind == "MP3" else {}
    try:
        with _explained(path, "cannot be written"):
            file = soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype, format=kind, **quality)
        with file:
            yield Writer(file, path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        with _explained(self._path, "cannot be written"):
            for start in range(0, len(audio), _FRAMES_AT_ONCE):
                self._file.write(audio[start : start + _FRAMES_AT_ONCE])


def write(path: PathLike, audio: Any, sample_rate: int) -> None:
    """Writes `[n, c]` or `[n]` as a sound file, whole or not at all.

    Args:
      path: Where to; the suffix (.wav, .flac, .ogg, .mp3) says what is written. Wav and flac hold 16 bits.
      audio: What `check` accepts; what lies beyond -1 and 1 is clipped.
      sample_rate: In hertz.

    Raises:
      OSError, ValueError: As `writer` and `check`.
    """
    audio = check(audio, f"the audio for {path}")
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


def resample(audio: Audio, sample_rate: int, target: int) -> Float32[np.ndarray, "m c"]:
    """`audio` at `target` hertz, `[ceil(n * target / sample_rate), c]`, by soxr's very high quality filter.

    The length is rounded up, so that no sound is lost at the end and no piece becomes empty.
    """
    if sample_rate == target:
        return audio
    return np.concatenate(list(_resampled([audio], sample_rate, target)))


def to_channels(audio: Audio, channels: int) -> Float32[np.ndarray, "n {channels}"]:
    """`audio` with `channels` channels: their mean for one, copies of a single one for many.

    Raises:
      ValueError: Neither applies, as in 6 channels to 2.
    """
    given = audio.shape[1]
    if given == channels:
        return audio
    if channels == 1:
        return audio.mean(axis=1, keepdims=True, dtype=np.float32)
    if given == 1 and channels > 1:
        return np.repeat(audio, channels, axis=1)
    raise ValueError(f"audio of {given} channels cannot be made into {channels}; mix it down to 1 or {channels} first")


def check(audio: Any, what: str = "audio") -> Audio:
    """`audio` as float32 `[n, c]`.

    Args:
      audio: `[n]` or `[n, c]`, floating point with full scale at 1, or integers of 8 (unsigned), 16 or 32 bits, whose
        full scale is that of their type.
      what: What the audio is called in messages.

    Raises:
      ValueError: It is empty, has another rank, holds NaN or infinity, stands on its side (`[c, n]`), or is of a type
        whose full scale is not known.
    """
    audio = np.asarray(audio)
    if audio.ndim == 1:
        audio = audio[:, None]
    if audio.ndim != 2:
        raise ValueError(f"{what}: expected [samples] or [samples, channels], got the shape {audio.shape}")
    if audio.size == 0:
        raise ValueError(f"{what}: there is no sound in it (shape {audio.shape})")
    if audio.shape[1] > _MOST_CHANNELS:
        raise ValueError(
            f"{what}: the shape {audio.shape} means {audio.shape[1]} channels; expected [samples, channels], "
            f"transpose it if it is [channels, samples]"
        )
    if audio.dtype == np.uint8:
        return (audio.astype(np.float32) - 128) / 128
    if audio.dtype in (np.int16, np.int32):
        return (audio / -float(np.iinfo(audio.dtype).min)).astype(np.float32)
    if not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(f"{what}: expected floating point, int16, int32 or uint8, got {audio.dtype}")
    if not np.isfinite(audio).all():
        raise ValueError(f"{what}: holds NaN or infinity; repair it, or replace them by 0 (numpy.nan_to_num)")
    return audio.astype(np.float32, copy=False)


@contextlib.contextmanager
def _open(path: PathLike) -> Iterator[Any]:
    """The open `soundfile.SoundFile`, with the usual troubles named."""
    import soundfile

    path = Path(path)
    path.open("rb").close()  # libsndfile says "System error" for whatever ails a path; Python says what
    with _explained(path):
        file = soundfile.SoundFile(path)
    with file:
        yield file


@contextlib.contextmanager
def _explained(path: PathLike, trouble: str = "is damaged, or no sound file that can be read") -> Iterator[None]:
    """Turns libsndfile's errors into a ValueError that names the file."""
    import soundfile

    try:
        yield
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: soundfile takes an unknown suffix for raw
        raise ValueError(f"{path}: {trouble} ({getattr(error, 'error_string', error)})") from error


def _read_on(file: Any, path: PathLike, size: int, channels: int | None) -> Iterator[Audio]:
    """The open file from where it stands, `size` samples at a time."""
    found = False
    while True:
        with _explained(path):
            block = file.read(size, dtype="float32", always_2d=True)
        if not len(block) and found:
            return
        found = True
        block = check(block, str(path))
        yield block if channels is None else to_channels(block, channels)


def _resampled(sound: Iterable[Audio], sample_rate: int, target: int) -> Iterator[Audio]:
    """`sound` at `target` hertz, piece by piece, as if it had been resampled in one."""
    import soxr

    if target < 1 or sample_rate < 1:
        raise ValueError(f"sample rates must be 1 or more, got {sample_rate} and {target}")
    stream = None
    taken = given = 0
    for block in sound:
        if stream is None:
            stream = soxr.ResampleStream(sample_rate, target, block.shape[1], dtype="float32", quality="VHQ")
        piece = stream.resample_chunk(np.ascontiguousarray(block))
        taken, given = taken + len(block), given + len(piece)
        yield piece
    if stream is not None:
        # soxr rounds the length to the nearest; some silence at the end makes the last sample of rounding up.
        silence = np.zeros((-(-sample_rate // target), block.shape[1]), np.float32)
        missing = -(-taken * target // sample_rate) - given
        yield stream.resample_chunk(silence, last=True)[:missing]


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
