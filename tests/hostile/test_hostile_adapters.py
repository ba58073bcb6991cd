"""Adapters of low rank, as the library peft writes them."""

import jax
import numpy as np
import tiny_files
from fuzzing import Door

from mgjax.checkpoints import peft, random_weights
from mgjax.lm import lora

CONFIG = lora.LoraConfig(rank=2, alpha=8.0, targets=("self_attn", "head"))


def params():
    return random_weights.random_variables(tiny_files.MODEL, place=tiny_files.in_place)["lm"]


def write(folder):
    shapes = jax.eval_shape(lambda key: lora.initial(CONFIG, params(), key), jax.random.key(0))
    adapter = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    peft.write(folder / "adapter", CONFIG, adapter, tiny_files.LM, "debug")


def read(folder):
    peft.base(folder)
    config, adapter = peft.read(folder, tiny_files.LM)
    lora.merge(config, params(), adapter)


DOOR = Door(write, read)


def test_adapters(endure):
    endure("adapters")
