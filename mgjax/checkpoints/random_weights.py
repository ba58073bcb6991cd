"""Models with random weights: the toy "debug", and any config to try or to measure before there are weights."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from mgjax.checkpoints.tables.matching import Place, stays_float32
from mgjax.checkpoints.tables.shapes import Shapes, model_shapes
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig

# All parts of a MusicGen at a thousandth of its size. It generates noise, in the format of the published models.
DEBUG = ModelConfig(
    lm=LMConfig(dim=32, num_layers=2, num_heads=2, ffn_dim=64, codebook_size=64, conditions=(Fused("text", 16),)),
    codec=CodecConfig(num_filters=4, latent_dim=16, codebook_size=64),
    text=T5Config(vocab_size=300, dim=16, head_dim=8, ffn_dim=32, num_layers=2, num_heads=2),
    tokenizer="bytes",
    license="Apache-2.0",
)


def random_variables(
    config: ModelConfig, seed: int = 0, *, dtype: str | None = None, place: Place | None = None
) -> dict:
    """Variables {"lm", "codec", "text", ...} of a model; the arguments are those of `random_arrays`."""
    return random_arrays(model_shapes(config), seed, dtype=dtype, place=place)


def random_arrays(shapes: Shapes, seed: int = 0, *, dtype: str | None = None, place: Place | None = None) -> dict:
    """A tree of arrays, each scaled so that signals keep their size.

    By numpy, because initialising module by module takes JAX a minute. Training starts from the modules' own
    initialisation instead. `dtype` and `place` are those of `checkpoints.tables.matching.load`.
    """
    rng = np.random.default_rng(seed)
    place = place or (lambda path, array: jax.device_put(array))
    placed = {}
    for name, shape in shapes.items():
        path = tuple(name.split("/"))
        array = _random(name, shape, rng)
        placed[path] = place(path, array if stays_float32(path) else array.astype(jnp.dtype(dtype or "float32")))
    return unflatten_dict(placed)


def _random(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    name = path.rsplit("/", 1)[-1]
    if name in ("scale", "norm_scale", "var", "cluster_size", "inited"):
        return np.ones(shape, np.float32)
    if name.endswith("bias") or name == "mean":
        return np.zeros(shape, np.float32)
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("kernel"):
        # The fan-in is all axes but the last, or the first axis in projections into heads.
        into_heads = re.search(r"(qkv|kv|query|key|value|head)/kernel$", path)
        fan_in = shape[1] if name == "hidden_kernel" else shape[0] if into_heads else math.prod(shape[:-1])
        values /= np.float32(math.sqrt(fan_in))
    return values
