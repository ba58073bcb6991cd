"""Corpora of codes: the codec's codes of each piece, with its metadata, in its split."""

import os

import numpy as np
import pytest
import tiny_corpora
from random_codec import random_variables

from mgjax.audio.metadata import Metadata
from mgjax.checkpoints import native, sources
from mgjax.codec import codec as codec_module
from mgjax.codec.codec import Codec
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.config.model import CodecConfig
from mgjax.data import processes, tokenize
from mgjax.data.corpus import Corpus, CorpusError
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import describe_audio

CONFIG = CodecConfig(
    sample_rate=800,
    num_filters=2,
    ratios=(4, 2),
    latent_dim=4,
    num_codebooks=2,
    codebook_size=16,
    num_lstm_layers=1,
    norm="none",
)
SECONDS = [0.5, 3.3, 8.0, 61.3]  # the last one is longer than a block


@pytest.fixture(scope="module")
def codec_source(tmp_path_factory):
    """A tiny codec: 100 frames a second of 2 codebooks."""
    directory = tmp_path_factory.mktemp("codec") / "tiny"
    native.write_codec(directory, CONFIG, random_variables(CONFIG))
    return str(directory)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Stereo at the codec's rate; one of four pieces is for validation."""
    directory = tmp_path_factory.mktemp("sound")
    random = np.random.default_rng(0)
    pieces = [
        Piece(
            f"song {i}",
            Metadata(title=f"Song {i}", description=f"caption {i}" if i else None),
            [random.uniform(-0.5, 0.5, (round(seconds * CONFIG.sample_rate), 2)).astype(np.float32)],
        )
        for i, seconds in enumerate(SECONDS)
    ]
    tiny_corpora.write(
        directory,
        describe_audio(CONFIG.sample_rate, 2),
        {"train": [pieces[i] for i in (0, 1, 3)], "valid": pieces[2:3]},
    )
    return directory


@pytest.fixture(scope="module")
def stereo(sound, codec_source, tmp_path_factory):
    """The codes of `sound`, as two channels, with ids of the captions, and how many programs were compiled for them."""
    directory = tmp_path_factory.mktemp("codes") / "corpus"
    before = codec_module._apply._cache_size()
    tokenize.tokenize(sound, directory, codec_source, tokenizer="bytes")
    return directory, codec_module._apply._cache_size() - before


def test_codes_are_those_of_the_codec(sound, stereo, codec_source):
    directory, _ = stereo
    codec = Codec(*sources.read_codec(codec_source), channels=2)
    for split, count in (("train", 3), ("valid", 1)):
        audio, codes = Corpus.open(sound, split), Corpus.open(directory, split)
        assert len(codes) == count
        assert (codes.rate, codes.width, codes.codebook_size, codes.sample_rate) == (100.0, 4, 16, 800)
        assert (codes.codec_hash, codes.description.codec_source) == (codec.hash, codec_source)
        for i in range(count):
            pieces = list(codec.encode_blocks([audio.read(i)], one_size=True))
            expected = np.concatenate(pieces, axis=1)[0]
            np.testing.assert_array_equal(codes.read(i), expected)
            assert codes.lengths[i] == -(-audio.lengths[i] // 8)
            assert codes.metadata(i) == audio.metadata(i)
            assert codes.name(i) == audio.name(i)
    assert len(np.unique(expected)) > 4  # the codec tells sounds apart
    whole = codec.encode(Corpus.open(sound).read(1))[0]
    # The codec sums in another order for a whole piece than for windows: a code on the edge may tip over.
    assert np.mean(Corpus.open(directory).read(1) == whole) > 0.999  # measured: 1


def test_descriptions_are_kept_as_ids(stereo):
    corpus = Corpus.open(stereo[0])
    expected, mask = Tokenizer.bytes().encode(["caption 1"])
    assert corpus.text_ids(1).tolist() == expected[0, mask[0]].tolist()
    assert corpus.text_ids(0).tolist() == []


def test_few_programs_serve_all_lengths(stereo):
    assert stereo[1] == 3


def test_mono_of_a_stereo_corpus(sound, codec_source, tmp_path):
    report = tokenize.tokenize(sound, tmp_path / "codes", codec_source, channels=1)
    assert report.seconds["valid"] == pytest.approx(8.0)
    corpus = Corpus.open(tmp_path / "codes")
    codec = Codec(*sources.read_codec(codec_source))
    assert corpus.width == 2
    assert corpus.text_ids(0) is None
    pieces = codec.encode_blocks([Corpus.open(sound).read(1).mean(axis=1)], one_size=True)
    np.testing.assert_array_equal(corpus.read(1), np.concatenate(list(pieces), axis=1)[0])


def test_two_processes_make_the_same_codes(sound, stereo, codec_source, tmp_path):
    tokenize.tokenize(sound, tmp_path / "codes", codec_source, tokenizer="bytes", workers=2)

    def contents(directory):
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    assert contents(tmp_path / "codes") == contents(stereo[0])


def test_the_codec_is_loaded_once(sound, codec_source, tmp_path, monkeypatch):
    loaded = []
    read = sources.read_codec

    def counted(source):
        loaded.append(source)
        return read(source)

    tokenize._load.cache_clear()
    monkeypatch.setattr(sources, "read_codec", counted)
    tokenize.tokenize(sound, tmp_path / "codes", os.path.relpath(codec_source))
    assert loaded == [codec_source]  # absolute, so that it can be found from elsewhere


def test_another_codec_is_not_mixed_in(sound, stereo, codec_source, tmp_path, monkeypatch):
    directory, _ = stereo
    with pytest.raises(FileExistsError, match="holds a corpus of other sources or settings"):
        tokenize.tokenize(sound, directory, codec_source)
    other = tmp_path / "other"
    variables = random_variables(CONFIG)
    variables["codebooks"]["embed"] = variables["codebooks"]["embed"] * 2
    native.write_codec(other, CONFIG, variables)
    with pytest.raises(FileExistsError, match="holds a corpus of other sources or settings"):
        tokenize.tokenize(sound, directory, str(other), tokenizer="bytes")
    maker = tokenize.CodeMaker(str(sound), str(other), Corpus.open(directory).codec_hash, 2, None)
    with (
        pytest.raises(CorpusError, match="is not that which the work began with"),
        maker.open(tokenize.PieceSource("train/0", "train", 0), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 1600}, "has 800 Hz, but .* takes 1600 Hz; build the corpus with --sample-rate 1600"),
        ({"chunk_seconds": 1.0, "channels": 2}, "codes chunks apart"),
        ({"channels": 3}, "2 channels cannot be coded by a codec of 3"),
    ],
)
def test_a_codec_that_does_not_fit(sound, tmp_path, monkeypatch, changes, message):
    config = CodecConfig(**{**vars(CONFIG), **changes})
    native.write_codec(tmp_path / "codec", config, random_variables(config))
    with pytest.raises(ValueError, match=message):
        tokenize.tokenize(sound, tmp_path / "codes", str(tmp_path / "codec"))
    assert not (tmp_path / "codes").exists()


def test_codes_are_not_encoded_again(stereo, codec_source, tmp_path):
    with pytest.raises(CorpusError, match="holds codes already"):
        tokenize.tokenize(stereo[0], tmp_path / "again", codec_source)


def test_a_damaged_corpus_stops_it(sound, codec_source, tmp_path, monkeypatch):
    def damaged(self, *_):
        raise CorpusError("shard 0 cannot be read")

    monkeypatch.setattr(processes, "run", lambda make, jobs, options: [make(job) for job in jobs])
    monkeypatch.setattr(Corpus, "read", damaged)
    with pytest.raises(CorpusError, match="shard 0 cannot be read"):
        tokenize.tokenize(sound, tmp_path / "codes", codec_source)
    with pytest.raises(CorpusError, match="holds no finished corpus"):
        Corpus.open(tmp_path / "codes")
