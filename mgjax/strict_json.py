"""Frozen dataclasses to JSON and back. Unknown keys and wrong types are errors, so that a checkpoint of a newer version
never loads half understood."""

from __future__ import annotations

import dataclasses
import itertools
import json
import types
import typing
from typing import Any


class ConfigError(ValueError):
    """A configuration that does not describe a model that can be built."""


def to_json(config: Any) -> str:
    """`config` as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """A `cls` from plain values, the inverse of `dataclasses.asdict`.

    Raises:
      ConfigError: A key is unknown or a value has the wrong type; the message names the path to it.
    """
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; known are {sorted(hints)}")
    try:
        return cls(**{name: _coerce(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {error}") from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` asks for; JSON knows neither tuples nor the difference of 2 and 2.0."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in options:
            return None
        listed = isinstance(value, list | tuple)
        given = [option for option in options if option is not types.NoneType]
        fitting = [option for option in given if (typing.get_origin(option) is tuple) == listed] or given
        exact = [option for option in fitting if option is type(value)]
        if not exact and type(value) is int:  # JSON writes 120 for 120.0
            exact = [option for option in fitting if option is float]
        return _coerce((exact or fitting)[0], value, where)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object, got {value!r}")
        return {name: _coerce(options[1], item, f"{where}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if options[-1] is not Ellipsis and len(options) != len(value):
            raise ConfigError(f"{where}: expected a list of {len(options)}, got {value!r}")
        kinds = itertools.repeat(options[0]) if options[-1] is Ellipsis else options
        return tuple(_coerce(kind, item, where) for kind, item in zip(kinds, value, strict=False))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def one_of(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {choices}, got {value!r}")


def positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, got {getattr(config, name)}")
