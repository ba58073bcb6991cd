"""Plans of toys over eight fake devices: what is compiled is what runs, and what is said of it can be counted."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import pytest

from mgjax import cli
from mgjax.checkpoints import sources
from mgjax.checkpoints.random_weights import DEBUG
from mgjax.checkpoints.tables.shapes import lm_shapes, model_shapes
from mgjax.codec import weight_norm
from mgjax.config import published
from mgjax.config.conditioning import StyleConfig
from mgjax.config.model import Fused
from mgjax.config.serialization import ConfigError
from mgjax.data.pipeline import DataConfig
from mgjax.devices import chips, sharding
from mgjax.lm.lora import LoraConfig
from mgjax.lm.stack import REMAT
from mgjax.plan import roofline, topology, training
from mgjax.train import lm
from mgjax.train.codec import CodecRun
from mgjax.train.lm import LMRun, resolver
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig, MeshConfig

CHIP = chips.find("h100")
RUN = LMRun(
    lm=dataclasses.replace(DEBUG.lm, num_heads=4),
    codec="debug",
    text_encoder="debug",
    data=DataConfig(batch_size=16, segment_seconds=1.0),
    optim=OptimConfig(name="adamw"),
    loop=LoopConfig(),
    mesh=MeshConfig(data=2, fsdp=2, model=2),
    remat="dots",
)


@pytest.fixture(scope="module")
def plan():
    return training.of_run(RUN, jax.devices(), CHIP)


def test_memory_of_a_device_is_what_lies_there(plan):
    """The state, the text encoder and the rows of each device, to the byte."""
    start = lm.pretrained_shapes(RUN)
    task = lm.task(RUN, start, "tokens")
    mesh = sharding.make_mesh(2, 2, 2)
    held = {"state": jax.eval_shape(task.init, jax.random.key(0)), **task.frozen}
    parts = jax.tree.map(
        lambda leaf, where: leaf.dtype.itemsize * math.prod(where.shard_shape(leaf.shape)),
        held,
        sharding.shardings(held, mesh),
    )
    rows = sum(leaf.dtype.itemsize * leaf.size // 4 for leaf in training.batch_shapes(RUN, start.config).values())
    assert plan.memory.arguments == sum(jax.tree.leaves(parts)) + rows
    assert plan.memory.temporaries > 0
    assert plan.free == pytest.approx(1 - plan.memory.total / CHIP.memory)


def test_what_is_sent_are_the_weights_twice_and_their_gradients(plan):
    """With remat "dots": of the layers gathered forward and backward along fsdp, to the byte, of the rest once; and of
    the gradients no device gets the whole."""
    mesh = sharding.make_mesh(2, 2, 2)
    gathered = 0
    for path, shape in model_shapes(lm.pretrained_shapes(RUN).config).items():
        split = sharding.spec(path, shape, mesh)
        if "fsdp" in split and path.startswith(("lm", "text")):
            times = 2 if path.startswith("lm/layer") else 1
            gathered += times * 4 * math.prod(shape) / (2 if "model" in split else 1)
    sent = {(one.kind, one.axes): one.bytes for one in plan.traffic}
    assert sent["all-gather", ("fsdp",)] == gathered / 2  # a device has the other half
    assert not plan.remarks


def test_operations_are_those_of_the_task(plan):
    start = lm.pretrained_shapes(RUN)
    needed = lm.task(RUN, start, "tokens").flops(training.batch_shapes(RUN, start.config))
    assert plan.needed == needed / 8
    assert needed < 8 * plan.computed < 1.3 * needed  # the scores of attention are computed again
    parts = dataclasses.replace(RUN.optim, accumulate=2)
    for other in (dataclasses.replace(RUN, optim=parts), *(dataclasses.replace(RUN, remat=how) for how in REMAT)):
        assert lm.task(other, start, "tokens").flops(training.batch_shapes(other, start.config)) == needed


def test_the_longest_time_is_the_step(plan):
    assert plan.seconds["computing"] == plan.computed / CHIP.flops
    assert plan.seconds["memory"] == plan.moved / CHIP.bandwidth
    assert plan.step == max(plan.seconds.values()) == plan.seconds[plan.limit]
    assert plan.utilization == plan.needed / CHIP.flops / plan.step
    slow = dataclasses.replace(plan, chip=dataclasses.replace(CHIP, flops=1.0))
    assert (slow.limit, slow.utilization) == ("computing", plan.needed / plan.computed)


def test_generation_reads_weights_and_cache_once(tmp_path):
    """By the command, in a process of its own: the tests' checks of types know no shapes in the place of arrays."""
    command = ["plan", "--decode", "--model", "debug", "--batch", "4", "--seconds", "4", "--dtype", "float32"]
    where = ["--topology", "h100:8", "--mesh", "data=4,model=2", "--json", str(tmp_path / "plan.json")]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-m", "mgjax", *command, *where], env=environment, check=True)
    found = json.loads((tmp_path / "plan.json").read_text())
    config = DEBUG.lm
    weights = 4 * sum(math.prod(shape) for shape in lm_shapes(config).values())
    cache = 4 * 2 * config.num_layers * 8 * 256 * config.dim / 8  # 8 rows with guidance, 204 steps, 8 devices
    assert weights / 2 + cache < found["memory"]["arguments"] < 1.5 * (weights / 2 + cache)
    others = sum(math.prod(shape) for path, shape in model_shapes(DEBUG).items() if not path.startswith("lm/"))
    assert 4 * others / 2 <= found["memory"]["beside"] <= 4 * others
    assert found["moved"] > cache
    assert found["needed"] < 8 * 2 * 1.5 * weights / 4


def configs():
    spec = importlib.util.spec_from_file_location("lm_configs", "configs/lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["small", "medium", "large", "melody", "style", "stereo"])
def test_every_published_run_begins_from_shapes(name):
    """And its step can be traced: nothing is read, nothing fetched."""
    from mgjax.train.overrides import from_config_dict

    run = from_config_dict(LMRun, configs().get_config(name))
    if run.lm is not None:  # all layers are alike
        run = dataclasses.replace(run, lm=dataclasses.replace(run.lm, num_layers=2))
    start = lm.pretrained_shapes(run)
    kind, batch = resolver.corpus_kind(start.config), training.batch_shapes(run, start.config)
    task = lm.task(run, start, kind)
    given = () if task.pretrained is None else (task.pretrained,)
    state = jax.eval_shape(task.init, jax.random.key(0), *given)
    after, metrics = jax.eval_shape(task.train_step, state, task.frozen, batch)
    assert jax.tree.map(jax.numpy.shape, after) == jax.tree.map(jax.numpy.shape, state)
    assert {leaf.shape for leaf in metrics.values()} == {()}
    assert kind == ("audio" if name == "style" else "tokens")
    assert start.config.lm.num_codebooks == (8 if name == "stereo" else 4)


def test_what_would_have_to_be_fetched_is_refused():
    with pytest.raises(ConfigError, match="a plan fetches nothing, and this is neither a folder here nor one of"):
        lm.pretrained_shapes(dataclasses.replace(RUN, codec="somebody/codec"))
    fused = (Fused("style", 512, "prefix"), Fused("text", 16, "prefix"))
    own = dataclasses.replace(DEBUG.lm, conditions=fused)
    start = lm.pretrained_shapes(
        dataclasses.replace(RUN, lm=own, style=StyleConfig(seconds=0.5), style_encoder=published.MERT)
    )
    assert not start.config.style.features.normalize


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": None}, "give lm and codec"),
        ({"codebook_weights": (1.0, 0.5)}, "must be 4 numbers, one for each codebook, got 2"),
        ({"lm": dataclasses.replace(DEBUG.lm, conditions=())}, "reads the conditions {}, the model's encoders give"),
        ({"style_encoder": published.MERT}, "style_encoder encodes the excerpts of a style with features"),
        (
            {"lm": None, "init": "facebook/musicgen-small", "codec": None, "channels": 2, "lora": LoraConfig()},
            "leave lora out",
        ),
        (
            {"lm": None, "init": published.MERT, "codec": None},
            "neither a folder here nor one of facebook/musicgen-large",
        ),
    ],
)
def test_what_training_refuses_a_plan_refuses_too(changes, message):
    with pytest.raises(ConfigError, match=message):
        lm.pretrained_shapes(dataclasses.replace(RUN, **changes))


def test_an_adapter_of_a_published_model_is_planned_from_shapes():
    run = LMRun(lm=None, init="facebook/musicgen-small", lora=LoraConfig(), dtype="bfloat16", prompts=())
    task = lm.task(run, lm.pretrained_shapes(run), "tokens")
    assert task.pretrained is None
    assert set(task.frozen) == {"lm", "text"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(task.frozen["lm"])} == {"bfloat16"}
    assert set(jax.eval_shape(task.init, jax.random.key(0)).params) == {"lora"}


def test_rows_that_cannot_be_spread_are_told():
    run = dataclasses.replace(RUN, data=DataConfig(batch_size=6, segment_seconds=1.0))
    with pytest.raises(ConfigError, match=r"make data.batch_size a multiple of 4"):
        training.of_run(run, jax.devices(), CHIP)


def test_what_does_not_fit_is_told_with_what_to_change(plan):
    class Lowered(jax.stages.Lowered):
        def __init__(self):
            pass

        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.19G of 15.75G hbm. Exceeded"
            )

    with pytest.raises(roofline.DoesNotFitError, match=r"needs 17.19G of memory on each device, which has 15.75G"):
        roofline.of(Lowered(), sharding.make_mesh(8), CHIP, needed=1.0, computed=1.0)
    changes = " ".join(training.advice(RUN, None))
    assert all(word in changes for word in ("remat=full", "optim.accumulate=2", "mesh.fsdp=4"))
    tight = dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, temporaries=0.95 * CHIP.memory))
    assert "remat=full" in " ".join(training.advice(RUN, tight))
    idle = dataclasses.replace(plan, moved=1e12)
    assert "batch_size" in " ".join(training.advice(RUN, idle))


def test_a_program_that_cannot_be_read_is_told():
    """As a compiler of another version makes them."""

    class Compiled(jax.stages.Compiled):
        def __init__(self):
            pass

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update has 3 operands")

    class Lowered(jax.stages.Lowered):
        def __init__(self):
            pass

        def compile(self):
            return Compiled()

    with pytest.raises(ValueError, match=r"pip install 'jax\[tpu\]==\d.*async-update has 3 operands"):
        roofline.of(Lowered(), sharding.make_mesh(8), CHIP, needed=1.0, computed=1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a pod", "names no devices"),
        ("h100:64", "has 8 devices of the CPU to stand for 64"),
        ("abacus:8", "memory and speed of abacus are not known here"),
        ("TPU:8", "memory and speed of TPU are not known"),
    ],
)
def test_devices_that_are_not_known(name, message):
    with pytest.raises(ConfigError, match=message):
        topology.find(name)


def test_how_to_install_the_compiler_of_tpus(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"libtpu.*pip install 'mgjax\[tpu\]'"):
        topology.find("v5e:16x16")


@pytest.mark.filterwarnings("ignore:the load_module")  # as ml_collections reads a config
def test_at_the_terminal(tmp_path, capfd):
    """On the mesh and with the settings that are asked for; the numbers as JSON too."""
    command = ["plan", "--config", "configs/lm.py:debug", "--topology", "h100:8", "--mesh", "data=4,model=2"]
    settings = ["--set", "data.batch_size=6", "data.segment_seconds=1.0"]
    assert cli.main([*command, *settings, "--json", str(tmp_path / "plan.json")]) == 0
    told = capfd.readouterr().out
    assert "one update of configs/lm.py:debug, 8 x 1 s, on h100:8: 8 x H100" in told  # 4 do not divide 6
    assert "set data.batch_size=8, of which this is the plan: a batch of 6 cannot be spread over this mesh" in told
    assert "data 4 x fsdp 1 x model 2" in told
    assert "utilization" in told
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert kept["step"] == max(kept["seconds"].values())
    assert cli.main([*command, "--set", "data.batch_siez=8"]) == 2
    assert "no setting data.batch_siez; the nearest names are data.batch_size" in capfd.readouterr().err
    assert cli.main(["plan", "--config", "configs/lm.py:huge", "--topology", "h100:8"]) == 2
    told = capfd.readouterr().err
    assert "the preset lm has small" in told
    assert "Traceback" not in told
    assert cli.main(["plan", "--config", "configs/none.py:large", "--topology", "h100:8"]) == 2
    assert "No such file or directory: 'configs/none.py'" in capfd.readouterr().err
    assert cli.main(["plan", "--topology", "h100:8"]) == 2
    assert "give --config FILE:NAME for a training run, or --decode --model" in capfd.readouterr().err
    assert cli.main([*command[:-1], "data=4;model=2"]) == 2


@pytest.mark.filterwarnings("ignore:the load_module")
def test_the_step_of_a_codec_and_its_price(capfd, tmp_path):
    """Generator and discriminators, from shapes alone, and what the run costs."""
    command = ["plan", "--config", "codec:debug", "--topology", "h100:8", "--json", str(tmp_path / "plan.json")]
    settings = ["--set", "data.batch_size=8", "data.segment_seconds=0.25", "loop.steps=36000"]
    assert cli.main([*command, *settings, "--share", "0.25", "--price", "2"]) == 0
    told = capfd.readouterr().out
    assert "one update of codec:debug, 8 x 0.25 s, on h100:8: 8 x H100" in told
    step = json.loads((tmp_path / "plan.json").read_text())["step"]  # of 36000, in hours ten times as many
    assert f"36000 updates take {10 * step:.3g} h, {80 * step:.4g} chip hours, at the least time" in told
    assert f"{40 * step:.3g} h, {320 * step:.4g} chip hours, at 25% of its speed" in told
    assert f"which cost {160 * step:.4g} to {640 * step:.4g}" in told
    with pytest.raises(SystemExit):
        cli._parser().parse_args([*command, "--share", "0"])


def test_shapes_of_a_codec_that_is_gone_on_with():
    """Those of new weights, as training unfolds them."""
    run = CodecRun(model=None, init="debug", keep_codes=True)
    new = training._without_init(run)
    assert (new.init, new.keep_codes) == (None, False)
    weights, _ = weight_norm.unfold(*sources.read_codec("debug"))
    assert new.codec == weights
    assert training.clip_shapes(new)["audio"].shape == (64, new.codec.sample_rate, new.codec.channels)
