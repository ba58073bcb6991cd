"""Dataclasses to JSON and back, strictly: unknown keys, wrong types and numbers out of bounds are errors."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from mgjax.errors import ConfigError

Config = TypeVar("Config")

LONGEST = 2**20  # samples, frames, hertz, tokens
_LARGEST = 2**63

# The lowest and highest value of the fields of these names, in every config of a model: far beyond any real model, and
# small enough that computing shapes and tables from an untrusted config takes a second.
_LIMITS = {
    "dim ffn_dim head_dim latent_dim num_filters conv_dims code_size codebook_size": (1, 2**18),
    "num_layers num_heads num_codebooks num_code_streams eval_codebooks num_bins": (1, 2**10),
    "channels phases ratios compress dilation_growth conv_strides position_groups": (1, 2**10),
    "kernel_size last_kernel_size residual_kernel_size conv_kernels position_kernel": (1, 2**10),
    "num_mels image_size patch_size window": (1, 2**12),
    "depths": (1, 2**7),
    "sample_rate fft_size hop_length num_frames vocab_size max_positions downsample": (1, LONGEST),
    "num_residual_layers num_lstm_layers mlp_ratio": (0, 64),
    "num_buckets": (4, 2**10),
    "max_distance": (2, LONGEST),
    "delays": (0, 1000),
    "norm_eps trim_right_ratio": (0, 1),
    "chunk_overlap": (0, 0.9),
    "seconds window_seconds chunk_seconds bandwidths": (1e-3, 1e6),
}
_LIMIT_OF = {name: limits for names, limits in _LIMITS.items() for name in names.split()}


def to_json(config: Any) -> str:
    """`config` as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type[Config], values: Any, where: str = "") -> Config:
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
        raise ConfigError(f"{where}: unknown keys {unknown!r:.200}; known are {sorted(hints)}")
    try:
        return cls(**{name: _coerce(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {error}") from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` converted to the type `hint`; JSON has neither tuples nor a difference between 2 and 2.0."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in options:
            return None
        is_list = isinstance(value, list | tuple)
        options = tuple(option for option in options if option is not types.NoneType)
        options = tuple(o for o in options if (typing.get_origin(o) is tuple) == is_list) or options
        exact = [option for option in options if option is type(value)]
        if not exact and type(value) is int:  # JSON writes 120 for 120.0
            exact = [option for option in options if option is float]
        return _coerce((*exact, *options)[0], value, where)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object, got {value!r:.200}")
        return {name: _coerce(options[1], item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r:.200}")
        if options[-1] is not Ellipsis and len(options) != len(value):
            raise ConfigError(f"{where}: expected a list of {len(options)}, got {value!r:.200}")
        hints: Iterable[Any] = itertools.repeat(options[0]) if options[-1] is Ellipsis else options
        return tuple(_coerce(item_hint, item, where) for item_hint, item in zip(hints, value, strict=False))
    if isinstance(value, int | float) and not -_LARGEST < value < _LARGEST:  # NaN too
        raise ConfigError(f"{where}: expected a finite number between -2**63 and 2**63, got {value!r:.200}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r:.200}")
    return value


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises ConfigError unless the field `name` has a `value` out of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {choices}, got {value!r:.200}")


_RANGES = {
    "above 0": lambda value: 0 < value < math.inf,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
    "0 or more": lambda value: 0 <= value < math.inf,
    "0 or above and below 1": lambda value: 0 <= value < 1,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "1 or more": lambda value: 1 <= value < math.inf,
}


def ranged(config: Any, expected: str, names: str, path: str = "") -> None:
    """Raises ConfigError unless fields of the dataclass `config` (numbers, tuples of them, or None) are in a range.

    The range is a key of `_RANGES`, `names` are separated by spaces, `path` comes before them in messages.
    """
    for name in names.split():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number is None or _RANGES[expected](number) for number in numbers):
            raise ConfigError(f"{path}{name} must be {expected}, got {value}")


def bounded(config: Any) -> None:
    """Raises ConfigError unless the fields of `config`, numbers or tuples of them, are within `_LIMITS`."""
    for name, value in vars(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > 1024:
            raise ConfigError(f"{name} must have at most 1024 entries, got {len(value)}")
        if name in _LIMIT_OF and value is not None:
            low, high = _LIMIT_OF[name]
            if not all(low <= number <= high for number in numbers):
                raise ConfigError(f"{name} must be {low} or more and at most {high}, got {value!r:.200}")
