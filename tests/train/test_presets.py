"""Every run of configs/ can be made, and settings that do not exist or do not fit are errors."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgjax.config.serialization import ConfigError, from_dict
from mgjax.train.codec import CodecRun
from mgjax.train.lm import LMRun
from mgjax.train.loop import MAY_CHANGE
from mgjax.train.overrides import from_config_dict, read, to_config_dict
from mgjax.train.presets import codec as CODEC
from mgjax.train.presets import lm as LM
from mgjax.train.settings import check_run, write_run
from mgjax.train.task import LoopConfig, MeshConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("module", "run", "name"),
    [(CODEC, CodecRun, name) for name in CODEC.VARIANTS] + [(LM, LMRun, name) for name in LM.VARIANTS],
)
def test_every_variant_is_a_run(module, run, name):
    made = from_config_dict(run, module.get_config(name))
    assert from_config_dict(run, to_config_dict(made)) == made
    doc = module.VARIANTS[name].__doc__
    assert doc, "say what it needs and gives, or that it has not been run"


def test_an_unknown_variant_is_reported():
    with pytest.raises(ValueError, match="has 32khz, 24khz"):
        CODEC.get_config("huge")
    with pytest.raises(ValueError, match="has small, medium"):
        LM.get_config("huge")


def test_sizes_are_those_of_the_published_models():
    sizes = {name: from_config_dict(LMRun, LM.get_config(name)).lm for name in ("small", "medium", "large")}
    assert {name: (lm.dim, lm.num_layers, lm.num_heads, lm.ffn_dim) for name, lm in sizes.items()} == {
        "small": (1024, 24, 16, 4096),
        "medium": (1536, 48, 24, 6144),
        "large": (2048, 48, 32, 8192),
    }
    assert all((lm.num_codebooks, lm.codebook_size, lm.delays) == (4, 2048, (0, 1, 2, 3)) for lm in sizes.values())


def test_unknown_keys_are_errors():
    config = CODEC.get_config("debug")
    with pytest.raises(AttributeError, match="learning_rat"):
        config.optim.learning_rat = 1.0
    with config.unlocked():
        config.optim.learning_rat = 1.0
    with pytest.raises(ConfigError, match=r"config\.optim: unknown keys \['learning_rat'\]"):
        from_config_dict(CodecRun, config)


def test_a_wrong_value_names_its_path():
    config = LM.get_config("debug")
    with config.ignore_type():
        config.data.batch_size = "many"
    with pytest.raises(ConfigError, match=r"config\.data\.batch_size: expected int, got 'many'"):
        from_config_dict(LMRun, config)


def test_what_is_none_can_be_set():
    config = LM.get_config("debug")
    assert config.init is None
    config.init = "some/model"
    config.window_seconds = 10.0
    config.lm = None
    made = from_config_dict(LMRun, config)
    assert (made.init, made.window_seconds, made.lm) == ("some/model", 10.0, None)
    with pytest.raises(TypeError):
        config.init = 3


def test_tuples_and_nested_dataclasses_come_back():
    run = LMRun(prompts=("one",), data=dataclasses.replace(LMRun().data, corpora=("a", "b")))
    assert from_config_dict(LMRun, to_config_dict(run)) == run


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_settings_come_from_the_command_line():
    settings = ["--config.optim.learning-rate=0.5", "--config.data.corpora=('a',)", "-config.loop.steps=7"]
    run = read(LMRun, f"{CONFIGS / 'lm.py'}:debug", settings)
    assert (run.optim.learning_rate, run.data.corpora, run.loop.steps) == (0.5, ("a",), 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.optim.lerning_rate=1"], "no setting optim.lerning_rate; the nearest names are optim.learning_rate"),
        (["--config.optm.learning_rate=1"], "no setting optm.learning_rate; the nearest names are optim.learning_rate"),
        (["--config.seed=1"], "no setting seed; the nearest names are loop.seed"),
        (["--config.lora.rank=1"], "no setting lora.rank; the nearest names are lora"),
        (["--config.optim.learning_rate.x=1"], "no setting optim.learning_rate.x"),
        (["--config.zzzzzz=1"], "no setting zzzzzz"),
        (["--config.optim.learning_rate=abc"], "learning_rate=abc: could not convert string to float"),
        (["--config.data.batch_size=1.5"], "batch_size=1.5: invalid literal for int"),
        (["--config.data=3"], "Failed to parse '3' as a ConfigDict"),
        (["--config.loop.steps"], "Missing value for flag --config.loop.steps"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_settings_that_no_run_has_are_errors(words, message):
    with pytest.raises(ConfigError, match=message) as raised:
        read(LMRun, "lm:debug", words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm:smal", "the preset lm has small, medium"),
        (f"{CONFIGS / 'lm.py'}:smal", "the preset lm has small, medium"),
        (f"{CONFIGS / 'none.py'}:small", "No such file or directory: .*none.py"),
        ("tune:small", "No such file or directory: 'tune'"),
        (f"{CONFIGS}", "Is a directory"),
        (f"{CONFIGS.parent / 'README.md'}", "README.md, line"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_config_that_is_none_is_an_error(name, message):
    with pytest.raises(ConfigError, match=message) as raised:
        read(LMRun, name)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_preset_goes_by_its_name_alone():
    assert read(LMRun, "lm:debug") == read(LMRun, f"{CONFIGS / 'lm.py'}:debug") == read(LMRun, "configs/lm.py:debug")
    assert read(CodecRun, "codec") == read(CodecRun, "codec:32khz")


def test_a_script_without_a_folder_says_so():
    script = CONFIGS.parent / "launch" / "train_codec.py"
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, script, f"--config={CONFIGS / 'codec.py'}:debug"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the following arguments are required: --workdir" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop.seed": -1}, "loop.seed must be 0 or more"),
        ({"loop.steps": 2**32}, "loop.steps must be finite, and within 32 bits"),
        ({"loop.seed": 2**32}, "loop.seed must be finite, and within 32 bits"),
        ({"loop.eval_batches": 0}, "loop.eval_batches must be 1 or more"),
        ({"loop.hang_seconds": float("nan")}, "loop.hang_seconds: expected a finite number"),
        ({"loop.hang_seconds": float("inf")}, "loop.hang_seconds: expected a finite number"),
        ({"loop.peak_flops": -1.0}, "loop.peak_flops must be above 0"),
        ({"loop.steps": 10**30}, "loop.steps: expected a finite number"),
        ({"optim.learning_rate": float("nan")}, "learning_rate: expected a finite number"),
        ({"optim.weight_decay": float("inf")}, "weight_decay: expected a finite number"),
        ({"data.segment_seconds": 1e6}, "segment_seconds must be above 0 and at most 86400"),
        ({"data.num_threads": 2**40}, "num_threads must be from 0 to"),
        ({"data.weights": (1.0, float("nan"))}, "weights: expected a finite number"),
        ({"loss.l1": float("nan")}, "loss.l1: expected a finite number"),
        ({"loss.total_norm": float("inf")}, "loss.total_norm: expected a finite number"),
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(changes, message):
    config = CODEC.get_config("debug")
    for name, value in changes.items():
        with config.ignore_type(), config.unlocked():
            config.update_from_flattened_dict({name: value})
    with pytest.raises(ConfigError, match=message):
        from_config_dict(CodecRun, config)


def test_the_largest_seed_is_one():
    assert LoopConfig(seed=2**32 - 1).seed == 2**32 - 1


OLD_MESH = pytest.mark.filterwarnings(r"ignore:loop\.\w+ is now mesh\.")


@OLD_MESH
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_old_names_of_the_mesh_still_work():
    """On the command line, in a config, and in the JSON of a run of before; they win over what a config has."""
    run = read(LMRun, "lm:small", ["--config.loop.fsdp=8", "--config.mesh.model=2"])
    assert (run.mesh, run.loop.fsdp) == (MeshConfig(fsdp=8, model=2), None)
    assert run == read(LMRun, "lm:small", ["--config.mesh.fsdp=8", "--config.mesh.model=2"])
    config = CODEC.get_config("debug")
    config.loop.data = 4
    assert from_config_dict(CodecRun, config).mesh == MeshConfig(data=4)
    before = dataclasses.asdict(LMRun())
    del before["mesh"]
    before["loop"] |= {"data": -1, "fsdp": 4, "model": 1}
    assert from_dict(LMRun, before).mesh == MeshConfig(fsdp=4)


def test_old_names_of_the_mesh_are_told_once():
    both = r"loop.fsdp is now mesh.fsdp \(4\), loop.model is now mesh.model \(2\): the old names will go"
    with pytest.warns(UserWarning, match=both) as caught:
        run = LMRun(loop=LoopConfig(fsdp=4, model=2))
    assert len(caught) == 1
    assert dataclasses.replace(run, channels=2).mesh == MeshConfig(fsdp=4, model=2)  # no more is said


def test_a_run_of_before_goes_on_over_its_devices(tmp_path):
    """Its config.json has no mesh, and its loop has the old names."""
    path = tmp_path / "config.json"
    write_run(path, LMRun())
    stored = json.loads(path.read_text())
    del stored["mesh"]
    stored["loop"] |= {"data": -1, "fsdp": 4, "model": 1}
    path.write_text(json.dumps(stored))
    check_run(path, LMRun(mesh=MeshConfig(fsdp=8)), MAY_CHANGE)
