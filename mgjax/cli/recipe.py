"""What a piece of music is made from: read from prompts, kept beside the sound, read again to make it once more."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from mgjax import config, strict_json

_PROMPT_KEYS = ("prompt", "text", "description")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides how a piece sounds; it is written as JSON beside it.

    The fields from `model_hash` on are filled in when the piece is made. Paths are absolute.
    """

    prompt: str
    seconds: float
    seed: int
    model: str
    sampling: config.Sampling | None = None  # None until the model has been asked for its own
    then: tuple[tuple[float, str], ...] = ()  # later prompts, and when they begin
    blend: float = 0.0
    negative: str | None = None
    melody: str | None = None  # the sound whose melody the piece follows
    melody_sha256: str | None = None
    separate: bool = False
    style: str | None = None  # the sound in whose style the piece is
    style_sha256: str | None = None
    labels: dict[str, str | float | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    continued: str | None = None  # the sound that the piece begins with
    continued_sha256: str | None = None
    trim_prompt: bool = False
    window: float | None = None
    stride: float | None = None
    dtype: str | None = None
    adapter: str | None = None
    text_encoder: str | None = None
    style_encoder: str | None = None
    loudness: float | None = -14.0
    format: str = "wav"
    model_hash: str | None = None
    mgjax: str | None = None
    jax: str | None = None
    device: str | None = None


@dataclasses.dataclass(frozen=True)
class Wish:
    """One entry of a file of prompts; None is what the command line says."""

    prompt: str
    seconds: float | None = None
    seed: int | None = None
    name: str | None = None
    then: tuple[tuple[float, str], ...] | None = None
    negative: str | None = None
    melody: str | None = None
    style: str | None = None
    labels: dict[str, str | float | tuple[str, ...]] | None = None

    def __post_init__(self):
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if self.name is not None and not re.fullmatch(r"[^\W_][^/\\:\0]{0,99}", self.name):
            raise ValueError(f"name must be a file name that begins with a letter or a digit, got {self.name!r}")


def read_recipe(path: Path) -> Recipe:
    """The recipe that `mgjax generate` wrote beside a sound.

    Raises:
      OSError: There is no such file.
      ValueError: It is something else; the message says what does not fit.
    """
    return strict_json.from_dict(Recipe, _json(path.read_text(encoding="utf-8"), str(path)), str(path))


def read_wishes(path: Path) -> list[Wish]:
    """The prompts of a file, as `read_lines` reads it."""
    return [wish for _, wish in read_lines(path)]


def read_lines(path: Path) -> list[tuple[str, Wish]]:
    """The prompts of a file, one a line, and where each stands; in a file named .jsonl, one JSON object a line.

    Raises:
      OSError: There is no such file.
      ValueError: A line cannot be understood; the message names it. Or there is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8 ({error})") from error
    read = _wish if path.suffix.lower() == ".jsonl" else lambda line, where: Wish(line.strip())
    places = [(f"{path}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not places:
        raise ValueError(f"{path}: there is no prompt in it")
    return [(where, read(line, where)) for where, line in places]


def slug(prompt: str) -> str:
    """`prompt` as a file name: its letters and digits, in any script, and hyphens."""
    letters = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-")
    return letters[:60].rstrip("-") or "untitled"


def sha256(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settled(name: str | None) -> str | None:
    """`name` of a model: absolute where it is a folder, so that it can be found from elsewhere."""
    if name in ("mini", "debug"):  # these are never folders, whatever there is here
        return name
    return os.path.abspath(name) if name and os.path.isdir(name) else name


def _wish(line: str, where: str) -> Wish:
    values = _json(line, where)
    found = [key for key in _PROMPT_KEYS if key in values]
    if len(found) != 1:
        raise ValueError(f"{where}: expected exactly one of {', '.join(_PROMPT_KEYS)}, got {found or 'none'}")
    if "id" in values:
        if "name" in values:
            raise ValueError(f"{where}: id and name say the same: give one of them")
        values["name"] = str(values.pop("id"))
    return strict_json.from_dict(Wish, {"prompt": values.pop(found[0])} | values, where)


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object in braces, got {text[:40]}")
    return values
