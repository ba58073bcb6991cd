"""Texts for training: how often each form of them comes up, and what they look like."""

import collections

import numpy as np
import pytest

from mgjax.audio.metadata import Metadata
from mgjax.config.serialization import ConfigError, from_dict
from mgjax.data.prompts import TextConfig, assemble, raw_text

PIECE = Metadata(
    title="Dawn",
    artist="Nobody",
    key="A minor",
    bpm=90.0,
    genre="folk",
    moods=("calm", "warm"),
    keywords=("harp", "slow", "night"),
    description="A slow harp.",
    name="dawn_01",
    instrument=("harp",),
)
FIELDS = {"key: A minor", "bpm: 90.0", "genre: folk", "moods: calm, warm", "keywords: harp, slow, night"} | {
    "instrument: harp"
}
PLAIN = TextConfig(merge_text_p=0.0, word_dropout=0.0)


def texts(metadata, count=4000, **settings):
    settings = {"word_dropout": 0.0} | settings
    rng = np.random.default_rng(0)
    return [assemble(metadata, TextConfig(**settings), rng) for _ in range(count)]


def share(found, condition):
    """The share of texts that meet a condition, with what 4000 draws leave to chance: 4 standard deviations."""
    return pytest.approx(sum(map(condition, found)) / len(found), abs=4 * (0.25 / len(found)) ** 0.5)


def test_without_chance_the_description_stands_as_it_is():
    assert assemble(PIECE, PLAIN, np.random.default_rng(0)) == raw_text(PIECE) == "A slow harp."
    assert texts(PIECE, 100, merge_text_p=0.0) == ["A slow harp."] * 100


@pytest.mark.parametrize("description", [None, "", "  "])
def test_nothing_known_is_no_text(description):
    assert raw_text(Metadata(description=description)) is None
    assert set(texts(Metadata(description=description, title="Dawn", artist="Nobody", name="a"), 200)) == {None}


def test_texts_are_made_of_the_description_and_some_fields():
    found = texts(PIECE, merge_text_p=1.0)
    counts = collections.Counter()
    for text in found:
        parts = (text or "").removesuffix(".").split(". ")
        assert "A slow harp" not in parts[1:], "the description comes first"
        assert set(filter(None, parts)) <= FIELDS | {"A slow harp"}, "only these fields describe the sound"
        assert len(set(parts)) == len(parts)
        counts.update(parts)
    for part in FIELDS | {"A slow harp"}:
        assert counts[part] / len(found) == pytest.approx(0.5, abs=0.032)
    assert share(found, lambda text: text is None) == 0.5**7


def test_full_stops_stand_where_published_models_saw_them():
    assert set(texts(PIECE, 50, merge_text_p=1.0, keep_other_p=0.0, drop_desc_p=0.0)) == {"A slow harp."}
    unended = Metadata(description="A slow harp", bpm=90.0)
    assert set(texts(unended, 50, merge_text_p=1.0, keep_other_p=0.0, drop_desc_p=0.0)) == {"A slow harp."}
    assert set(texts(unended, 50, merge_text_p=1.0, keep_other_p=1.0, drop_desc_p=0.0)) == {"A slow harp. bpm: 90.0"}
    assert set(texts(unended, 50, merge_text_p=1.0, keep_other_p=1.0, drop_desc_p=1.0)) == {"bpm: 90.0"}
    assert set(texts(unended, 50, merge_text_p=0.0)) == {"A slow harp"}
    ending = Metadata(description="A slow harp...", bpm=90.0)
    assert set(texts(ending, 50, merge_text_p=1.0, keep_other_p=1.0, drop_desc_p=0.0)) == {"A slow harp. bpm: 90.0"}


def test_a_description_that_is_not_merged_still_ends_with_a_full_stop_if_it_could_have_been():
    assert set(texts(Metadata(description="A slow harp"), 50, merge_text_p=0.01, drop_desc_p=0.0)) == {"A slow harp."}


def test_merging_and_dropping_have_the_shares_asked_for():
    found = texts(PIECE, merge_text_p=0.25, drop_desc_p=0.4, keep_other_p=1.0)
    assert share(found, lambda text: text == "A slow harp.") == 0.75
    assert share(found, lambda text: "A slow harp" not in text) == 0.25 * 0.4
    assert share(found, lambda text: "A slow harp. " in text) == 0.25 * 0.6


def test_fields_come_in_every_order():
    two = Metadata(key="A minor", bpm=90.0)
    found = texts(two, merge_text_p=1.0, keep_other_p=1.0)
    assert share(found, lambda text: text == "key: A minor. bpm: 90.0") == 0.5
    assert share(found, lambda text: text == "bpm: 90.0. key: A minor") == 0.5


def test_a_piece_without_description_is_described_by_its_fields_or_not_at_all():
    found = texts(Metadata(bpm=90.0), merge_text_p=0.25, keep_other_p=0.5)
    assert set(found) == {None, "bpm: 90.0"}
    assert share(found, lambda text: text is None) == 1 - 0.25 * 0.5


def test_words_are_left_out_one_by_one():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    found = texts(Metadata(description=" ".join(words)), merge_text_p=0.0, word_dropout=0.3)
    for word in words:
        assert share(found, lambda text, word=word: word in text.split(" ")) == 0.7
    order = [[words.index(word) for word in text.split(" ")] for text in found]
    assert all(kept == sorted(kept) for kept in order)
    assert share(found, lambda text: {"one", "two"} <= set(text.split(" "))) == 0.7**2


def test_a_text_that_loses_every_word_is_none():
    found = texts(Metadata(description="one two"), merge_text_p=0.0, word_dropout=0.5)
    assert set(found) == {None, "one", "two", "one two"}
    assert share(found, lambda text: text is None) == 0.25


def test_settings_that_make_no_sense_are_refused():
    for name in ("merge_text_p", "drop_desc_p", "keep_other_p", "word_dropout"):
        with pytest.raises(ConfigError, match=f"{name} must be from 0 to 1"):
            TextConfig(**{name: 1.2})
    with pytest.raises(ConfigError, match="max_tokens"):
        TextConfig(max_tokens=0)
    with pytest.raises(ConfigError, match="drop_other_p"):
        from_dict(TextConfig, {"drop_other_p": 0.5})
