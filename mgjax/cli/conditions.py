"""The conditions of a piece besides its prompt, on the command line: prompt schedule, melody, style, labels, ..."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from typing import Any

from mgjax.audio import files as audio_files
from mgjax.audio import waveform
from mgjax.cli import terminal
from mgjax.cli.options import option, positive
from mgjax.cli.recipe import PromptLine, Recipe, sha256

_SOUNDS = ("melody", "style")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this file to those of `generate`."""
    group = parser.add_argument_group("conditions")
    then = 'from second S on, another prompt: --then 3 "with drums" --then 6 "a quiet end"'
    option(group, "--then S PROMPT", then, action="append")
    blend = "seconds that the crossfade to the next prompt takes (0); needs more memory"
    option(group, "--blend S", blend, float)
    option(group, "--negative PROMPT", "negative prompt: what to keep away from")
    melody = "follow the melody of this sound, for models that can; once for all prompts, or once for each"
    option(group, "--melody FILE", melody, action="append")
    option(group, "--separate", "take the melody out of a mix, by Demucs (extra `separate`)")
    option(group, "--style FILE", "play in the style of this sound, for models that can", action="append")
    label = "for models with labels: --label genre=waltz --label bpm=120 (mgjax info lists them)"
    option(group, "--label NAME=VALUE", label, _label, action="append")


def check_options(args: argparse.Namespace, lines: Sequence[PromptLine]) -> None:
    """Raises ValueError if an option is used without the one that it belongs to."""
    for name, needed in (("separate", "melody"), ("blend", "then")):
        if getattr(args, name, 0) and needed not in args and not any(getattr(line, needed) for line in lines):
            raise ValueError(f"--{name} is about --{needed}, which is not there")


def recipe_fields(args: argparse.Namespace, line: PromptLine, number: int, count: int) -> dict[str, Any]:
    """The fields of a recipe about conditions, for line `number` of `count`, which overrides the command line."""
    fields = {name: getattr(args, name) for name in ("blend", "negative", "separate") if name in args}
    fields["then"] = tuple((_seconds(when), text) for when, text in getattr(args, "then", []))
    fields["labels"] = _labels(getattr(args, "label", []))
    for name in ("then", "negative", "labels"):
        if getattr(line, name) is not None:
            fields[name] = getattr(line, name)
    for name in _SOUNDS:
        path = getattr(line, name) or _for_prompt(name, getattr(args, name, []), number, count)
        if path is not None:
            audio_files.info(terminal.rereadable(path))
            fields |= {name: os.path.abspath(path), f"{name}_sha256": sha256(path)}
    return fields


def arguments(recipes: Sequence[Recipe], model: Any) -> dict[str, Any]:
    """The arguments of `model.generate` for a batch of recipes."""
    kwargs: dict[str, Any] = {"negative": [recipe.negative for recipe in recipes], "blend": recipes[0].blend}
    if any(recipe.labels for recipe in recipes):
        kwargs["labels"] = [_label_values(recipe, model) for recipe in recipes]
    for name in _SOUNDS:
        paths = [getattr(recipe, name) for recipe in recipes]
        if any(paths):
            # Each file has a rate of its own: all are resampled to the model's.
            audio = {path: _read(path, model.sample_rate) for path in set(paths) - {None}}
            kwargs[name] = [path and audio[path] for path in paths]
            kwargs[f"{name}_sample_rate"] = model.sample_rate
    if kwargs.get("melody") and recipes[0].separate:
        kwargs["separate"] = "demucs"
    return kwargs


def numbers(text: str) -> float | tuple[float, ...]:
    """An argparse type: a number, or several between commas."""
    try:
        parts = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, or one for each codebook, got {text!r}") from None
    return parts if len(parts) > 1 else parts[0]


def guidance_scales(text: str) -> float | tuple[tuple[float, float], ...]:
    """An argparse type: a number, or a schedule of (second, scale): "0:3,20:5"."""
    try:
        if ":" not in text:
            return float(text)
        points = [part.split(":") for part in text.split(",")]
        return tuple((float(when), float(scale)) for when, scale in points)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number, or SECOND:SCALE with commas, such as 0:3,20:5, got {text!r}"
        ) from None


def _for_prompt(name: str, paths: Sequence[str], number: int, count: int) -> str | None:
    if not paths:
        return None
    if len(paths) not in (1, count):
        raise ValueError(f"--{name} is there {len(paths)} times for {count} prompts: give it once, or once for each")
    return paths[number] if len(paths) == count else paths[0]


@functools.lru_cache(maxsize=4)
def _read(path: str, sample_rate: int) -> waveform.Audio:
    return waveform.resample(*audio_files.read(terminal.rereadable(path)), sample_rate)


def _seconds(text: str) -> float:
    try:
        return positive(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise ValueError(f"--then takes a time in seconds above 0 and a prompt, got {text!r}") from None


def _label(text: str) -> tuple[str, str]:
    """An argparse type: a label's name and its value."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


def _labels(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values by name; a tuple for a name that occurs several times."""
    labels: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        labels[name] = (*labels.get(name, ()), value)
    return {name: values if len(values) > 1 else values[0] for name, values in labels.items()}


def _label_values(recipe: Recipe, model: Any) -> dict[str, Any]:
    """The recipe's labels, with the text of the model's numeric conditions converted to numbers."""
    values = dict(recipe.labels)
    for number in model.config.numbers:
        value = values.get(number.name)
        if isinstance(value, str):
            try:
                values[number.name] = float(value)
            except ValueError:
                raise ValueError(f"{number.name} must be a number, got {value!r}") from None
    return values
