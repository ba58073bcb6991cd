import numpy as np
import pytest

from mgjax.audio.metadata import Metadata
from mgjax.conditioning import labels
from mgjax.config.conditioning import LabelConfig, NumberConfig
from mgjax.config.serialization import ConfigError

GENRE = LabelConfig("genre", ("waltz", "Hip Hop", "jazz"))
BPM = NumberConfig("bpm", 40, 160, dim=4)
NAMES = ("genre", "bpm")


def test_labels_become_ones():
    rows = ["waltz", ["jazz", "Hip Hop"], ("jazz", "jazz"), {"waltz"}, " hip hop"]
    tokens, mask = labels.vectors(rows, GENRE)
    expected = [[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    np.testing.assert_array_equal(tokens, np.array(expected)[:, None])
    assert tokens.dtype == np.float32
    np.testing.assert_array_equal(mask, np.ones((5, 1), bool))


@pytest.mark.parametrize("nothing", [None, (), []])
def test_rows_without_a_label_are_null(nothing):
    tokens, mask = labels.vectors([nothing, "jazz"], GENRE)
    np.testing.assert_array_equal(tokens[:, 0], [[0, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(mask, [[False], [True]])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("walz", ValueError, r"genre 'walz' is not known\. Did you mean 'waltz'\? Known are waltz, Hip Hop, jazz$"),
        (["jazz", "HIPHOP"], ValueError, r"'HIPHOP' is not known\. Did you mean 'Hip Hop'\?"),
        ("gagaku", ValueError, r"genre 'gagaku' is not known\. Known are waltz, Hip Hop, jazz$"),
        ("", ValueError, "genre '' is not known"),
        (3, TypeError, "genre must be a text, or a list of them, got 3"),
        (["jazz", None], TypeError, "genre must be a text"),
    ],
)
def test_labels_that_are_not_known_are_said(value, kind, message):
    with pytest.raises(kind, match=message):
        labels.vectors(["jazz", value], GENRE)


def test_numbers_become_waves_over_their_logarithm():
    tokens, mask = labels.vectors([40, 80.0, np.int64(160), None, np.float32(60)], BPM)
    places = np.array([0, 0.5, 1, 0, np.log(1.5) / np.log(4)])
    expected = np.cos(np.pi * np.arange(4) * places[:, None])
    expected[3] = 0
    np.testing.assert_allclose(tokens[:, 0], expected, rtol=0, atol=1e-6)
    assert tokens.dtype == np.float32
    np.testing.assert_array_equal(mask, [[True], [True], [True], [False], [True]])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((39.9, ValueError), (161, ValueError), (0, ValueError), (-80, ValueError)),
        *((float("nan"), ValueError), (float("inf"), ValueError)),
        *((True, TypeError), (np.True_, TypeError), ("120", TypeError), ([120], TypeError)),
    ],
)
def test_numbers_out_of_range_are_said(value, kind):
    with pytest.raises(kind, match="bpm must be a number from 40 to 160, got"):
        labels.vectors([80, value], BPM)


def test_values_of_each_row():
    waltz, fast = {"genre": "waltz"}, {"bpm": 150}
    assert labels.row_values(None, 2, NAMES) == [{}, {}]
    assert labels.row_values(None, 2, ()) == [{}, {}]
    assert labels.row_values({}, 1, ()) == [{}]
    assert labels.row_values(waltz | fast, 2, NAMES) == [waltz | fast, waltz | fast]
    assert labels.row_values([waltz], 2, NAMES) == [waltz, waltz]
    assert labels.row_values((waltz, None, fast), 3, NAMES) == [waltz, {}, fast]


@pytest.mark.parametrize(
    ("given", "names", "kind", "message"),
    [
        ({"gnre": "a"}, NAMES, ValueError, r"no label 'gnre'\. Did you mean 'genre'\? Known are genre, bpm$"),
        ([{}, {"dance": 1}], NAMES, ValueError, r"no label 'dance'\. Known are genre, bpm$"),
        ({1: "a"}, NAMES, ValueError, "no label 1. Known are genre, bpm"),
        ({"genre": "a"}, (), ValueError, "this model has no labels, got 'genre'"),
        ([{}] * 3, NAMES, ValueError, "3 dicts of labels do not fit 2 rows"),
        ([], NAMES, ValueError, "0 dicts of labels do not fit 2 rows"),
        ("waltz", NAMES, TypeError, "labels must be a dict, such as"),
        (["waltz", "jazz"], NAMES, TypeError, "labels must be a dict, such as"),
        (3, NAMES, TypeError, "labels must be a dict, such as"),
    ],
)
def test_labels_that_fit_no_rows_are_said(given, names, kind, message):
    with pytest.raises(kind, match=message):
        labels.row_values(given, 2, names)


def test_what_metadata_say():
    fields = vars(
        Metadata(genre="WALTZ", bpm=120.0, moods=("sad", "Calm", "odd"), instrument=("harp", "kazoo"), key="E minor")
    )
    for name in ("mood", "moods"):
        assert labels.from_metadata(fields, LabelConfig(name, ("calm", "happy", "sad"))) == ("calm", "sad")
    assert labels.from_metadata(fields, GENRE) == ("waltz",)
    assert labels.from_metadata(fields, LabelConfig("instrument", ("harp", "flute"))) == ("harp",)
    assert labels.from_metadata(fields, LabelConfig("key", ("C major", "E minor"))) == ("E minor",)
    assert labels.from_metadata(fields, LabelConfig("genre", ("jazz",))) == ()
    assert labels.from_metadata(fields, BPM) == 120.0
    assert labels.from_metadata(fields, NumberConfig("tempo", 40, 100)) is None
    assert labels.from_metadata({}, GENRE) == ()
    assert labels.from_metadata(vars(Metadata()), BPM) is None
    assert labels.from_metadata(Metadata(moods=("sad",)).to_dict(), LabelConfig("mood", ("sad",))) == ("sad",)
    with pytest.raises(ConfigError, match=r"no field for the label 'genres'\. Did you mean 'genre'\?"):
        labels.from_metadata(fields, LabelConfig("genres", ("jazz",)))


@pytest.mark.parametrize("values", [(), ("jazz", "jazz"), ("jazz", "Jazz ")])
def test_vocabularies_are_of_different_values(values):
    with pytest.raises(ConfigError, match="the values of the label genre must be one or more, and differ"):
        LabelConfig("genre", values)
