"""mgjax's own directories, what forms are told apart, and that nothing is ever half written."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mgjax.checkpoints import native, sources
from mgjax.checkpoints.files import safetensors as weights
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.tables import matching, shapes
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig, Sampling

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
    return unflatten_dict({path: rng.standard_normal(shape, np.float32) for path, shape in tree.items()}, sep="/")


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
    a, b = flatten_dict(a), flatten_dict(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(a[path], b[path], err_msg=str(path))


def test_round_trip(model, directory):
    native.write_model(directory, model)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors", "spiece.model"]
    ours = native.read_model(directory)
    assert ours.config == CONFIG
    assert ours.tokenizer == directory
    assert_same(ours.variables, model.variables)
    written = json.loads((directory / "config.json").read_text())
    assert (written["format"], written["version"], written["model"]["lm"]["delays"]) == ("mgjax", 1, [0, 3])
    assert native.read_config(directory) == CONFIG


def test_without_text_and_tokenizer(directory):
    lm = dataclasses.replace(CONFIG.lm, conditions=())
    config = dataclasses.replace(CONFIG, lm=lm, text=None)
    model = Checkpoint(config, arrays(shapes.model_shapes(config)))
    native.write_model(directory, model)
    ours = native.read_model(directory)
    assert (ours.config, ours.tokenizer) == (config, None)
    assert_same(ours.variables, model.variables)


def test_bfloat16(model, directory):
    def cast(path, array):
        return array if path[0] == "codec" else array.astype(ml_dtypes.bfloat16)

    halves = unflatten_dict({path: cast(path, array) for path, array in flatten_dict(model.variables).items()})
    native.write_model(directory, dataclasses.replace(model, variables=halves))
    assert_same(native.read_model(directory, dtype=jnp.bfloat16).variables, halves)
    wide = unflatten_dict({path: array.astype(np.float32) for path, array in flatten_dict(halves).items()})
    assert_same(native.read_model(directory).variables, wide)


def test_shards(model, directory, monkeypatch):
    monkeypatch.setattr(weights, "LARGEST_SHARD", 2000)
    native.write_model(directory, model)
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 2
    assert_same(native.read_model(directory).variables, model.variables)


def test_codec_alone_or_inside(model, directory, tmp_path):
    native.write_codec(directory, CONFIG.codec, model.variables["codec"])
    native.write_model(tmp_path / "whole", model)
    for path in (directory, tmp_path / "whole"):
        config, variables = matching.read(native.match_codec(path))
        assert config == CONFIG.codec
        assert_same(variables, model.variables["codec"])
    with pytest.raises(CheckpointError, match=r"config.json: holds no model, only \['codec'\]"):
        native.read_model(directory)


def test_variables_of_another_config_are_not_written(model, directory):
    config = dataclasses.replace(CONFIG, lm=dataclasses.replace(CONFIG.lm, ffn_dim=13))
    with pytest.raises(CheckpointError, match="different are lm/layer0/ffn/down/kernel, lm/layer0/ffn/up/kernel"):
        native.write_model(directory, dataclasses.replace(model, config=config))
    assert not directory.exists()
    assert not list(directory.parent.iterdir())


def test_another_number_of_codebooks(model, directory):
    native.write_model(directory, model)
    written = json.loads((directory / "config.json").read_text())
    written["model"]["lm"] |= {"num_codebooks": 4, "delays": [0, 1, 2, 3]}
    written["model"]["codec"]["num_codebooks"] = 4
    (directory / "config.json").write_text(json.dumps(written))
    found = r"lm/embed/embedding \(model.safetensors\): expected \(4, 5, 8\), found \(2, 5, 8\)"
    with pytest.raises(CheckpointError, match=found):
        native.read_model(directory)


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
    native.write_model(directory, model)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"config.json: .*{message}"):
        native.read_model(directory)


@pytest.mark.parametrize("content", ["", "{", "[]", "nul", "[" * 100_000, '{"version": 1' + "0" * 400 + "}"])
def test_damaged_configs_are_errors(directory, content):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json: (is not JSON|is nested|should hold an object)"):
        native.read_model(directory)


def test_a_config_with_a_byte_order_mark(model, directory):
    native.write_model(directory, model)
    path = directory / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert native.read_model(directory).config == CONFIG


def test_detect(tmp_path):
    def folder(name, **files):
        path = tmp_path / name
        path.mkdir()
        for file, content in files.items():
            (path / file.replace("__", ".")).write_text(content)
        return path

    theirs = '{"model_type": "musicgen"}'
    assert native.detect(folder("a", config__json='{"format": "mgjax"}')) == "mgjax"
    assert native.detect(folder("b", config__json=theirs, model__safetensors="")) == "huggingface"
    assert native.detect(folder("c", config__json=theirs, pytorch_model__bin="", state_dict__bin="")) == "huggingface"
    assert native.detect(folder("d", config__json=theirs, state_dict__bin="")) == "audiocraft"
    assert native.detect(folder("e", compression_state_dict__bin="")) == "audiocraft"
    assert native.detect(folder("f", config__json=theirs)) == "huggingface"
    for path in (folder("g", readme="", config__json="{}"), folder("h"), tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=r"no model here. Looked for config.json .* state_dict.bin"):
            native.detect(path)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("before", [True, False])
def test_the_old_content_survives_a_failure(model, directory, error, before):
    if before:
        native.write_model(directory, model)

    def fail():
        with native.replacing(directory) as temporary:
            (temporary / "config.json").write_text("new")
            assert directory.parent in temporary.parents  # on the same disk
            raise error("on the way")

    with pytest.raises(error):
        fail()
    assert [path.name for path in directory.parent.iterdir()] == ["mine"] * before
    if before:
        assert len(list(directory.iterdir())) == 3
        assert_same(native.read_model(directory).variables, model.variables)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("failing", range(1, 7))  # three files go, three come
def test_the_old_content_survives_a_failing_rename(model, directory, monkeypatch, failing, late):
    native.write_model(directory, model)
    (directory / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    calls = []
    rename = type(directory).rename

    def failing_rename(self, target):
        calls.append(target)
        if len(calls) != failing or late:
            rename(self, target)
        if len(calls) == failing:
            raise KeyboardInterrupt

    monkeypatch.setattr(type(directory), "rename", failing_rename)
    doubled = unflatten_dict({path: 2 * array for path, array in flatten_dict(model.variables).items()})
    with pytest.raises(KeyboardInterrupt):
        native.write_model(directory, dataclasses.replace(model, variables=doubled))
    assert [path.name for path in directory.parent.iterdir()] == ["mine"]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_what_cannot_be_put_back_is_kept(model, directory, monkeypatch):
    native.write_model(directory, model)
    weights = (directory / "model.safetensors").read_bytes()
    rename = type(directory).rename

    def failing_rename(self, target):
        if not self.name == "config.json" or "old" in self.parts:
            raise KeyboardInterrupt  # pressed again and again
        return rename(self, target)

    monkeypatch.setattr(type(directory), "rename", failing_rename)
    with pytest.raises(KeyboardInterrupt):
        native.write_model(directory, model)
    assert (directory / "model.safetensors").read_bytes() == weights
    (config,) = directory.glob(".mine-*/old/config.json")
    assert json.loads(config.read_text())["format"] == "mgjax"


def test_replacing_leaves_nothing_of_the_old_model_and_all_else(model, directory, monkeypatch):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"format": "mgjax"}')
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "provenance.json"):
        (directory / name).write_text("old")
    (directory / "clap").mkdir()
    (directory / "clap" / "vocab.json").write_text("old")
    (directory / "src").mkdir()
    for name in ("thesis.txt", ".hidden", "src/main.py", "pytorch_model.bin", "model.txt"):
        (directory / name).write_text("mine")
    (directory / "link").symlink_to("thesis.txt")
    identity = directory.stat().st_ino
    monkeypatch.chdir(directory)
    native.write_model(".", dataclasses.replace(model, tokenizer=None))
    names = [".hidden", "config.json", "link", "model.safetensors", "model.txt", "pytorch_model.bin", "src"]
    assert sorted(path.name for path in directory.iterdir()) == [*names, "thesis.txt"]
    for name in ("thesis.txt", ".hidden", "src/main.py", "link"):
        assert (directory / name).read_text() == "mine"
    assert [path.name for path in directory.parent.iterdir()] == ["mine"]
    assert directory.stat().st_ino == identity  # whoever works in the folder still does
    assert_same(native.read_model(directory).variables, model.variables)


def test_a_new_folder_has_the_usual_permissions(model, directory):
    native.write_model(directory, model)
    assert directory.stat().st_mode & 0o077 == directory.parent.stat().st_mode & 0o077


def test_through_a_link_the_target_is_written(model, directory, tmp_path):
    target = tmp_path / "elsewhere"
    directory.parent.mkdir()
    directory.symlink_to(target)
    for _ in range(2):  # what is not there yet, and what is
        native.write_model(directory, model)
        assert directory.is_symlink()
        assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors", "spiece.model"]


def test_hidden_files_are_no_content(model, directory):
    (directory / ".git").mkdir(parents=True)
    (directory / ".git" / "HEAD").write_text("mine")
    native.write_model(directory, model)
    assert (directory / ".git" / "HEAD").read_text() == "mine"
    assert native.read_config(directory) == CONFIG


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{}"),
        ("config.json", "// settings of an editor"),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", None),
        ("adapter_config.json", '{"peft_type": "LORA", "target_modules": ["model.layers.0.q_proj"]}'),
        ("compression_state_dict.bin", None),
    ],
)
def test_what_others_wrote_is_not_replaced(model, directory, name, content, monkeypatch):
    native.write_model(directory, model)
    (directory / name).unlink(missing_ok=True)
    (directory / name).mkdir() if content is None else (directory / name).write_text(content)
    monkeypatch.setattr(weights, "write", None)  # it is told before anything is written
    with pytest.raises(FileExistsError, match=f"{directory / name} is not of a model that mgjax writes"):
        native.write_model(directory, model)
    assert (directory / name).is_dir() if content is None else (directory / name).read_text() == content
    assert (directory / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"model_type": "musicgen_melody"}'),
        ("adapter_config.json", '{"target_modules": ["decoder.model.decoder.layers.0.fc1"]}'),
        ("compression_state_dict.bin", "codec"),
    ],
)
def test_a_model_of_another_form_is_replaced(model, directory, name, content):
    directory.mkdir(parents=True)
    (directory / name).write_text(content)
    (directory / "state_dict.bin").write_text("old")
    native.write_model(directory, dataclasses.replace(model, tokenizer=None))
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_of_another_with_a_name_of_ours_stays(model, directory):
    native.write_model(directory, dataclasses.replace(model, tokenizer=None))
    (directory / "spiece.model").mkdir()
    (directory / "spiece.model" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"spiece\.model"):
        native.write_model(directory, model)
    assert (directory / "spiece.model" / "notes.txt").read_text() == "mine"
    assert_same(native.read_model(directory).variables, model.variables)


def test_a_model_over_itself_keeps_its_tokenizer(model, directory):
    native.write_model(directory, model)
    native.write_model(directory, native.read_model(directory))
    assert (directory / "spiece.model").read_bytes() == b"pieces"


def test_other_folders_are_not_replaced(model, tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("music", "file"):
        with pytest.raises(FileExistsError, match="is not a model, so it is not replaced"):
            native.write_model(tmp_path / name, model)
    assert (tmp_path / "music" / "song.wav").read_text() == "mine"


@pytest.mark.parametrize("name", ["text_encoder", "style_encoder"])
def test_encoders_that_would_be_ignored_are_told(name):
    with pytest.raises(ValueError, match=f"^debug .* leave {name} out"):
        sources.read("debug", **{name: "nonsense"})
