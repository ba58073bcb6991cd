"""Metadata of pieces, from the many forms in which it is found."""

import pytest

from mgjax.audio.metadata import Metadata, MetadataError


def test_reads_audiocrafts_fields_and_writes_them_again():
    values = {
        "title": "Rain",
        "artist": "",
        "key": "E minor",
        "bpm": 92,
        "genre": " jazz ",
        "moods": ["calm", "blue"],
        "keywords": "rain, late night; piano",
        "description": "a slow piece",
        "name": None,
        "instrument": "Piano, Double bass",
        "weight": 3,
    }
    found = Metadata.from_dict(values)
    assert found == Metadata(
        title="Rain",
        key="E minor",
        bpm=92.0,
        genre="jazz",
        moods=("calm", "blue"),
        keywords=("rain", "late night", "piano"),
        description="a slow piece",
        instrument=("Piano", "Double bass"),
    )
    assert Metadata.from_json(found.to_json()) == found
    assert "artist" not in found.to_dict()


def test_reads_what_a_table_holds():
    assert Metadata.from_dict({"bpm": "120", "moods": "", "title": "  "}) == Metadata(bpm=120.0)


def test_takes_other_spellings_and_tells_what_it_does_not_use():
    unused = []
    values = {" Caption": "a waltz", "BPM ": 90, "Weight": 3, "path": "", "text": "another", 7: "x"}
    assert Metadata.from_dict(values, "song.json", unused) == Metadata(description="a waltz", bpm=90.0)
    assert unused == ["weight", "text", "7"]
    assert Metadata.from_dict({"text": "a waltz", "description": None}).description == "a waltz"


@pytest.mark.parametrize(
    ("values", "trouble"),
    [
        ({"bpm": "fast"}, "bpm: expected a number above 0, got 'fast'"),
        ({"bpm": True}, "bpm: expected a number above 0, got True"),
        ({"bpm": float("nan")}, "bpm"),
        ({"bpm": 10**400}, "bpm: expected a number above 0, got 1000"),
        ({"bpm": "9" * 5000}, r"bpm: expected a number above 0, got '9{79}$"),
        ({"title": 3}, "title: expected a text, got 3"),
        ({"title": "a \ud83d"}, "title: holds half of a character"),
        ({"Caption": "a \ud83d"}, "caption: holds half of a character"),
        ({"moods": ["a \ud83d"]}, "moods: holds half of a character"),
        ({"moods": [1]}, "moods: expected a list of texts"),
        ({"instrument": {"a": 1}}, "instrument: expected a list of texts"),
        (["title"], "expected an object of fields, got list"),
    ],
)
def test_wrong_types_are_refused(values, trouble):
    with pytest.raises(MetadataError, match=f"song.json: {trouble}"):
        Metadata.from_dict(values, "song.json")


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("{", "not JSON"),
        (b"\xff", "not text in UTF-8"),
        ("[" * 100_000, "nested"),
        ('{"bpm": 1' + "0" * 5000, "64 bits"),
    ],
)
def test_what_is_not_json_is_refused(text, trouble):
    with pytest.raises(MetadataError, match=rf"song.json: is .*{trouble}"):
        Metadata.from_json(text, "song.json")
