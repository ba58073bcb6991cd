"""Small corpora, written at once."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mgjax.data import corpus_writing
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description, shard_path


def write(directory: str | os.PathLike[str], description: Description, pieces: Mapping[str, Iterable[Piece]]) -> None:
    """Writes a corpus with one shard for each split in `pieces`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = {}
    for split, own in pieces.items():
        path = shard_path(directory, description.kind, split, 0, 1)
        shards[split] = [corpus_writing.write_shard(path, description, own)]
    corpus_writing.finish(directory, description, shards)
