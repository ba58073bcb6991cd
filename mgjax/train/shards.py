"""The shards of a training state in files: each process writes those of its devices, and any mesh reads them again.

A file `shards-<process>-of-<processes>.bin` holds the bytes of shards one after the other, and the `.json` beside it
where each is: its array, its bounds in that, its dtype and its place in the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mgjax.devices.sharding import path_of
from mgjax.errors import CheckpointError, ConfigError
from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.train.state import TrainState

Bounds = tuple[tuple[int, int], ...]  # start and stop along each axis

_INDEX = re.compile(r"(shards-\d+-of-\d+)\.json")


class Shard(NamedTuple):
    """A part of an array, on the host."""

    path: str  # of the array in the tree
    shape: tuple[int, ...]  # of the whole array
    bounds: Bounds
    values: np.ndarray


class _Stored(NamedTuple):
    """A shard in a file."""

    file: Path
    offset: int
    bounds: Bounds
    dtype: np.dtype


def of_process(state: TrainState, *, every_replica: bool) -> list[Shard]:
    """Copies of the shards that the devices of this process hold.

    Of what several processes hold, one gives it, unless `every_replica` is to be written: then a process can read its
    own devices' shards again without the others.
    """
    shards: dict[tuple[str, Bounds], Shard] = {}
    for tree_path, leaf in jax.tree_util.tree_leaves_with_path(state):
        path = path_of(tree_path)
        for shard in leaf.addressable_shards:
            bounds = _bounds(shard.index, leaf.shape)
            if (every_replica or shard.replica_id == 0) and (path, bounds) not in shards:
                shards[path, bounds] = Shard(path, leaf.shape, bounds, np.array(shard.data))
    return list(shards.values())


def name(process: int, count: int) -> str:
    """The name of the files of a process, without their endings."""
    return f"shards-{process:05d}-of-{count:05d}"


def write(folder: Path, stem: str, shards: list[Shard]) -> None:
    """Writes shards to the files `stem` in `folder`; the index comes last."""
    index, offset = [], 0
    with files.replacing(folder / f"{stem}.bin") as file:
        for shard in shards:
            content = np.ascontiguousarray(shard.values).reshape(-1).view(np.uint8)
            index.append([shard.path, shard.shape, shard.bounds, str(shard.values.dtype), offset])
            file.write(content.data)
            offset += content.size
    files.write_text(folder / f"{stem}.json", json.dumps({"bytes": offset, "shards": index}))


def stems(names: Mapping[str, int]) -> list[str]:
    """Of the files in a folder, the names of the whole pairs, without their endings."""
    return sorted(match[1] for name in names if (match := _INDEX.fullmatch(name)) and f"{match[1]}.bin" in names)


def read(folder: Path, like: TrainState) -> TrainState:
    """The state in the files in `folder`, on the devices of `like`, a tree of `jax.ShapeDtypeStruct` with shardings.

    Each process reads the parts that its devices need.

    Raises:
      ConfigError: It is the state of another model.
      CheckpointError: Parts are missing.
    """
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    stored: dict[str, list[_Stored]] = {}
    for stem in stems(paths.sizes(folder)):
        index = files.read_json(folder / f"{stem}.json", files.LARGEST_TEXT)
        for path, shape, bounds, dtype, offset in index["shards"]:
            shapes[path] = (tuple(shape), dtype)
            within = tuple((int(low), int(high)) for low, high in bounds)
            stored.setdefault(path, []).append(_Stored(folder / f"{stem}.bin", offset, within, jnp.dtype(dtype)))
    leaves = jax.tree_util.tree_leaves_with_path(like)
    expected = {path_of(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}
    if shapes != expected:
        differing = sorted(path for path in shapes | expected if shapes.get(path) != expected.get(path))
        raise ConfigError(
            f"{folder}: has other arrays than this model and optimiser; different are {', '.join(differing[:6])}. Give "
            "another folder, or the settings and the version that it began with"
        )

    def place(tree_path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        parts = stored[path_of(tree_path)]
        return jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda index: _assembled(parts, _bounds(index or (), leaf.shape), path_of(tree_path)),
        )

    return jax.tree_util.tree_map_with_path(place, like)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))


def _assembled(parts: list[_Stored], bounds: Bounds, path: str) -> np.ndarray:
    """The part of an array within `bounds`, put together from stored shards."""
    for part in parts:  # as it is, where the mesh has not changed
        if part.bounds == bounds:
            return _values(part)
    result = np.empty([high - low for low, high in bounds], parts[0].dtype)
    missing = np.ones(result.shape, bool)
    for part in parts:
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(part.bounds, bounds, strict=True)]
        if all(low < high for low, high in common):
            source = tuple(slice(low - a, high - a) for (low, high), (a, _) in zip(common, part.bounds, strict=True))
            target = tuple(slice(low - c, high - c) for (low, high), (c, _) in zip(common, bounds, strict=True))
            result[target] = _values(part)[source]
            missing[target] = False
    if missing.any():
        raise CheckpointError(f"{parts[0].file.parent}: parts of {path} are missing")
    return result


def _values(part: _Stored) -> np.ndarray:
    shape = [high - low for low, high in part.bounds]
    count = math.prod(shape) * part.dtype.itemsize
    content = paths.read_range(part.file, part.offset, count)
    if len(content) != count:
        raise CheckpointError(f"{os.fspath(part.file)}: ends early")
    return np.frombuffer(content, part.dtype).reshape(shape)
