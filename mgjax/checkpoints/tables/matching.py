"""Foreign checkpoints by table: which tensors of a file make which arrays here, read in both directions.

A table is a list of `Rule`s, made from a model's config: of every array its path, its shape and its names in the file.
`match` compares it with the names and shapes of a file: every tensor there is used or ignored by name, every array of
the model is filled, every shape is equal, or else one error lists all that differs before anything is read. `load` then
reads rule by rule, so that no more than one rule's arrays are in memory twice; `export` is the inverse.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mgjax.checkpoints.files.torch_file import Shape, Tensor
from mgjax.errors import CheckpointError
from mgjax.nn import Shapes, codebook_shapes

ArrayPath = tuple[str, ...]
Place = Callable[[ArrayPath, np.ndarray], Any]

_LISTED = 12  # names of each kind in an error

# torch 2.1 renamed weight norm's arrays; every published file has the old names, and so has what is written here.
WEIGHT_NORM_ALIASES = {
    r"\.parametrizations\.weight\.original0$": ".weight_g",
    r"\.parametrizations\.weight\.original1$": ".weight_v",
}
FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


@dataclasses.dataclass(frozen=True)
class Transform:
    """How an array here becomes one of the file: its axes are merged by `fold`, then transposed by `axes`."""

    fold: Callable[[Shape], Shape] = lambda shape: shape
    axes: tuple[int, ...] | None = None

    def source_shape(self, shape: Shape) -> Shape:
        """The shape in the file of an array of `shape` here."""
        folded = self.fold(shape)
        return tuple(folded[axis] for axis in self.axes) if self.axes else folded

    def to_source(self, array: np.ndarray) -> np.ndarray:
        """The array as it is in the file."""
        folded = array.reshape(self.fold(array.shape))
        return folded.transpose(self.axes) if self.axes else folded

    def to_target(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The array of `shape` here, from that of the file."""
        return (array.transpose(np.argsort(self.axes)) if self.axes else array).reshape(shape)


PLAIN = Transform()
FLAT = Transform(lambda shape: (math.prod(shape),))
# torch's linear layers hold (out, in); the kernel's first axis (or all but its last) is what goes in.
LINEAR = Transform(lambda shape: (shape[0], math.prod(shape[1:])), (1, 0))
LINEAR_OUT = Transform(lambda shape: (math.prod(shape[:-1]), shape[-1]), (1, 0))
CONV = Transform(axes=(2, 1, 0))  # (width, in, out) <-> (out, in, width)
CONV_TRANSPOSED = Transform(axes=(1, 2, 0))  # (width, in, out) <-> (in, out, width)
GAIN = Transform(lambda shape: (*shape, 1, 1))  # weight norm's g
FLAG = Transform(lambda shape: (1,))


@dataclasses.dataclass(frozen=True)
class Rule:
    """`sources` of a file make the arrays here that have these `shapes` by their paths, its targets.

    The targets, transformed, joined along the first axis are the sources joined along theirs (q, k and v are
    one array here). `stacked`: one target, whose first axis (the codebook) runs over the sources.
    """

    shapes: Shapes
    sources: tuple[str, ...]
    transform: Transform = PLAIN
    stacked: bool = False

    @property
    def source_shapes(self) -> list[Shape]:
        """The shapes that the sources must have."""
        expected = list(self.shapes.values())
        if self.stacked:
            return [self.transform.source_shape(expected[0][1:])] * len(self.sources)
        parts = [self.transform.source_shape(shape) for shape in expected]
        rows = sum(part[0] for part in parts) // len(self.sources)
        return [(rows, *parts[0][1:])] * len(self.sources)

    def to_targets(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The targets, from the sources."""
        expected = list(self.shapes.values())
        if self.stacked:
            return [np.stack([self.transform.to_target(array, expected[0][1:]) for array in arrays])]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        ends = np.cumsum([self.transform.source_shape(shape)[0] for shape in expected])[:-1]
        parts = zip(np.split(whole, ends), expected, strict=True)
        return [self.transform.to_target(part, shape) for part, shape in parts]

    def to_source(self, arrays: Sequence[np.ndarray], number: int) -> np.ndarray:
        """Source `number`, from the targets."""
        if self.stacked:
            return self.transform.to_source(arrays[0][number, ...])
        parts = [self.transform.to_source(array) for array in arrays]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.split(whole, len(self.sources))[number]

    def within(self, target: str, source: str = "") -> Rule:
        """The same rule for a part of a model, with these prefixes of targets and sources."""
        shapes = {target + path: shape for path, shape in self.shapes.items()}
        return dataclasses.replace(self, shapes=shapes, sources=tuple(source + name for name in self.sources))


def single(target: str, shape: Shape, source: str, transform: Transform = PLAIN) -> Rule:
    """An array here that is one tensor of the file."""
    return Rule({target: shape}, (source,), transform)


def stacked(target: str, shape: Shape, source: str, transform: Transform = PLAIN) -> Rule:
    """An array here whose first axis runs over tensors of the file; {k} in their name is the index."""
    return Rule({target: shape}, tuple(source.format(k=k) for k in range(shape[0])), transform, stacked=True)


def codebooks(source: str, k: int, v: int, d: int) -> Iterator[Rule]:
    """The k codebooks of a residual vector quantizer, of v codewords of width d, with their moving averages."""
    for name, shape in codebook_shapes(k, v, d).items():
        yield stacked(f"codebooks/{name}", shape, f"{source}.{name}", FLAG if name == "inited" else PLAIN)


def linear(target: str, source: str | list[str], inputs: Shape, outputs: Shape, *, bias: bool = True) -> Iterator[Rule]:
    """A linear layer of torch, or several that are one layer here, with a kernel of (*inputs, *outputs)."""
    names, transform = [source] if isinstance(source, str) else source, LINEAR if len(inputs) == 1 else LINEAR_OUT
    yield Rule({f"{target}/kernel": inputs + outputs}, tuple(f"{name}.weight" for name in names), transform)
    if bias:
        yield Rule({f"{target}/bias": outputs}, tuple(f"{name}.bias" for name in names), FLAT)


def norm(target: str, source: str, dim: int) -> Iterator[Rule]:
    """A layer norm of torch."""
    yield single(f"{target}/scale", (dim,), f"{source}.weight")
    yield single(f"{target}/bias", (dim,), f"{source}.bias")


def target_shapes(rules: Iterable[Rule]) -> Shapes:
    """The shape of every array here that a table fills, by its path."""
    return {path: shape for rule in rules for path, shape in rule.shapes.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """A table that fits a file: what `load` reads."""

    rules: list[Rule]
    tensors: dict[str, Tensor]


def match(
    rules: Iterable[Rule],
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    aliases: Mapping[str, str] | None = None,
    ignored: Iterable[str] = (),
) -> Match:
    """Matches a table to the tensors of a file or directory `where`.

    `aliases` are replacements (regex -> replacement) in the file's names; an alias of a name that the file has too is
    left out. `ignored` are regexes of names that are not read.

    Raises:
      CheckpointError: Names are missing or unexpected, or shapes differ; all of them are listed.
    """
    rules, ignored, aliases = list(rules), list(ignored), aliases or {}
    named: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if any(re.search(pattern, name) for pattern in ignored):
            continue
        canonical = renamed(name, aliases)
        if canonical == name or canonical not in tensors:
            named[canonical] = (name, tensor)

    expected = {source: shape for rule in rules for source, shape in zip(rule.sources, rule.source_shapes, strict=True)}
    problems = {
        "missing": [f"{name} {shape}" for name, shape in expected.items() if name not in named],
        "unexpected": [
            f"{name} {tensor.shape} ({tensor.file})" for key, (name, tensor) in named.items() if key not in expected
        ],
        "of another shape": [
            f"{name} ({tensor.file}): expected {expected[key]}, found {tensor.shape}"
            for key, (name, tensor) in named.items()
            if key in expected and tensor.shape != expected[key]
        ],
        "of another type": [
            f"{name} ({tensor.file}): expected floating point numbers, found {tensor.dtype}"
            for key, (name, tensor) in named.items()
            if key in expected and tensor.dtype not in FLOATS
        ],
    }
    if any(problems.values()):
        lines = []
        for kind, names in problems.items():
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            if names:
                lines.append(f"  {kind} ({len(names)}): {', '.join(name[:300] for name in names[:_LISTED])}{more}")
        raise CheckpointError(
            f"{where}: the weights do not fit the model that the configuration beside them describes.\n"
            + "\n".join(lines)
            + "\nUse the configuration that belongs to these weights (numbers of layers, codebooks, widths), or fetch "
            "the files again."
        )
    return Match(rules, {key: tensor for key, (_, tensor) in named.items()})


def renamed(name: str, aliases: Mapping[str, str]) -> str:
    """The name after the replacements `aliases` (regex -> replacement)."""
    for pattern, replacement in aliases.items():
        name = re.sub(pattern, replacement, name)
    return name


def load(match: Match, *, dtype: Any = None, place: Place | None = None) -> dict[str, Any]:
    """The arrays of a match as nested dictionaries, with weights of `dtype` (None: float32), but see `stays_float32`.

    `place` is called with the path and the numpy array of each array in turn; its results make up the tree. None puts
    them on the first device.
    """
    place = place or (lambda path, array: jax.device_put(array))  # jnp.asarray compiles a program for every shape
    flat = {}
    for rule in match.rules:
        arrays = rule.to_targets([match.tensors[source].read() for source in rule.sources])
        for target, array in zip(rule.shapes, arrays, strict=True):
            path = tuple(target.split("/"))
            kind = np.float32 if dtype is None or stays_float32(path) else np.dtype(dtype)
            flat[path] = place(path, np.ascontiguousarray(array, kind))
    return unflatten_dict(flat)


def read(matched: tuple[Any, Match], *, dtype: Any = None, place: Place | None = None) -> tuple[Any, dict[str, Any]]:
    """The config and the arrays of a part of a model, of what `hubert.match_hubert` returns; see `load`."""
    config, match = matched
    return config, load(match, dtype=dtype, place=place)


def stays_float32(path: ArrayPath) -> bool:
    """Whether an array is float32 whatever the dtype of the weights.

    The codec and the style conditioner are: both are small, and codes are hard decisions. So are codebooks and running
    statistics anywhere.
    """
    alone = ("params", "batch_stats", "codebooks")  # the codec or the style conditioner without the rest of the model
    return path[0] in ("codec", "style", *alone) or not {"codebooks", "stats"}.isdisjoint(path)


def export(rules: Iterable[Rule], variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file, by name, from nested dictionaries of arrays: the inverse of `load`."""
    arrays = flatten_dict(variables, sep="/")
    tensors = {}
    for rule in rules:
        targets = [arrays[target] for target in rule.shapes]
        rule = dataclasses.replace(rule, shapes={target: tuple(arrays[target].shape) for target in rule.shapes})
        for number, (source, shape) in enumerate(zip(rule.sources, rule.source_shapes, strict=True)):
            read = functools.partial(_source_array, rule, targets, number)
            tensors[source] = Tensor(shape, np.dtype(targets[0].dtype), source, read)
    return tensors


def _source_array(rule: Rule, targets: list[Any], number: int) -> np.ndarray:
    return rule.to_source([np.asarray(target) for target in targets], number)
