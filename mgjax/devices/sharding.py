"""Sharding, declared once: a table of rules from a parameter's path to its partition spec over the device mesh.

The mesh has three axes. `data` is data parallelism: replicas of the model on different rows of the batch. `fsdp` splits
the rows too, and shards every large parameter, which is gathered when it is used. `model` is tensor parallelism: it
splits the heads and the wide layers. Training, loading, restoring and generation all read this table; modules never
name an axis.

Many hosts form one mesh. Each holds only the rows of a batch that its own devices work on.

A program for a mesh (`on_mesh`) constrains activations by `by_rows` and the weights in use by `gathered`, in a few
places. Otherwise XLA may propagate the sharding of the weights to the activations, and replicate the batch.
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

# The first pattern that matches the path decides. A spec applies to the last dimensions of the parameter; the ones
# before, such as the first dimension of stacked layers, are not split.
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
    """A mesh of all devices, or of `devices` (those of a topology too); one of the sizes may be -1, for the rest.

    If the devices are in several slices (of TPUs, or of GPUs that one node or NVLink connects), `data` spans the slow
    network between the slices, and `fsdp` too if `data` is too small for that. Raises ValueError if the sizes do not
    multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, model]
    if data == -1:  # on fewer devices than `fsdp`, weights are split among all of them
        sizes[1] = min(fsdp, max(1, len(devices) // max(1, model)))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, -math.prod(sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(f"data x fsdp x model = {' x '.join(map(str, sizes))} does not make {len(devices)} devices")
    between = _between_slices(sizes, devices)
    if math.prod(between) == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        within = [size // slices for size, slices in zip(sizes, between, strict=True)]
        grid = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _between_slices(sizes: list[int], devices: Sequence[Any]) -> list[int]:
    """The number of slices that each axis of the mesh spans."""
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
    """The partition spec of a parameter. A dimension that its axis does not divide is not split."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    if len(rule) > len(shape):  # a scalar of the optimiser
        rule = P()
    axes = (*(None,) * (len(shape) - len(rule)), *rule)
    return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array of `tree`, whose paths are those of a model's variables ("lm/head/kernel")."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_of(path), np.shape(leaf), mesh)), tree
    )


def path_of(path: tuple[Any, ...]) -> str:
    """The keys, fields and indices of a leaf's path in a tree, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def cache(num_rows: int, num_heads: int, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a KV cache [rows, heads, slots, head width]: rows as in a batch, heads over `model`."""
    heads = "model" if num_heads % mesh.shape["model"] == 0 else None
    return NamedSharding(mesh, P(*(rows(num_rows, mesh).spec or (None,)), heads, None, None))


def rows(num_rows: int, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of a batch: its rows over `data` and `fsdp`, as far as these divide their number."""
    axes = [axis for axis in ("data", "fsdp") if mesh.shape[axis] > 1]
    while axes and num_rows % math.prod(mesh.shape[axis] for axis in axes):
        axes.pop()
    return NamedSharding(mesh, P(tuple(axes)) if axes else P())


def local_rows(num_rows: int, mesh: Mesh) -> list[int]:
    """The rows of a batch that the devices of this process work on, in order, which this host has to read.

    Raises ValueError if there are several processes, and the mesh does not divide the number of rows.
    """
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    if num_rows % spread and mesh.is_multi_process:
        raise ValueError(
            f"{num_rows} rows cannot be spread over data x fsdp = {spread} devices on several hosts: make the batch "
            f"(data.batch_size) a multiple of {spread}"
        )
    indices = rows(num_rows, mesh).addressable_devices_indices_map((num_rows,)).values()
    return sorted({row for index in indices if index for row in range(*index[0].indices(num_rows))})


def place_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The global batch [b, ...] over the mesh, from this process's `array` of the rows in `local_rows`."""
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    num_rows = len(array) * spread // len(local_rows(spread, mesh))
    local = {row: i for i, row in enumerate(local_rows(num_rows, mesh))}

    def shard(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(num_rows)
        return array[local[start] : local[start] + stop - start]

    return jax.make_array_from_callback((num_rows, *array.shape[1:]), rows(num_rows, mesh), shard)


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts `tree`, which every process holds whole, on the devices by `shardings`, without communication."""

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings(tree, mesh))


def on_host(tree: Any) -> Any:
    """The arrays of `tree` as whole numpy arrays. A collective: all processes have to call it."""

    def gather(array: Any) -> np.ndarray:
        whole = getattr(array, "is_fully_addressable", True) or array.is_fully_replicated
        return np.asarray(array if whole else multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(gather, tree)


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` to be compiled for `mesh`, which the functions below then read."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def _mesh() -> AbstractMesh | None:
    """The mesh of the program that is being traced; None outside of `on_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES else None


def platform() -> str | None:
    """The platform of the mesh's devices, "cpu", "gpu" or "tpu"; None without a mesh."""
    mesh = _mesh()
    return None if mesh is None else mesh.abstract_device.platform


def by_rows(array: jax.Array) -> jax.Array:
    """Constrains an activation `[b, ...]`: its rows are split over the mesh, and its other axes are not."""
    mesh = _mesh()
    return array if mesh is None else jax.lax.with_sharding_constraint(array, rows(array.shape[0], mesh))


def rows_per_device(num_rows: int) -> int:
    """The number of rows of a batch on each device of the mesh."""
    mesh = _mesh()
    return num_rows if mesh is None else rows(num_rows, mesh).shard_shape((num_rows,))[0]


def gathered(path: str, weights: Any) -> Any:
    """The weight at `path`, or the tree of weights there, gathered over `fsdp` for use; `model` still splits them.

    Their gradient is split as the weights are: each device needs the sum over all rows for its own shard alone.
    """
    mesh = _mesh()
    if mesh is None:
        return weights

    def gather(below: tuple[Any, ...], weight: jax.Array) -> jax.Array:
        split = spec(f"{path}/{path_of(below)}".rstrip("/"), weight.shape, mesh)
        whole = P(*(axis if axis == "model" else None for axis in split))
        return _gathered(weight, NamedSharding(mesh, whole), NamedSharding(mesh, split))

    return jax.tree_util.tree_map_with_path(gather, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(weight: jax.Array, whole: NamedSharding, split: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, whole)


def _gathered_forward(weight: jax.Array, whole: NamedSharding, split: NamedSharding) -> tuple[jax.Array, None]:
    return _gathered(weight, whole, split), None


def _gathered_backward(whole: NamedSharding, split: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def map_rows_and_heads(function: Callable[..., Any], *arrays: jax.Array) -> jax.Array:
    """`shard_map` of `function`: each device computes its own rows and heads.

    For kernels that XLA cannot partition. Arrays of two axes are [rows, ...], all others and the result
    [rows, heads, ...].
    """
    mesh = _mesh()
    if mesh is None or mesh.size == 1:
        return function(*arrays)
    num_rows, num_heads = arrays[0].shape[:2]
    by_row, by_row_and_head = rows(num_rows, mesh).spec, cache(num_rows, num_heads, mesh).spec
    specs = tuple(by_row if array.ndim == 2 else by_row_and_head for array in arrays)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=by_row_and_head, check_vma=False)(*arrays)


def map_rows(function: Callable[[jax.Array], Any], array: jax.Array) -> Any:
    """`shard_map` of `function` over the rows of an array [rows, ...]; the result has as many rows.

    For operations that XLA would otherwise replicate, such as Fourier transforms.
    """
    mesh = _mesh()
    if mesh is None or mesh.size == 1:
        return function(array)
    by_row = rows(array.shape[0], mesh).spec
    return jax.shard_map(function, mesh=mesh, in_specs=by_row, out_specs=by_row, check_vma=False)(array)
