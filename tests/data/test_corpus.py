"""Corpora on disk: what is written is read, at random, and damage is noticed."""

import dataclasses
import errno
import json
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_corpora

from mgjax.audio.metadata import Metadata
from mgjax.data import corpus_writing, records
from mgjax.data.corpus import Corpus, CorpusError
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description, describe_audio, shard_path

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
    tiny_corpora.write(directory, describe_audio(RATE, 2), {"train": pieces, "valid": pieces[2:3]})
    return directory


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("codes")
    pieces = [Piece(f"song {i}", Metadata(bpm=60 + i), _codes(i), np.arange(i)) for i in range(len(LENGTHS))]
    tiny_corpora.write(directory, TOKENS, {"train": pieces})
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
        (lambda d: (d / "index-train.npz").write_bytes(b"PK"), "index-train.npz: is no .npz file"),
        (lambda d: np.savez(d / "index-train.npz", lengths=np.array([7])), "of different corpora"),
        (lambda d: np.savez(d / "index-train.npz", lengths=np.array([{}], object)), "is no .npz file"),
        (lambda d: (d / "corpus.json").unlink(), "holds no finished corpus"),
        (lambda d: (d / "corpus.json").write_text("{"), "corpus.json: is not JSON"),
        (lambda d: (d / "corpus.json").write_text("[]"), "is no description of a corpus"),
        (lambda d: _edit(d, version=2), "reads version 1; update mgjax"),
        (lambda d: _edit(d, kind="video"), r"kind must be one of \('audio', 'tokens'\)"),
        (lambda d: _edit(d, splits={"valid": {"shards": []}}), "has no split 'train', only valid"),
    ],
)
def test_a_damaged_corpus_is_not_opened(copy, damage, message):
    damage(copy)
    with pytest.raises(CorpusError, match=message):
        Corpus.open(copy, "train")


def _packed(directory, content, name="lengths.npy", **options):
    """Writes an index whose one member holds these bytes."""
    with zipfile.ZipFile(directory / "index-train.npz", "w", **options) as archive:
        archive.writestr(name, content)


def _header(shape, dtype="<i8"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _locked(directory):
    """Marks the first member as encrypted."""
    path = directory / "index-train.npz"
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "corpus.json").write_text("[" * 100_000),
        lambda d: (d / "corpus.json").write_text(
            '{"version": 1, "splits": {"train": {"shards": ' + "[" * 90 + "]" * 90 + "}}}"
        ),
        lambda d: (d / "corpus.json").write_bytes(b"\xff\xfe{}"),
        lambda d: _edit(d, sample_rate=10**400),
        lambda d: _edit(d, chunk_samples=2**62),
        lambda d: _edit(d, channels=float("nan")),
        lambda d: _edit(d, splits={}),
        lambda d: _edit(d, splits={"train": {}}),
        lambda d: _edit(d, splits={"train": {"shards": [[1]]}}),
        lambda d: _edit(d, splits={"train": {"shards": [[1, 2, 3]]}}),
        lambda d: _edit(d, splits={"train": {"shards": [["1", 2]]}}),
        lambda d: _edit(d, splits={"train": {"shards": [[-1, 2]]}}),
        lambda d: _edit(d, splits={"train": {"shards": [[2**62, 5]]}}),
        lambda d: _edit(d, splits={"train": {"shards": 3}}),
        lambda d: _edit(d, splits={"/": {"shards": []}, "train": {"shards": []}}),
        lambda d: _edit(d, splits={"train\0": {"shards": []}}),
        lambda d: _edit(d, melody={"hop_length": []}),
        lambda d: _packed(d, _header((5,)) + bytes(40), compression=zipfile.ZIP_LZMA),
        lambda d: _packed(d, _header((5,)) + bytes(40), compression=zipfile.ZIP_BZIP2),
        lambda d: _packed(d, _header((2**60,))),
        lambda d: _packed(d, _header((-1,))),
        lambda d: _packed(d, _header((10**400,))),
        lambda d: _packed(d, _header((1,), "|O") + bytes(8)),
        lambda d: _packed(d, b"\x93NUMPY\x09\x09"),
        lambda d: _packed(d, _header((1,)) + (2**62).to_bytes(8, "little")),
        lambda d: _packed(d, _header((1,)) + bytes(8), name="../lengths.npy"),
        _locked,
        lambda d: _flip(d / "index-train.npz", 60),
    ],
)
def test_a_hostile_corpus_is_not_opened(copy, damage):
    damage(copy)
    with pytest.raises(CorpusError):
        Corpus.open(copy)


def test_a_name_that_is_none_is_reported(copy):
    for directory, split in ((f"{copy}\0", "train"), (copy, "/"), (copy, "a\0b")):
        with pytest.raises(CorpusError):
            Corpus.open(directory, split)


@pytest.mark.parametrize(
    "features", [{"codes": b"\0" * 7}, {"codes": b"\xff\xff" * 3}, {"text_ids": b"123"}, {"name": b"\xff"}]
)
def test_what_a_record_holds_is_checked(tmp_path, features):
    values = {"name": b"a", "metadata": b"{}", "codes": bytes(6), "text_ids": bytes(4)}
    path = tmp_path / "mgjax_tokens-train.array_record-00000-of-00001"
    shard = corpus_writing.write_shard(path, TOKENS, [Piece("a", Metadata(), np.zeros((1, 3), int), np.zeros(1, int))])
    writer = corpus_writing.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(records.write(**values | features))
    writer.close()
    corpus_writing.finish(tmp_path, TOKENS, {"train": [shard._replace(num_bytes=path.stat().st_size)]})
    corpus = Corpus.open(tmp_path)
    with pytest.raises(CorpusError):
        corpus.read(0), corpus.text_ids(0), corpus.name(0)


def _hashes(directory, captions, level=0.1, old=False, split="train"):
    """The hashes of a corpus of a shard for every two captions; those of an old one, whose manifest has none."""
    what, shards = describe_audio(RATE, 1), []
    directory.mkdir()
    count = len(captions) // 2
    for number in range(count):
        some = [
            Piece(caption, Metadata(description=caption), [np.full((500, 1), level, np.float32)])
            for caption in captions[2 * number : 2 * number + 2]
        ]
        shards.append(corpus_writing.write_shard(shard_path(directory, "audio", split, number, count), what, some))
    corpus_writing.finish(directory, what, {split: [shard._replace(digest=None) if old else shard for shard in shards]})
    return Corpus.open(directory, split).hashes()


@pytest.mark.parametrize("old", [False, True])
def test_hashes_tell_corpora_apart(tmp_path, old):
    known = _hashes(tmp_path / "a", ["waltz", "tango", "polka", "samba"], old=old)
    assert len(known) == 2
    assert known == _hashes(tmp_path / "b", ["waltz", "tango", "polka", "samba"], old=old)
    edited = _hashes(tmp_path / "c", ["waltz", "tango", "polka", "mambo"], old=old)
    assert (edited[0], edited[1] == known[1]) == (known[0], False), "a caption of the same length"
    louder = _hashes(tmp_path / "d", ["waltz", "tango", "polka", "samba"], level=0.2, old=old)
    assert not set(louder) & set(known), "other sound of the same length"
    grown = _hashes(tmp_path / "e", ["waltz", "tango", "polka", "samba", "salsa", "rumba"], old=old)
    assert grown[:2] == known


def test_hashes_do_not_depend_on_where_the_codec_was(tmp_path):
    found = []
    for name in ("a", "b"):
        what = dataclasses.replace(TOKENS, codec_source=name, codec_hash="1")
        piece = Piece("a", Metadata(), np.zeros((4, 3), int), np.zeros(1, int))
        tiny_corpora.write(tmp_path / name, what, {"train": [piece]})
        found.append(Corpus.open(tmp_path / name).hashes())
    tiny_corpora.write(tmp_path / "c", dataclasses.replace(what, codec_hash="2"), {"train": [piece]})
    assert found[0] == found[1] != Corpus.open(tmp_path / "c").hashes()


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
        tiny_corpora.write(tmp_path, description, {"train": [piece]})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_raw_error(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; writing x; Failed to close chunk_writer")

    monkeypatch.setattr(corpus_writing, "ArrayRecordWriter", Full)
    piece = Piece("a", Metadata(), np.zeros((1, 3), int), np.zeros(1, int))
    with pytest.raises(OSError, match=r"the disk is full.*shard") as caught:
        corpus_writing.write_shard(tmp_path / "shard", TOKENS, [piece])
    assert caught.value.errno == errno.ENOSPC
