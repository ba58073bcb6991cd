import dataclasses
import json

import pytest

from mgjax.config.conditioning import ClapTextConfig, HubertConfig, StyleConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig
from mgjax.config.serialization import ConfigError, from_dict, to_json


def test_a_config_comes_back_from_json():
    config = ModelConfig(
        lm=LMConfig(num_codebooks=8, delays=(0, 0, 1, 1, 2, 2, 3, 3)),
        codec=CodecConfig(bandwidths=(1.5, 3.0), chunk_seconds=1.0),
        channels=2,
        license="Apache-2.0",
    )
    assert from_dict(ModelConfig, json.loads(to_json(config))) == config
    silent = dataclasses.replace(config, text=None, lm=dataclasses.replace(config.lm, conditions=()))
    assert from_dict(ModelConfig, json.loads(to_json(silent))) == silent


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dimension": 3}, r"LMConfig: unknown keys \['dimension'\]; known are .*'dim'"),
        ({"dim": "wide"}, r"LMConfig\.dim: expected int, got 'wide'"),
        ({"dim": 1024.0}, r"LMConfig\.dim: expected int"),
        ({"dim": True}, r"LMConfig\.dim: expected int"),
        ({"delays": 3}, r"LMConfig\.delays: expected a list"),
        ({"delays": [0, 1, 2, "3"]}, r"LMConfig\.delays: expected int"),
        ([], "expected an object"),
    ],
)
def test_what_is_not_a_config_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(LMConfig, values)


def test_errors_name_the_path():
    with pytest.raises(ConfigError, match=r"ModelConfig\.codec\.ratios"):
        from_dict(ModelConfig, {"codec": {"ratios": 8}})


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (LMConfig, {"dim": 1000}, "not a multiple of num_heads"),
        (LMConfig, {"dim": 3, "num_heads": 1}, "even"),
        (LMConfig, {"dim": 2, "num_heads": 1}, "at least 4"),
        (LMConfig, {"pattern": "bogus"}, "pattern must be one of"),
        (LMConfig, {"delays": (0, 1)}, "4 codebooks need as many delays"),
        (Fused, {"name": "text", "dim": 0}, "dim"),
        (Fused, {"name": "text", "dim": 8, "fuse": "add"}, "fuse must be one of"),
        (LMConfig, {"num_layers": 0}, "num_layers must be 1 or more and at most 1024, got 0"),
        (T5Config, {"activation": "tanh"}, "activation must be one of"),
        (CodecConfig, {"ratios": ()}, "ratios"),
        (CodecConfig, {"pad_mode": "edge"}, "pad_mode must be one of"),
        (CodecConfig, {"norm": "batch"}, "norm must be one of"),
        (ModelConfig, {"codec": CodecConfig(num_codebooks=2)}, "writes 4 codebooks, but the codec reads 1 x 2"),
        (ModelConfig, {"codec": CodecConfig(codebook_size=1024)}, "2048 codes"),
        (ModelConfig, {"text": None}, "'text': 768"),
        (ModelConfig, {"text": T5Config(dim=512)}, "give .*'text': 512"),
        (ModelConfig, {"tokenizer": "words"}, "tokenizer must be one of"),
    ],
)
def test_models_that_cannot_be_built_are_refused(cls, values, message):
    with pytest.raises(ConfigError, match=message):
        cls(**values)


@pytest.mark.parametrize("cls", [LMConfig, T5Config, HubertConfig, StyleConfig, ClapTextConfig])
@pytest.mark.parametrize("count", [10**6, 10**400])
def test_layers_without_end_are_refused(cls, count):
    with pytest.raises(ConfigError, match="num_layers"):
        from_dict(cls, {"num_layers": count})


@pytest.mark.parametrize(
    "values",
    [
        {"num_lstm_layers": 10**6},
        {"num_residual_layers": 10**9},
        {"dilation_growth": 2, "num_residual_layers": 60},
        {"ratios": [0]},
        {"ratios": [2] * 30},
        {"ratios": [1] * 2000},
        {"ratios": [1000, 1000, 1000]},
        {"bandwidths": []},
        {"bandwidths": [2.0**31]},
        {"bandwidths": [float("nan")]},
        {"compress": 0},
        {"compress": 65},
        {"codebook_size": 1},
        {"chunk_seconds": 1e-300},
        {"chunk_overlap": 1.0},
        {"trim_right_ratio": float("inf")},
        {"trim_right_ratio": 10**400},
        {"sample_rate": 2**63},
    ],
)
def test_codecs_without_bounds_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        from_dict(CodecConfig, values)


def test_codebooks_for_each_published_bandwidth():
    config = CodecConfig(
        sample_rate=24_000,
        ratios=(8, 5, 4, 2),
        codebook_size=1024,
        num_codebooks=32,
        bandwidths=(1.5, 3.0, 6.0, 12.0, 24.0),
    )
    assert config.frame_rate == 75
    assert [config.codebooks_for(bandwidth) for bandwidth in config.bandwidths] == [2, 4, 8, 16, 32]
    assert config.codebooks_for(None) == 32
    assert CodecConfig().codebooks_for(2.2) == 4
    with pytest.raises(ValueError, match=r"1\.5, 3\.0.* got 2"):
        config.codebooks_for(2.0)
