"""`mgjax finetune`: from a folder of sound files to an adapter that changes what a model plays."""

import contextlib
import json
import logging
import shutil

import numpy as np
import pytest

from mgjax import cli
from mgjax.audio import files as audio_files
from mgjax.checkpoints import peft, sources
from mgjax.config.serialization import ConfigError
from mgjax.data import build, processes
from mgjax.inputs import claims
from mgjax.train import finetune
from mgjax.train.finetune import Finetuning, spoken, write_captions
from mgjax.train.loop import MAY_CHANGE
from mgjax.train.settings import check_run, write_run


@pytest.fixture
def music(tmp_path):
    """Four pieces of two notes each."""
    folder = tmp_path / "music"
    folder.mkdir()
    for i in range(4):
        tone = np.sin(2 * np.pi * 220 * (1 + i) * np.arange(48_000) / 32_000)
        audio_files.write(folder / f"0{i} - slow_tone-{'abcd'[i]}.wav", 0.3 * tone.astype(np.float32), 32_000)
    return folder


@pytest.mark.parametrize("place", [".", "mine", "mine/more"])
def test_what_it_makes_does_not_become_a_part_of_the_music(music, place):
    with pytest.raises(ConfigError, match="lies in the music that is learned from"):
        finetune.finetune(Finetuning(str(music), "debug", caption="a tone"), music / place, contextlib.nullcontext)
    assert len(list(music.iterdir())) == 4


@pytest.mark.usefixtures("one_device")
def test_a_folder_of_music_becomes_an_adapter(music, tmp_path, capfd):
    out = tmp_path / "mine"
    command = ["finetune", str(music), "--out", str(out), "--model", "debug", "--captions", "names", "--rank", "2"]
    command += ["--steps", "4", "--segment", "1", "--learning-rate", "0.05", "--cache", "off"]
    assert cli.main(command) == 0
    output = capfd.readouterr().err
    assert f"--model debug --adapter {out}" in output
    captions = [json.loads(line)["description"] for line in (out / "run" / "music.jsonl").read_text().splitlines()]
    assert captions == ["slow tone a", "slow tone b", "slow tone c", "slow tone d"]
    clips = {clip.name: audio_files.read(clip)[0] for clip in (out / "clips").iterdir()}
    assert sorted(clips) == ["1 after.wav", "1 before.wav", "2 after.wav", "2 before.wav"]
    assert not np.array_equal(clips["1 before.wav"], clips["1 after.wav"])
    assert peft.base(out) == "debug"

    # Once it is done, the same command does nothing again; another one is another run.
    assert cli.main(command) == 0
    assert "step 4 of 4" not in capfd.readouterr().err
    (out / "notes.txt").write_text("mine")
    assert cli.main([*command, "--steps", "500", "--seed", "1", "--rank", "3"]) == 2
    output = capfd.readouterr().err
    assert "--seed is 0 there and 1 here" in output
    assert "--rank is 2 there and 3 here" in output
    assert "steps" not in output  # a run may be made longer
    assert sorted(path.name for path in out.iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors", "clips", "notes.txt", "provenance.json", "run"),
    ]


def test_where_captions_come_from(music, tmp_path):
    manifest = tmp_path / "music.jsonl"
    pieces = Finetuning(str(music), "debug")
    with pytest.raises(ConfigError, match=r"4 of 4 pieces have no caption, .*/music/00 - slow_tone-a\.wav among them"):
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


def test_metadata_that_cannot_be_read(music, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(processes, "run", lambda make, jobs, options: [make(job) for job in jobs])
    manifest = tmp_path / "music.jsonl"
    pieces = sorted(music.glob("*.wav"))
    for piece in pieces:
        piece.with_suffix(".json").write_text('{"Caption": "a tone", "weight": 3}')
    pieces[2].with_suffix(".json").write_bytes(b'{"description": "caf\xe9"}')
    with caplog.at_level(logging.WARNING, "mgjax"):
        assert write_captions(Finetuning(str(music), "debug", caption="a note"), manifest) == ["a note"]
    [output] = caplog.messages
    assert f"the key 'weight' is not used (3x, first in {pieces[0]})" in output
    assert f"is not text in UTF-8 (invalid continuation byte at byte 20) (1x, first in {pieces[2]})" in output
    report = build.build(manifest, tmp_path / "a", sample_rate=4000)
    assert (sum(report.pieces.values()), report.skipped) == (4, ())
    # Where the caption would have to come from there, the piece is one of those that cannot be used.
    assert write_captions(Finetuning(str(music), "debug"), manifest) == ["a tone"]
    report = build.build(manifest, tmp_path / "b", sample_rate=4000, max_bad=0.3)
    assert report.skipped == ((str(pieces[2]), report.skipped[0][1]),)
    assert "is not text in UTF-8" in report.skipped[0][1]


def test_pieces_that_are_too_short_are_reported_at_once(music, tmp_path):
    tuning = Finetuning(str(music), "debug", caption="a tone", segment_seconds=2.0)
    with pytest.raises(ConfigError, match=r"segments of 2 s: the longest has 1\.5 s\. Set --segment lower"):
        write_captions(tuning, tmp_path / "music.jsonl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--seed", "-1"], "seed must be 0 or above and below 2**32, got -1"),
        (["--seed", str(2**32)], "seed must be 0 or above and below 2**32"),
        (["--segment", "3600"], "no piece is long enough for segments of 3600 s"),
        (["--caption", "caf\udce9"], "caption: is not text in UTF-8"),
    ],
)
def test_what_is_wrong_is_known_before_the_work_begins(music, tmp_path, monkeypatch, capsys, wrong, message):
    monkeypatch.setattr(build, "build", None)
    command = ["finetune", str(music), "--out", str(tmp_path / "mine"), "--model", "debug", "--cache", "off"]
    given = [] if "--caption" in wrong else ["--captions", "names"]
    assert cli.main([*command, *given, *wrong]) == 2
    assert message in capsys.readouterr().err


def test_settings_go_by_the_names_of_options():
    said = (
        "loop.steps is 3, lora.rank, data.segment_seconds 2; segment_seconds, optim.learning_rate; batch_size, segments"
    )
    with pytest.raises(ConfigError) as error, finetune._own_words():
        raise ConfigError(said)
    expected = "--steps is 3, --rank, --segment 2; --segment, --learning-rate; --batch-size, segments"
    assert str(error.value) == expected


def test_the_warm_up_is_that_which_a_run_started_with(tmp_path):
    assert [finetune._warmup(steps, None) for steps in (4, 100, 500, 5000)] == [0, 20, 50, 50]
    base, earlier = sources.read_config("debug"), tmp_path / "config.json"

    def run(steps, warmup):
        return finetune.run_of(Finetuning("music", "debug", steps=steps), base, "corpus", ["a tone"], warmup)

    write_run(earlier, run(100, finetune._warmup(100, None)))
    assert finetune._warmup(5000, earlier) == 20
    check_run(earlier, run(5000, 20), MAY_CHANGE)
    with pytest.raises(ConfigError, match="warmup_steps is 20 there and 50 here"):
        check_run(earlier, run(5000, 50), MAY_CHANGE)
    with pytest.raises(ConfigError, match="--steps must be above 20, the warm-up"):
        finetune._warmup(20, earlier)
    earlier.write_text("[]")
    with pytest.raises(ConfigError, match="does not hold the settings of a run"):
        finetune._warmup(20, earlier)


def _tune(music, directory, **options):
    """Stops where the music would be read."""

    class Read(Exception):
        pass

    @contextlib.contextmanager
    def stage(name):
        raise Read
        yield

    replace = options.pop("replace", False)
    with contextlib.suppress(Read):
        finetune.finetune(
            Finetuning(str(music), "debug", captions="names", **options), directory, stage, replace=replace
        )


@pytest.fixture
def unread(monkeypatch):
    """Neither the model's weights nor its tokenizer are read."""
    monkeypatch.setattr(finetune.lm, "pretrained", lambda config: None)
    monkeypatch.setattr(finetune, "batch_conditions", lambda config, start: None)


@pytest.mark.usefixtures("unread")
def test_what_others_wrote_is_not_touched(music, tmp_path):
    for number, name in enumerate(("run/thesis.txt", "run/sound/a.wav", "clips/1 before.wav", "adapter_config.json")):
        for replace in (False, True):
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
            with pytest.raises(FileExistsError, match=r"(give|choose) another folder"):
                _tune(music, tmp_path / str(number), segment_seconds=1.0, replace=replace)
            assert [one for one in (tmp_path / str(number)).rglob("*") if one.is_file()] == [path]
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("of an editor")  # an adapter has no file of this name
    _tune(music, out, segment_seconds=1.0)
    with pytest.raises(FileExistsError, match=r"config\.json: is there already"):
        _tune(music, out, segment_seconds=1.0, full=True)
    (out / "run/notes.txt").write_text("mine")
    (out / "run/checkpoints/4").mkdir(parents=True)
    for _ in range(2):
        _tune(music, out, segment_seconds=1.0, replace=True)
        left = {path.relative_to(out).as_posix() for path in out.rglob("*")}
        assert left == {"config.json", "run", "run/music.jsonl", "run/notes.txt", "run/sound"}
    shutil.rmtree(out / "run")
    with claims.claimed(out), pytest.raises(FileExistsError, match="another run is at work in it"):
        _tune(music, out, segment_seconds=1.0)


@pytest.mark.usefixtures("unread")
def test_how_much_may_be_bad(music, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build", lambda *_, **options: seen.append(options["max_bad"]) or 1 / 0)
    seen = []
    command = ["finetune", str(music), "--out", str(tmp_path / "mine"), "--model", "debug", "--captions", "names"]
    with pytest.raises(ZeroDivisionError):
        cli.main([*command, "--segment", "1", "--max-bad", "0.3", "--cache", "off"])
    assert seen == [0.3]


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
