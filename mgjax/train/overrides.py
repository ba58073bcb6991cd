"""Converts runs between dataclasses, which the code reads, and ml_collections ConfigDicts, which flags override."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from mgjax.config.serialization import from_dict
from mgjax.errors import ConfigError
from mgjax.train import presets

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

    Raises ConfigError with the path to a key that is unknown, or whose value is invalid.
    """
    return from_dict(cls, config.to_dict(), "config")


def read(cls: type[Run], name: str, settings: Sequence[str] = ()) -> Run:
    """The run that a preset or a config file describes, with settings of the command line.

    The `name` is a preset of `mgjax.train.presets` ("lm:small"), or a Python file whose `get_config` takes what stands
    after the colon ("my_lm.py:small"); settings are such as "--config.optim.learning_rate=1e-4" (or learning-rate).

    Raises:
      ConfigError: There is no such preset, file or setting, or a value does not suit its setting.
    """
    return from_config_dict(cls, _config_dict(_config_file(name), list(map(_with_underscores, settings))))


def _config_dict(file: str, settings: list[str]) -> ConfigDict:
    """The config of a config file with `settings`; raises ConfigError, with the nearest names of an unknown one."""
    argv = ["mgjax", f"--config={file}"]
    try:
        known = _names(_parse(argv))
        for setting in settings:
            name = setting.partition("=")[0].partition(".")[2]
            if known and name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.3)
                raise ConfigError(f"there is no setting {name}; the nearest names are {', '.join(near) or known}")
        return _parse([*argv, *settings])
    except (flags.Error, OSError, SyntaxError, AttributeError) as error:
        # The message may be a traceback of the file, whose last line is the error.
        raise ConfigError(str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")) from error


def _parse(argv: list[str]) -> ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config or ConfigDict()


def _config_file(name: str) -> str:
    """The config file and its variant, "FILE:VARIANT", where `name` may be that of a preset."""
    preset, colon, variant = name.partition(":")
    path = Path(presets.__file__).parent / f"{preset}.py"
    return f"{path}{colon}{variant}" if preset.isidentifier() and path.is_file() else name


def _with_underscores(setting: str) -> str:
    name, equals, value = setting.partition("=")
    return f"--{name.lstrip('-').replace('-', '_')}{equals}{value}"


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
