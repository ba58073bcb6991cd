"""HuBERT's own properties; that it equals transformers is in tests/checkpoints/test_hubert_weights.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.checkpoints.tables.hubert import hubert
from mgjax.checkpoints.tables.matching import target_shapes
from mgjax.conditioning.hubert import Hubert, num_frames
from mgjax.config.conditioning import HubertConfig
from mgjax.config.serialization import ConfigError

TINY = HubertConfig(
    conv_dims=(8, 10, 12), conv_kernels=(10, 3, 2), conv_strides=(5, 2, 2), dim=16, ffn_dim=24, num_layers=2,
    num_heads=2, position_kernel=6, position_groups=4,
)  # fmt: skip


def shapes_of(config):
    made = jax.eval_shape(Hubert(config).init, jax.random.key(0), jnp.zeros((1, 72_000)))["params"]
    leaves = jax.tree_util.tree_flatten_with_path(made)[0]
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize(
    "config",
    [HubertConfig(), TINY, dataclasses.replace(TINY, conv_norm="layer", conv_bias=True, pre_norm=True)],
    ids=["mert", "group", "layer"],
)
def test_shapes_are_those_of_the_module(config):
    assert target_shapes(hubert(config)) == shapes_of(config)


def test_mert_has_its_published_size_and_rate():
    """94,371,712 parameters, of which two arrays are not here: the 128 sizes of the positions' kernel, folded into it,
    and the vector of 768 that stood for masked frames in training."""
    count = sum(int(np.prod(shape)) for shape in target_shapes(hubert(HubertConfig())).values())
    assert count + 128 + 768 == 94_371_712
    assert HubertConfig().frame_rate == 75
    assert num_frames(HubertConfig(), 72_000) == 224  # 3 seconds
    made = jax.eval_shape(Hubert(HubertConfig()).init_with_output, jax.random.key(0), jnp.zeros((2, 72_000)))[0]
    assert made.shape == (2, 224, 768)


@pytest.fixture(scope="module")
def tiny():
    audio = jnp.asarray(np.random.default_rng(0).standard_normal((2, 500)), jnp.float32)
    return jax.jit(Hubert(TINY).apply), jax.jit(Hubert(TINY).init)(jax.random.key(0), audio), audio


def test_each_clip_is_normalised_alone(tiny):
    """Neither the volume and the offset of a clip nor the other clips change what is made of it."""
    apply, variables, audio = tiny
    expected = apply(variables, audio)
    louder = apply(variables, audio.at[0].set(0.3 * audio[0] + 0.2))
    assert np.abs(louder - expected).max() < 1e-4  # measured 1.4e-6
    other = apply(variables, audio.at[0].set(audio[0] ** 2))
    assert np.abs(other[0] - expected[0]).max() > 0.1
    assert np.array_equal(other[1], expected[1])


def test_the_shortest_audio(tiny):
    apply, variables, audio = tiny
    assert jax.eval_shape(apply, variables, audio[:, :30]).shape == (2, 1, 16)
    with pytest.raises(ValueError, match="29 samples, and one frame of features needs 30"):
        jax.eval_shape(apply, variables, audio[:, :29])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 3}, "multiple of num_heads and of position_groups"),
        ({"position_groups": 5}, "multiple of num_heads and of position_groups"),
        ({"conv_kernels": (10, 3)}, "of one length"),
        ({"conv_strides": (5, 0, 2)}, "must be 1 or more"),
        ({"conv_norm": "batch"}, "conv_norm must be one of"),
    ],
)
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **values)
