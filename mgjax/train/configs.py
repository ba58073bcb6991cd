"""Runs as ml_collections ConfigDicts, which the command line overrides, and back as the dataclasses that code reads."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from mgjax.strict_json import from_dict

Run = TypeVar("Run")


def to_config_dict(run: Any) -> ConfigDict:
    """Every setting of the dataclass `run` as a ConfigDict, locked: an unknown key is an error.

    A setting that is None keeps the type that its annotation names, so that the command line can set it.
    """
    values = {}
    for name, hint in typing.get_type_hints(type(run)).items():
        value = getattr(run, name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(hint, types.UnionType) and typing.get_origin(_given(hint)) is None:
            kind = ConfigDict if dataclasses.is_dataclass(_given(hint)) else _given(hint)
            value = config_dict.placeholder(kind) if value is None else value
        values[name] = value
    return ConfigDict(values).lock()


def from_config_dict(cls: type[Run], config: ConfigDict) -> Run:
    """The `cls` that `config` describes.

    Raises:
      ConfigError: A key is unknown, or a value does not fit; the message names the path to it.
    """
    return from_dict(cls, config.to_dict(), "config")


def _given(hint: types.UnionType) -> Any:
    """What a setting is where it is not None."""
    return next(option for option in typing.get_args(hint) if option is not types.NoneType)
