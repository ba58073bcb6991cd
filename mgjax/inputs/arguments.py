"""Converts and checks the arguments of public functions, a function for each kind; messages call them by `name`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000  # hertz; beyond lie slips of the hand, and what soxr cannot do

_SHOWN = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """`repr(value)` for a message, cut after 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of thousands of digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def number(value: Any, name: str, unit: str = "") -> float:
    """`value` as a finite float; messages add the `unit`, such as " of seconds".

    Raises:
      TypeError, ValueError: It is not a number, or infinite, NaN or too large.
    """
    try:
        converted = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number{unit}, got {shown(value)}") from None
    except OverflowError:
        converted = math.inf
    if not math.isfinite(converted):
        raise ValueError(f"{name} must be a finite number{unit}, got {shown(value)}")
    return converted


def seconds(value: Any, name: str) -> float:
    """`value` as a duration above 0; raises as `number`."""
    duration = number(value, name, " of seconds")
    if duration <= 0:
        raise ValueError(f"{name} must be a finite number of seconds above 0, got {shown(value)}")
    return duration


def rate(value: Any, name: str = "sample_rate") -> int:
    """`value` (44100 or 44100.0) as a sample rate in hertz; raises as `number`."""
    hertz = number(value, name, " of hertz")
    if not (_LOWEST_RATE <= hertz <= _HIGHEST_RATE and hertz.is_integer()):
        raise ValueError(
            f"{name} must be a whole number of hertz from {_LOWEST_RATE} to {_HIGHEST_RATE}, got {shown(value)}"
        )
    return int(hertz)


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer of Python or numpy; booleans are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is an integer or a float, of Python or numpy; booleans are not."""
    return is_whole(value) or isinstance(value, float | np.floating)


def each(rows: Sequence[Any], batch: int, name: str) -> list[Any]:
    """`rows` repeated to `batch` rows, if it is a single one; raises ValueError for other numbers of rows."""
    if len(rows) not in (1, batch):
        raise ValueError(f"{len(rows)} {name} do not fit {batch} rows: give one, or one for each row")
    return list(rows) if len(rows) == batch else list(rows) * batch


def array(value: Any, name: str) -> np.ndarray:
    """`value` as a numpy array of numbers: an array of numpy, JAX or torch (on any device), or nested lists.

    Raises:
      TypeError, ValueError: It is the name of a file, or cannot be converted.
    """
    if isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be audio, not the name of a file: read {shown(os.fspath(value))} first")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value  # numpy has no such type
    try:
        converted = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, or what torch cannot give
        raise ValueError(f"{name} must be an array of numbers ({error})") from None
    if converted.dtype.kind in "OSUMm":
        raise TypeError(f"{name} must be an array of numbers, got {shown(value)}")
    return converted


def rows(value: Any, name: str) -> list[Any]:
    """The rows of a batch: those of an array `[b, n, c]`, the items of a list, or `value` itself as the only row.

    A list of numbers is the samples of a single row. A row may be None or a dict of arrays.
    """
    if value is None or isinstance(value, Mapping):
        return [value]
    are_numbers = isinstance(value, list | tuple) and all(isinstance(item, int | float | np.number) for item in value)
    if isinstance(value, list | tuple) and not (value and are_numbers):
        return list(value)
    audio = array(value, name)
    return list(audio) if audio.ndim == 3 else [audio]
