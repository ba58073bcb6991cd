"""What devices send each other takes time, by where they are: in a torus of TPUs, in a node of GPUs, or apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mgjax.devices.chips import Chip
from mgjax.plan.hlo import Collective

_NODE = 8  # GPUs that are joined by more than a network


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What devices send each other in one way in the course of a program.

    Attributes:
      kind: Of collective.
      axes: Of the mesh, along which devices talk.
      times: How often.
      bytes: That each device sends.
      seconds: What that takes; 0 where the chip is not known.
    """

    kind: str
    axes: tuple[str, ...]
    times: float
    bytes: float
    seconds: float


def traffic(collectives: Sequence[Collective], mesh: Mesh, chip: Chip | None) -> list[Traffic]:
    """All of it, by kind and axes, the longest first. Nothing of it is sent while other traffic is."""
    sums: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for one in collectives:
        key = one.kind, _axes(one.groups[0], mesh)
        took = 0.0 if chip is None else _seconds(one, mesh, chip)
        sums[key] = sums.get(key, 0) + one.times * np.array([1, one.sent, took])
    totals = [Traffic(kind, axes, *map(float, values)) for (kind, axes), values in sums.items()]
    return sorted(totals, key=lambda item: -item.seconds)


def _axes(group: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    return tuple(axis for axis, along in zip(mesh.axis_names, places, strict=True) if len(set(along)) > 1)


def _seconds(one: Collective, mesh: Mesh, chip: Chip) -> float:
    """What a collective takes once."""
    devices = mesh.devices.flat[one.groups[0]]
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    if not chip.torus:
        is_apart = len(slices) > 1 or len({index // _NODE for index in one.groups[0]}) > 1
        return one.sent / (chip.network if is_apart else chip.link)
    if len(slices) > 1:
        return one.sent / chip.network
    if one.kind == "collective-permute":
        return one.sent / chip.link
    lengths = [int(length) for length in _extent(mesh.devices.flat)]
    group = [int(length) for length in _extent(devices)]
    # A row of chips that is closed to a ring passes on both ways; one that is not, does at its ends by one link only.
    links = [
        0 if length == 1 else 2 if length == whole and whole % chip.torus == 0 else 1
        for length, whole in zip(group, lengths, strict=True)
    ]
    if one.kind == "all-to-all":  # half of all crosses the middle of the longest row
        longest = int(np.argmax(group))
        return one.bytes * group[longest] / (4 * links[longest]) / chip.link
    return one.sent / (sum(links) * chip.link)


def _extent(devices: Iterable[Any]) -> np.ndarray:
    """How many chips they cover along each direction of the torus."""
    places = np.array([device.coords for device in devices])
    return np.array([len(set(along)) for along in places.T])
