"""Writes folders of synthetic music: a sound file and its metadata for each piece."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mgjax.audio import files as audio_files
from mgjax.devices.parent import end_with_parent
from mgjax.inputs import claims, files
from mgjax.synthetic.form import USUAL_LENGTHS
from mgjax.synthetic.pieces import compose, render
from mgjax.synthetic.rendering import soundfont

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Summary:
    """What a folder holds after `write_folder`.

    Attributes:
      pieces: Pieces that were asked for, all of them there now.
      written: Those of them that were not there before.
      seconds: The length of all of them.
      styles: How many there are of each style.
    """

    pieces: int
    written: int
    seconds: float
    styles: dict[str, int]


@dataclass(frozen=True)
class _Job:
    """One piece to write."""

    directory: Path
    seed: int
    index: int
    sample_rate: int
    channels: int
    lengths: tuple[float, float]


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
    """Fills a folder with at least `hours` of music: for each piece a flac and, of the same name, a json of metadata.

    What is there already and whole is left as it is, so that a call that was killed can be repeated. The files do not
    depend on `workers`.

    Args:
      directory: Where to; it is made if need be.
      hours: How much music.
      seed: Other seeds give other music, under other names.
      sample_rate: In hertz.
      channels: 1 or 2.
      lengths: Seconds of the shortest and of the longest piece, see `compose`.
      workers: Processes that work at once.
      progress: Called with the seconds of music that are there so far and in all, after each piece.

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
    soundfont()  # that it is missing is better known before the work begins
    directory = Path(directory)
    pieces = written = 0
    seconds = 0.0
    styles: dict[str, int] = {}
    with claims.claimed(directory):
        for leftover in directory.glob(".synthetic-*.tmp"):  # of a call that was killed
            leftover.unlink(missing_ok=True)
        indices = _indices(seed, hours, lengths)
        jobs = (_Job(directory, seed, index, sample_rate, channels, lengths) for index in indices)
        for new, length, style in _worked_off(jobs, workers):
            pieces, written, seconds = pieces + 1, written + new, seconds + length
            styles[style] = styles.get(style, 0) + 1
            if progress:
                progress(min(seconds, 3600 * hours), 3600 * hours)
    return Summary(pieces, written, seconds, dict(sorted(styles.items())))


def _indices(seed: int, hours: float, lengths: tuple[float, float]) -> Iterator[int]:
    """The pieces that make up so many hours, known from their notes alone."""
    seconds, index = 0.0, 0
    while seconds < 3600 * hours:
        yield index
        seconds += compose(seed, index, lengths=lengths).score.seconds
        index += 1


def _worked_off(jobs: Iterator[_Job], workers: int) -> Iterator[tuple[bool, float, str]]:
    """The results of `_write_piece`, in order."""
    if workers == 1:
        yield from map(_write_piece, jobs)
        return
    # Not forked: the caller may hold threads, JAX's for one.
    with _single_threaded(), multiprocessing.get_context("spawn").Pool(workers, end_with_parent) as pool:
        yield from pool.imap(_write_piece, jobs)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes that are started meanwhile do linear algebra in one thread: there is one of them for each core."""
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


def _write_piece(job: _Job) -> tuple[bool, float, str]:
    """Writes a piece unless it is there; whether it did, its seconds and its style."""
    piece = compose(job.seed, job.index, lengths=job.lengths)
    sound = job.directory / f"{piece.metadata['name']}.flac"
    sidecar = sound.with_suffix(".json")
    text = json.dumps(piece.metadata, indent=1, ensure_ascii=False) + "\n"
    # The metadata come last: where they are as they should be, so is the sound.
    if sidecar.is_file() and sidecar.read_bytes() == text.encode() and sound.is_file():
        found = audio_files.info(sound)
        if (found.sample_rate, found.channels) == (job.sample_rate, job.channels):
            return False, found.num_samples / found.sample_rate, piece.score.style.name
    sidecar.unlink(missing_ok=True)
    samples = render(piece, job.sample_rate, job.channels)
    audio_files.write(sound, samples, job.sample_rate)
    files.write_text(sidecar, text)
    return True, len(samples) / job.sample_rate, piece.score.style.name
