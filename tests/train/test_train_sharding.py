"""Training over many devices: what lies where, and that it makes no difference to what is learned."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_task
from jax.sharding import PartitionSpec as P

from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.codec.discriminator import DiscriminatorConfig
from mgjax.config.model import Fused, LMConfig, ModelConfig
from mgjax.devices import sharding
from mgjax.train import codec, lm
from mgjax.train.loop import LoopConfig, fit
from mgjax.train.optim import OptimConfig
from mgjax.train.programs import Programs
from mgjax.train.state import TrainState

MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "model": (1, 1, 8)}

# What the table makes of the training of musicgen-small on a mesh of 2 x 2 x 2. Every array of the parameters has its
# like, with the same sharding, in the two moments of Adam and in the average.
WEIGHTS = {
    "lm/embed/embedding": P(None, None, "fsdp"),
    "lm/head/kernel": P("fsdp", None, "model"),
    "lm/layers/cross_attn/kv/kernel": P(None, "fsdp", None, "model", None),
    "lm/layers/cross_attn/out/kernel": P(None, "model", None, "fsdp"),
    "lm/layers/cross_attn/query/kernel": P(None, "fsdp", "model", None),
    "lm/layers/cross_norm/bias": P(None, None),
    "lm/layers/cross_norm/scale": P(None, None),
    "lm/layers/ffn/down/kernel": P(None, "model", "fsdp"),
    "lm/layers/ffn/up/kernel": P(None, "fsdp", "model"),
    "lm/layers/ffn_norm/bias": P(None, None),
    "lm/layers/ffn_norm/scale": P(None, None),
    "lm/layers/self_attn/out/kernel": P(None, "model", None, "fsdp"),
    "lm/layers/self_attn/qkv/kernel": P(None, "fsdp", None, "model", None),
    "lm/layers/self_norm/bias": P(None, None),
    "lm/layers/self_norm/scale": P(None, None),
    "lm/out_norm/bias": P(None),
    "lm/out_norm/scale": P(None),
    "lm/text_proj/bias": P(None),
    "lm/text_proj/kernel": P(None, "fsdp"),
}
COUNTS = ("step", "optimizer/1/0/count", "optimizer/1/2/count", "average/count")
GOLDEN = {path: P() for path in COUNTS} | {
    f"{part}/{path}": spec
    for part in ("params", "optimizer/1/0/mu", "optimizer/1/0/nu", "average/weights")
    for path, spec in WEIGHTS.items()
}


def by_path(tree):
    return {sharding.path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shapes(task):
    return jax.eval_shape(task.init, jax.random.key(0))


def small(name="adamw"):
    start = Checkpoint(ModelConfig(), {})
    rate = 1.0 if name == "prodigy" else 1e-4
    optim = OptimConfig(name=name, learning_rate=rate, average_decay=0.99)
    return lm.task(lm.LMRun(codec="any", optim=optim), start, "tokens")


def test_the_state_of_a_language_model_is_split_as_written_down():
    placed = by_path(sharding.shardings(shapes(small()), sharding.make_mesh(2, 2, 2)))
    assert {path: where.spec for path, where in placed.items()} == GOLDEN


@pytest.mark.parametrize("name", ["adamw", "prodigy", "codec"])
def test_nothing_large_stays_whole_under_fsdp(name):
    if name == "codec":
        families = DiscriminatorConfig(families=("stft", "scale", "period"))
        task = codec.task(codec.CodecRun(discriminator=families))
    else:
        task = small(name)
    state = by_path(shapes(task))
    placed = by_path(sharding.shardings(shapes(task), sharding.make_mesh(1, 8, 1)))
    whole = {path: 4 * state[path].size for path, where in placed.items() if where.is_fully_replicated}
    assert max(whole.values()) <= 2**20, max(whole, key=whole.get)
    split = {path for path, where in placed.items() if not where.is_fully_replicated}
    assert sum(state[path].size for path in split) > 0.99 * sum(leaf.size for leaf in state.values())


def curve(task, batches, mesh, state):
    """The loss of each update from `state` on, and the state after them."""
    programs = Programs(task, LoopConfig(), mesh)
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, programs.state_shapes))
    assert programs.compile(programs.place(batches[0])).temporaries > 0
    losses = []
    for batch in batches:
        state, metrics = programs.train_step(state, programs.frozen, programs.place(batch))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


def one_device():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def toy():
    data = toy_task.Batches(seed=0)
    return toy_task.task(), [next(data) for _ in range(8)]


@pytest.fixture(scope="module")
def alone():
    """The toy's state before the first update, and its curve, on one device."""
    begun = jax.device_get(Programs(toy_task.task(), LoopConfig(), one_device()).init())
    return begun, curve(*toy(), one_device(), begun)[0]


@pytest.mark.parametrize("name", MESHES)
def test_many_devices_learn_what_one_learns(alone, name):
    begun, expected = alone
    losses, state = curve(*toy(), sharding.make_mesh(*MESHES[name]), begun)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)  # measured 1.2e-6, 2.0e-6, 4.2e-6
    assert losses[-1] < 0.8 * losses[0]
    up = state.optimizer[0].mu["lm"]["layers"]["ffn"]["up"]["kernel"]
    assert up.addressable_shards[0].data.size * MESHES[name][1] * MESHES[name][2] == up.size


def test_many_devices_learn_a_language_model_as_one_does():
    """The real one, tiny, with text, lengths and an average, and the optimiser that tells matrices apart."""
    lm_config = LMConfig(
        dim=32, num_layers=2, num_heads=8, ffn_dim=64, codebook_size=64, conditions=(Fused("text", 16),)
    )
    model = dataclasses.replace(DEBUG, lm=lm_config, text=dataclasses.replace(DEBUG.text, num_layers=1))
    optim = OptimConfig(
        name="muon", learning_rate=0.02, adam_learning_rate=3e-3, schedule="constant", warmup_steps=0, average_decay=0.9
    )
    start = Checkpoint(model, {"text": random_variables(model)["text"]})
    task = lm.task(lm.LMRun(lm=lm_config, codec="any", optim=optim), start, "tokens")
    rng = np.random.default_rng(0)
    batches = [
        {
            "codes": rng.integers(0, 8, (16, 12, 4)).astype(np.int32),
            "num_frames": rng.integers(5, 13, 16).astype(np.int32),
            "text_ids": rng.integers(3, 250, (16, 6)).astype(np.int32),
            "text_mask": np.repeat(rng.random((16, 1)) > 0.3, 6, axis=1),
        }
        for _ in range(6)
    ]
    state = drawn(shapes(task))
    alone, _ = curve(task, batches, one_device(), state)
    losses, state = curve(task, batches, sharding.make_mesh(2, 2, 2), state)
    # Measured: 2e-7; by hand also 4e-7 over data, 5e-7 over fsdp and 2e-7 over model, 8 devices each.
    np.testing.assert_allclose(losses, alone, rtol=1e-4)
    assert losses[-1] < 0.96 * losses[0]
    assert state.average.weights["lm"]["layers"]["ffn"]["up"]["kernel"].sharding.spec == P(None, "fsdp", "model")
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 2]
    assert all(leaf.sharding.spec == P(None, "fsdp", "model") for leaf in moments if leaf.shape == (2, 32, 64))
    assert len(moments) > 10


def drawn(state):
    """A state of the given shapes, without compiling the initialisation, which takes longer than all the rest."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), state.params)
    nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    return nothing.replace(params=params, average=nothing.average.replace(weights=params))


def test_a_run_goes_on_over_other_devices(tmp_path):
    config = LoopConfig(steps=8, log_every=1, eval_every=0, save_every=4)
    fit(toy_task.task(), toy_task.Batches(0), toy_task.valid, config, tmp_path / "eight")
    shutil.copytree(tmp_path / "eight", tmp_path / "four")
    shutil.rmtree(tmp_path / "four" / "checkpoints" / "8")
    four = sharding.make_mesh(1, 4, 1, devices=jax.devices()[:4])
    state = fit(toy_task.task(), toy_task.Batches(0), toy_task.valid, config, tmp_path / "four", mesh=four)
    assert state.params["lm"]["head"]["kernel"].sharding.num_devices == 4
    eight, four = (
        [json.loads(line)["values"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("eight", "four")
    )
    assert len(eight) == len(four) == 9
    for one, other in zip(eight, four, strict=True):
        assert one == pytest.approx(other, rel=1e-5)  # measured 1.4e-7
    assert eight[4:] != four[4:]  # they were not copied


def test_a_state_is_made_where_it_belongs():
    def init(key):
        weights = {"lm": {"ffn": {"up": {"kernel": jax.random.normal(key, (16, 16))}}}}
        return TrainState(jnp.int32(0), weights, (), weights, {})

    programs = Programs(
        dataclasses.replace(toy_task.task(), init=init), LoopConfig(), sharding.make_mesh(data=2, fsdp=4)
    )
    state = programs.init()
    for leaf in (state.params, state.average):
        kernel = leaf["lm"]["ffn"]["up"]["kernel"]
        assert kernel.sharding.spec == P("fsdp", "model")
        assert kernel.addressable_shards[0].data.shape == (4, 16)
