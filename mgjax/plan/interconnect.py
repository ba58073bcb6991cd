"""The time of collectives, in a torus of TPUs, in a node of GPUs, or over the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mgjax.devices.chips import Chip
from mgjax.plan.hlo import Collective

_NODE = 8  # GPUs that are connected by more than the network


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of a program of one kind along the same axes."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which devices communicate
    times: float
    bytes: float  # that each device sends in all
    seconds: float  # 0 if the chip is unknown


def traffic(collectives: Sequence[Collective], mesh: Mesh, chip: Chip | None) -> list[Traffic]:
    """The traffic of collectives by kind and axes, the longest first, as if one ran after the other."""
    sums: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for collective in collectives:
        key = collective.kind, _axes(collective.groups[0], mesh)
        seconds = 0.0 if chip is None else _seconds(collective, mesh, chip)
        sums[key] = sums.get(key, 0) + collective.times * np.array([1, collective.sent, seconds])
    totals = [Traffic(kind, axes, *map(float, values)) for (kind, axes), values in sums.items()]
    return sorted(totals, key=lambda item: -item.seconds)


def _axes(group: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the devices of a group differ."""
    coordinates = np.array(np.unravel_index(group, mesh.devices.shape))
    return tuple(axis for axis, along in zip(mesh.axis_names, coordinates, strict=True) if len(set(along)) > 1)


def _seconds(collective: Collective, mesh: Mesh, chip: Chip) -> float:
    """The time of a collective that runs once."""
    devices = mesh.devices.flat[collective.groups[0]]
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    if not chip.torus:
        is_apart = len(slices) > 1 or len({index // _NODE for index in collective.groups[0]}) > 1
        return collective.sent / (chip.network if is_apart else chip.link)
    if len(slices) > 1:
        return collective.sent / chip.network
    if collective.kind == "collective-permute":
        return collective.sent / chip.link
    lengths, group = _extent(mesh.devices.flat), _extent(devices)
    # In a row of chips that is closed to a ring each sends both ways, else those at the ends by one link only.
    links = [
        0 if length == 1 else 2 if length == whole and whole % chip.torus == 0 else 1
        for length, whole in zip(group, lengths, strict=True)
    ]
    if collective.kind == "all-to-all":  # half of all crosses the middle of the longest row
        longest = int(np.argmax(group))
        return collective.bytes * group[longest] / (4 * links[longest]) / chip.link
    return collective.sent / (sum(links) * chip.link)


def _extent(devices: Iterable[Any]) -> list[int]:
    """The number of chips along each axis of the torus."""
    coordinates = np.array([device.coords for device in devices])
    return [len(set(along)) for along in coordinates.T]
