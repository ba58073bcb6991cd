"""Training of adapters of low rank: they alone learn, and what is saved of them makes the model that was validated."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import mgjax
from mgjax.checkpoints import peft
from mgjax.conditioning.tokenizers import load as load_tokenizer
from mgjax.config.serialization import ConfigError
from mgjax.data.pipeline import DataConfig
from mgjax.data.prompts import TextConfig
from mgjax.lm.lora import LoraConfig
from mgjax.train import lm
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig

RUN = lm.LMRun(
    lm=None,
    init="debug",
    lora=LoraConfig(rank=4, alpha=8.0, targets=("attn", "ffn")),
    data=DataConfig(batch_size=8, segment_seconds=0.5, num_threads=0, prefetch=1),
    text=TextConfig(max_tokens=16),
    optim=OptimConfig(learning_rate=0.02, schedule="constant", warmup_steps=0, average_decay=0.5, average_every=1),
    loop=LoopConfig(steps=12, log_every=4, eval_every=0, show_every=0, save_every=6),
    prompts=(),
)


def lines(folder, split):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in found if line["split"] == split]


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.usefixtures("one_device")
def test_only_the_adapter_learns_and_it_loads(corpus, tmp_path, scan):
    config = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, corpora=(str(corpus),)), scan_layers=scan)
    state = lm.run(config, tmp_path)
    assert set(state.params) == {"lora"}
    assert lines(tmp_path, "train")[-1]["loss"] < lines(tmp_path, "train")[0]["loss"]
    assert peft.base(tmp_path / "model") == "debug"
    base, adapted = mgjax.load("debug"), mgjax.load("debug", adapter=tmp_path / "model")
    weights = [model._checkpoint().variables for model in (base, adapted)]
    same = jax.tree.map(np.array_equal, *weights)
    assert same["lm"]["layer0"]["ffn"]["up"]["kernel"] is False
    assert all(jax.tree.leaves([same["text"], same["lm"]["embed"], same["lm"]["head"], same["lm"]["out_norm"]]))

    # What is loaded predicts as what was validated.
    start = lm.pretrained(config)
    task = lm.task(config, start, "tokens")
    codes = np.random.default_rng(0).integers(0, 64, (2, 10, 4)).astype(np.int32)
    texts = ["a scale", None]
    told = dict(
        zip(("text_ids", "text_mask"), load_tokenizer(start.config, start.tokenizer).encode(texts), strict=True)
    )
    batch = {"codes": codes, "num_frames": np.array([10, 10], np.int32)} | told
    validated = jax.device_get(jax.jit(task.eval_step)(state, task.frozen, batch))["cross_entropy"].value()
    logits = np.asarray(adapted.logits(codes, texts), np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    lost = -np.take_along_axis(chances, codes[..., None], axis=3)[..., 0]
    found = np.mean([lost[:, : 10 - k, k].mean() for k in range(4)])
    assert abs(found - validated) < 1e-5


def test_the_base_is_kept_in_the_type_of_the_activations():
    config = dataclasses.replace(RUN, dtype="bfloat16")
    task = lm.task(config, lm.pretrained(config), "tokens")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(task.frozen["lm"])} == {"bfloat16"}
    assert task.pretrained is None
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_text": True}, "of the language model alone"),
        ({"optim": OptimConfig(name="muon")}, "take adamw"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(RUN, **changes)


def test_models_that_an_adapter_cannot_hold_are_refused():
    for changes, message in [
        ({"init": None}, "set init"),
        ({"channels": 2}, "cannot make a model of 2 channels of debug"),
    ]:
        with pytest.raises(ConfigError, match=message):
            lm.resolve(dataclasses.replace(RUN, **changes))


def test_an_update_beside_an_adapter_takes_two_thirds():
    """No gradients of the weights that stay are computed."""
    rows = {"codes": np.zeros((8, 25, 4), np.int32), "num_frames": np.full(8, 25, np.int32)}
    batch = rows | {"text_ids": np.zeros((8, 16), np.int32), "text_mask": np.ones((8, 16), bool)}
    whole = dataclasses.replace(RUN, lora=None)
    needed, full = (lm.task(config, lm.pretrained(config), "tokens").flops(batch) for config in (RUN, whole))
    assert 0.65 < needed / full < 0.8  # more than 2/3: the narrow matrices, and texts, which are read either way
