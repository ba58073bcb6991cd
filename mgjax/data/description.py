"""What a corpus on disk is: corpus.json, and the names and sizes of its files.

A corpus is a directory that tensorflow-datasets opens as well
(`tfds.builder_from_directory(directory).as_data_source("train")`), with no TensorFlow installed:

    corpus.json                                   the description; written last, when all other files are complete
    index-train.npz                               the first record and the length of each piece
    mgjax_audio-train.array_record-00000-of-00008 and so on: the records
    dataset_info.json, features.json              read by tensorflow-datasets

In an audio corpus a record holds two seconds of a piece in 16 bits, so that a random second of an hour is read in about
0.15 ms. (FLAC would be a fifth to a half smaller, and ten times slower to read.) In a token corpus a record holds all
codes of a piece.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mgjax.config.conditioning import MelodyConfig
from mgjax.config.serialization import from_dict, one_of
from mgjax.errors import ConfigError, CorpusError
from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.paths import Path

VERSION = 1
SPLITS = ("train", "valid")
CHUNK_SECONDS = 2.0
FULL_SCALE = 32768.0

_LARGEST = 2**24  # of the numbers in a description, so that their products fit into 64 bits


@dataclasses.dataclass(frozen=True)
class Description:
    """The content of corpus.json, apart from the list of shards."""

    kind: str  # "audio" or "tokens"
    sample_rate: int  # of the audio, in hertz
    channels: int  # of the audio
    chunk_samples: int = 0  # samples in a record of audio; 0 in a token corpus
    frame_rate: float = 0.0  # frames of codes per second; this and the fields below are of token corpora only
    num_codebooks: int = 0  # codes in a frame
    codebook_size: int = 0  # the number of different codes
    codec_source: str | None = None  # where the codec was loaded from
    codec_hash: str | None = None  # its `Codec.hash`
    tokenizer: str | None = None  # where that of the descriptions was loaded from; None if no token ids are stored
    # The config of the stored chromagrams, which are of whole pieces, so that its `num_frames` and `null` mean nothing.
    melody: MelodyConfig | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("audio", "tokens"))
        own = ["chunk_samples"] if self.kind == "audio" else ["codebook_size", "frame_rate", "num_codebooks"]
        for name in sorted(["sample_rate", "channels", *own]):
            if not 0 < getattr(self, name) <= _LARGEST:
                raise ConfigError(f"{name} must be above 0 and at most {_LARGEST}, got {getattr(self, name)}")
        if self.codebook_size > 2**16:
            raise ConfigError(f"codes are kept in 16 bits, too few for codebooks of {self.codebook_size}")


def describe_audio(sample_rate: int, channels: int) -> Description:
    """The description of an audio corpus."""
    return Description("audio", sample_rate, channels, chunk_samples=round(CHUNK_SECONDS * sample_rate))


class ShardRecord(NamedTuple):
    """A shard in corpus.json: the number of its records, its size in bytes, and the hash of its records if known."""

    records: int
    num_bytes: int
    hash: str | None = None


def read_description(directory: str | os.PathLike[str]) -> tuple[Description, dict[str, list[ShardRecord]]]:
    """Reads corpus.json: the description, and the shards of each split.

    Raises CorpusError if there is no corpus, or its description is damaged.
    """
    path = paths.path(directory, "corpus.json")
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
    """The shards of a split in corpus.json."""
    hashes = content.get("hashes") or itertools.repeat(None)
    shards = [ShardRecord._make([*numbers, digest]) for numbers, digest in zip(content["shards"], hashes, strict=False)]
    for count, num_bytes, _ in shards:
        if not (type(count) is type(num_bytes) is int and 0 <= count <= num_bytes):  # a record takes a byte or more
            raise ConfigError(f"a shard of {split} cannot have {count!r} records in {num_bytes!r} bytes")
    if not split.isidentifier():  # it becomes a part of file names
        raise ConfigError(f"{split!r} is no name of a split")
    return shards


def shard_path(directory: str | os.PathLike[str], kind: str, split: str, shard: int, num_shards: int) -> Path:
    """The path of a shard, named as by tensorflow-datasets."""
    return paths.path(directory, f"mgjax_{kind}-{split}.array_record-{shard:05d}-of-{num_shards:05d}")


def num_records(description: Description, lengths: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "p"]:
    """The number of records of each piece."""
    if description.kind == "tokens":
        return np.ones_like(lengths)
    return -(-lengths // description.chunk_samples)


def first_records(description: Description, lengths: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "p"]:
    """The index of the first record of each piece."""
    counts = num_records(description, lengths)
    return np.cumsum(counts) - counts
