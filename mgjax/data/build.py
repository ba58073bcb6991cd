"""Builds an audio corpus from a folder of music, a manifest or a dataset of tensorflow-datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from jaxtyping import Float32

from mgjax.audio.loudness import LoudnessMeter
from mgjax.audio.metadata import escaped
from mgjax.data import assembly, datasets, sources
from mgjax.data.assembly import BadPiece, Plan, Progress, Report
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import describe_audio
from mgjax.storage import paths

NOT_USED = "the key {!r} is not used"
_SILENCE_RMS = 1e-4  # -80 dB, noise of three steps in 16 bits
_IN_MEMORY = 1 << 26  # bytes of a piece; longer ones are buffered in a file


@dataclasses.dataclass(frozen=True)
class AudioMaker:
    """Makes audio pieces out of sources.

    A piece is read to its end before its first sample is written, so that nothing is left of a file that is damaged in
    the middle. The settings are those of `build`.
    """

    sample_rate: int
    channels: int
    min_seconds: float
    loudness: float | None

    @contextlib.contextmanager
    def open(self, source: sources.Source, scratch: pathlib.Path) -> Iterator[Piece]:
        """As `assembly.Maker.open`."""
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(scratch)) as file:
            unused: list[str] = []
            with _usable(source):
                metadata = source.metadata(unused)
            notes = [NOT_USED.format(escaped(key)) for key in unused]
            gain, peak = self._read(source, file)
            if gain * peak > 1:
                notes.append("louder than full scale, and clipped")
            yield Piece(source.name, metadata, self._blocks(file, gain), notes=tuple(notes))

    def _read(self, source: sources.Source, file: IO[bytes]) -> tuple[np.float32, float]:
        """Writes all samples to `file`; returns the gain to apply, and the peak before it."""
        meter = None if self.loudness is None else LoudnessMeter(self.sample_rate)
        count, power, peak = 0, 0.0, 0.0
        for block in self._sound(source):
            count += len(block)
            power += float(np.square(block, dtype=np.float64).sum())
            peak = max(peak, float(np.abs(block).max(initial=0)))
            if meter:
                meter.push(block)
            file.write(block.tobytes())
        if count < self.min_seconds * self.sample_rate:
            raise BadPiece(f"too short: {count / self.sample_rate:.2f} s, expected {self.min_seconds:g} s or more")
        if math.sqrt(power / (count * self.channels)) < _SILENCE_RMS:
            raise BadPiece("silent")
        lufs = meter.lufs() if meter else None
        gain = 1.0 if self.loudness is None or lufs is None else 10 ** ((self.loudness - lufs) / 20)
        return np.float32(gain), peak

    def _sound(self, source: sources.Source) -> Iterator[Float32[np.ndarray, "n c"]]:
        with _usable(source):
            yield from source.blocks(self.sample_rate, self.channels)

    def _blocks(self, file: IO[bytes], gain: np.float32) -> Iterator[Float32[np.ndarray, "n c"]]:
        file.seek(0)
        size = np.dtype(np.float32).itemsize * self.channels
        while data := file.read(size << 16):
            yield np.frombuffer(data, np.float32).reshape(-1, self.channels) * gain


def build(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    sample_rate: int = 32_000,
    channels: int = 1,
    valid: float = 0.05,
    min_seconds: float = 1.0,
    loudness: float | None = None,
    max_bad: float = 0.05,
    fields: datasets.Fields | None = None,
    num_shards: int | None = None,
    workers: int = 1,
    replace: bool = False,
    beam_options: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Builds an audio corpus in `directory` from the music in `source`.

    The corpus does not depend on the number of workers. Called again, an interrupted build goes on; shards whose
    sources have changed since are made anew. A piece that cannot be read, is damaged, silent or too short, or has
    invalid metadata is left out, and listed in report.json with the reason.

    Args:
      source: As for `sources.find`.
      directory: The folder of the corpus, which is created if missing.
      sample_rate: Of the corpus, in hertz.
      channels: Of the corpus; 1 is the mean of all channels.
      valid: The share of pieces for validation. They are chosen by hashes of their names, unless there are so few
        pieces that one split would be empty.
      min_seconds: Shorter pieces are left out.
      loudness: The loudness (BS.1770-4) that pieces are normalized to, in LUFS, and then clipped; None for no change.
      max_bad: The largest share of pieces that may be left out before the build fails.
      fields: Maps the features of a dataset of tensorflow-datasets to audio and metadata.
      num_shards: The approximate number of shards of both splits; None to choose by the number of pieces.
      workers: As for `assembly.assemble`.
      replace: As for `assembly.assemble`.
      beam_options: As for `assembly.assemble`.
      progress: As for `assembly.assemble`.

    Raises:
      CorpusError: There is no music, or too much of it cannot be used.
      FileExistsError: There is something else in `directory`.
    """
    plan = make_plan(source, sample_rate, channels, valid, min_seconds, loudness, fields, num_shards)
    return assembly.assemble(
        paths.path(directory),
        plan,
        workers=workers,
        max_bad=max_bad,
        replace=replace,
        beam_options=beam_options,
        progress=progress,
    )


def make_plan(
    source: str | os.PathLike[str],
    sample_rate: int,
    channels: int,
    valid: float,
    min_seconds: float,
    loudness: float | None,
    fields: datasets.Fields | None = None,
    num_shards: int | None = None,
) -> Plan:
    """The plan of the corpus that `build` makes; the arguments are those of `build`."""
    if not 1 <= channels <= 2:
        raise ValueError(f"channels must be 1 or 2, got {channels}")
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be 1 or more, got {sample_rate}")
    if not 0 <= valid < 1:
        raise ValueError(f"valid must be a share from 0 to below 1, got {valid}")
    maker = AudioMaker(sample_rate, channels, float(min_seconds), None if loudness is None else float(loudness))
    shards = _shards(sources.find(source, fields), valid, num_shards)
    settings = dataclasses.asdict(maker)
    request = [paths.absolute(source), valid, num_shards, repr(fields), settings]
    return Plan(describe_audio(sample_rate, channels), maker, shards, settings, request)


def _shards(
    pieces: Sequence[sources.Source], valid: float, num_shards: int | None
) -> dict[str, list[list[sources.Source]]]:
    """The sources of each shard of each split."""
    total = len(pieces)
    hashes = {}  # from 0 to below 1
    for source in pieces:
        digest = hashlib.sha256(source.name.encode(errors="surrogateescape")).digest()
        hashes[source.name] = int.from_bytes(digest[:6]) / 2**48
    chosen = {name for name, value in hashes.items() if value < valid}
    if valid and total > 1:
        ordered = sorted(hashes, key=hashes.__getitem__)
        chosen = (chosen | {ordered[0]}) - {ordered[-1]}
    # A shard is a unit of work of a worker, and a file that a reader keeps open.
    num_shards = num_shards or min(max(math.ceil(total / 32), min(total, 8)), 256)
    splits = {
        "train": [source for source in pieces if source.name not in chosen],
        "valid": [source for source in pieces if source.name in chosen],
    }
    return {name: _chunks(split, math.ceil(num_shards * len(split) / total)) for name, split in splits.items()}


def _chunks(pieces: Sequence[sources.Source], num_chunks: int) -> list[list[sources.Source]]:
    """`pieces` in order, in chunks whose sizes differ by at most one."""
    bounds = [len(pieces) * i // num_chunks for i in range(num_chunks + 1)] if num_chunks else []
    return [list(pieces[low:high]) for low, high in itertools.pairwise(bounds)]


@contextlib.contextmanager
def _usable(source: sources.Source) -> Iterator[None]:
    """Turns the errors of reading a source into `BadPiece`."""
    try:
        yield
    except (ValueError, OSError) as error:
        path = os.fspath(getattr(source, "path", source.name))
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        # The report lists the reason beside the name.
        raise BadPiece(escaped(text.removeprefix(f"{path}: "))) from error
