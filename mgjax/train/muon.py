"""The parameters that Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) trains: hidden matrices.

Muon orthogonalises the momentum, so that a matrix is updated equally in all directions of its gradient. It is for
matrices between hidden states; Adam trains the rest.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

from mgjax.lm.matrices import matrix


def matrices(params: Any) -> Any:
    """The axes of each kernel of the language model's layers as a matrix, for Muon; None for all other parameters."""

    def axes(path: tuple[Any, ...], leaf: Float[Array, "..."]) -> MuonDimensionNumbers | None:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if names[:1] != ["lm"] or names[-1] != "kernel" or not names[1].startswith("layer"):
            return None
        sides = matrix(tuple(names[1:]))
        assert sides is not None, "every kernel of a layer is a matrix"
        return MuonDimensionNumbers(*(tuple(axis + leaf.ndim for axis in side) for side in sides))

    return jax.tree_util.tree_map_with_path(axes, params)
