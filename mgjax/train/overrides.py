"""Converts runs between dataclasses, which the code reads, and ml_collections ConfigDicts, which flags override."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from mgjax.config.serialization import from_dict
from mgjax.errors import ConfigError

Run = TypeVar("Run")


def to_config_dict(run: Any) -> ConfigDict:
    """The dataclass `run` as a locked ConfigDict, to which no keys can be added.

    A setting that is None has the type of its annotation, so that flags can set it.
    """
    values = {}
    for name, hint in typing.get_type_hints(type(run)).items():
        value = getattr(run, name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(hint, types.UnionType) and typing.get_origin(_not_none(hint)) is None:
            kind = ConfigDict if dataclasses.is_dataclass(_not_none(hint)) else _not_none(hint)
            value = config_dict.placeholder(kind) if value is None else value
        values[name] = value
    return ConfigDict(values).lock()


def from_config_dict(cls: type[Run], config: ConfigDict) -> Run:
    """The dataclass `cls` from `config`, the inverse of `to_config_dict`.

    Raises:
      ConfigError: A key is unknown, or a value is invalid; the message has the path to it.
    """
    return from_dict(cls, config.to_dict(), "config")


def parse_flags(values: flags.FlagValues, words: Sequence[str]) -> list[str]:
    """Parses a command line with the flag --config and overrides such as --config.loop.steps=9 into `values`.

    Returns the words that are not flags.

    Raises:
      ConfigError: There is no such file, run or setting, or the value of a flag is invalid.
    """
    plain = [word for word in words if not word.lstrip("-").startswith("config.")]
    unchanged = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", flag_values=unchanged, sys_argv=plain)
        unchanged(plain, known_only=True)
        known = _names(unchanged.config or ConfigDict())
        for word in words:
            name = word.partition("=")[0].partition(".")[2]
            if known and word not in plain and name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.3)
                raise ConfigError(f"there is no setting {name}; the nearest names are {', '.join(near) or known}")
        return values(words)
    except (flags.Error, OSError, SyntaxError, AttributeError) as error:
        # The message may be a traceback of the file, whose last line is the error.
        raise ConfigError(str(error).strip().splitlines()[-1].strip()) from error


def _names(config: ConfigDict) -> list[str]:
    """The paths of all settings, such as "loop.steps"."""
    names = []
    for name, value in config.items():
        inner = _names(value) if isinstance(value, ConfigDict) else []
        names += [name, *(f"{name}.{path}" for path in inner)]
    return names


def _not_none(hint: types.UnionType) -> Any:
    """The first type of a union apart from None."""
    return next(option for option in typing.get_args(hint) if option is not types.NoneType)
