"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): updates of orthogonalised momentum.

A matrix moves equally far in all directions in which its gradient points, rather than mostly in the few strongest. It
is for matrices between hidden states; Adam takes the rest.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from mgjax.lm.matrices import matrix

Axes = optax.contrib.MuonDimensionNumbers


def matrices(params: Any) -> Any:
    """What Muon takes: the kernels of the language model's layers. The axes of each as a matrix, None for all else."""

    def axes(path: tuple[Any, ...], leaf: Float[Array, "..."]) -> Axes | None:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if names[:1] != ["lm"] or names[-1] != "kernel" or not names[1].startswith("layer"):
            return None
        found = matrix(tuple(names[1:]))
        return Axes(*(tuple(axis + leaf.ndim for axis in axes) for axes in found))

    return jax.tree_util.tree_map_with_path(axes, params)
