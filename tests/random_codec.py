"""Random weights for a codec, without compiling its initialisation."""

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.codec.encodec import EncodecModel
from mgjax.config.model import CodecConfig


def random_variables(config: CodecConfig) -> dict:
    """Variables of `EncodecModel(config)` that neither fade nor drown the signal, nor the LSTM's state."""
    model, rng = EncodecModel(config), np.random.default_rng(0)
    audio = jnp.zeros((1, config.hop_length, config.channels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), audio)

    def draw(path, leaf):
        name, values = path[-1].key, rng.standard_normal(leaf.shape).astype(np.float32)
        if name in ("scale", "norm_scale"):
            return jnp.asarray(1.25 + 0.2 * values)
        if name in ("hidden_kernel", "input_kernel"):
            return jnp.asarray(values) * np.float32(1.5 / np.sqrt(min(leaf.shape)))
        return jnp.asarray(0.3 * values)

    return jax.tree_util.tree_map_with_path(draw, shapes)
