"""From the melody that people hand over to the chromagrams that a model is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from mgjax.audio import waveform
from mgjax.conditioning import chroma, reference_audio
from mgjax.conditioning.separation import Separate, mixed, separated
from mgjax.config.conditioning import MelodyConfig

# Mono, at the rate of the MelodyConfig.
Melody = Float32[np.ndarray, "n"]


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
      separate: How to take the melody out of a mix, see `mgjax.conditioning.separation`; None for the mix itself.

    Raises:
      ImportError: Demucs is asked for and not installed.
      TypeError, ValueError: What was handed over is no melody, or not one for each row.
    """
    rows = reference_audio.rows(melody, batch, "melody")
    if any(row is not None for row in rows):
        sample_rate = reference_audio.sample_rate(sample_rate, "melody")
    known: dict[int, Melody] = {}  # one melody for all rows is prepared once
    for row, what in zip(rows, reference_audio.called(rows, "melody"), strict=True):
        if row is not None and id(row) not in known:
            known[id(row)] = _prepared(row, sample_rate, config, separate, what)
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


def _prepared(melody: Any, sample_rate: int, config: MelodyConfig, separate: Separate | None, what: str) -> Melody:
    """One melody, checked; messages call it `what`."""
    stems = isinstance(melody, Mapping)
    given = reference_audio.sound(mixed(melody) if stems else melody, what, "melody")
    seconds, least = len(given) / sample_rate, config.hop_length / config.sample_rate
    if seconds < least:
        raise ValueError(f"{what} lasts {seconds:.3g} seconds, less than one frame of the chromagram ({least:.3g})")
    if separate is not None and not stems:
        given = separated(given, sample_rate, separate)
        trouble = f"{what} is silent after separation, which takes out drums and bass"
        reference_audio.check_not_silent(given, trouble, "melody")
    mono = reference_audio.mono(given, what, "melody")
    return np.ascontiguousarray(waveform.resample(mono, sample_rate, config.sample_rate)[:, 0])
