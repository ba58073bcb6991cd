"""Metadata of a piece of music, in the fields of audiocraft's MusicInfo."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

from mgjax.errors import MetadataError
from mgjax.inputs import files

_SPELLINGS = {"description": ("description", "caption", "text")}  # of a field's name; the first with a value counts


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a piece; None or () for unknown fields. `bpm` is beats per minute, `key` such as "E minor"."""

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
    def from_dict(cls, values: Any, where: str = "metadata", unused: list[str] | None = None) -> Metadata:
        """The metadata in `values`. Unknown keys are ignored, and added to `unused`.

        Null and "" mean that a field is unknown. As in audiocraft's sidecars and in CSV files, a list may be one text
        whose parts are separated by commas or semicolons, and a number may be a text. Case and spaces around a key do
        not matter, and a description may be called caption or text.

        Raises:
          MetadataError: A field has the wrong type, or is not text in UTF-8; the message starts with `where`.
        """
        if not isinstance(values, dict):
            raise MetadataError(f"{where}: expected an object of fields, got {type(values).__name__}")
        parsers = {"moods": _texts, "keywords": _texts, "instrument": _texts, "bpm": _number}
        unread = {str(key).strip().lower(): value for key, value in values.items() if value not in (None, "", [])}
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            for name in _SPELLINGS.get(field.name, (field.name,)):
                if name in unread and field.name not in fields:
                    fields[field.name] = parsers.get(field.name, _text)(unread.pop(name), f"{where}: {name}")
        if unused is not None:
            unused += unread
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The known fields as plain values for JSON; the inverse of `from_dict`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value not in (None, ())
        }

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "metadata", unused: list[str] | None = None) -> Metadata:
        """`from_dict` of a JSON text; raises MetadataError also where it is not JSON."""
        return cls.from_dict(files.parse_json(text, where, MetadataError, halves=True), where, unused)

    def to_json(self) -> str:
        """One line of JSON, the same for the same metadata."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def escaped(text: str) -> str:
    r"""`text` with lone surrogates (of a file name that is not UTF-8, for example) as escapes such as \udce9."""
    return text.encode(errors="backslashreplace").decode()


def _text(value: Any, where: str) -> str | None:
    if not isinstance(value, str):
        raise MetadataError(f"{where}: expected a text, got {value!r:.80}")
    if value != escaped(value):
        raise MetadataError(f"{where}: holds half of a character (a lone surrogate)")
    return value.strip() or None


def _texts(value: Any, where: str) -> tuple[str, ...]:
    parts = re.split("[,;]", value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise MetadataError(f"{where}: expected a list of texts, got {value!r:.80}")
    return tuple(text for part in parts if (text := _text(part, where)))


def _number(value: Any, where: str) -> float | None:
    if isinstance(value, str) and not value.strip():
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise MetadataError(f"{where}: expected a number above 0, got {value!r:.80}")
    return number
