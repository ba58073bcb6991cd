"""Sounds that users hand over, a prompt, a melody or a style: one for all rows of a batch, or one for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.audio import waveform as sounds
from mgjax.inputs import arguments

_SILENCE = 1e-4  # a swing below this, 3 steps of 16 bits, is dither and no sound
_PLURALS = {"melody": "melodies", "style": "styles", "prompt": "prompts"}


def rows(given: Any, batch: int, name: str) -> list[Any]:
    """One array, dict of stems or None for each row.

    Args:
      given: `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with one of these or None for each row. In the place
        of an array there may be stems, a dict of them by their names.
      batch: Rows.
      name: What messages call it, "melody", "style" or "prompt".

    Raises:
      TypeError, ValueError: It is no audio, or not one for each row.
    """
    return arguments.each(arguments.rows(given, f"a {name}"), batch, _PLURALS[name])


def called(rows: list[Any], name: str) -> list[str]:
    """What messages call the sound of each row."""
    is_one = all(row is rows[0] for row in rows)
    return [f"the {name}" if is_one else f"the {name} of row {number}" for number in range(len(rows))]


def sample_rate(given: Any, name: str) -> int:
    """The sample rate of the sounds, checked."""
    if given is None:
        raise ValueError(f"{name}_sample_rate is missing: say how many samples a second the {name} has, such as 44100")
    return arguments.rate(given, f"{name}_sample_rate")


def sound(given: Any, what: str, name: str) -> Float32[np.ndarray, "n c"]:
    """The sound of one row in mono or stereo, mixed down from more channels; messages call it `what`.

    Raises:
      TypeError, ValueError: It is no audio, empty, not finite, or silent.
    """
    found = sounds.check(given, what)
    found = sounds.to_channels(found, min(2, found.shape[1]), what)
    check_not_silent(found, f"{what} is silent", name)
    return found


def mono(given: Float32[np.ndarray, "n c"], what: str, name: str) -> Float32[np.ndarray, "n 1"]:
    """The mean of the channels.

    Raises:
      ValueError: They cancel each other out.
    """
    found = sounds.to_channels(given, 1)
    check_not_silent(found, f"{what} is silent when it is mixed down: its channels cancel each other out", name)
    return found


def check_not_silent(given: np.ndarray, trouble: str, name: str) -> None:
    """Raises ValueError, which says `trouble`, unless there is a sound in the audio."""
    if np.ptp(given, axis=0).max() < _SILENCE:
        raise ValueError(f"{trouble}. There is no {name} in silence: give None for music without a {name}")
