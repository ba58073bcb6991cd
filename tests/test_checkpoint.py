"""mgjax's own directories, what forms are told apart, and that nothing is ever half written."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mgjax import checkpoint
from mgjax.checkpoint import Checkpoint
from mgjax.conditioner_config import T5Config
from mgjax.config import CodecConfig, Fused, LMConfig, ModelConfig, Sampling
from mgjax.interop import shapes, weights
from mgjax.interop.table import flattened, nested
from mgjax.interop.torch_file import CheckpointError

CONFIG = ModelConfig(
    LMConfig(
        dim=8,
        num_layers=1,
        num_heads=2,
        ffn_dim=12,
        num_codebooks=2,
        codebook_size=4,
        delays=(0, 3),
        conditions=(Fused("text", 6),),
    ),
    CodecConfig(sample_rate=80, num_filters=2, ratios=(2, 2), latent_dim=3, num_codebooks=2, codebook_size=4),
    T5Config(vocab_size=5, dim=6, head_dim=2, ffn_dim=7, num_layers=1, num_heads=2),
    window_seconds=12.5,
    sampling=Sampling(top_k=3),
    license="cc-by-4.0",
)


def arrays(tree):
    rng = np.random.default_rng(0)
    return nested({tuple(path.split("/")): rng.standard_normal(shape, np.float32) for path, shape in tree.items()})


@pytest.fixture
def model(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "spiece.model").write_bytes(b"pieces")
    (tokenizer / "notes.txt").write_text("not the tokenizer's")
    return Checkpoint(CONFIG, arrays(shapes.model_shapes(CONFIG)), tokenizer)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "models" / "mine"


def assert_same(a, b):
    a, b = flattened(a), flattened(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=str(path))


def test_round_trip(model, directory):
    checkpoint.write_model(directory, model)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors", "spiece.model"]
    ours = checkpoint.read_model(directory)
    assert ours.config == CONFIG
    assert ours.tokenizer == directory
    assert_same(ours.variables, model.variables)
    written = json.loads((directory / "config.json").read_text())
    assert (written["format"], written["version"], written["model"]["lm"]["delays"]) == ("mgjax", 1, [0, 3])
    assert checkpoint.read_config(directory) == CONFIG


def test_without_text_and_tokenizer(directory):
    lm = dataclasses.replace(CONFIG.lm, conditions=())
    config = dataclasses.replace(CONFIG, lm=lm, text=None)
    model = Checkpoint(config, arrays(shapes.model_shapes(config)))
    checkpoint.write_model(directory, model)
    ours = checkpoint.read_model(directory)
    assert (ours.config, ours.tokenizer) == (config, None)
    assert_same(ours.variables, model.variables)


def test_bfloat16(model, directory):
    def cast(path, array):
        return array if path[0] == "codec" else array.astype(ml_dtypes.bfloat16)

    halves = nested({path: cast(path, array) for path, array in flattened(model.variables).items()})
    checkpoint.write_model(directory, dataclasses.replace(model, variables=halves))
    assert_same(checkpoint.read_model(directory, dtype=jnp.bfloat16).variables, halves)
    wide = nested({path: array.astype(np.float32) for path, array in flattened(halves).items()})
    assert_same(checkpoint.read_model(directory).variables, wide)


def test_shards(model, directory, monkeypatch):
    write = functools.partial(weights.write, largest_shard=2000)
    monkeypatch.setattr(weights, "write", write)
    checkpoint.write_model(directory, model)
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 2
    assert_same(checkpoint.read_model(directory).variables, model.variables)


def test_codec_alone_or_inside(model, directory, tmp_path):
    checkpoint.write_codec(directory, CONFIG.codec, model.variables["codec"])
    checkpoint.write_model(tmp_path / "whole", model)
    for path in (directory, tmp_path / "whole"):
        config, variables = checkpoint.read_codec(path)
        assert config == CONFIG.codec
        assert_same(variables, model.variables["codec"])
    with pytest.raises(CheckpointError, match=r"config.json: holds no model, only \['codec'\]"):
        checkpoint.read_model(directory)


def test_variables_of_another_config_are_not_written(model, directory):
    config = dataclasses.replace(CONFIG, lm=dataclasses.replace(CONFIG.lm, ffn_dim=13))
    with pytest.raises(CheckpointError, match="different are lm/layer0/ffn/down/kernel, lm/layer0/ffn/up/kernel"):
        checkpoint.write_model(directory, dataclasses.replace(model, config=config))
    assert not directory.exists()
    assert not list(directory.parent.iterdir())


def test_another_number_of_codebooks(model, directory):
    checkpoint.write_model(directory, model)
    written = json.loads((directory / "config.json").read_text())
    written["model"]["lm"] |= {"num_codebooks": 4, "delays": [0, 1, 2, 3]}
    written["model"]["codec"]["num_codebooks"] = 4
    (directory / "config.json").write_text(json.dumps(written))
    found = r"lm/embed/embedding \(model.safetensors\): expected \(4, 5, 8\), found \(2, 5, 8\)"
    with pytest.raises(CheckpointError, match=found):
        checkpoint.read_model(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this mgjax reads version 1; update"),
        ({"format": "other"}, "not in mgjax form"),
        ({"model": {"lm": {"tempo": 3}}}, "unknown keys"),
        ({"model": {"lm": {"dim": "8"}}}, "expected int, got '8'"),
        ({"model": 3}, "expected an object"),
    ],
)
def test_other_configs_are_errors(model, directory, change, message):
    checkpoint.write_model(directory, model)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"config.json: .*{message}"):
        checkpoint.read_model(directory)


@pytest.mark.parametrize("content", ["", "{", "[]", "nul", "[" * 100_000])
def test_damaged_configs_are_errors(directory, content):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json: (is not JSON|should hold an object)"):
        checkpoint.read_model(directory)


def test_detect(tmp_path):
    def folder(name, **files):
        path = tmp_path / name
        path.mkdir()
        for file, content in files.items():
            (path / file.replace("__", ".")).write_text(content)
        return path

    theirs = '{"model_type": "musicgen"}'
    assert checkpoint.detect(folder("a", config__json='{"format": "mgjax"}')) == "mgjax"
    assert checkpoint.detect(folder("b", config__json=theirs, model__safetensors="")) == "huggingface"
    assert (
        checkpoint.detect(folder("c", config__json=theirs, pytorch_model__bin="", state_dict__bin="")) == "huggingface"
    )
    assert checkpoint.detect(folder("d", config__json=theirs, state_dict__bin="")) == "audiocraft"
    assert checkpoint.detect(folder("e", compression_state_dict__bin="")) == "audiocraft"
    assert checkpoint.detect(folder("f", config__json=theirs)) == "huggingface"
    for path in (folder("g", readme="", config__json="{}"), folder("h"), tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=r"no model here. Looked for config.json .* state_dict.bin"):
            checkpoint.detect(path)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("before", [True, False])
def test_the_old_content_survives_a_failure(model, directory, error, before):
    if before:
        checkpoint.write_model(directory, model)

    def fail():
        with checkpoint.replacing(directory) as temporary:
            (temporary / "config.json").write_text("new")
            assert temporary.parent.parent == directory.parent
            raise error("on the way")

    with pytest.raises(error):
        fail()
    assert [path.name for path in directory.parent.iterdir()] == ["mine"] * before
    if before:
        assert_same(checkpoint.read_model(directory).variables, model.variables)


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_content_survives_a_failing_rename(model, directory, monkeypatch, failing):
    checkpoint.write_model(directory, model)
    calls = []
    rename = type(directory).rename

    def failing_rename(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(directory), "rename", failing_rename)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_model(directory, model)
    assert [path.name for path in directory.parent.iterdir()] == ["mine"]
    assert_same(checkpoint.read_model(directory).variables, model.variables)


def test_replacing_leaves_nothing_of_the_old(model, directory, monkeypatch):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model-00001-of-00002.safetensors").write_text("old")
    monkeypatch.chdir(directory)
    checkpoint.write_model(".", dataclasses.replace(model, tokenizer=None))
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in directory.parent.iterdir()] == ["mine"]
    assert directory.stat().st_mode & 0o077 == directory.parent.stat().st_mode & 0o077


def test_a_model_over_itself_keeps_its_tokenizer(model, directory):
    checkpoint.write_model(directory, model)
    checkpoint.write_model(directory, checkpoint.read_model(directory))
    assert (directory / "spiece.model").read_bytes() == b"pieces"


def test_other_folders_are_not_replaced(model, tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("music", "file"):
        with pytest.raises(FileExistsError, match="is not a model, so it is not replaced"):
            checkpoint.write_model(tmp_path / name, model)
    assert (tmp_path / "music" / "song.wav").read_text() == "mine"
