"""Writes folders of synthetic music: a sound file and its metadata for each piece."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from mgjax.audio import files as audio_files
from mgjax.devices.parent import end_with_parent
from mgjax.inputs import claims, files
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.synthetic.form import USUAL_LENGTHS
from mgjax.synthetic.pieces import compose, render
from mgjax.synthetic.rendering import soundfont

T = TypeVar("T")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Summary:
    """The result of `write_folder`.

    Attributes:
      pieces: The number of pieces.
      written: The number of those that were not in the folder before.
      seconds: The length of all pieces.
      styles: The number of pieces of each style.
    """

    pieces: int
    written: int
    seconds: float
    styles: dict[str, int]


def write_folder(
    directory: audio_files.PathLike,
    hours: float,
    *,
    seed: int = 0,
    sample_rate: int = 32000,
    channels: int = 1,
    lengths: tuple[float, float] = USUAL_LENGTHS,
    workers: int = 1,
    progress: Callable[[float, float], None] | None = None,
) -> Summary:
    """Fills a folder with at least `hours` of music: a .flac for each piece, and a .json of the same name.

    Complete pieces are not written again, so that an interrupted call can be repeated. The files do not depend on
    `workers`.

    Args:
      directory: The folder, which is created if missing.
      hours: The amount of music.
      seed: Seeds give different music, under different names.
      sample_rate: In hertz.
      channels: 1 or 2.
      lengths: Seconds of the shortest and of the longest piece, as for `compose`.
      workers: The number of processes.
      progress: Called after each piece with the seconds of music so far, and in all.

    Raises:
      ImportError: The extra `synthetic` is not installed.
      ValueError: A number is out of range.
      OSError: The folder cannot be written to, or another call is at work in it.
    """
    if not hours > 0 or hours == float("inf"):
        raise ValueError(f"hours must be above 0, got {hours}")
    for name, value, least in (("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    soundfont()  # raises its errors now
    directory = paths.path(directory)
    pieces = written = 0
    seconds = 0.0
    styles: dict[str, int] = {}
    with claims.claimed(directory):
        for leftover in directory.glob(".synthetic-*.tmp"):  # of a call that was killed
            leftover.unlink(missing_ok=True)
        write = functools.partial(_write_piece, directory, sample_rate, channels, seed, lengths)
        for is_new, length, style in _map(write, _indices(seed, hours, lengths), workers):
            pieces, written, seconds = pieces + 1, written + is_new, seconds + length
            styles[style] = styles.get(style, 0) + 1
            if progress:
                progress(min(seconds, 3600 * hours), 3600 * hours)
    return Summary(pieces, written, seconds, dict(sorted(styles.items())))


def _indices(seed: int, hours: float, lengths: tuple[float, float]) -> Iterator[int]:
    """The indices of pieces that last `hours` together, by their notes alone."""
    seconds, index = 0.0, 0
    while seconds < 3600 * hours:
        yield index
        seconds += compose(seed, index, lengths=lengths).score.seconds
        index += 1


def _map(function: Callable[[int], T], indices: Iterator[int], workers: int) -> Iterator[T]:
    """The results of `function` in order, from this process or `workers` others."""
    if workers == 1:
        yield from map(function, indices)
        return
    # Not forked, as the caller may have threads, such as JAX's.
    with _single_threaded(), multiprocessing.get_context("spawn").Pool(workers, end_with_parent) as pool:
        yield from pool.imap(function, indices)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Limits linear algebra in processes that its block starts to one thread each."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write_piece(
    directory: Path, sample_rate: int, channels: int, seed: int, lengths: tuple[float, float], index: int
) -> tuple[bool, float, str]:
    """Writes a piece unless it exists; returns whether it did, its seconds and its style."""
    directory = paths.path(directory)  # a process of its own knows no buckets yet
    piece = compose(seed, index, lengths=lengths)
    sound = directory / f"{piece.metadata['name']}.flac"
    sidecar = sound.with_suffix(".json")
    text = json.dumps(piece.metadata, indent=1, ensure_ascii=False) + "\n"
    # The metadata is written last: if it is right, so is the sound.
    if sidecar.is_file() and sidecar.read_bytes() == text.encode() and sound.is_file():
        info = audio_files.info(sound)
        if (info.sample_rate, info.channels) == (sample_rate, channels):
            return False, info.num_samples / info.sample_rate, piece.score.style.name
    sidecar.unlink(missing_ok=True)
    samples = render(piece, sample_rate, channels)
    audio_files.write(sound, samples, sample_rate)
    files.write_text(sidecar, text)
    return True, len(samples) / sample_rate, piece.score.style.name
