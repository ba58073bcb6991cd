"""Sounds that users hand over to steer the music, a melody or a style: one for all rows of a batch, or one for each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.data import audio

_SILENCE = 1e-4  # a swing below this, 3 steps of 16 bits, is dither and no sound
_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000  # hertz; beyond lie slips of the hand, and what soxr cannot do
_PLURALS = {"melody": "melodies", "style": "styles"}


def rows(given: Any, batch: int, name: str) -> list[Any]:
    """One array, dict of stems or None for each row.

    Args:
      given: `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with one of these or None for each row. In the place
        of an array there may be stems, a dict of them by their names.
      batch: Rows.
      name: What messages call it, "melody" or "style".

    Raises:
      TypeError, ValueError: It is no audio, or not one for each row.
    """
    if given is None:
        return [None] * batch
    if isinstance(given, Mapping):
        return [given] * batch
    if isinstance(given, list | tuple):
        found = list(given)
    else:
        given = array(given, name)
        found = list(given) if given.ndim == 3 else [given]
    if len(found) == batch:
        return found
    if len(found) == 1:
        return found * batch
    raise ValueError(
        f"{len(found)} {_PLURALS[name]} do not fit {batch} rows: give one {name}, or one for each row (None for a row "
        "without)"
    )


def called(rows: list[Any], name: str) -> list[str]:
    """What messages call the sound of each row."""
    is_one = all(row is rows[0] for row in rows)
    return [f"the {name}" if is_one else f"the {name} of row {number}" for number in range(len(rows))]


def sample_rate(given: Any, name: str) -> int:
    """The sample rate of the sounds, checked."""
    if given is None:
        raise ValueError(f"{name}_sample_rate is missing: say how many samples a second the {name} has, such as 44100")
    try:
        rate = float(given)
    except (TypeError, ValueError):
        raise TypeError(f"{name}_sample_rate must be a number of hertz, got {given!r}") from None
    if not (_LOWEST_RATE <= rate <= _HIGHEST_RATE and rate.is_integer()):
        raise ValueError(
            f"{name}_sample_rate must be a whole number of hertz from {_LOWEST_RATE} to {_HIGHEST_RATE}, got {given}"
        )
    return int(rate)


def sound(given: Any, what: str, name: str) -> Float32[np.ndarray, "n c"]:
    """The sound of one row, mono or stereo; messages call it `what`.

    Raises:
      TypeError, ValueError: It is no audio, empty, not finite, silent, or has more channels.
    """
    found = audio.check(array(given, name), what)
    if found.shape[1] > 2:
        raise ValueError(
            f"{what} has {found.shape[1]} channels (shape {list(found.shape)}): expected mono or stereo, [samples] or "
            "[samples, channels]; transpose it if it is [channels, samples], mix it down if it has more"
        )
    check_not_silent(found, f"{what} is silent", name)
    return found


def mono(given: Float32[np.ndarray, "n c"], what: str, name: str) -> Float32[np.ndarray, "n 1"]:
    """The mean of the channels.

    Raises:
      ValueError: They cancel each other out.
    """
    found = audio.to_channels(given, 1)
    check_not_silent(found, f"{what} is silent when it is mixed down: its channels cancel each other out", name)
    return found


def check_not_silent(given: np.ndarray, trouble: str, name: str) -> None:
    """Raises ValueError, which says `trouble`, unless there is a sound in the audio."""
    if np.ptp(given, axis=0).max() < _SILENCE:
        raise ValueError(f"{trouble}. There is no {name} in silence: give None for music without a {name}")


def array(given: Any, name: str) -> np.ndarray:
    """The audio as an array of one, two or three dimensions."""
    if isinstance(given, str | os.PathLike):
        raise TypeError(f"a {name} must be audio, not the name of a file: read {os.fspath(given)!r} first")
    given = np.asarray(given)
    if given.ndim not in (1, 2, 3):
        raise ValueError(
            f"a {name} must be [samples], [samples, channels] or [rows, samples, channels], or a list of such arrays, "
            f"got the shape {list(given.shape)}"
        )
    return given
