"""A corpus on disk: pieces of music as sound or as codes, to be read at random.

A corpus is a directory that tensorflow-datasets opens as well
(`tfds.builder_from_directory(directory).as_data_source("train")`), with no TensorFlow installed:

    corpus.json                                   what it is; written last, so that where it is the rest is
    index-train.npz                               the first record and the length of each piece
    mgjax_audio-train.array_record-00000-of-00008 and so on: the records
    dataset_info.json, features.json              what tensorflow-datasets reads

In an audio corpus a record holds two seconds of a piece in 16 bits, so that a random second of an hour is read in about
0.15 ms. (FLAC would be a fifth to a half smaller, and ten times slower to read.) In a token corpus a record holds all
codes of a piece.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt16

from mgjax.audio.metadata import Metadata
from mgjax.config.conditioning import MelodyConfig
from mgjax.config.serialization import from_dict, one_of
from mgjax.data import records
from mgjax.errors import ConfigError, CorpusError
from mgjax.inputs import arrays, files

VERSION = 1
SPLITS = ("train", "valid")
CHUNK_SECONDS = 2.0
FULL_SCALE = 32768.0

# What no corpus comes near, and what products of stay within 64 bits: of a number of its description, and of the
# samples or frames of a piece.
_LARGEST, _LONGEST = 2**24, 2**38
_LARGEST_INDEX = 2**30  # bytes; 67 million pieces
_LOOKED_AT = 8  # pieces of a shard that has no hash


@dataclasses.dataclass(frozen=True)
class Description:
    """What a corpus holds.

    Attributes:
      kind: "audio" or "tokens".
      sample_rate: Of the sound, in hertz.
      channels: Of the sound.
      chunk_samples: Samples in a record of sound; 0 in a token corpus.
      frame_rate: Frames of codes a second; this and what follows in a token corpus only.
      num_codebooks: Codes in a frame.
      codebook_size: All codes are below this.
      codec_source: Where the codec was loaded from.
      codec_hash: `Codec.hash` of the codec.
      tokenizer: Where the tokenizer of the descriptions was loaded from; None: they are kept as text only.
      melody: Of the chromagrams that are kept beside the codes; None for none. They are of whole pieces, so that its
        `num_frames` and `null` say nothing.
    """

    kind: str
    sample_rate: int
    channels: int
    chunk_samples: int = 0
    frame_rate: float = 0.0
    num_codebooks: int = 0
    codebook_size: int = 0
    codec_source: str | None = None
    codec_hash: str | None = None
    tokenizer: str | None = None
    melody: MelodyConfig | None = None

    def __post_init__(self):
        one_of("kind", self.kind, ("audio", "tokens"))
        needed = {"sample_rate", "channels"}
        needed |= {"chunk_samples"} if self.kind == "audio" else {"frame_rate", "num_codebooks", "codebook_size"}
        for name in sorted(needed):
            if not 0 < getattr(self, name) <= _LARGEST:
                raise ConfigError(f"{name} must be above 0 and at most {_LARGEST}, got {getattr(self, name)}")
        if self.codebook_size > 2**16:
            raise ConfigError(f"codes are kept in 16 bits, too few for codebooks of {self.codebook_size}")


def describe_audio(sample_rate: int, channels: int) -> Description:
    """The description of a corpus of sound."""
    return Description("audio", sample_rate, channels, chunk_samples=round(CHUNK_SECONDS * sample_rate))


class Corpus:
    """One split of a corpus, read at random. It opens its files when they are first read, in each process anew.

    Attributes:
      directory: Where it is.
      split: "train" or "valid".
      description: All that is said of it in corpus.json.
      lengths: The length of each piece, in samples or frames.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        description: Description,
        lengths: Int64[np.ndarray, "p"],
        shards: Sequence[ShardRecord],
    ):
        """Use `Corpus.open`."""
        self.directory = directory
        self.split = split
        self.description = description
        self.lengths = lengths
        self._first = first_records(description, lengths)
        self._shards = shards
        self._ends = np.cumsum([shard.records for shard in shards])
        self._start_reading()

    @classmethod
    def open(cls, directory: str | os.PathLike[str], split: str = "train") -> Corpus:
        """The split `split` of the corpus in `directory`.

        Raises:
          CorpusError: There is no corpus, or not this split, or files are missing or damaged.
          ModuleNotFoundError: The packages that read it are not installed.
        """
        directory = Path(directory)
        description, splits = read_description(directory)
        if split not in splits:
            raise CorpusError(f"{directory}: has no split {split!r}, only {', '.join(splits)}")
        shards = splits[split]
        for i, (_, num_bytes, _) in enumerate(shards):
            path = shard_path(directory, description.kind, split, i, len(shards))
            size = path.stat().st_size if path.is_file() else None
            if size != num_bytes:
                trouble = "is missing" if size is None else f"has {size} bytes instead of {num_bytes}"
                raise CorpusError(f"{path}: {trouble}; copy it again, or build the corpus anew")
        lengths = _read_index(directory / f"index-{split}.npz")
        corpus = cls(directory, split, description, lengths, shards)
        found, expected = int(num_records(description, lengths).sum()), sum(shard.records for shard in shards)
        if found != expected:
            raise CorpusError(
                f"{directory}: index-{split}.npz tells of {found} records, corpus.json of {expected}; "
                "they are of different corpora: copy them again, or build the corpus anew"
            )
        return corpus

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def kind(self) -> str:
        """ "audio" or "tokens"."""
        return self.description.kind

    @property
    def sample_rate(self) -> int:
        """Of the sound (also that which the codes stand for), in hertz."""
        return self.description.sample_rate

    @property
    def rate(self) -> float:
        """Samples or frames a second: what `lengths` counts."""
        return float(self.sample_rate if self.kind == "audio" else self.description.frame_rate)

    @property
    def width(self) -> int:
        """Channels, or codebooks."""
        return self.description.channels if self.kind == "audio" else self.description.num_codebooks

    @property
    def codebook_size(self) -> int:
        """The number of different codes; 0 in an audio corpus."""
        return self.description.codebook_size

    @property
    def codec_hash(self) -> str | None:
        """`Codec.hash` of the codec that made the codes."""
        return self.description.codec_hash

    @property
    def codec_source(self) -> str | None:
        """Where the codec that made the codes was loaded from."""
        return self.description.codec_source

    def shards(self) -> list[range]:
        """The pieces in each shard."""
        bounds = np.searchsorted(self._first, [0, *self._ends]).tolist()
        return [range(low, high) for low, high in itertools.pairwise(bounds)]

    def hashes(self) -> list[str]:
        """Twelve hexadecimal digits for each shard that tell what is in it from anything else.

        They are of the hash in corpus.json; of corpora without, of the lengths and of some of the pieces.
        """
        # The same codes may have been made from another path.
        what = repr(dataclasses.replace(self.description, codec_source=None, tokenizer=None))
        found = []
        for pieces, shard in zip(self.shards(), self._shards, strict=True):
            digest = hashlib.sha256(f"{what} {shard}".encode() + self.lengths[pieces.start : pieces.stop].tobytes())
            for piece in [] if shard.hash else pieces[:: -(-len(pieces) // _LOOKED_AT) or 1]:
                with contextlib.suppress(CorpusError):  # a few damaged pieces may be left out of a training
                    head = self._head(piece)
                    digest.update(b"".join(self._bytes(head, name) for name in sorted(head) if name != "chunk"))
            found.append(digest.hexdigest()[:12])
        return found

    def read(
        self, piece: int, start: int = 0, length: int | None = None
    ) -> Float32[np.ndarray, "m c"] | Int32[np.ndarray, "m k"]:
        """A stretch of a piece: sound float32 [m, c] or codes int32 [m, k].

        Args:
          piece: Which one.
          start: Where to begin, in samples or frames.
          length: How many; None for all. Where the piece ends before, less comes back.

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
            return self._codes(piece)[start:end].astype(np.int32)
        size = self.description.chunk_samples
        first = int(self._first[piece])
        chunks = range(first + start // size, first + (end - 1) // size + 1)
        pcm = np.concatenate([self._array(example, "audio", "<i2") for example in self._records(chunks)])
        offset = (start - start // size * size) * self.width
        wanted = pcm[offset : offset + (end - start) * self.width]
        if len(wanted) != (end - start) * self.width:
            raise self._damaged(f"the sound of piece {piece} is not as long as the index says")
        return wanted.astype(np.float32).reshape(-1, self.width) / np.float32(FULL_SCALE)

    def metadata(self, piece: int) -> Metadata:
        """What is known of a piece.

        Raises:
          IndexError: There is no such piece.
          CorpusError: The records are damaged.
        """
        return Metadata.from_json(self._bytes(self._head(piece), "metadata"), f"{self.directory}: piece {piece}")

    def name(self, piece: int) -> str:
        """What the piece was called where the corpus was made from."""
        return files.decoded(self._bytes(self._head(piece), "name"), f"{self.directory}: piece {piece}", CorpusError)

    def text_ids(self, piece: int) -> Int32[np.ndarray, "l"] | None:
        """The token ids of the piece's description, empty if it has none; None if the corpus keeps no ids."""
        if self.description.tokenizer is None:
            return None
        return self._array(self._head(piece), "text_ids", "<i4").astype(np.int32)

    def melody(self, piece: int, start: int, length: int) -> Float32[np.ndarray, "m p"]:
        """The chromagram of a stretch of a piece, `length` frames of `description.melody` from frame `start` on. Where
        the piece ends before, less comes back.

        Raises:
          IndexError: There is no such piece.
          CorpusError: The corpus keeps no melodies, or the records are damaged.
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
        self._readers: dict[Path, Any] = {}
        self._recent = threading.local()  # the head that was read last: sound, metadata and ids are asked for in turn

    def _check(self, piece: int) -> None:
        if not 0 <= piece < len(self):
            raise IndexError(f"there is no piece {piece} among {len(self)}")

    def _codes(self, piece: int) -> UInt16[np.ndarray, "t k"]:
        codes = self._array(self._head(piece), "codes", "<u2", self.width)
        if len(codes) != self.lengths[piece] or codes.max() >= self.codebook_size:
            raise self._damaged(f"the codes of piece {piece} are not those that the index and corpus.json tell of")
        return codes

    def _array(self, example: Any, name: str, dtype: str, *width: int) -> np.ndarray:
        """The numbers of a feature, in rows of `width`."""
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
        """The first record of a piece, which is the one with its metadata."""
        self._check(piece)
        number, example = getattr(self._recent, "head", (None, None))
        if number != piece:
            record = int(self._first[piece])
            example = self._records(range(record, record + 1))[0]
            self._recent.head = piece, example
        return example

    def _records(self, numbers: range) -> list[Any]:
        """The features of records, all of one piece and so of one shard."""
        shard = int(np.searchsorted(self._ends, numbers[0], side="right"))
        before = int(self._ends[shard]) - self._shards[shard].records
        path = shard_path(self.directory, self.kind, self.split, shard, len(self._shards))
        try:
            return records.read(self._readers, path, [number - before for number in numbers])
        except records.RecordError as error:
            raise self._damaged(f"shard {shard} {error}") from error

    def _damaged(self, trouble: str) -> CorpusError:
        return CorpusError(f"{self.directory}, {self.split}: {trouble}; copy the corpus again, or build it anew")


class ShardRecord(NamedTuple):
    """What corpus.json says of a shard: its records, its bytes, and a hash of the records where it was written down."""

    records: int
    num_bytes: int
    hash: str | None = None


def read_description(directory: str | os.PathLike[str]) -> tuple[Description, dict[str, list[ShardRecord]]]:
    """What the corpus in `directory` is, and the shards of each split.

    Raises:
      CorpusError: There is no corpus.
    """
    path = Path(directory, "corpus.json")
    try:
        content = files.read_json(path, error=CorpusError)
        version, splits = content.pop("version"), content.pop("splits")
        if version != VERSION:
            raise CorpusError(f"{path}: has version {version!r}, this mgjax reads version {VERSION}; update mgjax")
        if not splits:
            raise ConfigError("it has no splits")
        return from_dict(Description, content), {name: _shards(name, value) for name, value in splits.items()}
    except FileNotFoundError:
        raise CorpusError(
            f"{os.fspath(directory)}: holds no finished corpus (no corpus.json); give the folder that "
            "`mgjax corpus build` or `mgjax corpus tokenize` wrote, or run that again to finish it"
        ) from None
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: is no description of a corpus ({error}); copy it again") from error


def _shards(split: str, content: Any) -> list[ShardRecord]:
    """The shards of a split, as corpus.json lists them."""
    hashes = content.get("hashes") or itertools.repeat(None)
    shards = [ShardRecord(*numbers, digest) for numbers, digest in zip(content["shards"], hashes, strict=False)]
    for count, num_bytes, _ in shards:
        if not (type(count) is type(num_bytes) is int and 0 <= count <= num_bytes):  # a record takes a byte or more
            raise ConfigError(f"a shard of {split} cannot have {count!r} records in {num_bytes!r} bytes")
    if not split.isidentifier():  # it becomes a part of names of files
        raise ConfigError(f"{split!r} is no name of a split")
    return shards


def shard_path(directory: str | os.PathLike[str], kind: str, split: str, shard: int, num_shards: int) -> Path:
    """Where a shard is, by the naming of tensorflow-datasets."""
    return Path(directory, f"mgjax_{kind}-{split}.array_record-{shard:05d}-of-{num_shards:05d}")


def num_records(description: Description, lengths: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "p"]:
    """How many records each piece has."""
    if description.kind == "tokens":
        return np.ones_like(lengths)
    return -(-lengths // description.chunk_samples)


def first_records(description: Description, lengths: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "p"]:
    """The number of the first record of each piece."""
    records = num_records(description, lengths)
    return np.cumsum(records) - records


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
