"""Labels of a closed vocabulary (genre, mood, key, instrument) and numbers (tempo) as conditions."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from mgjax.audio.metadata import Metadata
from mgjax.config.conditioning import LabelConfig, NumberConfig
from mgjax.errors import ConfigError
from mgjax.inputs import arguments

# Names of conditions that differ from that of the field of the metadata.
_FIELDS = {"mood": "moods", "keyword": "keywords", "instruments": "instrument", "tempo": "bpm"}


def vectors(
    values_per_row: Sequence[Any], config: LabelConfig | NumberConfig
) -> tuple[Float32[np.ndarray, "b 1 n"], Bool[np.ndarray, "b 1"]]:
    """Encodes the labels or the number of each row as one vector; returns the vectors and the mask of rows with one.

    Labels are a multi-hot vector. A number is cos(pi k u), k from 0 on, for u from 0 at `low` to 1 at `high` on a
    logarithmic scale: of tempi, 60 to 120 is as far as 120 to 240. All is numpy, as the processes that read
    corpora are to leave JAX alone. A row has a value of the vocabulary, in upper or lower case, or several of them; or
    a number; None or () for none.

    Raises:
      TypeError, ValueError: A value is of another kind, or not in the vocabulary or the range.
    """
    if isinstance(config, LabelConfig):
        index = _index(config)
        tokens = np.zeros((len(values_per_row), 1, config.dim), np.float32)
        for row, values in enumerate(values_per_row):
            for value in _as_list(values, config):
                number = index.get(_plain(value))
                if number is None:
                    raise ValueError(f"{config.name} {value!r} is not known{_hint(value, config.values)}")
                tokens[row, 0, number] = 1
        return tokens, np.any(tokens, axis=2)
    mask = np.array([[value is not None] for value in values_per_row], bool).reshape(-1, 1)
    numbers = np.array([config.low if value is None else _number(value, config) for value in values_per_row])
    positions = np.log(numbers / config.low) / np.log(config.high / config.low)
    tokens = np.cos(np.pi * np.arange(config.dim) * positions.reshape(-1, 1, 1)) * mask[..., None]
    return tokens.astype(np.float32), mask


def row_values(labels: Any, batch: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """The labels and numbers of each row by their names, without those that are None or empty.

    `labels` is a dict for all rows, such as {"genre": "waltz", "bpm": 120}; a list with one or None for each; or None.
    `names` are the model's labels and numbers.

    Raises:
      TypeError, ValueError: It is none of these, there is not one for each row, or a name is not known.
    """
    if labels is None:
        return [{} for _ in range(batch)]
    rows = [labels] if isinstance(labels, Mapping) else labels
    is_list = isinstance(rows, Sequence) and not isinstance(rows, str)
    if not is_list or not all(row is None or isinstance(row, Mapping) for row in rows):
        raise TypeError(f'labels must be a dict, such as {{"genre": "waltz"}}, or a list of them, got {labels!r}')
    for name in (name for row in rows for name in row or ()):
        if not names:
            raise ValueError(f"this model has no labels, got {name!r}: describe the music in the text")
        if name not in names:
            raise ValueError(f"this model has no label {name!r}{_hint(str(name), names)}")
    rows = arguments.each(rows, batch, "dicts of labels")
    return [{name: value for name, value in (row or {}).items() if not _is_nothing(value)} for row in rows]


def from_metadata(fields: Mapping[str, Any], config: LabelConfig | NumberConfig) -> tuple[str, ...] | float | None:
    """Reads a label or a number of a piece for training: its values of the vocabulary, or its number; () or None.

    The condition is called as the field of `Metadata`, or mood, keyword, instruments or tempo. Values out of
    the vocabulary or the range are left out: metadata hold many mistakes.

    Raises:
      ConfigError: Metadata have no such field.
    """
    name = _FIELDS.get(config.name, config.name)
    known = [field.name for field in dataclasses.fields(Metadata)]
    if name not in known:
        raise ConfigError(f"metadata have no field for the label {config.name!r}{_hint(config.name, known)}")
    value = fields.get(name)
    if isinstance(config, NumberConfig):
        try:
            return None if value is None else _number(value, config)
        except (TypeError, ValueError):
            return None
    index = _index(config)
    names = [value] if isinstance(value, str) else value or ()
    return tuple(config.values[i] for i in sorted({index[_plain(name)] for name in names if _plain(name) in index}))


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | set | frozenset) and not value)


def _index(config: LabelConfig) -> dict[str, int]:
    return {_plain(value): i for i, value in enumerate(config.values)}


def _plain(value: str) -> str:
    return value.strip().casefold()


def _as_list(values: Any, config: LabelConfig) -> Sequence[str]:
    if values is None or isinstance(values, str):
        return [] if values is None else [values]
    if not isinstance(values, list | tuple | set | frozenset) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{config.name} must be a text, or a list of them, got {values!r}")
    return list(values)


def _number(value: Any, config: NumberConfig) -> float:
    allowed = f"{config.name} must be a number from {config.low:g} to {config.high:g}"
    if not arguments.is_number(value):
        raise TypeError(f"{allowed}, got {value!r}")
    if not config.low <= value <= config.high:
        raise ValueError(f"{allowed}, got {value}")
    return float(value)


def _hint(name: str, known: Sequence[str]) -> str:
    """The nearest of the known names, then all of them."""
    plain = {_plain(value): value for value in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    guess = f" Did you mean {plain[near[0]]!r}?" if near else ""
    return f".{guess} Known are {', '.join(known)}"
