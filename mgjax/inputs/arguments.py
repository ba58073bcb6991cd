"""The kinds of argument that public functions take, each converted here; messages call them by `name`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000  # hertz; beyond lie slips of the hand, and what soxr cannot do

_SHOWN = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """`value` for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of thousands of digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number(value: Any, name: str, unit: str = "") -> float:
    """A finite number; `unit` says of what, as in " of seconds".

    Raises:
      TypeError, ValueError: It is none, or infinite, NaN or too large.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number{unit}, got {shown(value)}") from None
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number{unit}, got {shown(value)}")
    return found


def seconds(value: Any, name: str) -> float:
    """A time above 0; raises as `number`."""
    found = number(value, name, " of seconds")
    if found <= 0:
        raise ValueError(f"{name} must be a finite number of seconds above 0, got {shown(value)}")
    return found


def rate(value: Any, name: str = "sample_rate") -> int:
    """A sample rate in hertz, 44100 or 44100.0; raises as `number`."""
    found = number(value, name, " of hertz")
    if not (_LOWEST_RATE <= found <= _HIGHEST_RATE and found.is_integer()):
        raise ValueError(
            f"{name} must be a whole number of hertz from {_LOWEST_RATE} to {_HIGHEST_RATE}, got {shown(value)}"
        )
    return int(found)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or numpy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number, of Python or numpy."""
    return is_whole(value) or isinstance(value, float | np.floating)


def each(rows: Sequence[Any], batch: int, name: str) -> list[Any]:
    """One for each row of a batch, of one for all or one for each; raises ValueError, which calls them `name`."""
    if len(rows) not in (1, batch):
        raise ValueError(f"{len(rows)} {name} do not fit {batch} rows: give one, or one for each row")
    return list(rows) if len(rows) == batch else list(rows) * batch


def array(value: Any, name: str) -> np.ndarray:
    """An array of numbers, of numpy, JAX or torch (on any device, with a gradient or without), or of lists.

    Raises:
      TypeError, ValueError: It is the name of a file, or nothing that an array can be made of.
    """
    if isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be audio, not the name of a file: read {shown(os.fspath(value))} first")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value  # numpy has no such type
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, or what torch cannot give
        raise ValueError(f"{name} must be an array of numbers ({error})") from None
    if found.dtype.kind in "OSUMm":
        raise TypeError(f"{name} must be an array of numbers, got {shown(value)}")
    return found


def rows(value: Any, name: str) -> list[Any]:
    """The rows of a batch: those of an array of three dimensions, the items of a list, or one for all.

    A list of numbers is one sound. Rows may be None, or a dict of arrays.
    """
    if value is None or isinstance(value, Mapping):
        return [value]
    are_numbers = isinstance(value, list | tuple) and all(isinstance(item, int | float | np.number) for item in value)
    if isinstance(value, list | tuple) and not (value and are_numbers):
        return list(value)
    found = array(value, name)
    return list(found) if found.ndim == 3 else [found]
