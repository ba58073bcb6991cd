"""What a compiled program does, read from its HLO: the bytes it moves through memory, and what devices send each other.

XLA's own count takes the body of a loop for one pass. Here it counts as often as the loop runs, and what is done piece
by piece, such as a collective that is spread over the computations it runs beside, counts once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

# Instructions that move nothing themselves: they name, group or wait for what others do.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "opt-barrier", "add-dependency", "async-update", "iota", "broadcast"),
}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of HLO.

    Attributes:
      shapes: (bits of a number, dimensions, whether in the large memory) of the result, or of each part of it.
      operands: Names of instructions of the same computation.
      rest: All that stands after the operands.
    """

    name: str
    shapes: tuple[tuple[int, tuple[int, ...], bool], ...]
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def bytes(self) -> float:
        """Of the result, as far as it lies in the large memory."""
        return sum(_size(bits, dims) for bits, dims, is_large in self.shapes if is_large)

    def called(self, role: str) -> str | None:
        """The computation that it names as `role`."""
        match = re.search(rf"\b{role}=%?([\w.\-]+)", self.rest)
        return match and match[1]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Something that devices send each other.

    Attributes:
      kind: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
      bytes: Of the largest array that a device has of it: what is gathered, summed, scattered or sent.
      groups: The devices that talk to each other, in the order of the mesh: [groups, devices of a group]. Of a
        permutation, pairs.
      times: How often it runs.
    """

    kind: str
    bytes: float
    groups: np.ndarray
    times: float

    @property
    def sent(self) -> float:
        """The bytes that a device sends each time."""
        n = self.groups.shape[1]
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


class Program:
    """A compiled program of one device, of the many that run it together.

    Args:
      text: As `compiled.as_text()` gives it.
      num_devices: How many run it.
      open_loops: How often loops run whose end is not written in the program.
    """

    def __init__(self, text: str, num_devices: int, open_loops: int = 1):
        self._computations, self._entry = _parse(text)
        self._num_devices, self._open_loops = num_devices, open_loops

    def bytes_moved(self) -> float:
        """Bytes that are read from and written to the large memory."""
        return sum(times * self._moved(one, where) for one, where, times in self._run())

    def collectives(self) -> list[Collective]:
        """All that devices send each other, in the order of the program."""
        collectives, seen = [], set()
        for instruction, _, times in self._run():
            for one in self._sent_by(instruction):
                channel = re.search(r"channel_id=(\d+)", one.rest)
                if one.kind.endswith("-done") or (channel and channel[1] in seen):
                    continue
                seen.add(channel and channel[1])
                kind = one.kind.removesuffix("-start")
                sizes = [_size(bits, dims) for bits, dims, _ in one.shapes]
                # What starts asynchronously holds its operands and its result side by side.
                size = max(sizes) if kind != one.kind else sum(sizes)
                groups = _groups(one.rest, self._num_devices)
                if kind == "reduce-scatter":
                    size *= groups.shape[1]
                elif one.is_root is False and self._is_scattered(instruction):
                    kind = "reduce-scatter"
                if groups.shape[1] > 1:
                    collectives.append(Collective(kind, size, groups, times))
        return collectives

    def _sent_by(self, instruction: Instruction) -> list[Instruction]:
        """The collectives that an instruction is, or holds."""
        if instruction.kind.removesuffix("-start") in _COLLECTIVES:
            return [instruction]
        if instruction.kind not in ("fusion", "async-start"):
            return []
        inner = self._computations.get(instruction.called("calls") or "", {})
        return [one for held in inner.values() for one in self._sent_by(held)]

    def _is_scattered(self, instruction: Instruction) -> bool:
        """Whether of the sum that a fusion makes, each device keeps a part alone."""
        return (instruction.called("calls") or "").startswith("all-reduce-scatter")

    def _run(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """Every instruction that runs by itself, the computation that it is in, and how often it runs."""
        waiting = [(self._entry, 1.0)]
        while waiting:
            name, times = waiting.pop()
            computation = self._computations[name]
            for one in computation.values():
                yield one, computation, times
                if one.kind == "while":
                    waiting.append((one.called("body"), times * self._passes(one)))
                elif one.kind == "conditional":
                    branches = re.search(r"(?:branch_computations=\{([^}]*)\}|true_computation=%([\w.\-]+))", one.rest)
                    names = re.findall(r"%?([\w.\-]+)", branches[1] or branches[2])
                    waiting.append((max(names, key=lambda branch: len(self._computations[branch])), times))
                elif one.kind == "call":
                    waiting.append((one.called("to_apply"), times))

    def _passes(self, loop: Instruction) -> int:
        """How often a loop runs: what its counter is compared with."""
        count = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if count:
            return int(count[1])
        condition = self._computations[loop.called("condition")]
        root = next(one for one in condition.values() if one.is_root)
        bounds = [
            re.match(r"\((\d+)\)", one.rest)
            for one in condition.values()
            if one.kind == "constant" and (root.kind != "compare" or one.name in root.operands)
        ]
        bounds = [int(bound[1]) for bound in bounds if bound]
        return max(bounds) if len(bounds) == 1 else self._open_loops

    def _moved(self, one: Instruction, where: Computation) -> float:
        """Bytes that an instruction reads and writes."""
        kind = one.kind
        if kind in _FREE or kind.endswith(("-done", "-update")):
            return 0
        if kind == "fusion":
            return self._moved_by_fusion(one, where)
        if kind == "copy-start":  # to, from, and a flag
            return one.bytes
        if kind in ("slice-start", "async-start"):  # of what, what of it, and a flag
            bits, dims, is_large = one.shapes[len(one.operands)]
            return _size(bits, dims) * (one.shapes[0][2] + is_large)
        if kind == "custom-call" and one.operands == ():
            return 0  # memory that is set aside
        if kind in ("dynamic-slice", "slice", "gather"):
            return 2 * one.bytes
        if kind in ("dynamic-update-slice", "scatter"):
            return 2 * where[one.operands[-1 if kind == "scatter" else 1]].bytes
        return one.bytes + sum(where[name].bytes for name in one.operands if name in where)

    def _moved_by_fusion(self, fusion: Instruction, where: Computation) -> float:
        """What a fusion reads of each operand, which may be a slice, and what it writes, which may be one too."""
        name = fusion.called("calls")
        read = sum(
            min(where[operand].bytes, self._read(name, place)) if where[operand].bytes else 0.0
            for place, operand in enumerate(fusion.operands)
        )
        results = self._results(name)
        if len(results) != len(fusion.shapes):
            return read + fusion.bytes
        sizes = (_size(bits, dims) if is_large else 0.0 for bits, dims, is_large in fusion.shapes)
        return read + sum(min(size, written) for size, written in zip(sizes, results, strict=True))

    @functools.cache  # noqa: B019 - a program is read once and let go
    def _read(self, name: str, place: int) -> float:
        """Bytes that a computation reads of one of its parameters, which it may only slice, or only write into."""
        inner = self._computations[name]
        users: dict[str, list[Instruction]] = {one: [] for one in inner}
        for one in inner.values():
            for operand in dict.fromkeys(one.operands):
                users[operand].append(one)

        def read(of: str) -> float:
            total = 0.0
            for user in users[of]:
                if user.kind in ("bitcast", "copy", "reshape") and users[user.name]:
                    total += read(user.name)
                elif user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == of:
                    total += _whole(user)
                elif user.kind == "fusion":
                    places = (place for place, operand in enumerate(user.operands) if operand == of)
                    total += sum(self._read(user.called("calls"), place) for place in places)
                elif user.kind == "dynamic-update-slice" and user.operands[0] == of:
                    continue
                elif user.kind in ("tuple", "custom-call") or user.kind in _COLLECTIVES:
                    continue  # handed on, or counted where it is sent
                else:
                    return math.inf
            return total

        return read(next(one.name for one in inner.values() if one.kind == "parameter" and one.rest == f"({place})"))

    @functools.cache  # noqa: B019
    def _results(self, name: str) -> list[float]:
        """Bytes that a computation writes of each of its results, which it may only update in a place."""
        inner = self._computations[name]
        root = next(one for one in inner.values() if one.is_root)
        written = []
        for result in [inner[name] for name in root.operands] if root.kind == "tuple" else [root]:
            while result.kind in ("bitcast", "reshape", "copy"):
                result = inner[result.operands[0]]
            if result.kind == "fusion" and len(result.shapes) == 1:
                written += self._results(result.called("calls"))
            elif result.kind == "dynamic-update-slice":
                written.append(_whole(inner[result.operands[1]]))
            else:
                written.append(0.0 if result.kind == "parameter" else math.inf)
        return written


def _whole(instruction: Instruction) -> float:
    return sum(_size(bits, dims) for bits, dims, _ in instruction.shapes)


def _size(bits: int, dims: tuple[int, ...]) -> float:
    return bits / 8 * math.prod(dims)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of the one it begins with."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        heading = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if heading:
            current = computations.setdefault(heading[2], {})
            entry = heading[2] if heading[1] else entry
        elif current is not None and (one := _instruction(line)):
            current[one.name] = one
    if entry is None:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    begin = re.match(r"\s+(ROOT )?%([\w.\-]+) = ", line)
    if not begin:
        return None
    rest = line[begin.end() :]
    end = _closing(rest) + 1 if rest[0] == "(" else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    kind = re.match(r"[\w\-]+", rest)[0]
    inside = rest[len(kind) :]
    end = _closing(inside) + 1
    operands = tuple(re.findall(r"%([\w.\-]+)", inside[:end]))
    # What a parameter or a constant has in its parentheses is no name.
    rest = inside[:end] if kind in ("parameter", "constant") else inside[end:]
    return Instruction(begin[2], _shapes(shape), kind, operands, rest, bool(begin[1]))


def _closing(text: str) -> int:
    """Where the parenthesis closes that `text` begins with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis is not closed: {text[:80]}")


@functools.cache
def _shapes(text: str) -> tuple[tuple[int, tuple[int, ...], bool], ...]:
    parts = []
    for kind, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
        bits = _BITS.get(kind) or int((re.match(r"[a-z]+?(\d+)", kind) or [0, "0"])[1])
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size)
        parts.append((bits, sizes, space is None or space[1] == "0"))
    return tuple(parts)


def _groups(rest: str, num_devices: int) -> np.ndarray:
    """The groups of devices of a collective, in any of the forms that HLO writes them in."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", rest)
    if pairs:
        return np.array([[int(x) for x in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
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
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", rest)
    if listed:
        return np.array([[int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        return _iota(iota[2], iota[3]).reshape([int(size) for size in iota[1].split(",")])
    return np.arange(num_devices)[None]


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """All devices, counted over axes of `sizes`, which are then put into `order`."""
    sizes = [int(size) for size in sizes.split(",")]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices.transpose([int(axis) for axis in order.split(",")]) if order else devices
