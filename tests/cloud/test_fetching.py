"""Corpora in buckets are read from a cache that is filled ahead of the reader."""

import time

import numpy as np
import pytest
from proxy import Status

from mgjax.audio.metadata import Metadata
from mgjax.data import corpus_writing
from mgjax.data.corpus import Corpus, Pieces
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description, shard_path
from mgjax.data.fetching import FetchAhead
from mgjax.data.pipeline import DataConfig, batches
from mgjax.errors import DataError
from mgjax.storage import cache, paths

SHARDS, PIECES = 6, 4  # of each
DESCRIPTION = Description(
    kind="tokens", sample_rate=32_000, channels=1, frame_rate=50.0, num_codebooks=4, codebook_size=64,
    codec_source="debug", codec_hash="0" * 12,
)  # fmt: skip
CONFIG = DataConfig(batch_size=4, segment_seconds=0.5, num_threads=1, prefetch=1)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MGJAX_BUCKET_CACHE", str(tmp_path / "cache"))


def write(directory):
    """A training split of several shards."""
    rng, shards = np.random.default_rng(0), []
    for shard in range(SHARDS):
        path = shard_path(directory, "tokens", "train", shard, SHARDS)
        content = [rng.integers(0, 64, (60, 4)).astype(np.uint16) for _ in range(PIECES)]
        own = [Piece(f"{shard} {i}", Metadata(), codes) for i, codes in enumerate(content)]
        shards.append(corpus_writing.write_shard(path, DESCRIPTION, own))
    corpus_writing.finish(paths.path(directory), DESCRIPTION, {"train": shards})
    return directory


@pytest.fixture
def directory(gcs, tmp_path):
    (tmp_path / "disk").mkdir()
    write(tmp_path / "disk")
    return write(f"{gcs.url}/codes")


def take(corpus, count, config=CONFIG):
    iterator = batches(corpus, config, seed=0)
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def reads(gcs):
    return [request.name for request in gcs.proxy.log if request.kind == "read" and "array_record" in request.name]


def test_batches_are_those_of_a_disk_and_each_shard_is_fetched_once(gcs, directory, tmp_path):
    expected = take(Corpus.open(tmp_path / "disk"), 40)
    found = take(Corpus.open(directory), 40)
    assert all(np.array_equal(one["codes"], other["codes"]) for one, other in zip(expected, found, strict=True))
    assert len(reads(gcs)) == len(set(reads(gcs))) == SHARDS
    gcs.proxy.reset()
    take(Corpus.open(directory), 40)
    assert not reads(gcs)


def test_shards_come_in_the_order_of_their_first_use(gcs, directory, monkeypatch):
    monkeypatch.setattr("mgjax.data.fetching._THREADS", 1)
    pieces = Pieces(Corpus.open(directory))
    upcoming = [PIECES * shard for shard in (3, 3, 0, 5, 1, 2, 4, 0)]
    ahead = FetchAhead(pieces, upcoming)
    while len(reads(gcs)) < SHARDS:
        time.sleep(0.01)
    ahead.close()
    begun = [name[-len("00003-of-00006") :][:5] for name in reads(gcs)]
    assert begun == ["00003", "00000", "00005", "00001", "00002", "00004"]


def test_what_cannot_be_fetched_is_an_error_of_the_reader(gcs, directory, monkeypatch):
    corpus = Corpus.open(directory)
    gcs.proxy.fault(Status(403), lambda request: "00002-of" in request.name, times=None)
    with pytest.raises(DataError, match="this account may not do that"):
        take(corpus, 40)


def test_a_cache_that_is_too_small_is_told_and_does(gcs, directory, tmp_path, monkeypatch, caplog):
    sizes = [size for name, size in paths.sizes(directory).items() if "array_record" in name]
    monkeypatch.setenv("MGJAX_BUCKET_CACHE_GB", str(4.5 * max(sizes) / 1e9))  # two shards may be open
    expected = take(Corpus.open(tmp_path / "disk"), 30)
    found = take(Corpus.open(directory), 30)
    assert all(np.array_equal(one["codes"], other["codes"]) for one, other in zip(expected, found, strict=True))
    assert "larger than half of the cache" in caplog.text
    assert sum(cache._sizes(cache.root()).values()) <= 4.5 * max(sizes)


def test_a_changed_corpus_is_not_read_from_the_old_copies(gcs, directory):
    first = Corpus.open(directory)
    first.read(0)
    path = shard_path(directory, "tokens", "train", 0, SHARDS)
    own = [Piece(f"new {i}", Metadata(), np.full((60, 4), 7, np.uint16)) for i in range(PIECES)]
    corpus_writing.write_shard(path, DESCRIPTION, own)
    again = Corpus(first.directory, "train", first.description, first.lengths, first._shards)
    assert np.array_equal(again.read(0), np.full((60, 4), 7))
