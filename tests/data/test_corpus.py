"""Corpora on disk: what is written is read, at random, and damage is noticed."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mgjax.data import corpus_writing
from mgjax.data.corpus import Corpus, CorpusError, Description, describe_audio
from mgjax.data.corpus_writing import Piece
from mgjax.data.metadata import Metadata

RATE = 1000  # a record holds 2000 samples
LENGTHS = [1, 1999, 2000, 2001, 7345]
TOKENS = Description("tokens", 1000, 1, frame_rate=50.0, num_codebooks=3, codebook_size=1024, tokenizer="bytes")


def _sound(number):
    return np.random.default_rng(number).uniform(-1, 1, (LENGTHS[number], 2)).astype(np.float32)


def _codes(number):
    return np.random.default_rng(number).integers(0, 1024, (LENGTHS[number], 3))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound")
    pieces = [
        Piece(f"song {i}", Metadata(title=f"Lied {i} ü"), np.array_split(_sound(i), min(3, length)))
        for i, length in enumerate(LENGTHS)
    ]
    corpus_writing.write(directory, describe_audio(RATE, 2), {"train": pieces, "valid": pieces[2:3]})
    return directory


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("codes")
    pieces = [Piece(f"song {i}", Metadata(bpm=60 + i), _codes(i), np.arange(i)) for i in range(len(LENGTHS))]
    corpus_writing.write(directory, TOKENS, {"train": pieces})
    return directory


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


def test_sound_is_what_was_written(sound):
    corpus = Corpus.open(sound, "train")
    assert (corpus.kind, corpus.sample_rate, corpus.rate, corpus.width) == ("audio", RATE, 1000.0, 2)
    assert corpus.lengths.tolist() == LENGTHS
    for i in range(len(LENGTHS)):
        np.testing.assert_allclose(corpus.read(i), _sound(i), atol=1 / 32768)  # 16 bits; measured: 3e-5, at full scale
        assert corpus.metadata(i) == Metadata(title=f"Lied {i} ü")
        assert corpus.name(i) == f"song {i}"
        assert corpus.text_ids(i) is None
    assert Corpus.open(sound, "valid").lengths.tolist() == [2000]


def test_a_segment_is_that_of_the_whole(sound):
    corpus, random = Corpus.open(sound, "train"), np.random.default_rng(0)
    for piece, length in enumerate(LENGTHS):
        whole = corpus.read(piece)
        for _ in range(20):
            start, count = int(random.integers(0, length)), int(random.integers(1, 5000))
            segment = corpus.read(piece, start, count)
            assert segment.dtype == np.float32
            np.testing.assert_array_equal(segment, whole[start : start + count])


def test_codes_are_what_was_written(codes):
    corpus = Corpus.open(codes)
    assert (corpus.kind, corpus.rate, corpus.width, corpus.codebook_size) == ("tokens", 50.0, 3, 1024)
    assert corpus.lengths.tolist() == LENGTHS
    for i in range(len(LENGTHS)):
        assert corpus.read(i).dtype == np.int32
        np.testing.assert_array_equal(corpus.read(i), _codes(i))
        assert corpus.text_ids(i).tolist() == list(range(i))
        assert corpus.metadata(i).bpm == 60 + i
    np.testing.assert_array_equal(corpus.read(4, 100, 50), _codes(4)[100:150])
    np.testing.assert_array_equal(corpus.read(1, 1990, 50), _codes(1)[1990:])


def test_a_corpus_is_pickled_small_after_it_was_read(sound):
    corpus = Corpus.open(sound)
    before = corpus.read(4, 2500, 10)
    data = pickle.dumps(corpus)
    assert len(data) < 5000
    np.testing.assert_array_equal(pickle.loads(data).read(4, 2500, 10), before)


@pytest.mark.filterwarnings("ignore:label:DeprecationWarning")  # protobuf about tensorflow-datasets
def test_tensorflow_datasets_opens_it(sound, codes):
    records = tfds.builder_from_directory(str(sound)).as_data_source("train")
    assert len(records) == sum(-(-length // 2000) for length in LENGTHS)
    last = [records[i] for i in range(len(records) - 4, len(records))]
    assert [record["chunk"] for record in last] == [0, 1, 2, 3]
    pcm = np.frombuffer(b"".join(record["audio"] for record in last), "<i2").reshape(-1, 2)
    np.testing.assert_array_equal(pcm / np.float32(32768), Corpus.open(sound).read(4))
    assert json.loads(last[0]["metadata"]) == {"title": "Lied 4 ü"}
    assert [record["metadata"] for record in last[1:]] == [b""] * 3

    record = tfds.builder_from_directory(str(codes)).as_data_source("train")[3]
    np.testing.assert_array_equal(np.frombuffer(record["codes"], "<u2").reshape(-1, 3), _codes(3))
    assert np.frombuffer(record["text_ids"], "<i4").tolist() == [0, 1, 2]
    assert "tensorflow" not in sys.modules


def test_the_index_tells_where_each_piece_begins(sound):
    with np.load(sound / "index-train.npz", allow_pickle=False) as index:
        assert index["lengths"].tolist() == LENGTHS
        assert index["first"].tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("given", [(5, 0, 1), (-1, 0, 1)])
def test_there_are_no_other_pieces(sound, given):
    with pytest.raises(IndexError, match="among 5"):
        Corpus.open(sound).read(*given)


@pytest.mark.parametrize("given", [(1, -1, 5), (1, 1999, 5), (1, 0, 0)])
def test_a_segment_lies_in_its_piece(sound, given):
    with pytest.raises(ValueError, match="of a piece of 1999"):
        Corpus.open(sound).read(*given)


def _shard(directory):
    return directory / "mgjax_audio-train.array_record-00000-of-00001"


def _flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_damaged_record_is_noticed(copy):
    corpus = Corpus.open(copy)
    assert corpus.read(0).shape == (1, 2)
    sound = np.clip(np.rint(_sound(4)[4000:4050] * 32768), -32768, 32767).astype("<i2").tobytes()
    _flip(_shard(copy), _shard(copy).read_bytes().index(sound))
    corpus = Corpus.open(copy)
    assert corpus.read(4, 0, 2000).shape == (2000, 2)
    with pytest.raises(CorpusError, match="shard 0 cannot be read"):
        corpus.read(4, 3999, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: _shard(d).unlink(), "is missing"),
        (lambda d: _shard(d).write_bytes(_shard(d).read_bytes()[:-65536]), "bytes instead of"),
        (lambda d: (d / "index-train.npz").unlink(), "index-train.npz: is missing"),
        (lambda d: (d / "index-train.npz").write_bytes(b"PK"), "index-train.npz: is damaged"),
        (lambda d: np.savez(d / "index-train.npz", lengths=np.array([7])), "of different corpora"),
        (lambda d: np.savez(d / "index-train.npz", lengths=np.array([{}], object)), "is damaged"),
        (lambda d: (d / "corpus.json").unlink(), "holds no finished corpus"),
        (lambda d: (d / "corpus.json").write_text("{"), "corpus.json: is not JSON"),
        (lambda d: (d / "corpus.json").write_text("[]"), "is no description of a corpus"),
        (lambda d: _edit(d, version=2), "reads version 1; update mgjax"),
        (lambda d: _edit(d, kind="video"), 'kind must be "audio" or "tokens"'),
        (lambda d: _edit(d, splits={"valid": {"shards": []}}), "has no split 'train', only valid"),
    ],
)
def test_a_damaged_corpus_is_not_opened(copy, damage, message):
    damage(copy)
    with pytest.raises(CorpusError, match=message):
        Corpus.open(copy, "train")


def _edit(directory, **changes):
    path = directory / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("description", "piece", "message"),
    [
        (describe_audio(RATE, 1), Piece("a", Metadata(), [np.zeros((5, 2), np.float32)]), r"expected blocks \[n, 1\]"),
        (describe_audio(RATE, 1), Piece("a", Metadata(), []), "there is no sound in it"),
        (TOKENS, Piece("a", Metadata(), np.zeros((5, 2), int), np.arange(2)), r"expected codes \[t, 3\]"),
        (TOKENS, Piece("a", Metadata(), np.full((5, 3), 1024), np.arange(2)), "from 0 to 1023"),
        (TOKENS, Piece("a", Metadata(), np.zeros((5, 3), int)), "token ids go with a tokenizer"),
    ],
)
def test_a_piece_that_does_not_fit_leaves_nothing_behind(tmp_path, description, piece, message):
    with pytest.raises(ValueError, match=message):
        corpus_writing.write(tmp_path, description, {"train": [piece]})
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_not_written_over_another(sound):
    with pytest.raises(FileExistsError, match="there is a corpus already"):
        corpus_writing.write(sound, TOKENS, {"train": []})
