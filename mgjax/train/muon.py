"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): updates of orthogonalised momentum.

A matrix moves equally far in all directions in which its gradient points, rather than mostly in the few strongest. It
is for matrices between hidden states; Adam takes the rest.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array, Float

Axes = optax.contrib.MuonDimensionNumbers

# Of kernels in layers (mgjax/lm/transformer.py): which axes are read and which are written. Queries, keys and values
# are matrices of their own. Counted from the end, for stacked layers have one axis more in front.
_KERNELS = {
    ("self_attn", "qkv"): ((-4,), (-2, -1)),
    ("self_attn", "out"): ((-3, -2), (-1,)),
    ("cross_attn", "query"): ((-3,), (-2, -1)),
    ("cross_attn", "kv"): ((-4,), (-2, -1)),
    ("cross_attn", "out"): ((-3, -2), (-1,)),
    ("ffn", "up"): ((-2,), (-1,)),
    ("ffn", "down"): ((-2,), (-1,)),
}


def matrices(params: Any) -> Any:
    """What Muon takes: the kernels of the language model's layers. The axes of each as a matrix, None for all else."""

    def axes(path: tuple[Any, ...], leaf: Float[Array, "..."]) -> Axes | None:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if names[:1] != ["lm"] or names[-1] != "kernel" or not names[1].startswith("layer"):
            return None
        read, written = _KERNELS[names[2], names[3]]
        return Axes(tuple(axis + leaf.ndim for axis in read), tuple(axis + leaf.ndim for axis in written))

    return jax.tree_util.tree_map_with_path(axes, params)
