"""Music for many prompts: none is lost, none is made twice, and each is what it would be alone."""

import hashlib
import json
import os

import jax
import numpy as np
import pytest
from filelock import FileLock
from jax.experimental import multihost_utils

import mgjax
from mgjax.audio import files as audio_files
from mgjax.audio import loudness
from mgjax.cli import batch as command
from mgjax.data.corpus import Corpus
from mgjax.data.description import describe_audio
from mgjax.generation import batch

SIZE = 4
JOBS = [batch.Job(f"p{i}", "long" if i % 3 else "short", i, {"prompt": f"number {i}"}) for i in range(22)]
SOUNDS = batch.Sounds(".wav", 8000)


class Player:
    """Plays numbers, and notes which; what `trouble` holds for a number is raised."""

    def __init__(self, **trouble):
        self.trouble, self.asked = trouble, []

    def __call__(self, numbers):
        assert len(numbers) == SIZE, "batches are always full"
        self.asked.append(sorted(set(numbers)))
        for number in numbers:
            if f"p{number}" in self.trouble:
                raise self.trouble[f"p{number}"]
        waves = [np.sin(np.arange(800 + number) * (number + 1) / 50)[:, None] for number in numbers]
        return [
            batch.Piece(np.full((3, 2), n, np.int32), wave.astype("f4")) for n, wave in zip(numbers, waves, strict=True)
        ]


def make(folder, player, form=SOUNDS, jobs=JOBS, **settings):
    return batch.generate(jobs, player, form, folder, SIZE, {"model": "toy"} | settings, {}, lambda *_: None)


def content(folder):
    """What is in the files of a folder that is to be of use."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, player = tmp_path_factory.mktemp("whole"), Player()
    assert make(folder, player) == 0
    return folder, player


def test_every_piece_is_made_once_in_full_batches_of_its_kind(whole):
    folder, player = whole
    assert sorted(number for numbers in player.asked for number in numbers) == list(range(22))
    assert [len(numbers) for numbers in player.asked] == [4, 4, 4, 4, 4, 2]
    assert all(len({JOBS[number].kind for number in numbers}) == 1 for numbers in player.asked)
    assert {path.name for path in folder.glob("*.wav")} == {f"p{i}.wav" for i in range(22)}
    lines = manifest(folder)
    assert [line["name"] for line in lines] == [job.name for job in JOBS], "in the order of the prompts"
    assert lines[5]["recipe"] == {"prompt": "number 5"}
    assert lines[5]["codes_sha256"] == hashlib.sha256(np.full((3, 2), 5, "<i4").tobytes()).hexdigest()
    assert len(audio_files.read(folder / lines[5]["file"])[0]) == 805


def test_what_was_interrupted_ends_as_if_it_had_not_been(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Player(p10=KeyboardInterrupt()))
    assert not (tmp_path / "manifest.jsonl").exists()
    there = {path.stem for path in tmp_path.glob("*.wav")}
    (tmp_path / "parts" / "000001.jsonl").unlink()  # killed between the sounds and what is said of them
    (tmp_path / "p2.wav").unlink()  # somebody lost it: its batch is made again
    (tmp_path / ".p2.wav.12345678.tmp").touch()
    player = Player()
    assert make(tmp_path, player) == 0
    again = {f"p{number}" for numbers in player.asked for number in numbers}
    assert there - again, "what was there and whole was left alone"
    (tmp_path / ".p2.wav.12345678.tmp").unlink()
    assert content(tmp_path) == content(whole[0])
    player = Player()
    assert make(tmp_path, player) == 0
    assert player.asked == []


def test_hosts_share_what_is_missing(whole, tmp_path, monkeypatch):
    """As the first of three sees it: the others may begin when it has made some already."""
    seen, players = [], [Player() for _ in range(3)]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(batch.distributed, "check_shared", lambda folder: None)
    monkeypatch.setattr(batch.distributed, "wait_until", lambda there: there())
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda number: np.array([number] * 3))
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda mine: (seen.append(mine), seen[0])[1])
    for process, player in enumerate(players):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        if process == 0:
            with pytest.raises(FileNotFoundError):  # it is the only one here that is done
                make(tmp_path, player)
        else:
            make(tmp_path, player)
    assert [len(player.asked) for player in players] == [2, 2, 2]
    asked = sorted(number for player in players for numbers in player.asked for number in numbers)
    assert asked == list(range(22))
    monkeypatch.undo()
    assert make(tmp_path, Player()) == 0
    assert content(tmp_path) == content(whole[0])


def test_a_piece_that_fails_does_not_lose_the_others(whole, tmp_path, caplog):
    player = Player(p5=ValueError("no tune in it"), p7=OSError("gone"))
    assert make(tmp_path, player) == 2
    assert "p5 cannot be made: no tune in it" in caplog.text
    lines = {line["name"]: line for line in manifest(tmp_path)}
    assert {name for name, line in lines.items() if "error" in line} == {"p5", "p7"}
    assert lines["p5"]["error"] == "ValueError: no tune in it"
    assert len(list(tmp_path.glob("*.wav"))) == 20
    assert make(tmp_path, Player()) == 0, "they are tried again"
    assert content(tmp_path) == content(whole[0])


def test_a_machine_that_fails_ends_it(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"):
        make(tmp_path, Player(p5=jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")))


def test_a_folder_is_of_one_run(tmp_path):
    make(tmp_path, Player())
    with pytest.raises(ValueError, match=r"model is 'toy' there and 'other' here\. Give another folder"):
        make(tmp_path, Player(), model="other")
    with pytest.raises(ValueError, match="the prompts, or the settings of some, were others then"):
        make(tmp_path, Player(), jobs=JOBS[:-1])
    with FileLock(tmp_path / ".lock"), pytest.raises(FileExistsError, match="another run is at work in it"):
        make(tmp_path, Player())


def test_a_folder_says_what_is_made_there(tmp_path):
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match=r"run\.json: does not say what is made"):
        make(tmp_path, Player())
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: is not JSON"):
        make(tmp_path, Player())


def test_texts_with_ends_of_lines_of_unicode(tmp_path):
    jobs = [batch.Job("a", "long", 1, {"prompt": "one\u2028two\x85three"})]
    for _ in range(2):
        assert make(tmp_path, Player(), jobs=jobs) == 0


def test_records_are_a_corpus(tmp_path):
    form = batch.Records(describe_audio(8000, 1))
    assert make(tmp_path, Player(**{f"p{i}": ValueError("no") for i in (0, 20, 21)}), form) == 3
    assert len(Corpus.open(tmp_path)) == 19
    assert make(tmp_path, Player(), form) == 0
    corpus = Corpus.open(tmp_path)
    assert len(corpus) == 22
    for line in manifest(tmp_path):
        shard = corpus.shards()[int(line["file"][-14:-9])]
        piece = shard[line["piece"]]
        assert (corpus.name(piece), len(corpus.read(piece))) == (line["name"], line["num_samples"])
        assert corpus.metadata(piece).description == line["recipe"]["prompt"]


PROMPTS = [{"text": f"{'very ' * i}slow waltz", "seconds": 0.4, "id": f"w{i}", "seed": 100 + i} for i in range(9)]


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_pieces_over_eight_devices_are_those_made_alone(tmp_path):
    """With the debug model, by the command: 9 prompts, in a batch of 8 and one that is filled up."""
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    options = ["--model", "debug", "--batch", "8", "--temperature", "0.9", "--cache", "off"]
    assert command.main(["--prompts", str(prompts), "--out", str(tmp_path / "music"), *options]) == 0
    model, sampling = mgjax.load("debug"), mgjax.Sampling(temperature=0.9)
    lines = manifest(tmp_path / "music")
    assert len(lines) == 9
    for i in (0, 3, 8):
        asked = {"seconds": 0.4, "seed": 100 + i, "sampling": sampling}
        codes = model.generate_codes(PROMPTS[i]["text"], **asked)[0]
        assert hashlib.sha256(np.ascontiguousarray(codes, "<i4").tobytes()).hexdigest() == lines[i]["codes_sha256"]
        alone = loudness.normalized(model.generate(PROMPTS[i]["text"], **asked)[0], 32_000)
        sound, _ = audio_files.read(tmp_path / "music" / f"w{i}.wav")
        np.testing.assert_allclose(sound, alone, atol=2 / 2**15)  # measured: 1 in 16 bits
        assert lines[i]["recipe"]["seed"] == 100 + i
        assert lines[i]["recipe"]["sampling"]["temperature"] == 0.9


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": "a"}, "", {"text": "b", "length": 3}], "line 3: unknown keys ['length']"),
        ([{"text": "a"}, "{"], "line 2: is not JSON"),
        ([{"text": "a", "melody": "nowhere.wav"}], f"line 1: {os.path.abspath('nowhere.wav')}: No such file"),
        ([{"text": "a", "id": "x"}, {"text": "b", "id": "x"}], "line 2: has the id 'x', as"),
        ([{"text": "a", "id": "../x"}], "line 1: name must be a file name"),
        ([{"text": "a", "seconds": 2, "then": [[3, "b"]]}], "line 1: the prompt 'b' begins at 3 s"),
        ([{"text": "a"}, {"text": "b", "seconds": 1e-3}], "line 2: seconds must be at least 0.02"),
        ([{"text": "a"}, {"text": "b", "seed": -1}], "line 2: a seed must be 0 or above"),
        ([{"text": "a", "labels": {"genre": "waltz"}}], "line 1: "),
        ([{"text": "a"}, {"text": "a", "id": "漢" * 84}], "line 2: name must be a file name"),
        ([{"text": "a"}, {"text": "a", "seconds": 86_401}], "line 2: seconds must be above 0 and at most 86400"),
        ([{"text": "a"}, {"text": "a", "then": [[0.5, "b"], [0.501, "c"]]}], "line 2: the times of texts must rise"),
        ([{"text": "a"}, {"text": "a", "style": "/dev/full"}], "line 2: /dev/full: is a device"),
    ],
)
def test_a_bad_line_is_told_before_anything_is_played(tmp_path, monkeypatch, capsys, lines, message):
    monkeypatch.setattr(batch, "generate", pytest.fail)
    prompts = write(tmp_path / "p.jsonl", lines)
    out = tmp_path / "music"
    assert command.main(["--model", "debug", "--prompts", str(prompts), "--out", str(out), "--cache", "off"]) == 2
    said = capsys.readouterr().err
    assert f"error: {prompts}, {message}" in said.replace("\n", " "), said


def test_a_melody_for_a_model_that_follows_none_is_told(tmp_path, capsys):
    audio_files.write(tmp_path / "tune.wav", np.zeros((100, 1), np.float32), 8000)
    prompts = write(tmp_path / "p.jsonl", [{"text": "a", "melody": str(tmp_path / "tune.wav")}])
    assert command.main(["--model", "debug", "--prompts", str(prompts), "--out", str(tmp_path), "--cache", "off"]) == 2
    assert "line 1: there is a melody, and debug was not trained with any" in capsys.readouterr().err


def test_a_batch_is_spread_over_the_devices(tmp_path, capsys):
    prompts = write(tmp_path / "p.txt", ["a slow waltz"])
    options = ["--batch", str(len(jax.devices()) + 1), "--cache", "off", "--out", str(tmp_path)]
    assert command.main(["--model", "debug", "--prompts", str(prompts), *options]) == 2
    assert "--batch 9 cannot be spread over 8 devices" in capsys.readouterr().err
