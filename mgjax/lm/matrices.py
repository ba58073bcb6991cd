"""The axes of the inputs and of the outputs of the language model's kernels, as matrices.

Queries, keys and values share a kernel, and so do the heads of the codebooks; each is a matrix of its own.
"""

from __future__ import annotations

from typing import NamedTuple


class Matrix(NamedTuple):
    """Axes of a kernel, counted from the end, for stacked layers have one axis more in front."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]  # an axis that is neither counts the matrices in one kernel


LAYER = {
    ("self_attn", "qkv"): Matrix((-4,), (-2, -1)),
    ("self_attn", "out"): Matrix((-3, -2), (-1,)),
    ("cross_attn", "query"): Matrix((-3,), (-2, -1)),
    ("cross_attn", "kv"): Matrix((-4,), (-2, -1)),
    ("cross_attn", "out"): Matrix((-3, -2), (-1,)),
    ("ffn", "up"): Matrix((-2,), (-1,)),
    ("ffn", "down"): Matrix((-2,), (-1,)),
}
HEAD = Matrix((-3,), (-1,))


def matrix(path: tuple[str, ...]) -> Matrix | None:
    """How the language model's parameter at `path` is a matrix; None for embeddings, norms and biases.

    Args:
      path: Such as ("layer0", "ffn", "up", "kernel"), or ("layers", ...) where layers are stacked.
    """
    if path[-1] != "kernel":
        return None
    if path[0] == "head":
        return HEAD
    return LAYER[path[1], path[2]] if path[0].startswith("layer") else None
