"""Batches for training and validation, read from corpora on grain.

What is in a batch is a pure function of the seed and the number of the batch: sample number i draws its piece, its
place in the piece and its text from a random generator of its own. A position in the data is therefore one number,
whatever threads, processes and hosts read it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import multiprocessing.dummy  # what grain imports where it starts processes, which it does in a thread
import multiprocessing.popen_spawn_posix  # noqa: F401
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Float64, Int64

from mgjax.config.serialization import ranged
from mgjax.data.conditions import BatchConditions, ConditionReader, Segment
from mgjax.data.corpus import Corpus
from mgjax.data.pieces import Pieces
from mgjax.devices.parent import end_with_parent
from mgjax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]

log = logging.getLogger("mgjax")

_MOST, _LONGEST = 2**20, 86_400  # of what is counted in DataConfig, and seconds of a segment


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how.

    Attributes:
      corpora: The directories of the corpora, each with a training and a validation split.
      weights: How often each corpus is drawn from; only the proportions count. Empty: as if they were one corpus.
      batch_size: Rows of a batch, over all hosts together.
      segment_seconds: The length of a row.
      min_segment_ratio: A segment may begin so late that its piece ends before it does, as long as this share of it is
        music; zeros are the rest. 1 for zeros only where a piece is shorter than a segment.
      sample_on_duration: Draw every second of music equally often; otherwise every piece, long or short.
      valid_rounds: How many segments of each piece are in the validation.
      num_threads: Threads that make batches, a batch each; 0 makes them when they are asked for.
      num_workers: Processes that make batches instead of the threads, for where Python itself is too slow. Their
        batches pass through shared memory (/dev/shm), which containers often limit.
      prefetch: Batches that are made before they are asked for, and wait in memory.
      max_bad: The share of pieces that may turn out to be unreadable: others are drawn in their places. More end the
        run.
      may_grow: Whether a run may go on with corpora that have got more shards since it was begun.
    """

    corpora: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    batch_size: int = 16
    segment_seconds: float = 30.0
    min_segment_ratio: float = 0.8
    sample_on_duration: bool = True
    valid_rounds: int = 1
    num_threads: int = 4
    num_workers: int = 0
    prefetch: int = 4
    max_bad: float = 0.01
    may_grow: bool = False

    def __post_init__(self):
        least = {"batch_size": 1, "valid_rounds": 1, "num_threads": 0, "num_workers": 0, "prefetch": 1}
        for name, smallest in least.items():
            if not smallest <= getattr(self, name) <= _MOST:
                raise ConfigError(f"{name} must be from {smallest} to {_MOST}, got {getattr(self, name)}")
        if not 0 < self.segment_seconds <= _LONGEST:
            raise ConfigError(
                f"segment_seconds must be above 0 and at most {_LONGEST} (a day), got {self.segment_seconds}"
            )
        ranged(self, "0 or above and below 1", "max_bad")
        ranged(self, "above 0 and at most 1", "min_segment_ratio")
        ranged(self, "above 0", "weights")


def batches(
    corpora: Corpus | Sequence[Corpus],
    config: DataConfig,
    *,
    seed: int,
    rows: Sequence[int] | None = None,
    conditions: BatchConditions | None = None,
) -> BatchIterator:
    """Random segments without end, as batches of numpy arrays.

    Every batch is a dict. Of audio it has "audio", float32 `[b, n, c]`, and "num_samples", int32 `[b]`: how much of
    each row is music; zeros follow. Of codes it has "codes", int32 `[b, t, k]`, and "num_frames", int32 `[b]`. The
    inputs of `conditions` are:

    * "text_ids", int32 `[b, l]`, and "text_mask", bool `[b, l]`: texts;
    * "melody", float32 `[b, f, p]`, of corpora of codes alone, and "melody_mask", bool `[b, f]`: the chromagram from
      the frame on that is nearest to the beginning of the row, and its valid frames;
    * "style_start", int32 `[b]`, in samples or frames, and "style_mask", bool `[b]`: where an excerpt of it begins;
    * "clap_mask", bool `[b]`: which rows have a joint embedding of CLAP; and in validations, of the texts that it is of
      then, "clap_ids", int32 `[b, l]`, and "clap_ids_mask", bool `[b, l]`;
    * "label_genre", float32 `[b, 1, d]`, and "label_genre_mask", bool `[b, 1]`: for a label or number called genre.

    A mask is False all over a row whose condition is null.

    Args:
      corpora: Training splits of one or more corpora of one kind.
      config: What to draw.
      seed: 0 or more. Another seed gives other music in another order.
      rows: Those of each batch that this host reads, such as `sharding.rows_here` names; None for all of them.
      conditions: Which conditions they hold the inputs of; None for none.

    Raises:
      ConfigError: The corpora do not have what the conditions are made of.
      DataError: The corpora do not fit together or are not long enough, or there is no tokenizer for the texts. The
        iterator raises it where more pieces than `config.max_bad` cannot be read.
    """
    pieces = Pieces(corpora)
    segment, least = _lengths(pieces, config)
    draw = _Anywhere(_cumulative(pieces, config), np.maximum(pieces.lengths - least, 0))
    reader = ConditionReader(pieces, conditions or BatchConditions())
    return BatchIterator(_Source(pieces, draw, segment, _rows(config, rows), config, seed, reader, sys.maxsize), config)


def validation_batches(
    corpora: Corpus | Sequence[Corpus],
    config: DataConfig,
    *,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    conditions: BatchConditions | None = None,
) -> BatchIterator:
    """`valid_rounds` segments of every piece in order, always the same ones, as batches like those of `batches`.

    A segment lies within its piece wherever the piece is long enough. No condition is dropped, and texts are the
    descriptions, unchanged. Every piece is there: where they do not fill the last batch, more segments of the first
    pieces do.

    The arguments are those of `batches`, with validation splits.
    """
    pieces = Pieces(corpora)
    segment, _ = _lengths(pieces, config)
    draw = _InOrder(np.maximum(pieces.lengths - segment, 0))
    reader = ConditionReader(pieces, (conditions or BatchConditions()).validation())
    count = math.ceil(config.valid_rounds * len(pieces.lengths) / config.batch_size)
    config = dataclasses.replace(config, num_workers=0)  # to start processes takes longer than a validation
    return BatchIterator(_Source(pieces, draw, segment, _rows(config, rows), config, seed, reader, count), config)


class BatchIterator(grain.DatasetIterator):
    """An iterator of grain whose state is the number of batches that it has given, and nothing else.

    The state of one host is that of all, and goes on with other numbers of threads, processes and hosts.
    """

    def __init__(self, source: _Source, config: DataConfig):
        super().__init__()
        self._source, self._config, self._position = source, config, 0
        self._running: list[grain.DatasetIterator] = []  # the reader that is at work, if one is
        weakref.finalize(self, _stop, self._running)  # while all that it needs is still there when Python ends

    def __next__(self) -> Batch:
        self._assert_not_closed()
        self.start_prefetch()
        batch = next(self._running[0])
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"num_batches": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        position = int(state["num_batches"])
        if not 0 <= position <= len(self._source):
            raise DataError(f"cannot go on after {position} batches: there are {len(self._source)}")
        _stop(self._running)
        self._position = position

    def start_prefetch(self) -> None:
        if not self._running:
            ahead = grain.MapDataset.source(self._source).slice(slice(self._position, None))
            self._running.append(iter(_read(ahead, self._config)))
            self._running[0].start_prefetch()

    def close(self) -> None:
        _stop(self._running)
        super().close()


def _stop(running: list[grain.DatasetIterator]) -> None:
    while running:
        running.pop().close()


def _read(dataset: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """`dataset` made ahead, by threads or processes."""
    if not config.num_workers:
        return dataset.to_iter_dataset(grain.ReadOptions(min(config.num_threads, config.prefetch), config.prefetch))
    if not flags.FLAGS.is_parsed():  # where no absl app runs: grain reads flags before it starts processes
        flags.FLAGS.mark_as_parsed()
    each = max(1, config.prefetch // (2 * config.num_workers))  # a process has a queue of this size at both its ends
    processes = grain.MultiprocessingOptions(config.num_workers, per_worker_buffer_size=each)
    return dataset.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(processes, end_with_parent)


@dataclasses.dataclass(frozen=True)
class _Anywhere:
    """Draws pieces by their probabilities, and any start in them."""

    cumulative: Float64[np.ndarray, "p"]
    last_starts: Int64[np.ndarray, "p"]

    def __call__(self, rng: np.random.Generator, number: int) -> tuple[int, int]:
        piece = min(int(np.searchsorted(self.cumulative, rng.random(), side="right")), len(self.cumulative) - 1)
        return piece, int(rng.integers(self.last_starts[piece] + 1))


@dataclasses.dataclass(frozen=True)
class _InOrder:
    """Takes one piece after the other, and draws any start in them."""

    last_starts: Int64[np.ndarray, "p"]

    def __call__(self, rng: np.random.Generator, number: int) -> tuple[int, int]:
        piece = number % len(self.last_starts)
        return piece, int(rng.integers(self.last_starts[piece] + 1))


@dataclasses.dataclass(frozen=True)
class _Source:
    """Batches by their numbers, which grain hands out to threads and processes."""

    pieces: Pieces
    draw: _Anywhere | _InOrder  # a sample's generator and number -> its piece, and its start there
    segment: int  # samples or frames
    rows: tuple[int, ...]  # those of each batch that are this host's
    config: DataConfig
    seed: int
    conditions: ConditionReader
    count: int
    bad: set[int] = dataclasses.field(default_factory=set)  # pieces that could not be read, as far as they were met

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        first = self.pieces.corpora[0]
        is_audio = first.kind == "audio"
        segments = np.zeros((len(self.rows), self.segment, first.width), np.float32 if is_audio else np.int32)
        lengths, drawn = np.zeros(len(self.rows), np.int32), []
        for row, place in enumerate(self.rows):
            one, found = self._drawn(int(number) * self.config.batch_size + place)
            segments[row, : len(found)], lengths[row] = found, len(found)
            drawn.append(one)
        names = ("audio", "num_samples") if is_audio else ("codes", "num_frames")
        batch = dict(zip(names, (segments, lengths), strict=True))
        return batch | self.conditions(drawn)

    def _drawn(self, sample: int) -> tuple[Segment, np.ndarray]:
        """The segment that is sample number `sample`: of the first piece drawn for it that can be read."""
        rng = np.random.default_rng((self.seed, sample))
        for attempt in itertools.count():
            piece, start = self.draw(rng, sample + attempt)
            try:
                self.pieces.metadata(piece)
                found = self.pieces.read(piece, start, self.segment)
            except DataError as error:
                self._leave_out(piece, error)
            else:
                return Segment(piece, start, len(found), rng), found

    def _leave_out(self, piece: int, error: DataError) -> None:
        """Notes a piece that cannot be read.

        Raises:
          DataError: There are more of them than may be.
        """
        is_new = piece not in self.bad
        self.bad.add(piece)
        most, total = self.config.max_bad, len(self.pieces.lengths)
        if len(self.bad) > most * total:
            raise DataError(
                f"{error}. {len(self.bad)} of {total} pieces could not be read so far, more than data.max_bad {most:g} "
                "allows"
            ) from error
        if is_new:
            log.warning("%s; it is left out, others are drawn in its place", error)


def _lengths(pieces: Pieces, config: DataConfig) -> tuple[int, int]:
    """The length of a segment, and how much of it is to be music at least, both in samples or frames."""
    rate = pieces.corpora[0].rate
    # 2.3 seconds are 115 frames of 20 ms, although 2.3 * 50 is 114.99999999999999.
    segment = math.floor(round(config.segment_seconds * rate, 6))
    least = math.ceil(round(config.min_segment_ratio * segment, 6))
    if segment < 1:
        raise DataError(f"segment_seconds must be at least {1 / rate:g} at this rate, got {config.segment_seconds:g}")
    if pieces.lengths.max() < least:
        raise DataError(
            f"no piece is long enough: segment_seconds {config.segment_seconds:g} with min_segment_ratio "
            f"{config.min_segment_ratio:g} needs {least / rate:g} s of music, but the longest piece has "
            f"{pieces.lengths.max() / rate:g} s. Set segment_seconds lower"
        )
    return segment, least


def _cumulative(pieces: Pieces, config: DataConfig) -> Float64[np.ndarray, "p"]:
    """The probability of drawing each piece or one before it."""
    weights = pieces.lengths.astype(np.float64) if config.sample_on_duration else np.ones(len(pieces.lengths))
    if config.weights:
        if len(config.weights) != len(pieces.corpora):
            raise DataError(f"{len(pieces.corpora)} corpora need as many weights, got {config.weights}")
        sums = np.add.reduceat(weights, np.cumsum(pieces.counts) - pieces.counts)
        weights *= np.repeat(config.weights / sums, pieces.counts)
    return np.cumsum(weights / weights.sum())


def _rows(config: DataConfig, rows: Sequence[int] | None) -> tuple[int, ...]:
    """The rows of each batch that this host reads."""
    found = tuple(range(config.batch_size) if rows is None else rows)
    if not set(found) <= set(range(config.batch_size)):
        raise DataError(f"the rows of a batch of {config.batch_size} are from 0 on, got {found}")
    return found
