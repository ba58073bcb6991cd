"""`mgjax generate` with conditions, on toys that follow them."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mgjax.api import MusicGen
from mgjax.audio import files as audio_files
from mgjax.checkpoints import random_weights
from mgjax.checkpoints.native import Checkpoint
from mgjax.cli import conditions, main, recipe
from mgjax.config.conditioning import LabelConfig, MelodyConfig, NumberConfig
from mgjax.config.model import Fused


@pytest.fixture(scope="module")
def folder_of_models(tmp_path_factory):
    """A toy that hears melodies and labels, as a folder, and a tune."""
    folder = tmp_path_factory.mktemp("folder_of_models")
    melody = MelodyConfig(fft_size=4096, hop_length=2048, num_frames=16)
    conditions = (Fused("melody", 12, "prefix"), Fused("text", 16), Fused("genre", 2, "sum"), Fused("bpm", 4, "sum"))
    lm = dataclasses.replace(random_weights.DEBUG.lm, conditions=conditions)
    labels = (LabelConfig("genre", ("waltz", "march")),)
    numbers = (NumberConfig("bpm", 40.0, 240.0, 4),)
    config = dataclasses.replace(random_weights.DEBUG, lm=lm, melody=melody, labels=labels, numbers=numbers)
    MusicGen(Checkpoint(config, random_weights.random_variables(config))).save(folder / "model")
    tune = 0.3 * np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050)
    audio_files.write(folder / "tune.wav", tune[:, None].astype(np.float32), 22_050)
    return folder


def test_conditions_are_asked_for_and_kept(folder_of_models, tmp_path, monkeypatch):
    """Melody, label, later prompt and what to avoid: each asks the model for one thing (test_guidance.py shows that
    every such thing is heard), and the recipe makes the piece again."""
    monkeypatch.chdir(tmp_path)
    calls, real = [], MusicGen.generate

    def spy(self, prompts, **options):
        del options["progress"]
        calls.append({"prompts": prompts, **options})
        return real(self, prompts, **options) if len(calls) < 3 else np.zeros((len(prompts), 16_000, 1), np.float32)

    monkeypatch.setattr(MusicGen, "generate", spy)
    plain = ["generate", "a", "--model", str(folder_of_models / "model"), "--seconds", "0.5", "--cache", "off", "--out"]
    parts = {
        ("--melody", str(folder_of_models / "tune.wav")): {"melody", "melody_sample_rate"},
        ("--label", "genre=march"): {"labels"},
        ("--then", "0.3", "b"): {"prompts"},
        ("--negative", "c"): {"negative"},
        ("--text-guidance", "2"): {"sampling"},
    }
    assert main([*plain, "all.wav", *itertools.chain(*parts)]) == 0
    assert main(["generate", "--again", "all.json", "--out", "again.wav", "--cache", "off"]) == 0
    assert Path("again.wav").read_bytes() == Path("all.wav").read_bytes()
    kept = json.loads(Path("all.json").read_text())
    assert kept["melody"] == str(folder_of_models / "tune.wav")
    assert kept["labels"] == {"genre": "march"}

    both, again = calls
    assert repr(both) == repr(again)
    for i, (left_out, names) in enumerate(parts.items()):
        assert main([*plain, f"{i}.wav", *itertools.chain(*(part for part in parts if part != left_out))]) == 0
        other = calls[-1]
        assert {name for name in both if repr(both[name]) != repr(other.get(name))} == names, left_out


def test_info_says_what_a_model_follows(folder_of_models, capsys):
    assert main(["info", str(folder_of_models / "model")]) == 0
    said = capsys.readouterr().out
    assert "melody, genre" in said
    assert "waltz, march" in said


BOTH = {"genre": ["waltz", "march"], "bpm": 120}


def test_a_file_of_prompts_steers_each(folder_of_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        {"prompt": "a", "melody": str(folder_of_models / "tune.wav"), "name": "one"},
        {"prompt": "a", "seed": 0, "name": "two", "labels": BOTH, "then": [[0.4, "b"]]},
    ]
    Path("ideas.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model = ["--model", str(folder_of_models / "model"), "--seconds", "0.6", "--cache", "off"]
    assert main(["generate", "--prompts", "ideas.jsonl", *model]) == 0
    assert json.loads(Path("one.json").read_text())["melody"] == str(folder_of_models / "tune.wav")
    assert json.loads(Path("two.json").read_text())["then"] == [[0.4, "b"]]
    assert Path("one.wav").read_bytes() != Path("two.wav").read_bytes()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--then", "soon", "b"], "--then takes a time"),
        (["--melody", "missing.wav"], "missing.wav"),
        (["--melody", "a.wav", "--melody", "b.wav"], "2 times for 1 prompts"),
        (["--label", "genre"], "NAME=VALUE"),
        (["--guidance", "0:3,x"], "SECOND:SCALE"),
        (["--then", "3", "b"], "begins at 3 s"),
        (["--blend", "1"], "about --then"),
        (["--separate"], "about --melody"),
        (["--temperature", "1,2"], "8 codebooks"),
    ],
)
def test_what_cannot_steer(asked, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav"):
        Path(name).write_bytes(b"")
    assert main(["generate", "a", "--seconds", "0.1", "--cache", "off", *asked]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--label", "genre=5"], "waltz, march"),
        (["--label", "bpm=fast"], "bpm"),
        (["--melody", "TUNE", "--separate"], "pip install"),
    ],
)
def test_what_this_model_cannot_follow(folder_of_models, asked, message, tmp_path, monkeypatch, capsys):
    """One line, no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "demucs", None)
    asked = [str(folder_of_models / "tune.wav") if word == "TUNE" else word for word in asked]
    model = ["--model", str(folder_of_models / "model"), "--seconds", "0.1", "--cache", "off"]
    assert main(["generate", "a", *model, *asked]) == 2
    assert message in capsys.readouterr().err


def test_words_that_look_like_numbers():
    """A label's value stays a word; a number's becomes one."""
    labels, numbers = (LabelConfig("era", ("1970", "1980")),), (NumberConfig("bpm", 40.0, 240.0),)
    model = SimpleNamespace(config=SimpleNamespace(labels=labels, numbers=numbers))
    asked = recipe.Recipe("a", 1.0, 0, "debug", labels={"era": "1980", "bpm": "90"})
    found = conditions.arguments([asked], model)["labels"]
    assert found == [{"era": "1980", "bpm": 90.0}]
