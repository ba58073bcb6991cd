"""From the melody that people hand over to the chromagrams that a model is conditioned on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from mgjax.conditioner_config import MelodyConfig
from mgjax.conditioning import chroma
from mgjax.data import audio
from mgjax.separate import Separate, mixed, separated

# Mono, at the rate of the MelodyConfig.
Melody = Float32[np.ndarray, "n"]

_SILENCE = 1e-4  # a swing below this, 3 steps of 16 bits, is dither and no sound
_LOWEST_RATE, _HIGHEST_RATE = 1000, 1_000_000  # hertz; beyond lie slips of the hand, and what soxr cannot do


def prepare(
    melody: Any, sample_rate: int | None, batch: int, config: MelodyConfig, *, separate: Separate | None = None
) -> list[Melody | None]:
    """The melody of each row as mono audio at `config.sample_rate`; None where a row has none.

    Args:
      melody: `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with one of these or None for each row; mono or
        stereo. In the place of an array there may be stems, a dict of them by their names.
      sample_rate: Of the melody, in hertz.
      batch: Rows.
      config: Of the chromagram.
      separate: How to take the melody out of a mix, see `mgjax.separate`; None for the mix itself.

    Raises:
      ImportError: Demucs is asked for and not installed.
      TypeError, ValueError: What was handed over is no melody, or not one for each row.
    """
    rows = _rows(melody, batch)
    if any(row is not None for row in rows):
        _check_rate(sample_rate)
    known: dict[int, Melody] = {}  # one melody for all rows is prepared once
    is_one = all(row is rows[0] for row in rows)
    for number, row in enumerate(rows):
        if row is not None and id(row) not in known:
            what = "the melody" if is_one else f"the melody of row {number}"
            known[id(row)] = _prepared(row, int(sample_rate), config, separate, what)
    return [None if row is None else known[id(row)] for row in rows]


def windowed(
    melodies: Sequence[Melody | None],
    offset_seconds: float,
    window_seconds: float,
    beyond_window: bool,
    config: MelodyConfig,
) -> tuple[Float32[np.ndarray, "b f p"], Bool[np.ndarray, "b f"]]:
    """The chromagrams `[b, f, p]` that condition one window of the music, and which of their frames are there.

    f is `config.num_frames`, p is `config.num_bins`. The chromagram of music that fits in one window is that of the
    whole melody, cut or repeated. That of longer music is, for each of its windows, of what the melody, played over
    and over, has at that time (as in the published long generation). Rows without a melody are as `config.null` says.

    Args:
      melodies: As `prepare` gives them.
      offset_seconds: Where the window begins in the music.
      window_seconds: Its length.
      beyond_window: Whether the music is longer than a window.
      config: Of the chromagram.
    """
    silence = config.null == "silence"
    nothing = chroma.null(config) * silence
    tokens = np.repeat(nothing[None], len(melodies), axis=0)
    mask = np.full(tokens.shape[:2], silence)
    # What lies behind the last frame's window is not heard.
    most = (config.num_frames - 1) * config.hop_length + config.fft_size
    known: dict[int, np.ndarray] = {}
    for row, melody in enumerate(melodies):
        if melody is None:
            continue
        if id(melody) not in known:
            heard = melody
            if beyond_window:
                start, length = (round(s * config.sample_rate) for s in (offset_seconds, window_seconds))
                heard = np.take(melody, np.arange(start, start + length), mode="wrap")
            found = np.asarray(chroma.chromagram(heard[None, :most], config))
            known[id(melody)] = chroma.repeated(found, config.num_frames)[0]
        tokens[row], mask[row] = known[id(melody)], True
    return tokens, mask


def _rows(melody: Any, batch: int) -> list[Any]:
    """One array, dict of stems or None for each row."""
    if melody is None:
        return [None] * batch
    if isinstance(melody, Mapping):
        return [melody] * batch
    if isinstance(melody, list | tuple):
        rows = list(melody)
    else:
        melody = _array(melody)
        rows = list(melody) if melody.ndim == 3 else [melody]
    if len(rows) == batch:
        return rows
    if len(rows) == 1:
        return rows * batch
    raise ValueError(
        f"{len(rows)} melodies do not fit {batch} rows: give one melody, or one for each row (None for a row without)"
    )


def _check_rate(sample_rate: Any) -> None:
    if sample_rate is None:
        raise ValueError("melody_sample_rate is missing: say how many samples a second the melody has, such as 44100")
    try:
        rate = float(sample_rate)
    except (TypeError, ValueError):
        raise TypeError(f"melody_sample_rate must be a number of hertz, got {sample_rate!r}") from None
    if not (_LOWEST_RATE <= rate <= _HIGHEST_RATE and rate.is_integer()):
        raise ValueError(
            f"melody_sample_rate must be a whole number of hertz from {_LOWEST_RATE} to {_HIGHEST_RATE}, got "
            f"{sample_rate}"
        )


def _prepared(melody: Any, sample_rate: int, config: MelodyConfig, separate: Separate | None, what: str) -> Melody:
    """One melody, checked; messages call it `what`."""
    stems = isinstance(melody, Mapping)
    given = audio.check(mixed(melody) if stems else _array(melody), what)
    if given.shape[1] > 2:
        raise ValueError(
            f"{what} has {given.shape[1]} channels (shape {list(given.shape)}): expected mono or stereo, [samples] or "
            "[samples, channels]; transpose it if it is [channels, samples], mix it down if it has more"
        )
    seconds, least = len(given) / sample_rate, config.hop_length / config.sample_rate
    if seconds < least:
        raise ValueError(f"{what} lasts {seconds:.3g} seconds, less than one frame of the chromagram ({least:.3g})")
    _check_sound(given, f"{what} is silent")
    if separate is not None and not stems:
        given = separated(given, sample_rate, separate)
        _check_sound(given, f"{what} is silent after separation, which takes out drums and bass")
    mono = audio.to_channels(given, 1)
    _check_sound(mono, f"{what} is silent when it is mixed down: its channels cancel each other out")
    return np.ascontiguousarray(audio.resample(mono, sample_rate, config.sample_rate)[:, 0])


def _check_sound(given: np.ndarray, trouble: str) -> None:
    if np.ptp(given, axis=0).max() < _SILENCE:
        raise ValueError(f"{trouble}. There is no melody in silence: give None for music without a melody")


def _array(melody: Any) -> np.ndarray:
    if isinstance(melody, str | os.PathLike):
        raise TypeError(f"a melody must be audio, not the name of a file: read {os.fspath(melody)!r} first")
    melody = np.asarray(melody)
    if melody.ndim not in (1, 2, 3):
        raise ValueError(
            "a melody must be [samples], [samples, channels] or [rows, samples, channels], or a list of such arrays, "
            f"got the shape {list(melody.shape)}"
        )
    return melody
