"""How arrays lie over many devices, declared once: rules from a parameter's path to the mesh axes of its dimensions.

The mesh has three axes. `data` holds copies of the model that work on different rows. `fsdp` does too, but splits every
large parameter among its devices as well and gathers it when it is used. `model` splits the heads and the wide layers,
so that its devices work on the same rows together. Training, loading, restoring and generation all read this table;
modules never name an axis.

Many hosts make one mesh. Each of them holds the rows of a batch that its own devices work on, and no others.

A program that is compiled for a mesh by `over` is told by `by_rows` and `gathered`, at a few places, where activations
and the weights in use belong. Left alone, XLA may take the way that the weights are split for that of the activations,
and keep every row of a batch on every device.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
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
    (r"(^|lm/)head/kernel$", P("fsdp", None, "model")),
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


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices (or of `devices`, those of a topology too); one of the three sizes may be -1: as many as
    there are.

    Where the devices are in several slices (of TPUs, or of GPUs that one node or NVLink joins), `data` goes over the
    slow network between the slices, and `fsdp` too if `data` is too small for that.

    Raises:
      ValueError: The sizes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, model]
    if data == -1:  # on fewer devices than `fsdp` says, weights are split among all that there are
        sizes[1] = min(fsdp, max(1, len(devices) // max(1, model)))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(f"data x fsdp x model = {' x '.join(map(str, sizes))} does not make {len(devices)} devices")
    between = _between_slices(sizes, devices)
    if math.prod(between) == 1:
        laid_out = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        within = [size // slices for size, slices in zip(sizes, between, strict=True)]
        laid_out = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * 3)


def _between_slices(sizes: list[int], devices: Sequence[Any]) -> list[int]:
    """How many parts of each axis of the mesh lie in slices of their own."""
    counts = Counter(getattr(device, "slice_index", 0) for device in devices)
    data = math.gcd(sizes[0], len(counts))
    fsdp = len(counts) // data
    if len(set(counts.values())) > 1:
        raise ValueError(f"the devices are in slices of {sorted(counts.values())}: a mesh needs slices of one size")
    if sizes[1] % fsdp:
        raise ValueError(
            f"data x fsdp x model = {' x '.join(map(str, sizes))} does not fit {len(counts)} slices of "
            f"{len(devices) // len(counts)} devices: model has to stay within a slice, so make data (or data x fsdp) a "
            f"multiple of {len(counts)}"
        )
    return [data, fsdp, 1]


def spec(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
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


def cache(num_rows: int, num_heads: int, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of keys and values [rows, heads, slots, width]: rows as in a batch, heads over `model`."""
    heads = "model" if num_heads % mesh.shape["model"] == 0 else None
    return NamedSharding(mesh, P(*(rows(num_rows, mesh).spec or (None,)), heads, None, None))


def rows(num_rows: int, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a batch: its rows over `data` and `fsdp`, as far as they divide it."""
    axes = [axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1]
    while axes and num_rows % math.prod(mesh.shape[axis] for axis in axes):
        axes.pop()
    return NamedSharding(mesh, P(tuple(axes)) if axes else P())


def rows_here(num_rows: int, mesh: Mesh) -> list[int]:
    """Which rows of a batch the devices of this process work on, in order: those that this host has to read.

    Raises:
      ValueError: There are several processes, and the rows cannot be spread evenly over the mesh.
    """
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    if num_rows % spread and mesh.is_multi_process:
        raise ValueError(
            f"{num_rows} rows cannot be spread over data x fsdp = {spread} devices on several hosts: make the batch "
            f"(data.batch_size) a multiple of {spread}"
        )
    parts = rows(num_rows, mesh).addressable_devices_indices_map((num_rows,)).values()
    return sorted({row for (part,) in parts for row in range(*part.indices(num_rows))})


def place_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The batch [b, ...] over the mesh, of which this process has `array`, the rows that `rows_here` names."""
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    num_rows = len(array) * spread // len(rows_here(spread, mesh))
    first = {row: i for i, row in enumerate(rows_here(num_rows, mesh))}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(num_rows)
        return array[first[start] : first[start] + stop - start]

    return jax.make_array_from_callback((num_rows, *array.shape[1:]), rows(num_rows, mesh), part)


def place(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, which every process holds whole, where `shardings` says. No process sends another any."""

    def one(array: Any, where: NamedSharding) -> jax.Array:
        if where.is_fully_addressable:
            return jax.device_put(array, where)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(one, tree, shardings(tree, mesh))


def on_host(tree: Any) -> Any:
    """The whole arrays of `tree` as numpy has them, wherever their parts are; all processes have to ask for them."""

    def one(array: Any) -> np.ndarray:
        whole = getattr(array, "is_fully_addressable", True) or array.is_fully_replicated
        return np.asarray(array if whole else multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(one, tree)


def over(mesh: Mesh, function: Callable) -> Callable:
    """`function`, to be compiled for `mesh`, which the functions below then know."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def _mesh() -> AbstractMesh | None:
    """What the program that is traced is compiled for; None outside of `over`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES else None


def platform() -> str | None:
    """What the mesh is made of, "cpu", "gpu" or "tpu"; None without a mesh."""
    mesh = _mesh()
    return mesh and mesh.abstract_device.platform


def by_rows(array: jax.Array) -> jax.Array:
    """The array with its first axis, the rows of a batch, spread over the mesh, and the others whole."""
    mesh = _mesh()
    return array if mesh is None else jax.lax.with_sharding_constraint(array, rows(array.shape[0], mesh))


def rows_each(num_rows: int) -> int:
    """How many of the rows of a batch are on each device of the mesh."""
    mesh = _mesh()
    return num_rows if mesh is None else rows(num_rows, mesh).shard_shape((num_rows,))[0]


def gathered(path: str, weights: Any) -> Any:
    """The weight at `path`, or all weights of a tree there, as they are used: whole, or the part of them that the axis
    `model` leaves to a device.

    Their gradient is split as the weights were: each device needs the sum over all rows of its own part alone.
    """
    return jax.tree_util.tree_map_with_path(lambda below, one: _one_gathered(f"{path}/{path_of(below)}", one), weights)


def _one_gathered(path: str, weight: jax.Array) -> jax.Array:
    mesh = _mesh()
    if mesh is None:
        return weight
    split = spec(path.rstrip("/"), weight.shape, mesh)
    whole = P(*(axis if axis == "model" else None for axis in split))
    return _gathered(weight, NamedSharding(mesh, whole), NamedSharding(mesh, split))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(weight: jax.Array, whole: NamedSharding, split: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, whole)


def _gathered_forward(weight: jax.Array, whole: NamedSharding, split: NamedSharding) -> tuple[jax.Array, None]:
    return _gathered(weight, whole, split), None


def _gathered_backward(whole: NamedSharding, split: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def apart(function: Callable, *arrays: jax.Array) -> jax.Array:
    """`function` of arrays [rows, heads, ...] and [rows, ...] (two axes), each device for its own rows and heads.

    For kernels that XLA cannot split. What it returns has rows and heads too.
    """
    mesh = _mesh()
    if mesh is None or mesh.size == 1:
        return function(*arrays)
    num_rows, num_heads = arrays[0].shape[:2]
    both, alone = cache(num_rows, num_heads, mesh).spec, rows(num_rows, mesh).spec
    parts = tuple(alone if array.ndim == 2 else both for array in arrays)
    return jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=both, check_vma=False)(*arrays)


def row_by_row(function: Callable, array: jax.Array) -> Any:
    """`function` of an array [rows, ...], each device for its own rows; what it returns has as many rows.

    For what XLA would gather all rows for on every device, such as Fourier transforms.
    """
    mesh = _mesh()
    if mesh is None or mesh.size == 1:
        return function(array)
    own = rows(array.shape[0], mesh).spec
    return jax.shard_map(function, mesh=mesh, in_specs=own, out_specs=own, check_vma=False)(array)
