"""Models with random weights: the toy "debug", and any config to try or to measure before there are weights."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from mgjax.config import CodecConfig, LMConfig, ModelConfig, T5Config
from mgjax.interop.shapes import model_shapes
from mgjax.interop.table import Place, nested

# Every part of a MusicGen at a thousandth of its size. It makes noise, at the rate and in the form of the real ones.
DEBUG = ModelConfig(
    lm=LMConfig(dim=32, num_layers=2, num_heads=2, ffn_dim=64, codebook_size=64, text_dim=16),
    codec=CodecConfig(num_filters=4, latent_dim=16, codebook_size=64),
    text=T5Config(vocab_size=300, dim=16, head_dim=8, ffn_dim=32, num_layers=2, num_heads=2),
    tokenizer="bytes",
    license="Apache-2.0",
)


def random_variables(config: ModelConfig, seed: int = 0, *, place: Place | None = None) -> dict:
    """Variables {"lm", "codec", "text"} of a model, float32, each array scaled so that signals keep their size.

    Made by numpy, because initialising module by module costs JAX a minute. Training starts from the modules' own
    initialisation instead. `place` is that of `interop.table.load`.
    """
    rng = np.random.default_rng(seed)
    place = place or (lambda path, array: jnp.asarray(array))
    paths = {tuple(path.split("/")): shape for path, shape in model_shapes(config).items()}
    return nested({path: place(path, _random("/".join(path), shape, rng)) for path, shape in paths.items()})


def _random(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    name = path.rsplit("/", 1)[-1]
    if name in ("scale", "norm_scale", "cluster_size", "inited"):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("kernel"):
        # A matrix maps its first axes to its last, except for attention's, where heads are split or joined.
        fan_in = math.prod(shape[:-1]) if path.startswith("codec") or name == "out" or len(shape) == 2 else shape[0]
        values /= np.float32(math.sqrt(fan_in))
    return values
