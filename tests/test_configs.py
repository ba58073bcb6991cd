"""Every run of configs/ can be made, and settings that do not exist or do not fit are told."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from mgjax.strict_json import ConfigError
from mgjax.train.codec import CodecRun
from mgjax.train.configs import from_config_dict, to_config_dict
from mgjax.train.lm import LMRun

CONFIGS = Path(__file__).parents[1] / "configs"


def load(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CODEC, LM = load("codec"), load("lm")


@pytest.mark.parametrize(
    ("module", "run", "name"),
    [(CODEC, CodecRun, name) for name in CODEC.VARIANTS] + [(LM, LMRun, name) for name in LM.VARIANTS],
)
def test_every_variant_is_a_run(module, run, name):
    made = from_config_dict(run, module.get_config(name))
    assert from_config_dict(run, to_config_dict(made)) == made
    doc = module.VARIANTS[name].__doc__
    assert doc, "say what it needs and gives, or that it has not been run"


def test_an_unknown_variant_is_told():
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
