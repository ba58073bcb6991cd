"""Runs as ml_collections ConfigDicts, which the command line overrides, and back as the dataclasses that code reads."""

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


def parse_flags(values: flags.FlagValues, words: Sequence[str]) -> list[str]:
    """What `values(words)` gives, of a command line with the flag --config and with settings of that config.

    Raises:
      ConfigError: There is no such file, run or setting, or a flag has no value that suits it.
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
        # It may hold a whole traceback of the file, whose last line says what is wrong.
        raise ConfigError(str(error).strip().splitlines()[-1].strip()) from error


def _names(config: ConfigDict) -> list[str]:
    """The settings by their paths, such as "loop.steps"."""
    found = []
    for name, value in config.items():
        inner = _names(value) if isinstance(value, ConfigDict) else []
        found += [name, *(f"{name}.{one}" for one in inner)]
    return found


def _given(hint: types.UnionType) -> Any:
    """What a setting is where it is not None."""
    return next(option for option in typing.get_args(hint) if option is not types.NoneType)
