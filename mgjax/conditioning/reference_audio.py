"""Checks a user's audio, an audio prompt, a melody or a style: one for all rows of a batch, or one for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.audio import waveform
from mgjax.inputs import arguments

_SILENCE = 1e-4  # a swing below this, 3 steps of 16 bits, is dither and no sound
_PLURALS = {"melody": "melodies", "style": "styles", "prompt": "prompts"}


def rows(audio: Any, batch: int, name: str) -> list[Any]:
    """The audio of each row of a batch: an array, a dict of stems or None.

    Args:
      audio: `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with one of these or None for each row. In the place
        of an array there may be stems, a dict of them by their names.
      batch: Rows.
      name: What messages call it, "melody", "style" or "prompt".

    Raises:
      TypeError, ValueError: It is no audio, or not one for each row.
    """
    return arguments.each(arguments.rows(audio, f"a {name}"), batch, _PLURALS[name])


def row_labels(rows: list[Any], name: str) -> list[str]:
    """How messages refer to the sound of each row: "the melody", or "the melody of row 1" where rows differ."""
    is_one = all(row is rows[0] for row in rows)
    return [f"the {name}" if is_one else f"the {name} of row {number}" for number in range(len(rows))]


def sample_rate(rate: Any, name: str) -> int:
    """Checks the sample rate of the audio, in hertz; raises as `arguments.rate`, and where it is None."""
    if rate is None:
        raise ValueError(f"{name}_sample_rate is missing: say how many samples a second the {name} has, such as 44100")
    return arguments.rate(rate, f"{name}_sample_rate")


def sound(audio: Any, label: str, name: str) -> Float32[np.ndarray, "n c"]:
    """Converts the audio of one row to mono or stereo, mixed down from more channels; messages call it `label`.

    Raises:
      TypeError, ValueError: It is no audio, empty, not finite, or silent.
    """
    audio = waveform.check(audio, label)
    audio = waveform.to_channels(audio, min(2, audio.shape[1]), label)
    check_not_silent(audio, f"{label} is silent", name)
    return audio


def mono(audio: Float32[np.ndarray, "n c"], label: str, name: str) -> Float32[np.ndarray, "n 1"]:
    """Averages the channels.

    Raises:
      ValueError: They cancel each other out.
    """
    mixed = waveform.to_channels(audio, 1)
    check_not_silent(mixed, f"{label} is silent when it is mixed down: its channels cancel each other out", name)
    return mixed


def check_not_silent(audio: Float32[np.ndarray, "n c"], trouble: str, name: str) -> None:
    """Raises ValueError, which says `trouble`, where the audio is silent."""
    if np.ptp(audio, axis=0).max() < _SILENCE:
        raise ValueError(f"{trouble}. There is no {name} in silence: give None for music without a {name}")
