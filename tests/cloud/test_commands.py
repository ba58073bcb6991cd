"""Commands whose paths are all in a bucket do as those on a disk, and leave nothing in the working folder."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from proxy import Status

import mgjax
from mgjax import cli
from mgjax.cli import batch
from mgjax.data.corpus import Corpus
from mgjax.devices import sharding
from mgjax.errors import CheckpointError
from mgjax.storage import buckets, paths
from mgjax.train.task import MeshConfig


@pytest.fixture(params=["gcs", "s3"])
def bucket(request, tmp_path, monkeypatch):
    """A bucket, and a working folder in which nothing must be written."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MGJAX_BUCKET_CACHE", str(tmp_path / "cache"))
    yield request.getfixturevalue(request.param)
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def one_device(monkeypatch):
    """As in tests/train: programs for one device are compiled in half the time."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(MeshConfig, "make", lambda config: mesh)


def mgjax_command(*words):
    assert cli.main([str(word) for word in words]) == 0


def play(*words):
    assert batch.main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """A folder of music, and the corpora made of it, on a disk."""
    folder = tmp_path_factory.mktemp("music")
    mgjax_command("corpus", "synthesize", folder / "music", "--hours", 0.01, "--lengths", 3, 6)
    mgjax_command("corpus", "build", folder / "music", folder / "sound")
    mgjax_command("corpus", "tokenize", folder / "sound", folder / "codes", "--codec", "debug")
    return folder


def contents(folder):
    """The files of a corpus; what names its folder is left out."""
    prefix = f"{paths.absolute(folder)}/"
    found = {str(path).removeprefix(prefix): path.read_bytes() for path in paths.below(folder)}
    return {name: content for name, content in found.items() if name not in ("report.json", ".lock")}


def test_corpora_are_made_and_read(bucket, music, capsys):
    mgjax_command("corpus", "synthesize", f"{bucket.url}/music", "--hours", 0.01, "--lengths", 3, 6)
    assert contents(f"{bucket.url}/music") == contents(music / "music")
    for _ in range(2):  # what is there is not made again
        mgjax_command("corpus", "build", f"{bucket.url}/music", f"{bucket.url}/sound")
        writes = bucket.proxy.counts()["requests"]["write"]
    assert bucket.proxy.counts()["requests"]["write"] == writes
    mgjax_command("corpus", "tokenize", f"{bucket.url}/sound", f"{bucket.url}/codes", "--codec", "debug")
    for name in ("sound", "codes"):
        assert contents(f"{bucket.url}/{name}") == contents(music / name)
        for split in ("train", "valid"):
            remote, local = Corpus.open(f"{bucket.url}/{name}", split), Corpus.open(music / name, split)
            assert remote.hashes() == local.hashes()
            assert all(np.array_equal(remote.read(piece), local.read(piece)) for piece in range(len(local)))
    mgjax_command("corpus", "vocabulary", f"{bucket.url}/codes", "--out", f"{bucket.url}/words", "--size", 300)
    capsys.readouterr()
    mgjax_command("corpus", "inspect", f"{bucket.url}/codes")
    assert "captions" in capsys.readouterr().out


@pytest.fixture(scope="module")
def other_form(tmp_path_factory):
    """The hash of the model "debug" in the form of transformers, which does not hold all of it."""
    folder = tmp_path_factory.mktemp("form")
    mgjax.load("debug").save(folder, format="huggingface")
    return mgjax.load(folder).hash


def test_models_are_written_and_read(bucket, other_form):
    address = f"{bucket.url}/models/debug"
    mgjax_command("convert", "debug", address)
    model = mgjax.load(address)
    assert model.hash == mgjax.load("debug").hash
    bucket.proxy.reset()
    assert mgjax.load(address).hash == model.hash
    assert bucket.proxy.counts()["requests"]["read"] == 0  # of the local copy
    model.save(address, format="huggingface")  # takes its place
    names = {name.rpartition("/")[2] for name in bucket.objects()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= names
    assert mgjax.load(address).hash == other_form
    with pytest.raises(CheckpointError, match=f"{bucket.url}/none: there is no such folder"):
        mgjax.load(f"{bucket.url}/none")


@pytest.mark.parametrize("stage", ["upload", "copy"])
def test_a_model_that_could_not_be_replaced_stays(bucket, stage, monkeypatch, other_form):
    """While the new one is written, the old one is whole; a broken exchange shows none, and loses none."""
    address = f"{bucket.url}/model"
    mgjax_command("convert", "debug", address)
    before = bucket.objects()
    model = mgjax.load("debug")
    with monkeypatch.context() as patch:
        patch.setattr(buckets, stage, lambda *_: (_ for _ in ()).throw(OSError("broken off")))
        with pytest.raises(OSError, match="broken off"):
            model.save(address, format="huggingface")
    after = bucket.objects()
    if stage == "upload":
        assert after == before
        assert mgjax.load(address).hash == mgjax.load("debug").hash
    else:
        assert "model/config.json" not in after
        beside = {name.split("/")[1] for name in after if "/.new-" in name}
        (folder,) = beside
        assert mgjax.load(f"{address}/{folder}").hash == other_form


def test_music_goes_to_the_bucket(bucket, tmp_path, capsys):
    out, disk = f"{bucket.url}/out", tmp_path / "disk"
    common = ["--model", "debug", "--seconds", 0.5, "--cache", "off"]
    for folder in (out, disk):
        mgjax_command("generate", "a waltz", "a march", *common, "--out", f"{folder}/")
        mgjax_command("encode", f"{folder}/a-waltz-0.wav", f"{folder}/waltz.npz", "--model", "debug", "--cache", "off")
        mgjax_command("decode", f"{folder}/waltz.npz", f"{folder}/again.flac", "--cache", "off")
    written = {name.removeprefix("out/"): content for name, content in bucket.objects().items()}
    assert written.keys() == {path.name for path in disk.iterdir()} - {".mgjax-names"}
    sounds = [name for name in written if name.endswith((".wav", ".flac"))]
    assert len(sounds) == 3
    for name in sounds:
        assert written[name] == (disk / name).read_bytes()
    assert cli.main(["generate", "a waltz", *map(str, common), "--out", f"{out}/"]) == 2
    assert "exists already" in capsys.readouterr().err
    mgjax_command("generate", "--again", f"{out}/a-waltz-0.json", "--out", f"{bucket.url}/again/")
    assert len(bucket.objects()["again/a-waltz-0.wav"]) == len(written["a-waltz-0.wav"])


@pytest.mark.parametrize("form", ["flac", "array_record"])
def test_many_prompts_go_on_in_the_bucket(bucket, tmp_path, form):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"tune {i}", "id": f"tune-{i}"}) + "\n" for i in range(10)))
    words = ["--model", "debug", "--prompts", prompts, "--seconds", 0.5, "--batch", 8, "--format", form]
    words += ["--cache", "off", "--out"]
    play(*words, tmp_path / "disk")
    bucket.proxy.fault(Status(403), lambda request: request.kind == "write" and "000001" in request.name, times=None)
    assert batch.main([*map(str, words), f"{bucket.url}/out"]) == 2
    bucket.proxy.reset()
    play(*words, f"{bucket.url}/out")
    sounds = {name: content for name, content in contents(f"{bucket.url}/out").items() if "json" not in name}
    assert sounds == {name: content for name, content in contents(tmp_path / "disk").items() if "json" not in name}
    manifest = [json.loads(line) for line in paths.path(f"{bucket.url}/out/manifest.jsonl").read_text().splitlines()]
    assert [line["name"] for line in manifest] == [f"tune-{i}" for i in range(10)]
    bucket.proxy.reset()
    play(*words, f"{bucket.url}/out")
    assert not [r for r in bucket.proxy.log if (r.kind == "write" and "array_record" in r.path) or ".flac" in r.path]


@pytest.mark.usefixtures("one_device")
def test_fine_tuning_in_the_bucket(gcs, music, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MGJAX_BUCKET_CACHE", str(tmp_path / "cache"))
    mgjax_command("convert", "debug", f"{gcs.url}/base")
    mgjax_command("corpus", "synthesize", f"{gcs.url}/music", "--hours", 0.01, "--lengths", 3, 6)
    for path in paths.below(f"{gcs.url}/music"):
        if path.suffix == ".json":
            path.unlink()
    words = ["finetune", f"{gcs.url}/music", "--out", f"{gcs.url}/mine", "--model", f"{gcs.url}/base", "--rank", 2]
    words += ["--steps", 2, "--segment", 1, "--caption", "a tune", "--cache", "off"]
    mgjax_command(*words)
    names = {name for name in gcs.objects() if name.startswith("mine/") and "/run/" not in name}
    assert {"mine/adapter_config.json", "mine/adapter_model.safetensors", "mine/clips/1 after.wav"} <= names
    gcs.proxy.reset()
    mgjax_command(*words)  # is done already
    assert not [request for request in gcs.proxy.log if "checkpoints" in request.path and request.kind == "write"]
    adapted = mgjax.load(f"{gcs.url}/base", adapter=f"{gcs.url}/mine")
    assert adapted.hash != mgjax.load("debug").hash
    assert not list(Path.cwd().iterdir())
