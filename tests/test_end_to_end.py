"""From nothing to music, by the commands that a user types: synthesize, build, train, tokenize, train, generate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from baselines import token_counts, unigram

import mgjax
from mgjax import cli
from mgjax.audio import files as audio_files
from mgjax.data.corpus import Corpus

ROOT = Path(__file__).parents[1]

CODEC = """
model.sample_rate=16000 model.ratios=(8,5,4,2) model.codebook_size=32 model.num_lstm_layers=1
discriminator.stft_sizes=(256,) optim.learning_rate=3e-3 data.batch_size=8 data.segment_seconds=0.25
loss.adversarial=0.5 loss.feature=0.5
loop.steps=60 loop.log_every=5 loop.eval_every=20 loop.save_every=30 loop.show_every=60
"""
LM = """
lm.codebook_size=32 data.batch_size=8 data.num_threads=1
loop.steps=80 loop.log_every=5 loop.eval_every=40 loop.save_every=40 loop.show_every=80 optim.learning_rate=1e-2
"""


def run(folder, *command):
    """Runs a command as a user would, on one device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]
    result = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def mgjax_command(folder, monkeypatch, capsys):
    """Runs a command of mgjax in this process, which has started already; what it printed."""
    monkeypatch.chdir(folder)

    def command(*words):
        assert cli.main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return command


def train(folder, kind, workdir, settings, *more):
    flags = [f"--config.{setting}" for setting in [*settings.split(), *more]]
    config = f"--config={ROOT}/configs/{kind}.py:debug"
    run(folder, ROOT / "launch" / f"train_{kind}.py", config, f"--workdir={workdir}", *flags)
    return [json.loads(line) for line in (folder / workdir / "metrics.jsonl").read_text().splitlines()]


def values(lines, split, name):
    return [line["values"][name] for line in lines if line["split"] == split]


def test_from_nothing_to_music(folder, mgjax_command):
    mgjax_command("corpus", "synthesize", "music", "--hours", "0.05", "--sample-rate", "16000")
    mgjax_command("corpus", "build", "music", "sound", "--sample-rate", "16000", "--valid", "0.2")

    lines = train(folder, "codec", "codec", CODEC, "data.corpora=('sound',)")
    found = {name: values(lines, "valid", name) for name in ("mel_distance", "si_snr")}
    assert found["mel_distance"][-1] < found["mel_distance"][0], found  # measured: 0.70 to 0.65
    assert found["si_snr"][-1] > found["si_snr"][0] + 5, found  # measured: -29 to -22 dB
    usage = [values(lines, "valid", f"usage_{k}")[-1] for k in range(1, 5)]
    assert min(usage) > 0.5, usage

    mgjax_command("corpus", "tokenize", "sound", "tokens", "--codec", "codec/best")
    assert "4 codebooks" in mgjax_command("corpus", "inspect", "tokens")

    lines = train(folder, "lm", "lm", LM, "codec=codec/best", "data.corpora=('tokens',)")
    loss = values(lines, "train", "loss")
    assert loss[0] < 1.3 * np.log(32)
    assert np.mean(loss[-3:]) < loss[0] - 0.2  # measured: 3.68 to 3.13
    # How much there is to know depends on how evenly this run's codec uses its codes: at least how often each occurs.
    counts = [token_counts(Corpus.open(folder / "tokens", split)) for split in ("train", "valid")]
    known = unigram(*counts).mean()
    assert known < np.log(32)
    found = values(lines, "valid", "cross_entropy")[-1]
    assert found < known + 0.05, (found, known)  # measured: 3.400 and 3.452

    run(folder, "-m", "mgjax", "generate", "a slow waltz", "--model", "lm/best", "--seconds", "1", "--out", "waltz.wav")
    music, rate = audio_files.read(folder / "waltz.wav")
    assert (rate, music.shape) == (16000, (16000, 1))
    assert np.abs(music).max() > 1e-3

    model = mgjax.load(folder / "lm" / "best")
    assert model.codec.hash == mgjax.load_codec(folder / "codec" / "best").hash
    again = model.codec.decode(model.codec.encode(music, sample_rate=rate))
    assert again.shape == (1, 16000, 1)
