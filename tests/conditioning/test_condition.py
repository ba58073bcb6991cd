"""What the language model attends to of each condition, in training and at generation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.conditioning.condition import attends_to_null, condition
from mgjax.config.conditioning import ClapConditionConfig, MelodyConfig, NumberConfig, StyleConfig
from mgjax.config.model import Fused
from mgjax.lm.model import LM

STYLE = StyleConfig(features=None, num_code_streams=2, code_size=64, dim=8, num_heads=2)
LENGTHS = [2, 0, 4]
MASK = np.arange(5)[None] < np.array(LENGTHS)[:, None]
FULL = np.array([[True] * 5, [False] * 5, [True] * 5])
MELODY = MelodyConfig(num_frames=5)
NOTHING = dataclasses.replace(MELODY, null="nothing")
DIMS = {"text": DEBUG.text.dim, "melody": 12, "style": 8, "clap": 512, "bpm": 4}


@functools.cache
def model(name, fuse, melody=MELODY):
    """A model with this one condition."""
    lm = dataclasses.replace(DEBUG.lm, conditions=(Fused(name, DIMS[name], fuse),))
    parts = {"melody": melody, "style": STYLE, "clap": ClapConditionConfig(), "text": DEBUG.text}
    numbers = (NumberConfig("bpm", 40, 200, dim=4),) if name == "bpm" else ()
    given = {part: value if part == name else None for part, value in parts.items()}
    return dataclasses.replace(DEBUG, lm=lm, numbers=numbers, **given)


def made(config, mask, **options):
    """The condition, made eagerly of numpy arrays; within a compiled step it is the same."""
    (fused,) = config.lm.conditions
    vectors = np.random.default_rng(0).standard_normal((*mask.shape, fused.dim)).astype(np.float32)
    eager = condition(config, fused.name, vectors, mask, **options)
    compiled = jax.jit(lambda vectors, mask: condition(config, fused.name, vectors, mask, **options))(vectors, mask)
    for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_array_equal(one, other)
    return eager


def attended(config, mask, **options):
    """How many of the first positions of each row are attended to; None for the valid ones."""
    found = made(config, mask, **options).attention_mask
    if found is None:
        return None
    counts = found.sum(axis=1)
    np.testing.assert_array_equal(found, np.arange(mask.shape[1])[None] < counts[:, None])
    return counts.tolist()


def test_in_training_null_conditions_are_what_the_published_models_saw():
    assert attended(model("text", "prefix"), MASK) == [2, 1, 4]
    assert attended(model("style", "prefix"), FULL) == attended(model("style", "cross"), FULL) == [5, 5, 5]
    assert attended(model("melody", "prefix"), MASK) == [5, 5, 5]
    assert attended(model("melody", "prefix", NOTHING), MASK) is None


@pytest.mark.parametrize("padded", [False, True])
def test_a_null_condition_keeps_the_place_of_another(padded):
    lengths = [4, 4, 4] if padded else [2, 3, 4]
    options = {"null_length": np.array([1, 3, 1]), "pad_to_longest": padded}
    assert attended(model("text", "prefix"), MASK, **options) == lengths
    assert attended(model("text", "cross"), MASK, **options) == (lengths if padded else None)
    options["null_length"] = np.array([1, 1, 5])
    assert attended(model("style", "prefix"), FULL, **options) == ([5, 5, 5] if padded else [5, 1, 5])
    alone = attended(model("style", "prefix"), np.zeros((2, 1), bool), **options | {"null_length": np.array([1, 1])})
    assert alone == [1, 1]


@pytest.mark.parametrize("fuse", ["cross", "prefix", "sum"])
@pytest.mark.parametrize("name", ["clap", "bpm"])
def test_conditions_of_one_vector_have_no_padding(name, fuse):
    config = model(name, fuse)
    assert not attends_to_null(config, name)
    for options in ({}, {"null_length": np.array([1, 1, 1]), "pad_to_longest": True}):
        assert attended(config, MASK[:, :1], **options) is None


def test_only_a_melody_runs_along_with_the_music():
    assert made(model("melody", "interpolate"), MASK).rate == MELODY.frame_rate / DEBUG.codec.frame_rate
    assert attended(model("melody", "interpolate"), MASK) is None
    assert made(model("text", "cross"), MASK).rate is None


def test_a_null_row_is_zero_vectors_whatever_its_tokens_are():
    config = model("style", "prefix")
    vectors = np.full((2, 4, 8), np.nan, np.float32)
    vectors[0] = 1.5
    mask = np.array([[True] * 4, [False] * 4])
    style = condition(config, "style", vectors, mask)
    lm = LM(config.lm)
    context = jax.jit(lambda params: lm.apply({"params": params}, {"style": style}, method="context"))(
        jax.tree.map(jnp.asarray, random_variables(config)["lm"])
    )
    assert np.all(context.prefix[0])
    assert not np.any(context.prefix[1])
    assert np.all(context.prefix_mask)
