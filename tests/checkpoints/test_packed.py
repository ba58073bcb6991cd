"""Weights in fewer bytes: how much fewer, how close, and what stays exact."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import mgjax
from mgjax.api import MusicGen
from mgjax.checkpoints import hub, random_weights
from mgjax.checkpoints.files import packed as compact
from mgjax.checkpoints.files.torch_file import CheckpointError, Tensor
from mgjax.checkpoints.native import Checkpoint
from mgjax.cli import main


@pytest.fixture(scope="module")
def model():
    variables = jax.tree.map(np.asarray, random_weights.random_variables(random_weights.DEBUG))
    books = variables["codec"]["codebooks"]
    books["cluster_size"] = books["cluster_size"] * 3
    books["embed_avg"] = books["embed"] * 3
    return MusicGen(Checkpoint(random_weights.DEBUG, variables))


def weights(model):
    return flatten_dict(model._checkpoint().variables)


# The largest error, as a share of the largest number of an array. What rounding to 8 bits can do is 0.0039; to steps of
# 1/127 it is half a step, and a little more because the scale is rounded too.
@pytest.mark.parametrize(("form", "bytes_each", "error"), [("bfloat16", 2.0, 0.004), ("int8", 1.1, 0.006)])
def test_small_on_disk_and_close_in_memory(model, tmp_path, form, bytes_each, error):
    model.save(tmp_path / "model", compact=form)
    found = mgjax.load(tmp_path / "model")
    mine, theirs = weights(model), weights(found)
    assert mine.keys() == theirs.keys()
    learned, kept = 0, 0
    for path, array in mine.items():
        assert theirs[path].dtype == np.float32
        array, other = np.asarray(array), np.asarray(theirs[path])
        if "codebooks" in path:
            assert np.array_equal(array, other), path
            kept += 4 * array.size * (path[-1] != "embed_avg")
        else:
            assert np.abs(array - other).max() <= error * np.abs(array).max(), path
            learned += array.size
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    header = 30_000
    assert size < kept + bytes_each * learned + header
    assert found.config == dataclasses.replace(model.config, codec=model.codec.folded_config)
    assert mgjax.load_codec(tmp_path / "model").hash == found.codec.hash


def test_int8_keeps_what_stands_out():
    """One large number spoils the precision of those beside it, and no others; zeros stay zeros; odd ends are kept."""
    array = np.random.default_rng(0).standard_normal((7, 30)).astype(np.float32)
    array[0, 0], array[3] = 1000.0, 0.0
    packed = compact.pack({"a/kernel": Tensor(array.shape, array.dtype, "", lambda: array)}, "int8")
    found = compact.unpack(packed)["a/kernel"].read()
    assert np.array_equal(found[3], array[3])
    assert np.abs(found - array).ravel()[64:].max() < 0.02
    assert np.abs(found - array).max() < 5


def test_scales_that_are_missing_are_reported():
    array = np.ones((8, 16), np.float32)
    packed = compact.pack({"lm/kernel": Tensor(array.shape, array.dtype, "file", lambda: array)}, "int8")
    scale = packed["lm/kernel:scale"]
    packed["lm/kernel:scale"] = Tensor((1,), scale.dtype, "file", lambda: scale.read()[:1])
    with pytest.raises(CheckpointError, match=r"file: lm/kernel needs scales of the shape \(2,\), found \(1,\)"):
        compact.unpack(packed)


def test_only_mgjax_has_these_forms(model, tmp_path):
    with pytest.raises(ValueError, match="compact must be one of bfloat16, int8"):
        model.save(tmp_path / "model", compact="int4")
    with pytest.raises(ValueError, match="in mgjax's format only"):
        model.save(tmp_path / "model", "huggingface", compact="int8")
    assert not list(tmp_path.iterdir())


def test_a_bundled_model(model, tmp_path, monkeypatch, capsys):
    """It is found by its name alone, which is no folder's and no repository's; and it names its licence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_PRETRAINED", tmp_path / "pretrained")
    (tmp_path / "mini").mkdir()
    with pytest.raises(CheckpointError, match=r"mini: its weights are not in this copy of mgjax.*debug"):
        mgjax.load("mini")
    model.save(tmp_path / "own")
    asked = ["convert", str(tmp_path / "own"), "pretrained/mini", "--compact", "bfloat16", "--license", "MIT"]
    assert main([*asked, "--cache", "off"]) == 0
    assert mgjax.load("mini").config.license == "MIT"
    assert mgjax.load_codec("mini").sample_rate == model.sample_rate
    assert main(["info", "mini", "--cache", "off"]) == 0
    assert "MIT" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no model here"):
        mgjax.load("./mini")
