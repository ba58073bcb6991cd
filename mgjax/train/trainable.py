"""The filter over the paths of parameters that decides what a run trains: weights are split and masked by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mgjax.devices.sharding import path_of

Filter = Callable[[str], bool]
"""Whether it accepts the parameter at a path, such as "lm/layer0/ffn/up/kernel"."""


def path_filter(*patterns: str) -> Filter:
    """Accepts the paths that one of the regular expressions matches from the start, as `"text/"` does "text/norm"."""
    return lambda path: any(re.match(pattern, path) for pattern in patterns)


def partition(params: Mapping[str, Any], trainable: Filter) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters that `trainable` accepts, and the others, as two trees without empty dicts."""
    leaves = flatten_dict(params, sep="/")
    trained = {path: leaf for path, leaf in leaves.items() if trainable(path)}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def mask(params: Any, accepted: Filter) -> Any:
    """A tree like `params` of whether `accepted` accepts each of them, as `optax.masked` takes it."""
    return jax.tree_util.tree_map_with_path(lambda path, _: accepted(path_of(path)), params)
