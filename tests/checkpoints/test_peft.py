"""Adapters in peft's files: peft reads what is written here, and the other way round, with the same logits."""

import dataclasses
import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mgjax
from mgjax.checkpoints import peft as files
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.config.model import Fused
from mgjax.lm import lora
from mgjax.lm.lora import LoraConfig

# peft asks transformers of 5.0 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CONFIG = LoraConfig(rank=4, alpha=8.0, targets=("self_attn", "ffn/down", "head"))
CODES = np.random.default_rng(2).integers(0, DEBUG.lm.codebook_size, (1, 6, DEBUG.lm.num_codebooks))


@pytest.fixture(scope="module")
def adapter():
    rng = np.random.default_rng(0)
    params = random_variables(DEBUG, place=lambda path, array: array)["lm"]
    shapes = jax.eval_shape(lambda key: lora.initial(CONFIG, params, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, shapes)


@pytest.fixture
def folder(adapter, tmp_path):
    files.write(tmp_path / "adapter", CONFIG, adapter, DEBUG.lm, "debug")
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The folder of the debug model as transformers has it."""
    path = tmp_path_factory.mktemp("theirs") / "debug"
    mgjax.load("debug").save(path, format="huggingface")
    return path


def their_logits(model):
    """Of the first codes without delays, in order of (frame, codebook)."""
    codes = torch.from_numpy(CODES).transpose(1, 2).reshape(-1, CODES.shape[1])
    with torch.no_grad():
        return model.decoder(input_ids=codes).logits.numpy()


def change(path, **changes):
    config = json.loads((path / files.CONFIG).read_text()) | changes
    (path / files.CONFIG).write_text(json.dumps(config))


def test_what_is_written_is_read(adapter, folder):
    config, found = files.read(folder, DEBUG.lm)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, adapter)))
    assert (config.rank, config.alpha, files.base(folder)) == (4, 8.0, "debug")
    names = load_file(folder / files.WEIGHTS)
    assert "base_model.model.decoder.model.decoder.layers.0.self_attn.q_proj.lora_A.weight" in names


def test_adapters_of_models_that_transformers_does_not_have(adapter, tmp_path):
    """Their conditions have no names there; what is adapted has."""
    lm = dataclasses.replace(DEBUG.lm, conditions=(Fused("style", 16, "prefix"), *DEBUG.lm.conditions))
    files.write(tmp_path / "adapter", CONFIG, adapter, lm, "styled")
    _, found = files.read(tmp_path / "adapter", lm)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, adapter)))


def test_peft_makes_the_same_model_of_it(folder, theirs, tmp_path):
    """Beside the weights in peft, added to the weights here and written for transformers: the same logits."""
    base = transformers.MusicgenForConditionalGeneration.from_pretrained(theirs).eval()
    plain = their_logits(base)
    adapted = their_logits(peft.PeftModel.from_pretrained(base, folder))
    mgjax.load("debug", adapter=folder).save(tmp_path / "merged", format="huggingface")
    merged = their_logits(transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "merged").eval())
    assert np.abs(adapted - merged).max() < 1e-5 * np.abs(merged).max()
    assert np.abs(adapted - plain).max() > 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("use_rslora", [False, True])  # with it the product is scaled by alpha / sqrt(rank)
def test_adapters_of_peft_are_read(theirs, tmp_path, use_rslora):
    """As peft trains them by default, of queries and values alone."""
    base = transformers.MusicgenForConditionalGeneration.from_pretrained(theirs).eval()
    made = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False, use_rslora=use_rslora
        ),
    ).eval()
    made.save_pretrained(tmp_path / "adapter")
    mgjax.load("debug", adapter=tmp_path / "adapter").save(tmp_path / "merged", format="huggingface")
    merged = their_logits(transformers.MusicgenForConditionalGeneration.from_pretrained(tmp_path / "merged").eval())
    assert np.abs(their_logits(made) - merged).max() < 1e-5 * np.abs(merged).max()
    _, found = files.read(tmp_path / "adapter", DEBUG.lm)
    assert not found["layer0"]["self_attn"]["qkv"]["up"][1].any()  # of keys


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora is True; only False is supported"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"r": 5}, r"lm_heads.0 has matrices of \(4, 32\) and \(64, 4\), expected \(5, 32\)"),
        ({"r": None}, "r and lora_alpha must be"),
        ({"lora_alpha": "much"}, "r and lora_alpha must be"),
        ({"lora_alpha": -1}, "alpha must be above 0"),
    ],
)
def test_adapters_that_are_not_supported_are_reported(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        files.read(folder, DEBUG.lm)


def test_what_would_be_left_out_is_reported(folder):
    tensors = load_file(folder / files.WEIGHTS)
    extra = {"base_model.model.text_encoder.block.0.q.lora_A.weight": np.zeros((4, 8), np.float32)}
    save_file(tensors | extra, folder / files.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"adapts what the model does not have.*text_encoder"):
        files.read(folder, DEBUG.lm)


def test_an_adapter_alone_is_no_model(folder):
    with pytest.raises(CheckpointError, match=r"is an adapter, not a model.*mgjax.load\('debug', adapter="):
        mgjax.load(folder)
