"""`mgjax finetune`: from a folder of sound files to an adapter that changes what a model plays."""

import json

import numpy as np
import pytest

from mgjax import cli
from mgjax.data import audio
from mgjax.finetune import Finetuning, spoken, write_captions
from mgjax.interop import peft
from mgjax.strict_json import ConfigError


@pytest.fixture
def music(tmp_path):
    """Four pieces of two notes each."""
    folder = tmp_path / "music"
    folder.mkdir()
    for i in range(4):
        tone = np.sin(2 * np.pi * 220 * (1 + i) * np.arange(48_000) / 32_000)
        audio.write(folder / f"0{i} - slow_tone-{'abcd'[i]}.wav", 0.3 * tone.astype(np.float32), 32_000)
    return folder


@pytest.mark.usefixtures("one_device")
def test_a_folder_of_music_becomes_an_adapter(music, tmp_path, capfd):
    out = tmp_path / "mine"
    command = ["finetune", str(music), "--out", str(out), "--model", "debug", "--captions", "names", "--rank", "2"]
    command += ["--steps", "4", "--segment", "1", "--learning-rate", "0.05", "--cache", "off"]
    assert cli.main(command) == 0
    told = capfd.readouterr().err
    assert f"--model debug --adapter {out}" in told
    captions = [json.loads(line)["description"] for line in (out / "run" / "music.jsonl").read_text().splitlines()]
    assert captions == ["slow tone a", "slow tone b", "slow tone c", "slow tone d"]
    clips = {clip.name: audio.read(clip)[0] for clip in (out / "clips").iterdir()}
    assert sorted(clips) == ["1 after.wav", "1 before.wav", "2 after.wav", "2 before.wav"]
    assert not np.array_equal(clips["1 before.wav"], clips["1 after.wav"])
    assert peft.base(out) == "debug"

    # Once it is done, the same command does nothing again; another one is another run.
    assert cli.main(command) == 0
    assert "step 4 of 4" not in capfd.readouterr().err
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "loop.seed is 0 there and 1 here" in capfd.readouterr().err


def test_where_captions_come_from(music, tmp_path):
    manifest = tmp_path / "music.jsonl"
    pieces = Finetuning(str(music), "debug")
    with pytest.raises(ConfigError, match=r"4 of 4 pieces have no caption, 00 - slow_tone-a\.wav among them"):
        write_captions(pieces, manifest)
    for i, piece in enumerate(sorted(music.glob("*.wav"))):
        known = {"description": f"tone {i}"} if i else {"genre": "drone", "moods": ["calm", "dark"], "bpm": 60}
        piece.with_suffix(".json").write_text(json.dumps(known))
    assert write_captions(pieces, manifest) == [
        "bpm: 60.0. genre: drone. moods: calm, dark",
        "tone 1",
        "tone 2",
        "tone 3",
    ]
    assert json.loads(manifest.read_text().splitlines()[0])["genre"] == "drone"
    assert write_captions(Finetuning(str(music), "debug", caption="a tone"), manifest) == ["a tone"]
    for piece in sorted(music.glob("*.wav"))[1:]:
        piece.unlink()
    with pytest.raises(ConfigError, match="two pieces or more"):
        write_captions(pieces, manifest)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("03 - Slow_waltz-on-accordion", "Slow waltz on accordion"),
        ("80s synth pop", "80s synth pop"),
        ("1984", "1984"),
        ("Jazz (take 2)", "Jazz take 2"),
        ("__", ""),
    ],
)
def test_names_as_captions(name, caption):
    assert spoken(name) == caption
