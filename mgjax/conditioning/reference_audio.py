"""Checks a user's audio, an audio prompt, a melody or a style: one for all rows of a batch, or one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from mgjax.audio import waveform
from mgjax.inputs import arguments

_SILENCE = 1e-4  # a swing below this, 3 steps of 16 bits, is dither and no sound
Sound = TypeVar("Sound")

_PLURALS = {"melody": "melodies", "style": "styles", "prompt": "prompts"}


def rows(audio: Any, batch: int, name: str) -> list[Any]:
    """The audio of each row of a batch: an array, a dict of stems or None.

    It is given as `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with one of these or None for each row. In the
    place of an array there may be stems, a dict of them by their names. Messages call it a `name` ("melody").

    Raises:
      TypeError, ValueError: It is no audio, or not one for each row.
    """
    return arguments.each(arguments.rows(audio, f"a {name}"), batch, _PLURALS[name])


def converted(
    audio: Any, sample_rate: Any, batch: int, name: str, convert: Callable[[Any, int, str], Sound]
) -> list[Sound | None]:
    """The audio of each row (see `rows`), converted, each different one once; None where a row has none.

    `convert` is called with a row's audio, its sample rate in hertz, and what messages call it ("the melody of row 1").

    Raises:
      TypeError, ValueError: As `rows`, `arguments.rate` and `convert`, and where the sample rate is missing.
    """
    audio_of_rows = rows(audio, batch, name)
    if all(row is None for row in audio_of_rows):
        return [None] * batch
    if sample_rate is None:
        raise ValueError(f"{name}_sample_rate is missing: say how many samples a second the {name} has, such as 44100")
    sample_rate = arguments.rate(sample_rate, f"{name}_sample_rate")
    is_shared = all(row is audio_of_rows[0] for row in audio_of_rows)
    sounds: dict[int, Sound] = {}
    for number, row in enumerate(audio_of_rows):
        if row is not None and id(row) not in sounds:
            label = f"the {name}" if is_shared else f"the {name} of row {number}"
            sounds[id(row)] = convert(row, sample_rate, label)
    return [None if row is None else sounds[id(row)] for row in audio_of_rows]


def sound(audio: Any, label: str, name: str) -> Float32[np.ndarray, "n c"]:
    """A row's audio as mono or stereo; raises as `waveform.check`, and ValueError for silence, about `label`."""
    audio = waveform.check(audio, label)
    audio = waveform.to_channels(audio, min(2, audio.shape[1]), label)
    check_not_silent(audio, f"{label} is silent", name)
    return audio


def mono(audio: Float32[np.ndarray, "n c"], label: str, name: str) -> Float32[np.ndarray, "n 1"]:
    """Averages the channels; raises ValueError if they cancel each other out."""
    mixed = waveform.to_channels(audio, 1)
    check_not_silent(mixed, f"{label} is silent when it is mixed down: its channels cancel each other out", name)
    return mixed


def check_not_silent(audio: Float32[np.ndarray, "n c"], problem: str, name: str) -> None:
    """Raises ValueError, which says `problem`, where the audio is silent."""
    if np.ptp(audio, axis=0).max() < _SILENCE:
        raise ValueError(f"{problem}. There is no {name} in silence: give None for music without a {name}")
