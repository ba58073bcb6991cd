"""Writes a corpus: shards one by one, then the index and the descriptions."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float, Int

from mgjax.audio.metadata import Metadata
from mgjax.audio.waveform import regrouped
from mgjax.data import records
from mgjax.data.description import FULL_SCALE, VERSION, Description, first_records, num_records
from mgjax.errors import CorpusError
from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.paths import Path

# Audio of 16 bits is hardly compressible; codes shrink by a quarter.
_OPTIONS = {"audio": "group_size:1,uncompressed", "tokens": "group_size:1,zstd:3"}


class Piece(NamedTuple):
    """A piece to be written."""

    name: str  # a unique one
    metadata: Metadata
    content: Any  # the audio as blocks of float32 [n_i, c], or the codes [t, k]
    text_ids: Int[np.ndarray, "l"] | None = None  # of the description, if the corpus has a tokenizer
    melody: Float[np.ndarray, "f p"] | None = None  # the chromagram of the whole piece, if the corpus stores melodies
    notes: tuple[str, ...] = ()  # warnings for the report of the build


class Shard(NamedTuple):
    """A finished shard."""

    lengths: list[int]  # of each piece, in samples or frames
    num_bytes: int
    digest: str | None = None  # of all its records, twelve hexadecimal digits; None if unknown


def write_shard(path: Path, description: Description, pieces: Iterable[Piece]) -> Shard:
    """Writes a shard, atomically; the same pieces give the same bytes.

    Raises:
      ValueError: A piece does not fit `description`.
      OSError: The disk is full.
    """
    lengths, digest = [], hashlib.sha256()
    encode = _audio_records if description.kind == "audio" else _code_records
    with files.replacing(path) as file:
        writer = ArrayRecordWriter(str(file.name), _OPTIONS[description.kind])
        try:
            try:
                for piece in pieces:
                    length = 0
                    for count, record in encode(description, piece):
                        writer.write(record)
                        digest.update(record)
                        length += count
                    lengths.append(length)
            finally:
                writer.close()
            num_bytes = os.path.getsize(file.name)
        except RuntimeError as error:  # ArrayRecordWriter's only one
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise OSError(errno.ENOSPC, "the disk is full", os.fspath(path)) from None
    return Shard(lengths, num_bytes, digest.hexdigest()[:12])


def finish(directory: Path, description: Description, shards: Mapping[str, Sequence[Shard]]) -> None:
    """Writes the index, the dataset info and corpus.json for the shards in `directory`; empty splits are left out.

    Raises CorpusError if there are no pieces.
    """
    splits = {split: written for split, written in shards.items() if any(shard.lengths for shard in written)}
    if not splits:
        raise CorpusError(f"{directory}: there is nothing in the corpus: no piece could be used")
    counts = {
        split: [[_count(description, shard), shard.num_bytes] for shard in written] for split, written in splits.items()
    }
    with tempfile.TemporaryDirectory(prefix="mgjax-") as scratch:
        _write_dataset_info(scratch, description, counts)
        for file in paths.below(scratch):
            with files.replacing(directory / file.name) as copy:
                copy.write(file.read_bytes())
    for split, written in splits.items():
        lengths = np.array([length for shard in written for length in shard.lengths], np.int64)
        with files.replacing(directory / f"index-{split}.npz") as file:
            np.savez(file, first=first_records(description, lengths), lengths=lengths)
    content = {
        "version": VERSION,
        **dataclasses.asdict(description),
        "splits": {
            split: {"shards": counts[split], "hashes": [shard.digest for shard in written]}
            for split, written in splits.items()
        },
    }
    files.write_json(directory / "corpus.json", content, indent=1)


def _count(description: Description, shard: Shard) -> int:
    """The number of records of a shard."""
    return int(num_records(description, np.array(shard.lengths, np.int64)).sum())


def _audio_records(description: Description, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Length and record of each chunk of an audio piece."""
    if piece.text_ids is not None or piece.melody is not None:
        raise ValueError(f"{piece.name}: a corpus of sound keeps no token ids and no melodies")
    number = -1
    for number, chunk in enumerate(regrouped(_checked(piece, description.channels), description.chunk_samples)):
        pcm = np.clip(np.rint(chunk * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype("<i2")
        metadata = piece.metadata.to_json() if number == 0 else ""
        yield (
            len(chunk),
            records.write(name=piece.name.encode(), chunk=number, audio=pcm.tobytes(), metadata=metadata.encode()),
        )
    if number < 0:
        raise ValueError(f"{piece.name}: there is no sound in it")


def _checked(piece: Piece, channels: int) -> Iterator[np.ndarray]:
    for block in piece.content:
        if block.ndim != 2 or block.shape[1] != channels:
            raise ValueError(f"{piece.name}: expected blocks [n, {channels}], got {list(block.shape)}")
        yield block


def _code_records(description: Description, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Length and record of a piece as codes."""
    codes = np.asarray(piece.content)
    if codes.ndim != 2 or not codes.size or codes.shape[1] != description.num_codebooks:
        raise ValueError(f"{piece.name}: expected codes [t, {description.num_codebooks}], got {list(codes.shape)}")
    if not 0 <= codes.min() <= codes.max() < description.codebook_size:
        raise ValueError(f"{piece.name}: codes must be from 0 to {description.codebook_size - 1}")
    if (piece.text_ids is None) != (description.tokenizer is None):
        raise ValueError(f"{piece.name}: token ids go with a tokenizer, and a tokenizer with token ids")
    bins = None if piece.melody is None else piece.melody.shape[1]
    if bins != (description.melody and description.melody.num_bins):
        raise ValueError(f"{piece.name}: a corpus keeps the melodies of all its pieces, or of none; got {bins} bins")
    optional = {} if piece.text_ids is None else {"text_ids": piece.text_ids.astype("<i4").tobytes()}
    if piece.melody is not None:
        optional["melody"] = piece.melody.astype("<f2").tobytes()
    metadata = piece.metadata.to_json().encode()
    codes_bytes = codes.astype("<u2").tobytes()
    yield len(codes), records.write(name=piece.name.encode(), codes=codes_bytes, metadata=metadata, **optional)


def _write_dataset_info(directory: str, description: Description, counts: Mapping[str, list[list[int]]]) -> None:
    """Writes dataset_info.json and features.json, by which tensorflow-datasets opens the corpus."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, naming, splits

    def binary() -> Any:
        return tfds.features.Scalar(dtype=np.object_)

    features = {"name": tfds.features.Text(), "metadata": tfds.features.Text()}
    if description.kind == "audio":
        features |= {"chunk": tfds.features.Scalar(dtype=np.int64), "audio": binary()}
    else:
        features |= {"codes": binary()} | ({} if description.tokenizer is None else {"text_ids": binary()})
        features |= {} if description.melody is None else {"melody": binary()}
    name = f"mgjax_{description.kind}"
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=name, version=tfds.core.Version(f"{VERSION}.0.0"), data_dir=directory, module_name="mgjax"
        ),
        features=tfds.features.FeaturesDict(features),
        description=f"Music as {description.kind}, made by mgjax; see corpus.json.",
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(
        splits.SplitDict(
            [
                splits.SplitInfo(
                    name=split,
                    shard_lengths=[count for count, _ in shards],
                    num_bytes=sum(size for _, size in shards),
                    filename_template=naming.ShardedFileTemplate(
                        data_dir=directory, dataset_name=name, split=split, filetype_suffix="array_record"
                    ),
                )
                for split, shards in counts.items()
            ]
        )
    )
    info.write_to_directory(directory)
