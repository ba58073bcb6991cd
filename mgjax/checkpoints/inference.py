"""A model's weights as inference keeps them: the large kernels transposed, in fewer bits by choice.

Decoding reads every weight at every step; `nn.TransposedKernel` says in which form. These are the kernels of layers and
heads of the language model and of the T5; the rest (embeddings, norms, the codec, other encoders) stays as it is read.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mgjax.checkpoints.tables import shapes
from mgjax.checkpoints.tables.matching import ArrayPath, Place
from mgjax.config.model import ModelConfig
from mgjax.kernels.memory import Blocks
from mgjax.nn import TransposedKernel

WEIGHTS = ("float32", "bfloat16", "int8")


def place(weights: str) -> Place:
    """What a reader calls with each array: the kernels become those of inference, one at a time."""
    return functools.partial(_placed, weights=weights, blocks=Blocks())


def from_trained(variables: dict[str, Any], weights: str) -> dict[str, Any]:
    """The variables of a checkpoint with the kernels of inference."""
    flat, put = flatten_dict(variables), place(weights)
    return unflatten_dict({path: put(path, np.asarray(flat.pop(path))) for path in list(flat)})


def to_trained(config: ModelConfig, variables: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `from_trained`, up to the rounding of weights in fewer bits; float32 ones are not copied."""
    expected = shapes.model_shapes(config)
    flat = flatten_dict(variables)
    return unflatten_dict(
        {
            path: leaf.kernel(expected["/".join(path)]) if isinstance(leaf, TransposedKernel) else leaf
            for path, leaf in flat.items()
        }
    )


def kernel_shape(path: ArrayPath, shape: tuple[int, ...], weights: str) -> TransposedKernel | None:
    """What `place` makes of a kernel, as shapes; None for an array that stays as it is read."""
    matrix = _matrix(path, shape)
    if matrix is None:
        return None
    scale = jax.ShapeDtypeStruct(matrix[1:], np.float32) if weights == "int8" else None
    leaves = [jax.ShapeDtypeStruct(matrix[::-1], jnp.dtype(weights)), scale]
    return jax.eval_shape(TransposedKernel, *leaves)


def _placed(path: ArrayPath, array: np.ndarray, weights: str, blocks: Blocks) -> Any:
    matrix = _matrix(path, array.shape)
    return jax.device_put(array) if matrix is None else TransposedKernel.of(array.reshape(matrix), weights, blocks)


def _matrix(path: ArrayPath, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The inputs and outputs of a kernel that is transposed; None for other arrays."""
    if path[-1] != "kernel" or path[0] not in ("lm", "text") or path[1].endswith("_proj"):
        return None
    num_inputs = len(shape) - 1 if path[-2] == "out" else 1  # axes; the outputs of attention's heads are two
    return math.prod(shape[:num_inputs]), math.prod(shape[num_inputs:])
