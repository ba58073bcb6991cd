"""What the commands write: recipes, sounds and files of codes keep their form; a recipe makes the same piece again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cases import of_recipe
from doors import CODES, EXPECTED, FILES, MODELS

import mgjax
from mgjax import cli
from mgjax.data import audio

# Of the machine and the versions, not of the piece.
CIRCUMSTANCES = ("mgjax", "jax", "device")


@pytest.fixture(scope="module")
def expected():
    return json.loads(EXPECTED.read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with the model `text`."""
    shutil.copytree(MODELS / "text", tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder):
    return (FILES / "recipe.json").read_text().replace("{model}", str(folder / "text"))


def assert_same_sound(path):
    (found, rate), (known, known_rate) = audio.read(path), audio.read(FILES / "recipe.wav")
    assert (rate, found.shape) == (known_rate, known.shape)
    assert np.abs(found - known).max() <= 1.01 / 32768  # measured 0; a rounded sample of 16 bits


def test_generate_writes_the_same_piece_and_recipe(folder, expected):
    command = [*expected["recipe"]["command"], "--out", "songs", "--cache", "off"]
    assert cli.main(command) == 0
    assert sorted(path.name for path in Path("songs").iterdir()) == ["slow-waltz-3.json", "slow-waltz-3.wav"]
    known, found = json.loads(recipe(folder)), json.loads(Path("songs/slow-waltz-3.json").read_text())
    assert known.keys() <= found.keys()
    for name in known.keys() - set(CIRCUMSTANCES):
        assert found[name] == known[name], name
    assert_same_sound("songs/slow-waltz-3.wav")


def test_a_recipe_makes_the_same_piece_again(folder):
    Path("again.json").write_text(recipe(folder))
    assert cli.main(["generate", "--again", "again.json", "--out", "copy.wav", "--cache", "off"]) == 0
    assert_same_sound("copy.wav")
    with np.load(CODES) as codes:
        found = mgjax.load("text").generate_codes(**of_recipe(json.loads(Path("again.json").read_text())))
        assert np.array_equal(found, codes["recipe"])


def test_files_of_codes(folder):
    sound = str(FILES / "recipe.wav")
    assert cli.main(["encode", sound, "codes.npz", "--model", "text", "--cache", "off"]) == 0
    with np.load("codes.npz") as found, np.load(FILES / "encoded.npz") as known:
        assert found.files == known.files
        for name in known:
            assert (found[name].dtype, found[name].shape) == (known[name].dtype, known[name].shape), name
            assert np.array_equal(found[name], known[name]), name
    shutil.copy(FILES / "encoded.npz", "before.npz")
    assert cli.main(["decode", "before.npz", "decoded.wav", "--cache", "off"]) == 0
    assert audio.read("decoded.wav")[0].shape == audio.read(sound)[0].shape


def test_info(expected, capfd):
    assert cli.main(["info", "debug", "--cache", "off"]) == 0
    assert capfd.readouterr().out.splitlines() == expected["info"]
