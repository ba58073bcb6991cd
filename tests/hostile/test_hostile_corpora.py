"""Corpora of sound and of codes, also as datasets of tensorflow-datasets, and single records of them."""

import json

import numpy as np
from fuzzing import Door

from mgjax.audio.metadata import Metadata
from mgjax.config.conditioning import MelodyConfig
from mgjax.data import corpus_writing, datasets, sources
from mgjax.data.corpus import Corpus
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description, describe_audio, shard_path

TOKENS = Description(
    "tokens", 1000, 1, frame_rate=50.0, num_codebooks=2, codebook_size=64, tokenizer="bytes", melody=MelodyConfig()
)
ABOUT = Metadata(title="A", bpm=90.0, moods=("calm",))


def write(folder):
    sound = [Piece(f"song {n}", ABOUT, [np.full((n, 2), 0.5, np.float32)]) for n in (1, 500, 4100)]
    codes = [Piece("song", ABOUT, np.ones((9, 2), np.int32), np.arange(4), np.ones((5, 12), np.float32))]
    for name, about, pieces in (
        ("sound", describe_audio(1000, 2), sound),
        ("dataset", describe_audio(1000, 2), sound),
        ("codes", TOKENS, codes),
        ("record", TOKENS, codes),
    ):
        (folder / name).mkdir(parents=True)
        shard = corpus_writing.write_shard(shard_path(folder / name, about.kind, "train", 0, 1), about, pieces)
        corpus_writing.finish(folder / name, about, {"train": [shard]})
    records = list(corpus_writing._code_records(TOKENS, codes[0]))
    (folder / "record" / "piece.record").write_bytes(records[0][1])


def read(folder):
    if folder.name == "dataset":
        datasets._open.cache_clear()
        for source in sources.find(folder, datasets.Fields(metadata=(("title", "name"),))):
            source.metadata()
        return
    if folder.name == "record":
        pack(folder)
    corpus = Corpus.open(folder)
    for piece in range(min(len(corpus), 5)):
        corpus.metadata(piece), corpus.name(piece), corpus.read(piece, length=10), corpus.text_ids(piece)
        if corpus.kind == "tokens":
            corpus.melody(piece, 0, 3)


def pack(folder):
    """Puts the record into the corpus, with the checksums that belong to it."""
    from array_record.python import array_record_module

    path = folder / "piece.record"
    shard = shard_path(folder, "tokens", "train", 0, 1)
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(path.read_bytes() if path.is_file() else b"")
    writer.close()
    content = json.loads((folder / "corpus.json").read_bytes())
    content["splits"]["train"]["shards"][0][1] = shard.stat().st_size
    (folder / "corpus.json").write_text(json.dumps(content))


DOOR = Door(write, read, ("[!r]*", "record/piece.record"), cases=300)


def test_corpora(endure):
    endure("corpora")
