"""`mgjax corpus`, run in this process."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora

from mgjax import cli, synthetic
from mgjax.audio import files as audio_files
from mgjax.audio.metadata import Metadata
from mgjax.data import build, processes, tokenize
from mgjax.data.assembly import Report
from mgjax.data.corpus import Corpus
from mgjax.data.corpus_writing import Piece
from mgjax.data.datasets import Fields
from mgjax.data.description import Description, describe_audio

REPORT = Report({"train": 3, "valid": 1}, {"train": 7200.0, "valid": 90.0}, (("a.wav", "silent"),))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(capsys):
    """The one line of a message; more than one is a failure."""
    err = capsys.readouterr().err
    assert err.startswith("mgjax: error: "), err
    assert err.count("\n") == 1, err
    return err


def test_build_and_inspect_a_folder(capsys, monkeypatch):
    monkeypatch.setattr(processes, "run", lambda make, jobs, options: [make(job) for job in jobs])
    for i in range(4):
        sound = np.random.default_rng(i).uniform(-0.5, 0.5, (8000 + 4000 * i, 1)).astype(np.float32)
        Path("music").mkdir(exist_ok=True)
        audio_files.write(f"music/{i}.wav", sound, 8000)
    Path("music/1.json").write_text(json.dumps({"description": "a slow waltz"}))
    assert cli.main(["corpus", "build", "music", "new/corpus", "--sample-rate", "4000", "--valid", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == "new/corpus\n"
    assert err == "mgjax: 4 train pieces (0.1 min)\n"
    assert Corpus.open("new/corpus").lengths.tolist() == [4000, 6000, 8000, 10_000]
    assert cli.main(["corpus", "inspect", "new/corpus"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "new/corpus",
        "  kind            sound",
        "  train           4 pieces, 0.1 min",
        "  lengths         1.0 to 2.5 s, half of them below 1.8 s",
        "  sound           4000 Hz, mono",
        "  captions        25% of 4 pieces have one",
        "  1.wav           a slow waltz",
    ]


def test_inspect_shows_how_codes_are_used(capsys):
    description = Description(
        "tokens", 8000, 2, frame_rate=50.0, num_codebooks=2, codebook_size=4, codec_source="tiny", codec_hash="abc"
    )
    codes = np.stack([np.arange(100) % 4, np.arange(100) % 2], axis=1)
    pieces = {"train": [Piece("a", Metadata(), codes)], "valid": [Piece("b", Metadata(), codes)]}
    tiny_corpora.write("codes", description, pieces)
    assert cli.main(["corpus", "inspect", "codes"]) == 0
    out = capsys.readouterr().out
    assert "  kind            codes\n" in out
    assert "  valid           1 pieces, 0.0 min\n" in out
    assert "  sound           8000 Hz, stereo\n" in out
    assert "  codes           50 frames a second, 2 codebooks of 4\n" in out
    assert "  codec           tiny (abc)\n" in out
    assert "  codebook 1      100% of the codes used, 2.00 of 2.00 bits\n" in out
    assert "  codebook 2      50% of the codes used, 1.00 of 2.00 bits\n" in out
    assert "  captions        0% of 1 pieces have one\n" in out


def _noting(monkeypatch, module, name):
    """What a function of `module` is called with; it makes nothing."""
    calls = []

    def note(*args, progress, **options):
        calls.append((args, options))
        progress(2, 4)
        return REPORT

    monkeypatch.setattr(module, name, note)
    return calls


def test_every_option_reaches_build(capsys, monkeypatch):
    calls = _noting(monkeypatch, build, "build")
    argv = "corpus build tfds:groove out --sample-rate 16000 --channels 2 --valid 0.1 --min-seconds 3 --loudness -14"
    argv += " --max-bad 0.2 --shards 9 --audio-feature sound --source-rate 8000 --field genre=style/primary"
    argv += " --field bpm=bpm --workers 3 --force --beam=--runner=FlinkRunner"
    assert cli.main(argv.split()) == 0
    [(args, options)] = calls
    assert args == ("tfds:groove", Path("out"))
    assert options == {
        "sample_rate": 16_000,
        "channels": 2,
        "valid": 0.1,
        "min_seconds": 3.0,
        "loudness": -14.0,
        "max_bad": 0.2,
        "fields": Fields("sound", 8000, (("genre", "style/primary"), ("bpm", "bpm"))),
        "num_shards": 9,
        "workers": 3,
        "replace": True,
        "beam_options": ["--runner=FlinkRunner"],
    }
    out, err = capsys.readouterr()
    assert err == "mgjax: 3 train pieces (2.00 h) and 1 valid pieces (1.5 min); 1 skipped, see out/report.json\n"
    assert out == "out\n"


def test_every_option_reaches_tokenize(monkeypatch):
    calls = _noting(monkeypatch, tokenize, "tokenize")
    argv = "corpus tokenize sound codes --codec tiny --channels 2 --tokenizer bytes --workers 2 --force"
    assert cli.main([*argv.split(), "--cache", "off", "--beam=--x=1", "--beam=--y=2"]) == 0
    [(args, options)] = calls
    assert args == (Path("sound"), Path("codes"), "tiny")
    assert options == {
        "channels": 2,
        "tokenizer": "bytes",
        "melody": None,
        "workers": 2,
        "replace": True,
        "beam_options": ["--x=1", "--y=2"],
    }


def test_every_option_reaches_synthesize(capsys, monkeypatch):
    calls = []

    def write_folder(*args, progress, **options):
        calls.append((args, options))
        progress(900.0, 1800.0)
        progress(1800.0, 1800.0)

    monkeypatch.setattr(synthetic, "write_folder", write_folder)
    argv = "corpus synthesize music --hours 0.5 --seed 7 --sample-rate 16000 --channels 2 --workers 2 --lengths 8 18"
    assert cli.main(argv.split()) == 0
    options = {"seed": 7, "sample_rate": 16_000, "channels": 2, "workers": 2, "lengths": (8.0, 18.0)}
    assert calls == [((Path("music"), 0.5), options)]
    out, err = capsys.readouterr()
    assert out == "music\n"
    assert err.startswith("mgjax: synthesize: 1800.0 s of sound in ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("inspect nowhere", "nowhere: holds no finished corpus"),
        ("build nowhere out", "nowhere: expected a folder of sound files, a manifest"),
        ("build . out --field genre", "--field genre: expected FIELD=FEATURE"),
        ("build . out --field gerne=x", "there is no field 'gerne'"),
        ("build . out", "there is no music in it"),
        ("tokenize nowhere out --codec debug --cache off", "nowhere: holds no finished corpus"),
    ],
)
def test_mistakes_are_explained(capsys, argv, message):
    assert cli.main(["corpus", *argv.split()]) == 2
    assert message in error_of(capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("argv", ["build a b --valid 1", "build a b --channels 3", "tokenize a b", "build a", ""])
def test_the_command_line_is_checked(capsys, argv):
    assert cli.main(["corpus", *argv.split()]) == 2
    assert "usage: mgjax corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "missing", "advice"),
    [
        ("build a b", "apache_beam", "this needs apache_beam, not installed here; run: pip install 'mgjax[train]'"),
        ("inspect a", "array_record", "pip install 'mgjax[train]'"),
        ("synthesize a", "pretty_midi", "pip install 'mgjax[synthetic]'"),
    ],
)
def test_a_missing_extra_is_named(capsys, monkeypatch, argv, missing, advice):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    assert cli.main(["corpus", *argv.split()]) == 2
    assert advice in error_of(capsys)


def test_a_corpus_keeps_its_rate(capsys):
    pieces = {"train": [Piece("a", Metadata(), [np.ones((2000, 1), np.float32)])]}
    tiny_corpora.write("sound", describe_audio(4000, 1), pieces)
    assert cli.main(["corpus", "tokenize", "sound", "codes", "--codec", "debug", "--cache", "off"]) == 2
    assert "build the corpus with --sample-rate 32000" in error_of(capsys)
