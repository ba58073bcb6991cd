"""Batches for training and validation, read from corpora by grain.

A batch is a pure function of the seed and its index: every example draws its piece, its position in the piece and its
text from a random generator of its own. The state of the data is therefore one number, for any number of threads,
processes and hosts.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import multiprocessing.dummy  # grain imports these in a thread, where it starts processes
import multiprocessing.popen_spawn_posix  # noqa: F401
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Float64, Int64

from mgjax.config.serialization import ranged
from mgjax.data.conditions import BatchConditions, ConditionReader, Segment
from mgjax.data.corpus import Corpus, Pieces
from mgjax.data.fetching import FetchAhead
from mgjax.devices.parent import end_with_parent
from mgjax.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]

log = logging.getLogger("mgjax")

_MAX_COUNT, _MAX_SECONDS = 2**20, 86_400  # of the counts in DataConfig, and of a segment's seconds


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpora to read, and how to read them.

    Attributes:
      corpora: The directories of the corpora, each with a training and a validation split.
      weights: Sampling weights of the corpora; only the proportions count. Empty: as if they were one corpus.
      batch_size: Global batch size, over all hosts.
      segment_seconds: The length of a segment, which is a row of a batch.
      min_segment_ratio: A segment may start near the end of its piece, as long as this share of it is music; the rest
        is zero padding. 1 pads only pieces that are shorter than a segment.
      sample_on_duration: Whether pieces are sampled in proportion to their length; otherwise all equally often.
      valid_rounds: The number of segments of each piece in a validation.
      num_threads: Threads that make batches; 0 makes them in the thread that asks for them.
      num_workers: Processes that make batches instead of the threads, where Python itself is too slow. Their batches
        pass through shared memory (/dev/shm), which containers often limit.
      prefetch: Batches that are made in advance.
      max_bad: The share of pieces that may be unreadable, and are replaced by others; more end the run.
      may_grow: Whether a run may go on with corpora that have more shards than when it started.
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

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "valid_rounds": 1, "num_threads": 0, "num_workers": 0, "prefetch": 1}
        for name, smallest in least.items():
            if not smallest <= getattr(self, name) <= _MAX_COUNT:
                raise ConfigError(f"{name} must be from {smallest} to {_MAX_COUNT}, got {getattr(self, name)}")
        if not 0 < self.segment_seconds <= _MAX_SECONDS:
            raise ConfigError(
                f"segment_seconds must be above 0 and at most {_MAX_SECONDS} (a day), got {self.segment_seconds}"
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
    """An endless iterator over batches of random segments, dicts of numpy arrays.

    A batch of audio has "audio", float32 `[b, n, c]`, and "num_samples", int32 `[b]`, the length of each row before
    its zero padding. A batch of codes has "codes", int32 `[b, t, k]`, and "num_frames", int32 `[b]`. The conditioning
    inputs of `conditions` are:

    * "text_ids", int32 `[b, l]`, and "text_mask", bool `[b, l]`: texts;
    * "melody", float32 `[b, f, p]`, of corpora of codes alone, and "melody_mask", bool `[b, f]`: the chromagram from
      the frame on that is nearest to the start of the row, and its valid mask;
    * "style_start", int32 `[b]`, in samples or frames, and "style_mask", bool `[b]`: the start of the style excerpt;
    * "clap_mask", bool `[b]`: the rows with a CLAP embedding; and in validations, where it is of the text,
      "clap_ids", int32 `[b, l]`, and "clap_ids_mask", bool `[b, l]`;
    * "label_genre", float32 `[b, 1, d]`, and "label_genre_mask", bool `[b, 1]`: for a label or number called genre.

    The mask of an unconditional row is False throughout.

    Args:
      corpora: Training splits of one or more corpora of one kind.
      config: The sampling of segments.
      seed: 0 or more.
      rows: The rows of each batch that this host reads, such as `sharding.local_rows`; None for all of them.
      conditions: Which conditions they hold the inputs of; None for none.

    Raises:
      ConfigError: The corpora lack conditioning inputs.
      DataError: The corpora do not fit together or are too short, or there is no tokenizer for the texts. The iterator
        raises it where more pieces than `config.max_bad` cannot be read.
    """
    pieces = Pieces(corpora)
    segment, least = _lengths(pieces, config)
    draw = functools.partial(_random, _cumulative(pieces, config), np.maximum(pieces.lengths - least, 0))
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
    """An iterator over `valid_rounds` segments of every piece, the same ones each time, in batches as of `batches`.

    A segment lies within its piece if the piece is long enough. Conditions are never dropped, and texts are the
    unchanged descriptions. Further segments of the first pieces fill the last batch.

    The arguments are those of `batches`, with validation splits.
    """
    pieces = Pieces(corpora)
    segment, _ = _lengths(pieces, config)
    draw = functools.partial(_sequential, np.maximum(pieces.lengths - segment, 0))
    reader = ConditionReader(pieces, (conditions or BatchConditions()).validation())
    count = math.ceil(config.valid_rounds * len(pieces.lengths) / config.batch_size)
    config = dataclasses.replace(config, num_workers=0)  # starting processes takes longer than a validation
    return BatchIterator(_Source(pieces, draw, segment, _rows(config, rows), config, seed, reader, count), config)


class BatchIterator(grain.DatasetIterator):
    """An iterator of grain whose state is the number of batches so far.

    The state is the same on all hosts, and valid for any number of threads, processes and hosts.
    """

    def __init__(self, source: _Source, config: DataConfig):
        super().__init__()
        self._source, self._config, self._position = source, config, 0
        self._running: list[grain.DatasetIterator] = []  # the reader, once it has started
        self._fetching: list[FetchAhead] = []
        weakref.finalize(
            self, _stop, self._running, self._fetching
        )  # before the modules that it needs are torn down at exit

    def __next__(self) -> Batch:
        self._assert_not_closed()
        self.start_prefetch()
        batch = next(self._running[0])
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The number of batches so far, as grain's checkpoints store it."""
        return {"num_batches": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batches of `state`; raises DataError if there are not as many."""
        position = int(state["num_batches"])
        if not 0 <= position <= len(self._source):
            raise DataError(f"cannot go on after {position} batches: there are {len(self._source)}")
        _stop(self._running, self._fetching)
        self._position = position

    def start_prefetch(self) -> None:
        """Starts the threads or processes that make batches, before the first one is needed."""
        if not self._running:
            ahead = grain.MapDataset.source(self._source).slice(slice(self._position, None))
            self._running.append(iter(_read(ahead, self._config)))
            self._running[0].start_prefetch()
            if FetchAhead.is_needed(self._source.pieces):
                self._fetching.append(FetchAhead(self._source.pieces, self._source.upcoming(self._position)))

    def close(self) -> None:
        """Stops the threads or processes."""
        _stop(self._running, self._fetching)
        super().close()


def _stop(running: list[grain.DatasetIterator], fetching: list[FetchAhead]) -> None:
    while fetching:
        fetching.pop().close()
    while running:
        running.pop().close()


def _read(dataset: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """`dataset` with prefetching by threads or processes."""
    if not config.num_workers:
        return dataset.to_iter_dataset(grain.ReadOptions(min(config.num_threads, config.prefetch), config.prefetch))
    if not flags.FLAGS.is_parsed():  # outside of absl apps; grain reads flags before it starts processes
        flags.FLAGS.mark_as_parsed()
    buffer_size = max(1, config.prefetch // (2 * config.num_workers))  # of the queues at both ends of a process
    processes = grain.MultiprocessingOptions(config.num_workers, per_worker_buffer_size=buffer_size)
    return dataset.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(processes, end_with_parent)


def _random(
    cumulative: Float64[np.ndarray, "p"], last_starts: Int64[np.ndarray, "p"], rng: np.random.Generator, index: int
) -> tuple[int, int]:
    """A piece by its probability, and a start in it."""
    piece = min(int(np.searchsorted(cumulative, rng.random(), side="right")), len(cumulative) - 1)
    return piece, int(rng.integers(last_starts[piece] + 1))


def _sequential(last_starts: Int64[np.ndarray, "p"], rng: np.random.Generator, index: int) -> tuple[int, int]:
    """The piece number `index`, counted round, and a start in it."""
    piece = index % len(last_starts)
    return piece, int(rng.integers(last_starts[piece] + 1))


@dataclasses.dataclass(frozen=True)
class _Source:
    """Random access to batches, for grain."""

    pieces: Pieces
    draw: Callable[[np.random.Generator, int], tuple[int, int]]  # of an example's index: its piece, and a start in it
    segment: int  # samples or frames
    rows: tuple[int, ...]  # of each batch, those of this host
    config: DataConfig
    seed: int
    conditions: ConditionReader
    count: int
    bad: set[int] = dataclasses.field(default_factory=set)  # the unreadable pieces that were drawn so far

    def __len__(self) -> int:
        return self.count

    def upcoming(self, number: int) -> Iterator[int]:
        """The pieces of this host's examples from batch `number` on, in order."""
        for batch in range(number, self.count):
            for row in self.rows:
                index = batch * self.config.batch_size + row
                yield self.draw(np.random.default_rng((self.seed, index)), index)[0]

    def __getitem__(self, number: int) -> Batch:
        first = self.pieces.corpora[0]
        is_audio = first.kind == "audio"
        segments = np.zeros((len(self.rows), self.segment, first.width), np.float32 if is_audio else np.int32)
        lengths, examples = np.zeros(len(self.rows), np.int32), []
        for row, global_row in enumerate(self.rows):
            example, content = self._example(int(number) * self.config.batch_size + global_row)
            segments[row, : len(content)], lengths[row] = content, len(content)
            examples.append(example)
        names = ("audio", "num_samples") if is_audio else ("codes", "num_frames")
        batch = dict(zip(names, (segments, lengths), strict=True))
        return batch | self.conditions(examples)

    def _example(self, index: int) -> tuple[Segment, np.ndarray]:
        """The segment of an example, and its audio or codes: of the first piece drawn for it that can be read."""
        rng = np.random.default_rng((self.seed, index))
        attempt = 0
        while True:
            piece, start = self.draw(rng, index + attempt)
            try:
                self.pieces.metadata(piece)
                content = self.pieces.read(piece, start, self.segment)
            except DataError as error:
                self._leave_out(piece, error)
                attempt += 1
            else:
                return Segment(piece, start, len(content), rng), content

    def _leave_out(self, piece: int, error: DataError) -> None:
        """Counts a piece that cannot be read; raises DataError after more of them than `config.max_bad` allows."""
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
    """The length of a segment, and the least of it that has to be music, in samples or frames."""
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
    """The cumulative distribution over the pieces."""
    weights = pieces.lengths.astype(np.float64) if config.sample_on_duration else np.ones(len(pieces.lengths))
    if config.weights:
        if len(config.weights) != len(pieces.corpora):
            raise DataError(f"{len(pieces.corpora)} corpora need as many weights, got {config.weights}")
        sums = np.add.reduceat(weights, np.cumsum(pieces.counts) - pieces.counts)
        weights *= np.repeat(config.weights / sums, pieces.counts)
    return np.cumsum(weights / weights.sum())


def _rows(config: DataConfig, rows: Sequence[int] | None) -> tuple[int, ...]:
    """The rows of each batch that this host reads."""
    local = tuple(range(config.batch_size) if rows is None else rows)
    if not set(local) <= set(range(config.batch_size)):
        raise DataError(f"the rows of a batch of {config.batch_size} are from 0 on, got {local}")
    return local
