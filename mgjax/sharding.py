"""How arrays lie over many devices, declared once: rules from a parameter's path to the mesh axes of its dimensions.

The mesh has three axes. `data` holds copies of the model that work on different rows. `fsdp` does too, but splits every
large parameter among its devices as well and gathers it when it is used. `model` splits the heads and the wide layers,
so that its devices work on the same rows together. Training, loading, restoring and generation all read this table;
modules never name an axis.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "model")

# The first pattern that is found in the path decides. A rule is about the last dimensions of the parameter, as many as
# it names; the ones before stay whole, as the first dimension of stacked layers does.
RULES: tuple[tuple[str, P], ...] = (
    (r"qkv/kernel$|kv/kernel$", P("fsdp", None, "model", None)),
    (r"(query|key|value)/kernel$", P("fsdp", "model", None)),
    (r"attn/out/kernel$", P("model", None, "fsdp")),
    (r"ffn/(up|gate)/kernel$", P("fsdp", "model")),
    (r"ffn/down/kernel$", P("model", "fsdp")),
    (r"lm/head/kernel$", P("fsdp", None, "model")),
    (r"lm/embed/embedding$", P(None, None, "fsdp")),
    (r"text/embed/embedding$", P("model", "fsdp")),
    (r"roberta/(embed|positions)/embedding$", P("model", "fsdp")),
    (r"_proj/kernel$", P(None, "fsdp")),
    (r"style/.*layer\d+/out/kernel$", P("model", None, "fsdp")),
    (r"style/.*/up/kernel$", P("fsdp", "model")),
    (r"style/.*/down/kernel$", P("model", "fsdp")),
    (r"style/.*embed/embedding$", P(None, None, "fsdp")),
    (r"style/.*conv\d*/kernel$", P(None, None, "fsdp")),
    (r"(embed|pool|reduce|projection/(up|out))/kernel$", P(None, "fsdp")),
    (r"lstm/.*_kernel$", P("fsdp", None)),
    (r"(encoder|decoder)/.*kernel$", P(None, "fsdp", None)),
    (r"discriminator/.*kernel$", P("fsdp")),
    (r"codebooks/(embed|embed_avg)$", P("fsdp", None)),
    (r"", P()),
)


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of `devices`); one of the three sizes may be -1: as many as there are.

    Raises:
      ValueError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, model]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(f"data x fsdp x model = {' x '.join(map(str, sizes))} does not make {len(devices)} devices")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of a parameter. A dimension that its axis does not divide stays whole."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    if len(rule) > len(shape):  # a number that an optimiser keeps for each parameter
        rule = P()
    axes = (*(None,) * (len(shape) - len(rule)), *rule)
    return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of `tree`, whose paths are those of a model's variables ("lm/head/kernel")."""

    def one(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(path_of(path), np.shape(leaf), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def path_of(path: tuple) -> str:
    """The keys, fields and indices on the way to a leaf of a tree, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def cache(num_rows: int, num_heads: int, mesh: Mesh) -> NamedSharding:
    """The sharding of keys and values [rows, heads, slots, width]: rows as in a batch, heads over `model`."""
    heads = "model" if num_heads % mesh.shape["model"] == 0 else None
    return NamedSharding(mesh, P(*(rows(num_rows, mesh).spec or (None,)), heads, None, None))


def rows(num_rows: int, mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its rows over `data` and `fsdp`, as far as they divide it."""
    axes = [axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1]
    while axes and num_rows % math.prod(mesh.shape[axis] for axis in axes):
        axes.pop()
    return NamedSharding(mesh, P(tuple(axes)) if axes else P())
