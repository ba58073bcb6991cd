"""The command `mgjax`, run in this process with the debug model."""

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import platformdirs
import pytest
import soundfile
from filelock import FileLock

import mgjax
from mgjax import api, cli
from mgjax.audio import files as audio_files
from mgjax.audio import loudness
from mgjax.checkpoints import native
from mgjax.checkpoints.random_weights import random_variables
from mgjax.cli import coding, recipe, terminal
from mgjax.cli.models import describe
from mgjax.codec.codec import Codec
from mgjax.config.model import CodecConfig, LMConfig, ModelConfig

SECONDS = "0.4"  # of the pieces made here


@pytest.fixture(scope="module")
def debug_model():
    return mgjax.load("debug")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, debug_model):
    """A folder of its own, and one debug model in place of mini; `loads` notes what was asked of `mgjax.load`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mgjax, "load_codec", lambda source: debug_model.codec, raising=False)
    loads = []

    def load(source, **options):
        loads.append((source, options))
        return debug_model

    monkeypatch.setattr(mgjax, "load", load, raising=False)
    return loads


def run(*argv):
    return cli.main([*map(str, argv), "--cache", "off"])


def generate(*argv):
    # One at a time where nothing else is said: each number of rows is compiled apart.
    return run("generate", "--batch-size", "1", *argv, "--seconds", SECONDS)


def files(folder="."):
    return sorted(os.listdir(folder))


def error_of(capsys):
    """The one line of a message; more than one is a failure."""
    err = capsys.readouterr().err
    assert err.startswith("mgjax: error: "), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


# --- generate: what is made


def test_one_prompt_to_one_file(capsys):
    assert generate("a slow waltz", "--out", "waltz.wav") == 0
    assert files() == ["waltz.json", "waltz.wav"]
    assert capsys.readouterr().out == "waltz.wav\n"
    sound, rate = audio_files.read("waltz.wav")
    assert len(sound) / rate == pytest.approx(0.4, abs=0.05)
    assert np.abs(sound).max() > 0


@pytest.mark.filterwarnings("ignore:a text is empty")
def test_names_come_from_the_prompts_and_seeds():
    assert generate("A slow waltz!", "東京 / rain", "", "--seed", "5", "--out", "new/songs") == 0
    assert files("new/songs") == [
        "a-slow-waltz-5.json",
        "a-slow-waltz-5.wav",
        "untitled-7.json",
        "untitled-7.wav",
        "東京-rain-6.json",
        "東京-rain-6.wav",
    ]


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_other_formats(suffix):
    assert generate("a", "--format", suffix) == 0
    assert generate("a", "--out", f"b.{suffix}") == 0
    for name in ["a-0", "b"]:
        assert soundfile.info(f"{name}.{suffix}").format == audio_files.FORMATS[f".{suffix}"][0]


def test_a_row_of_a_batch_can_be_made_alone():
    assert generate("a", "b", "c", "--batch-size", "2", "--out", "together", "--loudness", "off") == 0
    assert generate("c", "--seed", "2", "--out", "alone.wav", "--loudness", "off") == 0
    together, _ = audio_files.read("together/c-2.wav")
    alone, _ = audio_files.read("alone.wav")
    np.testing.assert_allclose(together, alone, atol=1e-3)
    other, _ = audio_files.read("together/b-1.wav")
    assert np.abs(other - alone).max() > 1e-2


def test_again_makes_the_same_file():
    options = ["--temperature", "0.9", "--top-k", "9", "--guidance", "2", "--seed", "3", "--loudness", "-20"]
    assert generate("a", "b", *options, "--format", "flac", "--out", "songs") == 0
    assert run("generate", "--again", "songs/b-4.json") == 0
    assert run("generate", "--again", "songs/b-4.json", "--out", "copy.flac") == 0
    np.testing.assert_array_equal(audio_files.read("b-4.flac")[0], audio_files.read("copy.flac")[0])
    np.testing.assert_allclose(audio_files.read("b-4.flac")[0], audio_files.read("songs/b-4.flac")[0], atol=1e-3)
    assert json.loads(Path("copy.json").read_text()) == json.loads(Path("songs/b-4.json").read_text())


def test_the_recipe_says_all_that_was_asked(here, debug_model):
    audio_files.write("intro.wav", np.zeros((3200, 1), np.float32), 32_000)
    options = ["--continue", "intro.wav", "--window", "2", "--stride", "1", "--dtype", "float32", "--top-p", "0.5"]
    assert generate("a", *options, "--out", "a.wav") == 0
    made = recipe.read_recipe(Path("a.json"))
    assert made.prompt == "a"
    assert made.continued == os.path.abspath("intro.wav")
    assert (made.window, made.stride, made.dtype, made.seed, made.seconds) == (2.0, 1.0, "float32", 0, 0.4)
    assert made.sampling == dataclasses.replace(debug_model.config.sampling, top_p=0.5)
    assert (made.model, made.model_hash) == ("mini", debug_model.hash)
    assert made.mgjax == mgjax.__version__
    assert made.device.startswith("cpu")
    parts = {"text_encoder": None, "style_encoder": None, "adapter": None}
    assert here == [("mini", {"dtype": "float32", "weights": None, "mesh": None, **parts})]


def test_every_option_reaches_the_model(monkeypatch, debug_model):
    calls = []
    real = type(debug_model).generate

    def spy(self, prompts, **options):
        calls.append((prompts, options))
        return real(self, prompts, **options)

    monkeypatch.setattr(type(debug_model), "generate", spy)
    options = ["--temperature", "0", "--top-k", "7", "--top-p", "0.25", "--guidance", "1.5"]
    assert generate("a", "b", "--batch-size", "2", "--window", "3", "--stride", "1", "--seed", "8", *options) == 0
    ((prompts, given),) = calls
    assert prompts == ["a", "b"]
    assert (given["seed"], given["window"], given["stride"], given["seconds"]) == ([8, 9], 3.0, 1.0, 0.4)
    assert given["sampling"] == mgjax.Sampling(temperature=0.0, top_k=7, top_p=0.25, guidance=1.5)


def test_continuing_a_sound(monkeypatch, debug_model):
    wave = 0.5 * np.sin(np.arange(8000) * 0.1).astype(np.float32)
    audio_files.write("intro.wav", wave, 32_000)
    assert generate("a", "b", "--continue", "intro.wav", "--out", "songs") == 0
    assert len(files("songs")) == 4
    seen = []
    monkeypatch.setattr(
        type(debug_model), "generate", lambda self, **options: seen.append(options) or np.zeros((1, 8, 1), "f4")
    )
    # Longer than the window of 2 s: its last 1.5 s, as much as one window hands to the next.
    audio_files.write("long.wav", np.linspace(0, 0.9, 96_000, dtype=np.float32), 32_000)
    options = ["--seconds", "4", "--window", "2", "--stride", "0.5", "--continue", "long.wav", "--trim-prompt"]
    assert run("generate", "a", *options, "--out", "long-again.wav") == 0
    prompt = seen[0]["prompt"]
    np.testing.assert_array_equal(prompt, audio_files.read("long.wav")[0][-48_000:])
    assert seen[0]["prompt_sample_rate"] == 32_000


def test_prompts_from_files(here):
    Path("ideas.txt").write_text("\ufeffone\n\n  two  \n", encoding="utf-8")
    lines = [{"text": "three"}, {"prompt": "four", "seed": 44, "name": "Four!"}, {"description": "x", "seconds": 0.2}]
    Path("ideas.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert generate("zero", "--prompts", "ideas.txt", "--out", "text", "--format", "flac") == 0
    assert [name for name in files("text") if ".flac" in name] == ["one-1.flac", "two-2.flac", "zero-0.flac"]
    assert generate("--prompts", "ideas.jsonl", "--out", "objects", "--batch-size", "3") == 0
    assert {"three-0.wav", "Four!.wav", "x-2.wav"} < set(files("objects"))
    assert recipe.read_recipe(Path("objects/Four!.json")).seed == 44
    assert audio_files.info("objects/x-2.wav").num_samples < audio_files.info("objects/three-0.wav").num_samples
    assert len(here) == 2  # the model is loaded once for all


def test_loudness(debug_model):
    assert generate("a", "--out", "even.wav", "--loudness", "-30") == 0
    assert generate("a", "--out", "raw.wav", "--loudness", "off") == 0
    raw = debug_model.generate(["a"], seconds=0.4)[0]
    expected = loudness.normalized(raw, debug_model.sample_rate, -30.0)
    np.testing.assert_allclose(audio_files.read("even.wav")[0], expected, atol=1e-3)
    np.testing.assert_allclose(audio_files.read("raw.wav")[0], np.clip(raw, -1, 1), atol=1e-3)


# --- generate: what cannot be made


RECIPE = {"prompt": "a", "seconds": 1.0, "seed": 0, "model": "debug"}
RECIPES = {
    "more": {"text": "a"},
    "absurd": {"seconds": 1e9},
    "unordered": {"then": [[0.2, "b"], [0.1, "c"]]},
    "escape": {"format": "wav/../../a.wav"},
    "quiet": {"loudness": float("nan")},
    "folder": {"melody": "folder", "melody_sha256": "0"},
}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say what to play"),
        (["a", "--out", "a.aac"], "a.aac: cannot write '.aac'; choose from .wav, .flac, .ogg, .mp3"),
        (["a", "b", "--out", "a.wav"], "is one file, but there are 2 prompts"),
        (["a", "--out", "a.wav", "--format", "flac"], "contradict"),
        (["a", "--temperature", "-1"], "temperature must be 0 (greedy) or above"),
        (["a", "--top-p", "2"], "top_p must be from 0 (off) to 1"),
        (["a", "--top-k", "-3"], "top_k must be a whole number"),
        (["a", "--guidance", "nan"], "guidance must be a finite number"),
        (["--prompts", "missing.txt"], "missing.txt: No such file"),
        (["--prompts", "empty.txt"], "empty.txt: there is no prompt in it"),
        (["--prompts", "binary.txt"], "binary.txt: is not text in UTF-8"),
        (["--prompts", "bad.jsonl"], "bad.jsonl, line 2: is not JSON"),
        (["--prompts", "list.jsonl"], "list.jsonl, line 1: expected a JSON object"),
        (["--prompts", "keys.jsonl"], "keys.jsonl, line 1: unknown keys ['second']"),
        (["--prompts", "two.jsonl"], "two.jsonl, line 1: expected exactly one of prompt, text, description"),
        (["--prompts", "escape.jsonl"], "name must be a file name"),
        (["--prompts", "twice.jsonl"], "several pieces would be called same.wav"),
        (["--prompts", "seconds.jsonl"], "seconds must be above 0"),
        (["a", "--continue", "missing.wav"], "missing.wav: No such file"),
        (["a", "--continue", "empty.txt"], "empty.txt: is damaged, or no sound file"),
        (["a", "--continue", "long.wav"], "long.wav lasts 1.0 s, and --seconds is the length of the whole"),
        (["--again", "missing.json"], "missing.json: No such file"),
        (["--again", "bad.jsonl"], "bad.jsonl: is not JSON"),
        (["--again", "other.json"], "other.json: is no recipe; expected the .json that mgjax generate writes"),
        (["--again", "more.json"], "more.json: unknown keys ['text']"),
        (["--again", "long.wav"], "long.wav: is not text in UTF-8"),
        (["--again", "plain"], "plain: is not JSON"),
        (["--again", "absurd.json"], "absurd.json: seconds must be above 0 and at most 86400"),
        (["--again", "unordered.json"], "unordered.json: the times of later prompts must be above 0 and rise"),
        (["--again", "escape.json"], "escape.json: format must be one of .wav"),
        (["--again", "quiet.json"], "quiet.json.loudness: expected a finite number"),
        (["--again", "folder.json"], f"{os.sep}folder: Is a directory"),
        (["--again", "/dev/full"], "/dev/full: is a device"),
        (["--prompts", "/dev/full"], "/dev/full: is a device"),
        (["a", "--style", "/dev/full"], "/dev/full: is a device"),
        (["a", "--continue", "/dev/zero"], "/dev/zero: is a device"),
        (["a", "--seed", "-1"], "a seed must be 0 or above and below 2**32"),
        (["a", "--seconds", "86401"], "at most 86400 (a day)"),
        (["a", "b\udcff"], "is not UTF-8: it ends in"),
        (["a", "--melody", "caf\udce9.wav"], "is not UTF-8: it ends in"),
        (["a", "--out", "n" * 252 + ".wav"], "File name too long"),
        (["a", "--out", "漢" * 84 + ".wav"], "File name too long"),
        (["a", "--out", "n" * 251 + ".wav"], "File name too long"),  # not the sound's, but the recipe's
        (["--prompts", "name.jsonl"], "name.jsonl, line 1: name must be a file name"),
        (["a", "--out", "folder"], f"folder{os.sep}a-0.wav: is a folder"),
        (["a", "--out", "empty.txt/deeper"], "empty.txt/deeper: Not a directory"),
        (["a", "--out", "plain"], "plain: File exists"),
        (["a", "--out", "there.wav"], "there.wav exists already"),
        (["a", "--out", "recipe.wav"], "recipe.json exists already"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(here, capsys, argv, message):
    Path("empty.txt").touch()
    Path("plain").touch()
    Path("binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    Path("list.jsonl").write_text("[1]")
    Path("keys.jsonl").write_text('{"text": "a", "second": 3.0}')
    Path("two.jsonl").write_text('{"text": "a", "prompt": "b"}')
    Path("escape.jsonl").write_text('{"text": "a", "name": "../a"}')
    Path("twice.jsonl").write_text('{"text": "a", "name": "same"}\n{"text": "b", "name": "same"}')
    Path("seconds.jsonl").write_text('{"text": "a", "seconds": 0}')
    Path("other.json").write_text('{"text": "a"}')
    for name, values in RECIPES.items():
        Path(f"{name}.json").write_text(json.dumps(RECIPE | values))
    Path("name.jsonl").write_text(json.dumps({"text": "a", "name": "漢" * 84}))
    Path("folder/a-0.wav").mkdir(parents=True)
    audio_files.write("caf\udce9.wav", np.zeros(100), 8000)
    Path("there.wav").touch()
    Path("recipe.json").touch()
    audio_files.write("long.wav", np.zeros(32_000, np.float32), 32_000)
    before = files()
    assert run("generate", *([] if "--again" in argv else ["--seconds", SECONDS]), *argv) == 2
    assert message in error_of(capsys)
    assert here == []
    assert files() == before


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--seconds", "nan"], ["--batch-size", "0"], ["--loudness", "3"]])
def test_numbers_out_of_range(capsys, argv):
    assert run("generate", "a", *argv) == 2
    assert "must be" in capsys.readouterr().err


def test_force_replaces():
    Path("a.wav").write_text("old")
    assert generate("a", "--out", "a.wav", "--force") == 0
    assert audio_files.info("a.wav").num_samples > 0


def test_again_takes_no_other_wishes(capsys):
    assert generate("a", "--out", "a.wav") == 0
    capsys.readouterr()
    assert run("generate", "again", "--again", "a.json", "--seed", "3", "--out", "b.wav") == 2
    assert "leave out seed, a prompt" in error_of(capsys)


def test_a_folder_that_cannot_be_written_to(here, capsys, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert generate("a", "--out", "locked") == 2
    assert "locked: this folder cannot be written to (Permission denied)" in error_of(capsys)
    assert here == []


@pytest.mark.filterwarnings("default")
def test_again_with_other_weights_warns(capsys):
    assert generate("a", "--out", "a.wav") == 0
    values = json.loads(Path("a.json").read_text()) | {"model_hash": "0123"}
    Path("a.json").write_text(json.dumps(values))
    capsys.readouterr()
    assert run("generate", "--again", "a.json", "--out", "b.wav") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("mgjax: warning: mini has other weights now")


@pytest.fixture
def silent(monkeypatch, debug_model):
    """A model that plays silence at once; what it was asked for."""
    asked = []

    def generate(self, prompts, **options):
        asked.append({"prompts": prompts, **options})
        return np.zeros((len(prompts), 800, 1), np.float32)

    monkeypatch.setattr(type(debug_model), "generate", generate)
    return asked


def test_seeds_go_on_from_0(silent):
    """As those of the rows in Python."""
    assert generate("a", "b", "c", "--seed", str(2**32 - 2), "--batch-size", "3") == 0
    assert silent[0]["seed"] == [2**32 - 2, 2**32 - 1, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"seed": -1}, "a seed must be 0 or above"),
        ({"seed": 2**32}, "a seed must be 0 or above"),
        ({"seconds": 1e-3}, "seconds must be at least 0.02"),
        ({"seconds": 86_401}, "seconds must be above 0 and at most 86400"),
        ({"then": [[0.2, "b"], [0.201, "c"]]}, "the times of texts must rise"),
        ({"then": [[0.2, "b"], [0.1, "c"]]}, "the times of later prompts must be above 0 and rise"),
        ({"labels": {"genre": "waltz"}}, "this model has no labels"),
        ({"melody": "intro.wav"}, "there is a melody, and mini was not trained with any"),
        ({"melody": "missing.wav"}, "missing.wav: No such file"),
        ({"style": "."}, "Is a directory"),
        ({"seconds": 0.1}, "the prompt lasts 0.1 seconds and is part of the result"),
    ],
)
def test_a_bad_line_is_told_before_the_first_sound(silent, capsys, line, message):
    audio_files.write("intro.wav", np.full(3200, 0.1), 32_000)
    lines = [{"text": "a"}] * 5 + [{"text": "a"} | line] + [{"text": "a"}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert generate("--prompts", "p.jsonl", "--continue", "intro.wav") == 2
    said = error_of(capsys)
    assert said.startswith("mgjax: error: p.jsonl, line 6: ")
    assert message in said
    assert silent == []
    assert files() == ["intro.wav", "p.jsonl"]


def test_prompts_are_parted_at_ends_of_lines_only(silent):
    Path("a.txt").write_bytes("one\u2028one\ntwo\x0ctwo\r\nthree\x85three\rfour".encode())
    Path("a.jsonl").write_text('{"text": "one\u2028one"}\n{"text": "two\x85two"}', encoding="utf-8")
    for name, expected in (
        ("a.txt", ["one\u2028one", "two\x0ctwo", "three\x85three", "four"]),
        ("a.jsonl", ["one\u2028one", "two\x85two"]),
    ):
        silent.clear()
        assert generate("--prompts", name, "--batch-size", "9", "--force") == 0
        assert silent[0]["prompts"] == expected


def test_names_may_be_as_long_as_the_file_system_allows(silent, monkeypatch):
    """In bytes: those of letters that take three."""
    monkeypatch.setattr(audio_files, "write", lambda path, *_: Path(path).write_bytes(b"RIFF"))
    Path("p.jsonl").write_text(json.dumps({"text": "a", "name": "漢" * 82}))
    assert generate("--prompts", "p.jsonl") == 0
    assert generate("a", "--out", "n" * 246 + ".wav") == 0
    assert generate("漢" * 99, "😀x" * 99) == 0
    assert sorted(len(os.fsencode(name)) for name in files() if name.endswith("json")) == [66, 187, 251, 251]


@pytest.fixture
def another_run():
    """Another process, which writes a-0.wav and its recipe in this folder."""
    code = (
        "import sys; from pathlib import Path; from mgjax.cli import terminal\n"
        "def run():\n terminal.claim([Path('a-0.wav'), Path('a-0.json')], False); print(flush=True); sys.stdin.read()\n"
        "terminal.exit_status(run)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    ) as other:
        other.stdout.readline()
        yield other
        other.stdin.close()
    assert files() == ["b-0.json", "b-0.wav"], "no locks are left behind"


def test_two_runs_do_not_write_one_name(silent, capsys, another_run):
    for more in ([], ["--force"]):
        assert generate("a", *more) == 2
        assert "a-0.wav: another run is writing this file" in error_of(capsys)
    assert silent == []
    assert generate("b") == 0, "other names in the same folder are free"


def test_pipes_are_read_once(silent, codec, sound, capsys):
    content = Path("song.wav").read_bytes()

    def pipe(name, content):
        os.mkfifo(name)
        threading.Thread(target=Path(name).write_bytes, args=(content,)).start()
        return name

    assert generate("a", "--continue", pipe("tune", content), "--out", "a.wav") == 0
    np.testing.assert_array_equal(silent[0]["prompt"], sound)
    assert recipe.read_recipe(Path("a.json")).continued == os.path.abspath("tune")
    assert generate("--prompts", pipe("prompts", b"one\ntwo\n"), "--batch-size", "2", "--out", "songs") == 0
    assert silent[1]["prompts"] == ["one", "two"]
    os.mkdir("left")
    assert run("encode", pipe("song", content), "left/song.npz") == 0
    assert run("decode", pipe("codes", Path("left/song.npz").read_bytes()), "left/again.wav") == 0
    capsys.readouterr()
    assert run("encode", pipe("text", b"no sound"), "left/b.npz") == 2
    assert error_of(capsys).startswith(f"mgjax: error: {os.path.abspath('text')}: is damaged")
    assert files("left") == ["again.wav", "song.npz"]


# --- generate: when it goes wrong on the way


def failing(monkeypatch, model, error, after):
    """Makes the model raise `error` in its call number `after`."""
    real, calls = type(model).generate, []

    def fail(self, prompts, **options):
        calls.append(prompts)
        if len(calls) > after:
            raise error
        return real(self, prompts, **options)

    monkeypatch.setattr(type(model), "generate", fail)


def test_ctrl_c_keeps_what_is_finished(monkeypatch, debug_model, capsys):
    failing(monkeypatch, debug_model, KeyboardInterrupt(), after=1)
    assert generate("a", "b", "--batch-size", "1") == 130
    assert files() == ["a-0.json", "a-0.wav"]
    assert capsys.readouterr().err == "mgjax: stopped; finished files are kept\n"


def test_ctrl_c_while_a_file_is_written(monkeypatch):
    class Stopped:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise KeyboardInterrupt

    monkeypatch.setattr(audio_files, "Writer", Stopped)
    assert generate("a") == 130
    assert files() == []


def test_the_sound_is_safe_before_the_recipe_is_written(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgjax.config.serialization.to_json", full)
    assert generate("a") == 2
    assert files() == ["a-0.wav"]
    assert "No space left" in error_of(capsys)


def test_faults_of_the_program_show_where(monkeypatch, debug_model):
    failing(monkeypatch, debug_model, ZeroDivisionError("fault"), after=0)
    with pytest.raises(ZeroDivisionError):
        generate("a")
    monkeypatch.setenv("MGJAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="say what to play"):
        run("generate")


def test_out_of_memory_says_what_to_do(monkeypatch, debug_model, capsys):
    failing(monkeypatch, debug_model, RuntimeError("RESOURCE_EXHAUSTED: Out of memory while ..."), after=0)
    assert generate("a") == 2
    assert "--batch-size 1" in error_of(capsys)


# --- encode and decode


TINY = CodecConfig(
    sample_rate=8000, num_filters=2, ratios=(4, 4), latent_dim=8, num_codebooks=2, codebook_size=16, num_lstm_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module", params=["whole", "chunks"])
def codec(request):
    chunks = {"norm": "none", "normalize": True, "chunk_seconds": 0.25, "chunk_overlap": 0.1}
    config = dataclasses.replace(TINY, **(chunks if request.param == "chunks" else {}))
    lm = LMConfig(dim=4, num_layers=1, num_heads=1, num_codebooks=2, codebook_size=16, delays=(0, 1), conditions=())
    return Codec(config, random_variables(ModelConfig(lm, config, text=None))["codec"])


@pytest.fixture
def sound(codec, monkeypatch):
    """Sound in song.wav, at the codec's rate."""
    monkeypatch.setattr(mgjax, "load_codec", lambda source: codec, raising=False)
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 2789).astype(np.float32)
    audio_files.write("song.wav", wave, codec.sample_rate)
    return audio_files.read("song.wav")[0]


def test_codes_and_back(sound, codec, monkeypatch, capsys):
    monkeypatch.setattr(coding, "_BLOCK_SECONDS", 0.2)
    assert run("encode", "song.wav", "song.npz") == 0
    assert run("decode", "song.npz", "again.wav") == 0
    assert capsys.readouterr().out == "song.npz\nagain.wav\n"
    assert files() == ["again.wav", "song.npz", "song.wav"]
    whole = codec.encode(sound)
    file = coding.read_codes(Path("song.npz"))
    np.testing.assert_array_equal(file.codes, getattr(whole, "codes", whole)[0])
    assert file.codes.dtype == np.uint8
    assert file.num_samples == len(sound)
    again, _ = audio_files.read("again.wav")
    np.testing.assert_allclose(again, np.clip(codec.decode(whole, len(sound))[0], -1, 1), atol=1e-3)


@pytest.mark.parametrize("codec", ["whole"], indirect=True)
def test_sound_at_another_rate_is_resampled(codec, sound):
    audio_files.write("cd.wav", np.zeros((22_050, 1), np.float32) + 0.1, 44_100)
    assert run("encode", "cd.wav", "song.npz") == 0
    assert coding.read_codes(Path("song.npz")).num_samples == 4000


@pytest.mark.parametrize("codec", ["whole"], indirect=True)
@pytest.mark.filterwarnings("default")
def test_stereo_into_a_mono_codec_says_so(sound, capsys):
    audio_files.write("stereo.wav", np.repeat(sound, 2, axis=1), 8000)
    assert run("encode", "stereo.wav", "song.npz") == 0
    assert "mgjax: warning: stereo.wav has 2 channels; mixed down to 1" in capsys.readouterr().err


CODES = {
    "codes": np.zeros((20, 2), np.uint8), "num_samples": 320, "sample_rate": 8000, "channels": 1, "model": "tiny",
    "codec_hash": "0123",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:bad.npz was made by other weights")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": None}, "it holds"),
        ({"extra": np.zeros(3)}, "it holds"),
        ({"codes": np.zeros((3, 2))}, "is damaged"),
        ({"codes": np.zeros((0, 2), np.int32)}, "is damaged"),
        ({"codes": np.zeros((2, 3, 2), np.int32)}, "is damaged"),
        ({"codes": np.full((3, 2), -1)}, "codes must be from 0"),
        ({"codes": np.full((3, 2), 16)}, "codes must be from 0"),
        ({"codes": np.zeros((20, 99), np.int32)}, "codebooks"),
        ({"num_samples": 2**60}, "the codes end"),
        ({"num_samples": 321}, "the codes end"),
        ({"num_samples": -1}, "is damaged"),
        ({"num_samples": 3.5}, "is damaged"),
        ({"sample_rate": 44_100}, "44100 Hz"),
        ({"model": np.array(["a", "b"])}, "is damaged"),
        ({"scales": np.ones((3, 1), np.float32)}, "is damaged"),
        ({"scales": np.ones(20, np.float32)}, "is damaged"),
        ({"codes": np.array([{}], dtype=object)}, "is no .npz file"),  # pickled, and not to be opened
        ({"codes": np.zeros((1, 9, 2), np.uint8), "scales": np.full(1, np.nan, np.float32)}, "is damaged"),
        ({"codes": np.zeros((1, 9, 2), np.uint8), "scales": np.ones(1, np.float32)}, "chunks apart"),
    ],
)
@pytest.mark.parametrize("codec", ["whole"], indirect=True)
def test_files_of_codes_are_not_trusted(sound, capsys, changes, message):
    np.savez("bad.npz", **{name: value for name, value in (CODES | changes).items() if value is not None})
    assert run("decode", "bad.npz", "out.wav") == 2
    assert message in error_of(capsys)
    assert files() == ["bad.npz", "song.wav"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("codec", ["whole"], indirect=True)
def test_codes_of_other_weights_are_decoded_with_a_warning(sound, capsys):
    coding.write_codes(Path("song.npz"), coding.CodeFile(**CODES, scales=None))
    assert run("decode", "song.npz", "out.wav") == 0
    assert "mgjax: warning: song.npz was made by other weights (tiny, 0123)" in capsys.readouterr().err
    assert audio_files.info("out.wav").num_samples == 320


def test_a_file_of_codes_that_unpacks_to_more_than_memory(capsys, monkeypatch):
    monkeypatch.setattr(coding, "_MOST_BYTES", 1000)
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codes.npy", bytes(1001))
    assert run("decode", "bomb.npz", "out.wav") == 2
    assert "unpacks to more than" in error_of(capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["encode", "song.wav", "song.txt"], "codes are kept in .npz files"),
        (["encode", "missing.wav", "song.npz"], "missing.wav: No such file"),
        (["encode", "text.wav", "song.npz"], "text.wav: is damaged, or no sound file"),
        (["encode", "song.wav", "there.npz"], "there.npz exists already"),
        (["encode", "song.wav", "song.npz", "--bandwidth", "77"], "bandwidth"),
        (["decode", "missing.npz", "a.wav"], "missing.npz: No such file"),
        (["decode", "text.wav", "a.wav"], "text.wav: is no .npz file"),
        (["encode", "/dev/zero", "song.npz"], "/dev/zero: is a device"),
        (["decode", "/dev/zero", "a.wav"], "/dev/zero: is a device"),
        (["encode", "song.wav", "n" * 252 + ".npz"], "File name too long"),
        (["encode", "song.wav", "folder.npz", "--force"], "folder.npz: is a folder"),
        (["decode", "there.npz", "a.aac"], "cannot write '.aac'"),
    ],
)
@pytest.mark.parametrize("codec", ["whole"], indirect=True)
def test_mistakes_with_codes(sound, capsys, argv, message):
    Path("text.wav").write_text("no sound")
    Path("folder.npz").mkdir()
    Path("there.npz").touch()
    before = files()
    assert run(*argv) == 2
    assert message in error_of(capsys)
    assert files() == before


# --- convert and info


@pytest.mark.parametrize("form", ["mgjax", "huggingface"])
def test_convert(form, capsys, debug_model):
    assert run("convert", "debug", "model", "--format", form) == 0
    assert capsys.readouterr().out == "model\n"
    assert native.detect("model") == form
    codes = np.arange(12).reshape(1, 3, 4)
    expected, back = (model.logits(codes, None) for model in (debug_model, api.load("model")))
    np.testing.assert_allclose(back, expected, atol=1e-6)  # measured 0


def test_convert_says_what_a_form_cannot_hold(capsys):
    assert run("convert", "debug", "model", "--format", "audiocraft") == 2
    assert "audiocraft's files name the text encoder and do not hold it" in error_of(capsys)
    assert files() == []


def test_convert_replaces_nothing(capsys, here):
    Path("model").mkdir()
    assert run("convert", "debug", "model") == 2
    assert "model exists already" in error_of(capsys)
    assert here == []


def test_info_of_a_published_size():
    shown = describe(ModelConfig())
    # musicgen.md: 420.37 M, counted in audiocraft; T5-base 109.63 M; the codec's parts together 57.93 M.
    assert ("language model", "420.37 M parameters") in shown
    assert ("text encoder", "109.63 M parameters") in shown
    assert ("codec", "57.93 M parameters") in shown
    assert ("together", "587.93 M parameters") in shown
    # A piece plays with its keys and values in 24 layers of width 1024 for 1500 steps, with words and without.
    assert ("memory", "2.35 GB in float32, and 589.82 MB a piece while it plays") in shown


def test_info_reads_no_weights(capsys, monkeypatch):
    assert run("convert", "debug", "model") == 0
    os.remove("model/model.safetensors")
    capsys.readouterr()
    assert run("info", "model") == 0
    assert "language model" in capsys.readouterr().out


# --- the command itself


def test_help_and_version(capsys):
    for argv in [["--help"], ["generate", "--help"], ["encode", "--help"], ["info", "--help"], ["convert", "--help"]]:
        assert cli.main(argv) == 0
        assert "mgjax" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"mgjax {mgjax.__version__}\n"
    assert cli.main([]) == 2
    assert cli.main(["generate", "--nonsense"]) == 2


def test_progress_is_one_line_where_nobody_watches(capsys):
    assert generate("a", "b") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("mgjax: generate: 0.8 s of sound in ")


def test_the_bar_counts_seconds_of_sound(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with terminal.progress("generate", 8.0) as reach:
        for done in (2.0, 5.0, 8.0):
            reach(done)
    err = capsys.readouterr().err
    assert "100%" in err
    assert "8.0/8 s" in err
    assert "s of sound a second" in err
    assert "mgjax: generate" not in err


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """What is set in JAX, which is left as it is; the user's own folder is one of the test."""
    found = {}
    monkeypatch.setattr(type(jax.config), "update", lambda self, name, value: found.update({name: value}))
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "user" / name))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return found


def prepare(cache=None):
    terminal.apply_model_options(argparse.Namespace(offline=False, cache=cache))


def test_compiled_programs_are_kept_in_a_folder_that_does_not_grow_for_ever(settings, tmp_path, monkeypatch):
    prepare()
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "user" / "mgjax" / "programs")
    assert 2**26 < settings["jax_compilation_cache_max_size"] < 2**30
    prepare("here")
    assert settings["jax_compilation_cache_dir"] == "here"
    settings.clear()
    prepare("off")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    prepare()
    assert not settings


def test_without_a_folder_for_programs_there_is_music_all_the_same(settings, tmp_path):
    (tmp_path / "user").write_text("no folder")
    prepare()
    assert not settings
    with pytest.raises(OSError, match="user"):
        prepare(tmp_path / "user")


def test_compiled_programs_that_jax_cannot_use_are_dropped(settings, tmp_path, monkeypatch):
    """Those without a time stamp at the start, and one that cannot be read when JAX says so; no word of it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("good-cache", "good-atime", "broken-cache", "broken-atime", "orphan-cache"):
        (folder / name).write_bytes(bytes(8))
    os.utime(folder / "good-atime", (1, 1))
    with FileLock(folder / ".lockfile"):  # another process is at work on them
        monkeypatch.setattr(terminal, "_LOCK_SECONDS", 0)
        prepare(folder)
        assert (folder / "orphan-cache").exists()
    prepare(folder)
    assert files(folder) == [".lockfile", "broken-atime", "broken-cache", "good-atime", "good-cache"]
    with terminal.messages():
        warnings.simplefilter("always")  # our pytest ignores these
        warnings.warn("Error reading persistent compilation cache entry for 'jit_f': ValueError: ...", stacklevel=1)
    assert files(folder) == [".lockfile", "good-atime", "good-cache"]


def test_what_is_said_is_said_once(capsys):
    """Libraries put handlers on the root logger."""
    other = logging.StreamHandler()
    logging.getLogger().addHandler(other)
    try:
        with terminal.messages():
            logging.getLogger("mgjax").warning("a word")
    finally:
        logging.getLogger().removeHandler(other)
    assert capsys.readouterr().err == "mgjax: a word\n"


def test_a_platform_that_is_not_there_is_told(monkeypatch, capsys):
    def missing(*_):
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(AssertionError):  # there is a device: it is a fault of the program
        terminal.exit_status(missing)
    monkeypatch.setattr(jax, "devices", missing)
    assert terminal.exit_status(missing) == 2
    assert "JAX_PLATFORMS=cuda names a device that is not there" in error_of(capsys)


def test_64_bits_are_switched_off(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    seen = []
    jax.config.update("jax_enable_x64", True)
    try:
        assert terminal.exit_status(lambda: seen.append(jax.numpy.zeros(1).dtype)) == 0
    finally:
        jax.config.update("jax_enable_x64", False)
    assert os.environ["JAX_ENABLE_X64"] == "0"
    assert seen == [np.float32]


def test_names_that_are_not_utf8_are_printed_as_they_are(capsysbinary):
    assert terminal.exit_status(lambda: print("caf\udce9.wav")) == 0
    assert capsysbinary.readouterr().out == b"caf\xe9.wav\n"


def test_nobody_reads_the_output(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    for file, status in ((writer, 0), ("/dev/full", 2)):
        with open(file, "w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            assert terminal.exit_status(lambda: print("a.wav")) == status
    assert "the output cannot be written (No space left on device)" in error_of(capsys)
