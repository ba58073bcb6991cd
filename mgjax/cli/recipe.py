"""Recipes: all that a piece is generated from, read from files of prompts and written as JSON beside the sound."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import unicodedata

from mgjax.audio import files as audio_files
from mgjax.cli import terminal
from mgjax.config import model as model_config
from mgjax.config import serialization
from mgjax.inputs import files
from mgjax.storage.paths import Path, absolute, is_remote

_LONGEST = 24 * 3600  # seconds
_LONGEST_NAME = 250  # bytes: most file systems allow 255, and .json and .flac take 5
_PROMPT_KEYS = ("prompt", "text", "description")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides how a piece sounds, written as JSON beside it.

    The fields from `model_hash` on are filled in when the piece is generated. Paths are absolute.
    """

    prompt: str
    seconds: float
    seed: int
    model: str
    sampling: model_config.Sampling | None = None  # None until the model is loaded, for its defaults
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
    weights: str | None = None
    adapter: str | None = None
    text_encoder: str | None = None
    style_encoder: str | None = None
    loudness: float | None = -14.0
    format: str = "wav"
    model_hash: str | None = None
    mgjax: str | None = None
    jax: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= _LONGEST:
            raise ValueError(f"seconds must be above 0 and at most {_LONGEST} (a day), got {self.seconds}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"a seed must be 0 or above and below 2**32, got {self.seed}")
        if self.loudness is not None and not -70 <= self.loudness < 0:
            raise ValueError(f"loudness must be off, or from -70 to 0, got {self.loudness:g}")
        if self.format != "array_record" and f".{self.format}" not in audio_files.FORMATS:
            raise ValueError(f"format must be one of {', '.join(audio_files.FORMATS)}, got {self.format!r}")
        times = [0.0, *(seconds for seconds, _ in self.then)]
        if not all(before < after for before, after in itertools.pairwise(times)):
            raise ValueError(f"the times of later prompts must be above 0 and rise, got {times[1:]}")
        if times[-1] >= self.seconds:
            raise ValueError(
                f"the prompt {self.then[-1][1]!r} begins at {times[-1]:g} s, but the piece lasts {self.seconds:g} s: "
                "ask for more --seconds"
            )
        try:
            json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            text = error.object[max(0, error.start - 40) : error.end]
            raise ValueError(f"a prompt, or the name of a file, is not UTF-8: it ends in {text!r}") from None


@dataclasses.dataclass(frozen=True)
class PromptLine:
    """A line of a file of prompts; None for what the command line decides."""

    prompt: str
    seconds: float | None = None
    seed: int | None = None
    name: str | None = None
    then: tuple[tuple[float, str], ...] | None = None
    negative: str | None = None
    melody: str | None = None
    style: str | None = None
    labels: dict[str, str | float | tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.name is None:
            return
        if not re.fullmatch(r"[^\W_][^/\\:\0]{0,99}", self.name) or len(self.name.encode()) > _LONGEST_NAME:
            raise ValueError(
                "name must be a file name that begins with a letter or a digit, of at most 100 characters and "
                f"{_LONGEST_NAME} bytes, got {self.name!r}"
            )


def read_recipe(path: Path) -> Recipe:
    """The recipe that `mgjax generate` wrote beside a sound; raises OSError or ValueError where there is none."""
    try:
        values = files.read_json(path)
        if not isinstance(values, dict) or not {"prompt", "seconds", "seed", "model"} <= values.keys():
            raise ValueError(f"{path}: is no recipe")
    except ValueError as error:
        raise ValueError(f"{error}; expected the .json that mgjax generate writes beside a sound") from None
    return serialization.from_dict(Recipe, values, str(path))


def read_lines(path: Path) -> list[tuple[str, PromptLine]]:
    """The prompts of a file, each with its origin for messages: one a line, or in a .jsonl file an object a line."""
    # Not splitlines, which also parts texts at U+2028 and others of that kind.
    lines = re.split(r"\r\n?|\n", files.read_text(path, files.LARGEST_TEXT))
    read = _prompt_line if path.suffix.lower() == ".jsonl" else lambda line, where: PromptLine(line.strip())
    numbered = [(f"{path}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path}: there is no prompt in it")
    return [(where, read(line, where)) for where, line in numbered]


def slug(prompt: str) -> str:
    """`prompt` as a file name: its letters and digits, in any script, and hyphens."""
    letters = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-")
    return letters[:60].encode()[:200].decode(errors="ignore").rstrip("-") or "untitled"


def sha256(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with files.opened(terminal.rereadable(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type] # IO lacks readinto


def absolute_source(name: str) -> str:
    """The source of a model as it is, or as an absolute path if it is a folder."""
    if name in ("mini", "debug"):  # these are never folders, whatever there is here
        return name
    return absolute(name) if is_remote(name) or os.path.isdir(name) else name


def _prompt_line(line: str, where: str) -> PromptLine:
    values = files.parse_json(line, where)
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a JSON object in braces, got {line[:40]}")
    keys = [key for key in _PROMPT_KEYS if key in values]
    if len(keys) != 1:
        raise ValueError(f"{where}: expected exactly one of {', '.join(_PROMPT_KEYS)}, got {keys or 'none'}")
    if "id" in values:
        if "name" in values:
            raise ValueError(f"{where}: id and name say the same: give one of them")
        values["name"] = str(values.pop("id"))
    return serialization.from_dict(PromptLine, {"prompt": values.pop(keys[0])} | values, where)
