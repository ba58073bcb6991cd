"""Reads the JSON files beside the weights: the settings of a model, of mgjax or of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgjax.config.serialization import Config, from_dict
from mgjax.errors import CheckpointError, ConfigError
from mgjax.inputs import files
from mgjax.storage.paths import Path


def parse_config(
    path: Path,
    cls: type[Config],
    values: Any,
    theirs: Mapping[str, tuple[str, Any]] | None = None,
    **more: Any,
) -> Config:
    """A `cls` from the values in the file `path`, and `more` of its fields.

    `theirs`, for files of transformers: each field's name in the file, and its default there.

    Raises:
      CheckpointError: A value has the wrong type or is out of bounds.
    """
    try:
        if theirs is not None:
            values = {ours: values.get(name, default) for ours, (name, default) in theirs.items()} | more
        return from_dict(cls, values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def require_values(path: Path, values: Mapping[str, Any], fixed: Mapping[str, Any], part: str = "") -> None:
    """Raises CheckpointError unless the values in the file `path` are those of `fixed`, or missing."""
    for name, expected in fixed.items():
        if values.get(name, expected) != expected:
            raise CheckpointError(f"{path}: {part}{name} is {values[name]!r:.200}; only {expected!r} is supported")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError if there is no such file, or no object in it."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give the folder that holds the model")
    content = files.read_json(path, error=CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: should hold an object; fetch the file again")
    return content
