"""What is known of a piece of music, in the fields of audiocraft's MusicInfo."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any


class MetadataError(ValueError):
    """Metadata that cannot be understood."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known of a piece; None or () where nothing is. `bpm` is beats a minute, `key` such as "E minor"."""

    title: str | None = None
    artist: str | None = None
    key: str | None = None
    bpm: float | None = None
    genre: str | None = None
    moods: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    description: str | None = None
    name: str | None = None
    instrument: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any, where: str = "metadata") -> Metadata:
        """The metadata in `values`, whose unknown keys are ignored.

        Null and "" mean that a field is not known. A list may be given as one text, its parts separated by commas or
        semicolons, and a number as text, as they stand in audiocraft's sidecars and in CSV files.

        Raises:
          MetadataError: A field has the wrong type; the message begins with `where`.
        """
        if not isinstance(values, dict):
            raise MetadataError(f"{where}: expected an object of fields, got {type(values).__name__}")
        read = {"moods": _texts, "keywords": _texts, "instrument": _texts, "bpm": _number}
        fields = {}
        for field in dataclasses.fields(cls):
            if values.get(field.name) not in (None, "", []):
                name = f"{where}: {field.name}"
                fields[field.name] = read.get(field.name, _text)(values[field.name], name)
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are known, as plain values for JSON; `from_dict` reads them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value not in (None, ())
        }

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "metadata") -> Metadata:
        """As `from_dict`, of a JSON text.

        Raises:
          MetadataError: It is no JSON, or as for `from_dict`.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no UTF-8
            raise MetadataError(f"{where}: is not JSON ({error})") from None
        return cls.from_dict(values, where)

    def to_json(self) -> str:
        """One line of JSON, the same for the same metadata."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def _text(value: Any, where: str) -> str | None:
    if not isinstance(value, str):
        raise MetadataError(f"{where}: expected a text, got {value!r}")
    return value.strip() or None


def _texts(value: Any, where: str) -> tuple[str, ...]:
    parts = re.split("[,;]", value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise MetadataError(f"{where}: expected a list of texts, got {value!r}")
    return tuple(part.strip() for part in parts if part.strip())


def _number(value: Any, where: str) -> float | None:
    if isinstance(value, str) and not value.strip():
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise MetadataError(f"{where}: expected a number above 0, got {value!r}")
    return number
