"""Numbers that are NaN or infinite: the error that says so, and which weights they come from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mgjax import sharding


def wrong(tree: Any) -> list[str]:
    """The paths of the arrays in which a number is NaN or infinite."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [sharding.path_of(path) for path, leaf in leaves if not jnp.isfinite(leaf).all()]


def cause(variables: Any) -> str:
    """Why a model with these weights gives what is not finite, and what to do."""
    paths = wrong(variables)
    if not paths:
        return "all weights are finite, so numbers became too large on the way; load the model in dtype float32"
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"the weights {', '.join(paths[:3])}{more} are NaN or infinite; fetch or convert the model again"
