"""A folder of music, a manifest or a dataset, made into a corpus of sound."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mgjax.audio.loudness import LoudnessMeter
from mgjax.audio.metadata import escaped
from mgjax.data import assembly, datasets, sources
from mgjax.data.assembly import BadPiece, Plan, Progress, Report
from mgjax.data.corpus import describe_audio
from mgjax.data.corpus_writing import Piece

NOT_USED = "the key {!r} is not used"
_SILENCE_RMS = 1e-4  # -80 dB: all that is left of it in 16 bits is noise of three steps
_IN_MEMORY = 1 << 26  # bytes of a piece; what is longer waits in a file


@dataclasses.dataclass(frozen=True)
class AudioMaker:
    """Makes pieces of sound out of sources.

    A piece is read to its end before the first sample of it is written, so that a file that is damaged in the middle
    leaves nothing behind.

    Attributes:
      sample_rate: In hertz.
      channels: 1 or 2.
      min_seconds: A shorter piece is left out.
      loudness: In LUFS, that pieces are brought to; None: as they are.
    """

    sample_rate: int
    channels: int
    min_seconds: float
    loudness: float | None

    @contextlib.contextmanager
    def open(self, source: sources.Source, scratch: Path) -> Iterator[Piece]:
        """See `assembly.Maker`."""
        with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=scratch) as file:
            unused: list[str] = []
            with _usable(source):
                metadata = source.metadata(unused)
            notes = [NOT_USED.format(escaped(key)) for key in unused]
            gain, peak = self._read(source, file)
            if gain * peak > 1:
                notes.append("louder than full scale, and clipped")
            yield Piece(source.name, metadata, self._blocks(file, gain), notes=tuple(notes))

    def _read(self, source: sources.Source, file: tempfile.SpooledTemporaryFile) -> tuple[np.float32, float]:
        """Puts all sound into `file`; what it is to be multiplied by, and its peak."""
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
        return np.float32(1.0 if lufs is None else 10 ** ((self.loudness - lufs) / 20)), peak

    def _sound(self, source: sources.Source) -> Iterator[Float32[np.ndarray, "n c"]]:
        with _usable(source):
            yield from source.blocks(self.sample_rate, self.channels)

    def _blocks(self, file: tempfile.SpooledTemporaryFile, gain: np.float32) -> Iterator[Float32[np.ndarray, "n c"]]:
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
    """Makes an audio corpus in `directory` of the music in `source`, and says what became of each piece.

    The corpus is the same whatever the number of workers. An interrupted build goes on where it was when it is called
    again; the shards of pieces that have changed since are made anew. A piece that cannot be read, is damaged, silent
    or too short, or whose metadata cannot be understood, is left out and named in report.json
    with the reason.

    Args:
      source: See `sources.find`.
      directory: Where to; made if missing.
      sample_rate: Of the corpus, in hertz.
      channels: Of the corpus; 1 is the mean of all channels.
      valid: The share of pieces for validation; which they are depends on their names alone, unless there are so few
        pieces that one split would be empty.
      min_seconds: Shorter pieces are left out.
      loudness: In LUFS (BS.1770-4), that each piece is brought to, and then clipped; None: as they are.
      max_bad: The build fails if a larger share of the pieces than this has to be left out.
      fields: What the features of a dataset of tensorflow-datasets mean.
      num_shards: Files over both splits, about; None: by the number of pieces.
      workers, replace, beam_options, progress: See `assembly.assemble`.

    Raises:
      CorpusError: There is no music, or too much of it cannot be used.
      FileExistsError: There is something else in `directory`.
    """
    plan = make_plan(source, sample_rate, channels, valid, min_seconds, loudness, fields, num_shards)
    return assembly.assemble(
        Path(directory),
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
    """What `build` makes, where each piece has its place; the arguments are those of `build`."""
    if not 1 <= channels <= 2:
        raise ValueError(f"channels must be 1 or 2, got {channels}")
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be 1 or more, got {sample_rate}")
    if not 0 <= valid < 1:
        raise ValueError(f"valid must be a share from 0 to below 1, got {valid}")
    maker = AudioMaker(sample_rate, channels, float(min_seconds), None if loudness is None else float(loudness))
    shards = _shards(sources.find(source, fields), valid, num_shards)
    settings = dataclasses.asdict(maker)
    request = [os.path.abspath(source), valid, num_shards, repr(fields), settings]
    return Plan(describe_audio(sample_rate, channels), maker, shards, settings, request)


def _shards(
    found: Sequence[sources.Source], valid: float, num_shards: int | None
) -> dict[str, list[list[sources.Source]]]:
    """The sources of each shard of each split."""
    total = len(found)
    places = {source.name: _place(source.name) for source in found}
    chosen = {name for name, place in places.items() if place < valid}
    if valid and total > 1:
        ordered = sorted(places, key=places.get)
        chosen = (chosen | {ordered[0]}) - {ordered[-1]}
    # A shard is what a worker does at a time, and a file that a reader holds open.
    num_shards = num_shards or min(max(math.ceil(total / 32), min(total, 8)), 256)
    splits = {
        "train": [source for source in found if source.name not in chosen],
        "valid": [source for source in found if source.name in chosen],
    }
    return {split: _parted(some, math.ceil(num_shards * len(some) / total)) for split, some in splits.items()}


def _place(name: str) -> float:
    """A number from 0 to below 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6]) / 2**48


def _parted(some: Sequence[sources.Source], parts: int) -> list[list[sources.Source]]:
    """`some` in order, in parts that differ by one at most."""
    bounds = [len(some) * i // parts for i in range(parts + 1)] if parts else []
    return [list(some[low:high]) for low, high in itertools.pairwise(bounds)]


@contextlib.contextmanager
def _usable(source: sources.Source) -> Iterator[None]:
    """Turns what goes wrong with a source into a reason to leave it out."""
    try:
        yield
    except (ValueError, OSError) as error:
        path = os.fspath(getattr(source, "path", source.name))
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        # The report names the piece anyway.
        raise BadPiece(escaped(text.removeprefix(f"{path}: "))) from error
