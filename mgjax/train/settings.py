"""The settings of a run in its directory: `config.json`, which a run that goes on must agree with."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mgjax.errors import ConfigError
from mgjax.inputs import files
from mgjax.storage.paths import Path
from mgjax.train.trainable import Filter


def check_run(path: Path, run: Any, may_change: Filter) -> None:
    """Raises ConfigError if `write_run` stored other settings at `path`, apart from those that `may_change` accepts."""
    current = _flat(json.loads(_to_json(run)))  # tuples become lists, as they are stored
    stored = _flat(files.read_json(path, error=ConfigError))
    differing = sorted(key for key in stored | current if stored.get(key) != current.get(key) and not may_change(key))
    if differing:
        listed = ", ".join(f"{key} is {stored.get(key)!r} there and {current.get(key)!r} here" for key in differing[:6])
        raise ConfigError(
            f"{path.parent} holds a run with other settings: {listed}. Give another folder, or the settings in {path}"
        )


def write_run(path: Path, run: Any) -> None:
    """Writes the settings of a run, a dataclass or a dict of them, as JSON."""
    files.write_text(path, _to_json(run))


def _to_json(run: Any) -> str:
    return json.dumps(run, default=dataclasses.asdict, indent=2) + "\n"


def _flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Settings by their paths."""
    if not isinstance(settings, dict):
        return {path: settings}
    below = [_flat(value, f"{path}.{name}" if path else name) for name, value in settings.items()]
    return {key: value for part in below for key, value in part.items()}
