"""A small language model with random weights, loud enough that what it is told matters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.checkpoints.random_weights import random_arrays
from mgjax.checkpoints.tables.shapes import lm_shapes
from mgjax.conditioning.condition import Condition
from mgjax.config.model import Fused, LMConfig
from mgjax.lm.model import LM

CONFIG = LMConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=64, codebook_size=20, conditions=(Fused("text", 8),))


def make(**changes):
    """A module and its parameters."""
    config = dataclasses.replace(CONFIG, **changes)
    params = random_arrays(lm_shapes(config))
    return LM(config), jax.tree.map(lambda x: jnp.asarray(3 * x if x.ndim > 1 else x), params)


def text(lengths, length, seed=0):
    """A text condition of rows with `lengths` tokens, padded to `length`, which does not change the tokens."""
    values = np.stack([np.random.default_rng(seed + i).normal(size=(64, 8))[:length] for i in range(len(lengths))])
    mask = np.arange(length) < np.array(lengths)[:, None]
    return Condition(jnp.asarray(values, jnp.float32), jnp.asarray(mask))


def chroma(batch, seed=0):
    values = np.random.default_rng(seed).random((batch, 5, 3))
    return Condition(jnp.asarray(values, jnp.float32), jnp.ones((batch, 5), bool))


@functools.partial(jax.jit, static_argnames=("module", "batch"))
def _context(module, params, conditions, batch):
    return module.apply({"params": params}, conditions, batch=batch, method="context")


def context(model, batch=1, **conditions):
    return _context(*model, conditions, batch)
