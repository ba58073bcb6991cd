"""Vocabularies learned from the texts of corpora, and the command that learns them."""

import json

import numpy as np
import pytest
import sentencepiece
import tiny_corpora

from mgjax import cli
from mgjax.audio.metadata import Metadata
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.data import vocabulary
from mgjax.data.corpus import Corpus
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description
from mgjax.data.prompts import TextConfig, assemble
from mgjax.inputs import claims

TEXTS = [
    "A slow waltz on accordion, in E minor. genre: waltz. bpm: 92.0. moods: calm, sad",
    "Driving techno with a deep bass and café sounds. genre: techno. keywords: night, club",
    "A cheerful folk dance on fiddle and accordion. key: D major. instrument: fiddle, accordion",
] * 5
PIECES = [
    Metadata(description="A slow waltz on accordion.", key="E minor", bpm=92.0, moods=("calm", "sad")),
    Metadata(genre="techno", keywords=("night", "club"), instrument=("bass",)),
    Metadata(title="Nothing that the sound would tell", artist="Nobody"),
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary") / "new"
    return directory, vocabulary.train(iter(TEXTS), 310, directory)


def test_a_tokenizer_reads_it_as_sentencepiece_does(learned):
    directory, count = learned
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spiece.model"))
    ours = Tokenizer.from_directory(directory)
    assert count == 310 == ours.vocab_size == theirs.GetPieceSize()
    assert [theirs.IdToPiece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert (theirs.pad_id(), theirs.eos_id(), theirs.unk_id(), theirs.bos_id()) == (0, 1, 2, -1)
    ids, mask = ours.encode([TEXTS[0], "fiddle", None])
    for row, text in enumerate([TEXTS[0], "fiddle"]):
        assert ids[row, mask[row]].tolist() == [*theirs.EncodeAsIds(text), 1]
    assert not mask[2].any()
    assert [path.name for path in directory.iterdir()] == ["spiece.model"]  # and nothing left over


@pytest.mark.parametrize("text", ["waltz", "Ünwalz", "日本の歌 🎻", "</s> <pad> <unk>", "\x07 bell"])
def test_no_text_is_lost(learned, text):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(learned[0] / "spiece.model"))
    ids = Tokenizer.from_directory(learned[0]).text_to_ids(text)
    assert min(ids) > 2  # no unknown ones, no ends
    assert theirs.DecodeIds(ids) == theirs.Normalize(text).replace("▁", " ").strip()


def test_words_of_the_texts_are_pieces(learned):
    tokenizer = Tokenizer.from_directory(learned[0])
    assert len(tokenizer.text_to_ids("accordion")) == 1
    assert len(tokenizer.text_to_ids("accordion")) < len(tokenizer.text_to_ids("noidrocca"))


def test_numbers_are_read_digit_by_digit_and_capitals_as_small_letters(tmp_path):
    vocabulary.train(["at 120 bpm"] * 50, 300, tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.text_to_ids("At 120 BPM") == tokenizer.text_to_ids("at 120 bpm")
    assert len(tokenizer.text_to_ids("at 120 bpm")) == len(tokenizer.text_to_ids("at 1 bpm")) + 2


def test_the_same_texts_give_the_same_bytes(learned, tmp_path):
    vocabulary.train(TEXTS, 310, tmp_path)
    assert (tmp_path / "spiece.model").read_bytes() == (learned[0] / "spiece.model").read_bytes()


def test_few_texts_give_what_they_hold(tmp_path):
    count = vocabulary.train(["la la la"], 5000, tmp_path)
    assert 259 + 3 <= count < 270  # the special tokens, the bytes, and l, a, the space
    assert Tokenizer.from_directory(tmp_path).vocab_size == count


def test_long_and_strange_texts_count(tmp_path):
    """Sentencepiece alone would leave out the first two, and fail at the third."""
    long = " ".join(["zither"] * 800)
    others = ["gamelan ▅ orchestra", "lone \ud800 half", "two\nlines\0"]
    vocabulary.train([long, *others * 20], 5000, tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    for word in ("zither", "gamelan", "orchestra"):
        assert all(piece >= 259 for piece in tokenizer.text_to_ids(word))  # made of letters that are known


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 2000, "there are no texts"),
        (["", " \n", "▅"], 2000, "there are no texts"),
        (TEXTS, 270, r"270 pieces are too few: \d{3} is the least"),
    ],
)
def test_what_cannot_be_learned_is_reported(texts, size, message, tmp_path):
    with pytest.raises(vocabulary.VocabularyError, match=message):
        vocabulary.train(texts, size, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_others_write_is_left(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "spiece.model").write_bytes(b"of the model")
    with pytest.raises(FileExistsError, match="models may have been trained with it"):
        vocabulary.train(TEXTS, 310, tmp_path, replace=True)
    assert (tmp_path / "spiece.model").read_bytes() == b"of the model"
    with claims.claimed(tmp_path / "new"), pytest.raises(FileExistsError, match="another run is at work"):
        vocabulary.train(TEXTS, 310, tmp_path / "new")
    assert not any((tmp_path / "new").iterdir())


def test_a_vocabulary_is_not_written_over(learned):
    before = (learned[0] / "spiece.model").read_bytes()
    with pytest.raises(FileExistsError, match="give another folder"):
        vocabulary.train(["other"], 2000, learned[0])
    assert (learned[0] / "spiece.model").read_bytes() == before


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    description = Description(
        "tokens", 8000, 1, frame_rate=50.0, num_codebooks=1, codebook_size=4, codec_source="tiny", codec_hash="abc"
    )
    codes = np.zeros((10, 1), np.uint16)
    train = [Piece(str(i), metadata, codes) for i, metadata in enumerate(PIECES)]
    valid = [Piece("heldout", Metadata(description="xylophone"), codes)]
    directory = tmp_path_factory.mktemp("corpus") / "codes"
    tiny_corpora.write(directory, description, {"train": train, "valid": valid})
    return directory


def test_every_text_that_training_assembles_is_made_of_what_is_learned(corpus):
    seen = []
    texts = list(vocabulary.texts_of([Corpus.open(corpus)], lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(texts) == 2
    assert texts == list(vocabulary.texts_of([Corpus.open(corpus)]))
    rng = np.random.default_rng(1)
    config = TextConfig(merge_text_p=0.9)
    for _ in range(200):
        for metadata, text in zip(PIECES, texts, strict=False):
            made = assemble(metadata, config, rng)
            assert {word.rstrip(".") for word in (made or "").split()} <= {word.rstrip(".") for word in text.split()}


def test_the_command(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["corpus", "vocabulary", str(corpus), str(corpus), "--size", "300", "--out", "new/words"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert out == "new/words\n"
    assert err == "mgjax: 300 pieces of text\n"
    assert Tokenizer.from_directory("new/words").vocab_size == 300
    assert cli.main(command) == 2
    assert "new/words/spiece.model exists" in capsys.readouterr().err
    assert cli.main([*command[:5], "9000", "--out", "new/words", "--force"]) == 0
    assert "the texts do not hold 9000" in capsys.readouterr().err
    assert cli.main(["corpus", "vocabulary", "missing", "--out", "more"]) == 2
    assert json.dumps("missing")[1:-1] in capsys.readouterr().err
