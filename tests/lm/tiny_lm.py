"""A small language model with random weights, loud enough that what it is told matters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.conditioner_config import T5Config
from mgjax.conditioning.condition import Condition
from mgjax.config import CodecConfig, LMConfig, ModelConfig
from mgjax.initialize import random_variables
from mgjax.lm.model import LM

CONFIG = LMConfig(dim=32, num_layers=2, num_heads=4, ffn_dim=64, codebook_size=20, text_dim=8)


def make(**changes):
    """A module and its parameters."""
    config = dataclasses.replace(CONFIG, **changes)
    codec = CodecConfig(num_codebooks=config.num_codebooks, codebook_size=config.codebook_size)
    variables = random_variables(ModelConfig(lm=config, codec=codec, text=T5Config(dim=8)))
    return LM(config), jax.tree.map(lambda x: jnp.asarray(3 * x if x.ndim > 1 else x), variables["lm"])


def text(lengths, length, seed=0):
    """A text condition of rows with `lengths` tokens, padded to `length`, which does not change the tokens."""
    values = np.stack([np.random.default_rng(seed + i).normal(size=(64, 8))[:length] for i in range(len(lengths))])
    mask = np.arange(length) < np.array(lengths)[:, None]
    return Condition(jnp.asarray(values, jnp.float32), jnp.asarray(mask))


def chroma(batch, seed=0):
    values = np.random.default_rng(seed).random((batch, 5, 3))
    return Condition(jnp.asarray(values, jnp.float32), jnp.ones((batch, 5), bool))


@functools.partial(jax.jit, static_argnames=("module", "batch"))
def _context(module, params, *conditions, **options):
    return module.apply({"params": params}, *conditions, **options, method="context")


def context(model, *conditions, **options):
    return _context(*model, *conditions, **options)
