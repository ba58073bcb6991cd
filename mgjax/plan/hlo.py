"""The memory traffic and the collectives of a compiled program, read from its HLO.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as the loop runs, and what is done in
pieces, such as a collective that is spread over the computations it overlaps with, counts once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

# Instructions without memory traffic of their own: they name, group or wait for others.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "opt-barrier", "add-dependency", "async-update", "iota", "broadcast"),
}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of HLO."""

    name: str  # unique within its computation
    sizes: tuple[tuple[float, bool], ...]  # bytes of the result, and whether in HBM; of each part of a tuple
    kind: str  # the opcode, such as "fusion"
    operands: tuple[str, ...]  # names of instructions of the same computation
    rest: str  # the text after the operands: the attributes
    is_root: bool  # whether it is the result of its computation

    @property
    def bytes(self) -> float:
        """The size of the result in HBM."""
        return sum(size for size, is_in_hbm in self.sizes if is_in_hbm)

    @property
    def all_bytes(self) -> float:
        """The size of the result, wherever it is."""
        return sum(size for size, _ in self.sizes)

    def called(self, role: str) -> str:
        """The computation that it names as `role`; "" for none."""
        match = re.search(rf"\b{role}=%?([\w.\-]+)", self.rest)
        return match[1] if match else ""


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation."""

    kind: str  # one of `_COLLECTIVES`
    bytes: float  # the size of its largest array on a device: what is gathered, summed, scattered or sent
    groups: np.ndarray  # the devices that communicate: [groups, devices of a group]; of a permutation, pairs
    times: float  # how often it runs

    @property
    def sent(self) -> float:
        """The bytes that a device sends each time, by ring algorithms."""
        n = self.groups.shape[1]
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


class Program:
    """The compiled SPMD program of one device, from `text`, the HLO of `compiled.as_text()`.

    Loops whose trip count is not constant run `open_loops` times, and all counts are of one of these.
    """

    def __init__(self, text: str, num_devices: int, open_loops: int = 1):
        self._computations, self._entry = _parse(text)
        self._num_devices, self._open_loops = num_devices, open_loops

    def bytes_moved(self) -> float:
        """Bytes that are read from and written to HBM."""
        return sum(times * self._moved(instruction, operands) for instruction, operands, times in self._run())

    def operations(self) -> Iterator[tuple[Instruction, float]]:
        """The instructions that do work of their own, each a launch on GPUs, and how often each runs."""
        for instruction, _, times in self._run():
            if instruction.kind not in _FREE and not instruction.kind.endswith(("-done", "-update")):
                yield instruction, times

    def written(self, instruction: Instruction) -> float:
        """The most bytes that an instruction writes to HBM: of an update in place, the slice where it is a fusion's."""
        sizes = instruction.sizes
        if instruction.kind.endswith("-start"):  # the first part of a copy's is its target; that of others, their input
            sizes = sizes[:1] if instruction.kind == "copy-start" else sizes[len(instruction.operands) :]
        if instruction.kind in ("dynamic-update-slice", "scatter"):
            return 0.0
        written = [math.inf] * len(sizes)
        if instruction.kind == "fusion" and len(results := self._results(instruction.called("calls"))) == len(sizes):
            written = results
        return sum(min(size, part) for (size, is_in_hbm), part in zip(sizes, written, strict=True) if is_in_hbm)

    def collectives(self) -> list[Collective]:
        """All collectives, in the order of the program."""
        collectives: list[Collective] = []
        seen: set[str] = set()
        for outer, _, times in self._run():
            for instruction in self._collectives_in(outer):
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                if instruction.kind.endswith("-done") or (channel and channel[1] in seen):
                    continue
                if channel:
                    seen.add(channel[1])
                kind = instruction.kind.removesuffix("-start")
                # The result of an asynchronous start is a tuple of its operands and its result.
                is_start = kind != instruction.kind
                size = max(size for size, _ in instruction.sizes) if is_start else instruction.all_bytes
                groups = _groups(instruction.rest, self._num_devices)
                if kind == "reduce-scatter":
                    size *= groups.shape[1]
                # A fusion of this name is an all-reduce of whose sum each device keeps only a part.
                elif not instruction.is_root and outer.called("calls").startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                if groups.shape[1] > 1:
                    collectives.append(Collective(kind, size, groups, times))
        return collectives

    def _collectives_in(self, instruction: Instruction) -> list[Instruction]:
        """The collectives in an instruction, or itself if it is one."""
        if instruction.kind.removesuffix("-start") in _COLLECTIVES:
            return [instruction]
        if instruction.kind not in ("fusion", "async-start"):
            return []
        inner = self._computations.get(instruction.called("calls"), {})
        return [collective for part in inner.values() for collective in self._collectives_in(part)]

    def _run(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """Every instruction outside of fusions, with its computation and how often it runs."""
        pending = [(self._entry, 1.0 / self._open_loops)]
        while pending:
            name, times = pending.pop()
            computation = self._computations[name]
            for instruction in computation.values():
                yield instruction, computation, times
                if instruction.kind == "while":
                    pending.append((instruction.called("body"), times * self._trip_count(instruction)))
                elif instruction.kind == "conditional":
                    listed = r"branch_computations=\{([^}]*)\}|true_computation=%([\w.\-]+)"
                    branches = re.findall(r"[\w.\-]+", "".join(re.findall(listed, instruction.rest)[0]))
                    pending.append((max(branches, key=lambda branch: len(self._computations[branch])), times))
                elif instruction.kind == "call":
                    pending.append((instruction.called("to_apply"), times))

    def _trip_count(self, loop: Instruction) -> int:
        """How often a loop runs: the constant that its counter is compared with."""
        count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if count:
            return int(count[1])
        condition = self._computations[loop.called("condition")]
        root = next(instruction for instruction in condition.values() if instruction.is_root)
        constants = [
            instruction.rest
            for instruction in condition.values()
            if instruction.kind == "constant" and (root.kind != "compare" or instruction.name in root.operands)
        ]
        bounds = [int(match[1]) for match in (re.match(r"\((\d+)\)", constant) for constant in constants) if match]
        return bounds[0] if len(bounds) == 1 else self._open_loops

    def _moved(self, instruction: Instruction, computation: Computation) -> float:
        """Bytes that an instruction reads and writes."""
        kind, operands = instruction.kind, instruction.operands
        if kind in _FREE or kind.endswith(("-done", "-update")):
            return 0
        if kind == "fusion":
            return self._moved_by_fusion(instruction, computation)
        if kind == "copy-start":  # (target, source, flag)
            return instruction.bytes
        if kind in ("slice-start", "async-start"):  # (operands, slice, flag)
            size, is_in_hbm = instruction.sizes[len(operands)]
            return size * (instruction.sizes[0][1] + is_in_hbm)
        if kind == "custom-call" and not operands:
            return 0  # an allocation
        if kind in ("dynamic-slice", "slice", "gather"):
            return 2 * instruction.bytes
        if kind in ("dynamic-update-slice", "scatter"):
            return 2 * computation[operands[-1 if kind == "scatter" else 1]].bytes
        return instruction.bytes + sum(computation[name].bytes for name in operands if name in computation)

    def _moved_by_fusion(self, fusion: Instruction, computation: Computation) -> float:
        """Bytes that a fusion reads of its operands, which may be slices of them, and writes, which may be a slice."""
        name = fusion.called("calls")
        sizes = [computation[operand].bytes for operand in fusion.operands]
        read = sum(min(size, self._read(name, i)) if size else 0.0 for i, size in enumerate(sizes))
        return read + self.written(fusion)

    @functools.cache  # noqa: B019 - a program is read once and let go
    def _read(self, name: str, number: int) -> float:
        """Bytes that a computation reads of one of its parameters, which it may only slice, or only write into."""
        inner = self._computations[name]
        users: dict[str, list[Instruction]] = {instruction: [] for instruction in inner}
        for instruction in inner.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)

        def read(source: str) -> float:
            total = 0.0
            for user in users[source]:
                if user.kind in ("bitcast", "copy", "reshape") and users[user.name]:
                    total += read(user.name)
                elif user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == source:
                    total += user.all_bytes
                elif user.kind == "fusion":
                    numbers = (i for i, operand in enumerate(user.operands) if operand == source)
                    total += sum(self._read(user.called("calls"), i) for i in numbers)
                elif user.kind == "dynamic-update-slice" and user.operands[0] == source:
                    continue
                elif user.kind in ("tuple", "custom-call") or user.kind in _COLLECTIVES:
                    continue  # handed on, or counted where it is sent
                else:
                    return math.inf
            return total

        parameters = (instruction for instruction in inner.values() if instruction.kind == "parameter")
        return read(next(parameter.name for parameter in parameters if parameter.rest == f"({number})"))

    @functools.cache  # noqa: B019
    def _results(self, name: str) -> list[float]:
        """Bytes that a computation writes of each of its results, of which it may update only a slice."""
        inner = self._computations[name]
        root = next(instruction for instruction in inner.values() if instruction.is_root)
        written = []
        for result in [inner[name] for name in root.operands] if root.kind == "tuple" else [root]:
            while result.kind in ("bitcast", "reshape", "copy"):
                result = inner[result.operands[0]]
            if result.kind == "fusion" and len(result.sizes) == 1:
                written += self._results(result.called("calls"))
            elif result.kind == "dynamic-update-slice":
                written.append(inner[result.operands[1]].all_bytes)
            else:
                written.append(0.0 if result.kind == "parameter" else math.inf)
        return written


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of its entry."""
    computations: dict[str, Computation] = {}
    entry: str | None = None
    current: Computation | None = None
    for line in text.splitlines():
        heading = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if heading:
            current = computations.setdefault(heading[2], {})
            entry = heading[2] if heading[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest[0] == "(" else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    kind = rest[: rest.index("(")]
    inside = rest[len(kind) :]
    end = _closing(inside) + 1
    operands = tuple(re.findall(r"%([\w.\-]+)", inside[:end]))
    # The parentheses of a parameter hold its number, those of a constant its value.
    rest = inside[:end] if kind in ("parameter", "constant") else inside[end:]
    return Instruction(head[2], _sizes(shape), kind, operands, rest, bool(head[1]))


def _closing(text: str) -> int:
    """The position at which the parenthesis closes that `text` begins with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


@functools.cache
def _sizes(text: str) -> tuple[tuple[float, bool], ...]:
    """The bytes of each array in the text of a shape, and whether it is in HBM."""
    parts = []
    for kind, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
        bits = _BITS.get(kind) or int((re.findall(r"^[a-z]+(\d+)", kind) or ["0"])[0])
        space = re.search(r"S\((\d+)\)", layout)
        count = math.prod(int(size.removeprefix("<=")) for size in dims.split(",") if size)
        parts.append((bits / 8 * count, space is None or space[1] == "0"))
    return tuple(parts)


def _groups(rest: str, num_devices: int) -> np.ndarray:
    """The groups of devices of a collective, in any of the forms that HLO writes them in."""
    listed = re.search(r"(?:source_target_pairs|replica_groups)=\{(\{.*?\})\}", rest)
    if listed:
        return np.array([[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", rest
    )
    if mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        sizes = [int(size) for size in axes.values()]
        devices = _iota(mesh[2] or str(num_devices), mesh[3]).reshape(sizes)
        along = [list(axes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        count = math.prod(sizes[axis] for axis in along)
        return np.moveaxis(devices, along, range(-len(along), 0)).reshape(-1, count)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        return _iota(iota[2], iota[3]).reshape([int(size) for size in iota[1].split(",")])
    return np.arange(num_devices)[None]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """All devices in an array of `sizes` whose axes are then transposed to `order`."""
    shape = [int(size) for size in sizes.split(",")]
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose([int(axis) for axis in order.split(",")]) if order else devices
