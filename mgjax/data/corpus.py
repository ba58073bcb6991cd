"""Reads corpora at random, one or several as one; `mgjax.data.description` says what is in their files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from mgjax.audio.metadata import Metadata
from mgjax.data import records
from mgjax.data.description import (
    FULL_SCALE,
    Description,
    ShardRecord,
    first_records,
    num_records,
    read_description,
    shard_path,
)
from mgjax.errors import CorpusError, DataError
from mgjax.inputs import arrays, files
from mgjax.storage import paths
from mgjax.storage.paths import Path

_LONGEST = 2**38  # samples or frames of a piece, so that their bytes fit into 64 bits
_LARGEST_INDEX = 2**30  # bytes; 67 million pieces
_HASHED_PIECES = 8  # of a shard without a hash in corpus.json


class Corpus:
    """One split of a corpus, with random access to its pieces. Each process opens the files on first use.

    Attributes:
      directory: The folder of the corpus.
      split: "train" or "valid".
      description: The content of corpus.json.
      kind: "audio" or "tokens".
      lengths: The length of each piece, in samples or frames.
      rate: Samples or frames per second, the unit of `lengths`.
      sample_rate: Of the audio, in hertz; in a token corpus, of the audio that was encoded.
      width: The number of channels, or of codebooks.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        description: Description,
        lengths: Int64[np.ndarray, "p"],
        shards: Sequence[ShardRecord],
    ):
        self.directory = directory
        self.split = split
        self.description = description
        self.kind, self.sample_rate = description.kind, description.sample_rate
        self.codebook_size, self.codec_hash = description.codebook_size, description.codec_hash
        is_audio = self.kind == "audio"
        self.rate = float(self.sample_rate if is_audio else description.frame_rate)
        self.width = description.channels if is_audio else description.num_codebooks
        self.lengths = lengths
        self._first = first_records(description, lengths)
        self._shards = shards
        self._ends = np.cumsum([shard.records for shard in shards])
        self._start_reading()

    @classmethod
    def open(cls, directory: str | os.PathLike[str], split: str = "train") -> Corpus:
        """Opens a split of the corpus in `directory`.

        Raises CorpusError if there is no such corpus or split, or files are missing or damaged.
        """
        directory = paths.path(directory)
        description, splits = read_description(directory)
        if split not in splits:
            raise CorpusError(f"{directory}: has no split {split!r}, only {', '.join(splits)}")
        shards = splits[split]
        sizes = paths.sizes(directory)
        for i, (_, num_bytes, _) in enumerate(shards):
            path = shard_path(directory, description.kind, split, i, len(shards))
            size = sizes.get(path.name)
            if size != num_bytes:
                problem = "is missing" if size is None else f"has {size} bytes instead of {num_bytes}"
                raise CorpusError(f"{path}: {problem}; copy it again, or build the corpus anew")
        lengths = _read_index(directory / f"index-{split}.npz")
        corpus = cls(directory, split, description, lengths, shards)
        counted, expected = int(num_records(description, lengths).sum()), sum(shard.records for shard in shards)
        if counted != expected:
            raise CorpusError(
                f"{directory}: index-{split}.npz tells of {counted} records, corpus.json of {expected}; "
                "they are of different corpora: copy them again, or build the corpus anew"
            )
        return corpus

    def __len__(self) -> int:
        return len(self.lengths)

    def shards(self) -> list[range]:
        """The pieces in each shard."""
        bounds = np.searchsorted(self._first, [0, *self._ends]).tolist()
        return [range(low, high) for low, high in itertools.pairwise(bounds)]

    def shard(self, piece: int) -> tuple[Path, int]:
        """The file that holds a piece, and its size in bytes."""
        number = int(np.searchsorted(self._ends, self._first[piece], side="right"))
        return shard_path(self.directory, self.kind, self.split, number, len(self._shards)), self._shards[
            number
        ].num_bytes

    def hashes(self) -> list[str]:
        """A hash of the content of each shard, of twelve hexadecimal digits.

        It is computed from the hash in corpus.json; where there is none, from the lengths and some of the pieces.
        """
        # Checkpoints store these hashes, so the names in these reprs cannot change. Paths are not part of the content.
        prefix = repr(dataclasses.replace(self.description, codec_source=None, tokenizer=None))
        hashes = []
        for pieces, shard in zip(self.shards(), self._shards, strict=True):
            digest = hashlib.sha256(f"{prefix} {shard}".encode() + self.lengths[pieces.start : pieces.stop].tobytes())
            for piece in [] if shard.hash else pieces[:: -(-len(pieces) // _HASHED_PIECES) or 1]:
                with contextlib.suppress(CorpusError):  # training may skip a few damaged pieces
                    head = self._head(piece)
                    digest.update(b"".join(self._bytes(head, name) for name in sorted(head) if name != "chunk"))
            hashes.append(digest.hexdigest()[:12])
        return hashes

    def read(
        self, piece: int, start: int = 0, length: int | None = None
    ) -> Float32[np.ndarray, "m c"] | Int32[np.ndarray, "m k"]:
        """A segment of a piece: audio float32 [m, c] or codes int32 [m, k].

        It has `length` samples or frames from `start` on, or all if that is None; fewer where the piece ends before.

        Raises:
          IndexError: There is no such piece.
          ValueError: `start` lies outside of the piece, or `length` is not above 0.
          CorpusError: The records are damaged.
        """
        self._check(piece)
        available = int(self.lengths[piece])
        length = available if length is None else length
        if not 0 <= start < available or length < 1:
            raise ValueError(f"cannot read {length} from {start} on of a piece of {available}")
        end = min(start + length, available)
        if self.kind == "tokens":
            codes = self._array(self._head(piece), "codes", "<u2", self.width)
            if len(codes) != available or codes.max() >= self.codebook_size:
                raise self._damaged(f"the codes of piece {piece} are not those that the index and corpus.json tell of")
            return codes[start:end].astype(np.int32)
        size = self.description.chunk_samples
        first = int(self._first[piece])
        chunks = range(first + start // size, first + (end - 1) // size + 1)
        pcm = np.concatenate([self._array(example, "audio", "<i2") for example in self._records(chunks)])
        offset = (start - start // size * size) * self.width
        segment = pcm[offset : offset + (end - start) * self.width]
        if len(segment) != (end - start) * self.width:
            raise self._damaged(f"the sound of piece {piece} is not as long as the index says")
        return segment.astype(np.float32).reshape(-1, self.width) / np.float32(FULL_SCALE)

    def metadata(self, piece: int) -> Metadata:
        """The metadata of a piece; raises IndexError if there is none, CorpusError if the records are damaged."""
        return Metadata.from_json(self._bytes(self._head(piece), "metadata"), f"{self.directory}: piece {piece}")

    def name(self, piece: int) -> str:
        """The name of a piece in the source of the corpus, such as its path in a folder."""
        return files.decoded(self._bytes(self._head(piece), "name"), f"{self.directory}: piece {piece}", CorpusError)

    def text_ids(self, piece: int) -> Int32[np.ndarray, "l"] | None:
        """The token ids of a piece's description, empty if it has none; None if the corpus stores no ids."""
        if self.description.tokenizer is None:
            return None
        return self._array(self._head(piece), "text_ids", "<i4").astype(np.int32)

    def melody(self, piece: int, start: int, length: int) -> Float32[np.ndarray, "m p"]:
        """The chromagram of a segment of a piece, in frames of `description.melody`; shorter where the piece ends.

        Raises IndexError if there is no such piece, CorpusError if no melodies are stored or the records are damaged.
        """
        if self.description.melody is None:
            raise CorpusError(f"{self.directory}: keeps no melodies; tokenize it anew with --melody")
        values = self._array(self._head(piece), "melody", "<f2", self.description.melody.num_bins)
        return values[start : start + length].astype(np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_readers", "_recent")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_reading()

    def _start_reading(self) -> None:
        self.directory = paths.path(self.directory)  # another process knows no buckets yet
        self._readers = records.Readers()
        self._recent = threading.local()  # the last first record, which audio, metadata and ids are read from in turn

    def _check(self, piece: int) -> None:
        if not 0 <= piece < len(self):
            raise IndexError(f"there is no piece {piece} among {len(self)}")

    def _array(self, example: Any, name: str, dtype: str, *width: int) -> np.ndarray:
        """The array of a feature, `[-1, *width]`."""
        content = self._bytes(example, name)
        try:
            return np.frombuffer(content, dtype).reshape(-1, *width)
        except ValueError as error:
            raise self._damaged(f"the {name} of a record cannot be understood ({error})") from error

    def _bytes(self, example: Any, name: str) -> bytes:
        values = example[name].bytes_list.value if name in example else []
        if len(values) != 1:
            raise self._damaged(f"a record has no {name!r}")
        return values[0]

    def _head(self, piece: int) -> Any:
        """The first record of a piece, which holds its metadata."""
        self._check(piece)
        number, example = getattr(self._recent, "head", (None, None))
        if number != piece:
            record = int(self._first[piece])
            example = self._records(range(record, record + 1))[0]
            self._recent.head = piece, example
        return example

    def _records(self, numbers: range) -> list[Any]:
        """The features of records, which are all of one piece and so in one shard."""
        shard = int(np.searchsorted(self._ends, numbers[0], side="right"))
        before = int(self._ends[shard]) - self._shards[shard].records
        path = shard_path(self.directory, self.kind, self.split, shard, len(self._shards))
        try:
            return self._readers.read(path, [number - before for number in numbers])
        except records.RecordError as error:
            raise self._damaged(f"shard {shard} {error}") from error

    def _damaged(self, problem: str) -> CorpusError:
        return CorpusError(f"{self.directory}, {self.split}: {problem}; copy the corpus again, or build it anew")


def _read_index(path: Path) -> Int64[np.ndarray, "p"]:
    """The lengths of the pieces."""
    try:
        lengths = arrays.read_npz(path, ("first", "lengths"), _LARGEST_INDEX, CorpusError)["lengths"]
    except FileNotFoundError:
        raise CorpusError(f"{path}: is missing; copy it again, or build the corpus anew") from None
    except KeyError:
        lengths = np.zeros(0)
    are_numbers = lengths.ndim == 1 and lengths.dtype == np.int64 and lengths.size
    if not are_numbers or not 0 < lengths.min() <= lengths.max() < _LONGEST:
        raise CorpusError(f"{path}: is damaged: it holds no lengths; copy it again, or build the corpus anew")
    return lengths


class Pieces:
    """The pieces of several corpora as one list."""

    def __init__(self, corpora: Corpus | Sequence[Corpus]):
        self.corpora = list(corpora) if isinstance(corpora, Sequence) else [corpora]
        _check_alike(self.corpora)
        self.counts = np.array([len(corpus.lengths) for corpus in self.corpora])
        self.lengths = np.concatenate([corpus.lengths for corpus in self.corpora])
        self.kind, self.rate = self.corpora[0].kind, self.corpora[0].rate
        self._ends = np.cumsum(self.counts)

    def read(self, piece: int, start: int, length: int) -> np.ndarray:
        """`length` samples or frames of a piece from `start` on, or fewer where it ends before."""
        with self._reading(piece) as (corpus, number):
            return corpus.read(number, start, length)

    def metadata(self, piece: int) -> Metadata:
        """The metadata of a piece."""
        with self._reading(piece) as (corpus, number):
            return corpus.metadata(number)

    def melody(self, piece: int, start: int, length: int) -> Float32[np.ndarray, "m p"]:
        """As `Corpus.melody`."""
        with self._reading(piece) as (corpus, number):
            return corpus.melody(number, start, length)

    def shard(self, piece: int) -> tuple[Path, int]:
        """The file that holds a piece, and its size in bytes."""
        index = int(np.searchsorted(self._ends, piece, side="right"))
        return self.corpora[index].shard(piece - int(self._ends[index] - self.counts[index]))

    def num_shards(self) -> int:
        """The number of files that hold pieces."""
        return sum(sum(len(pieces) > 0 for pieces in corpus.shards()) for corpus in self.corpora)

    def text_ids(self, piece: int) -> Int32[np.ndarray, "l"]:
        """As `Corpus.text_ids`, of corpora that store them."""
        with self._reading(piece) as (corpus, number):
            ids = corpus.text_ids(number)
        assert ids is not None, f"{corpus.directory} stores no token ids"
        return ids

    @contextlib.contextmanager
    def _reading(self, piece: int) -> Iterator[tuple[Corpus, int]]:
        """The corpus of a piece and its index in it, to read from in the block; raises DataError where that fails."""
        index = int(np.searchsorted(self._ends, piece, side="right"))
        corpus, number = self.corpora[index], piece - int(self._ends[index] - self.counts[index])
        try:
            yield corpus, number
        except (ValueError, OSError) as error:
            raise DataError(
                f"piece {number} of the corpus {corpus.directory} ({corpus.split}) cannot be read: {error}"
            ) from error


def _check_alike(corpora: Sequence[Corpus]) -> None:
    """Raises DataError unless the corpora can be read as one."""
    if not corpora:
        raise DataError("there is no corpus to read: name at least one directory in `corpora`")
    for name in ("kind", "sample_rate", "rate", "width", "codebook_size", "codec_hash"):
        values = [getattr(corpus, name) for corpus in corpora]
        if len(set(values)) > 1:
            listed = ", ".join(f"{corpus.directory}: {value}" for corpus, value in zip(corpora, values, strict=True))
            raise DataError(f"corpora that are read together must have the same {name}, but these have {listed}")
