"""From a user's melody to the chromagrams that a model is conditioned on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from mgjax.audio import waveform
from mgjax.conditioning import chroma, reference_audio
from mgjax.conditioning.separation import mixed, separated
from mgjax.config.conditioning import MelodyConfig

# Mono, at the rate of the MelodyConfig.
Melody = Float32[np.ndarray, "_"]


def prepare(
    melody: Any, sample_rate: Any, batch: int, config: MelodyConfig, *, separate: Any = None
) -> list[Melody | None]:
    """Converts the melody of each row to mono audio at `config.sample_rate`; None where a row has none.

    The melody is in the forms of `reference_audio.rows`, its sample rate in hertz. `separate` says how to separate it
    from a mix (`mgjax.conditioning.separation.Separate`); None for the mix.

    Raises:
      ImportError: Demucs is asked for and not installed.
      TypeError, ValueError: `melody` is no audio with a melody, or not one for each row.
    """
    prepare_row = functools.partial(_prepare_row, config=config, separate=separate)
    return reference_audio.converted(melody, sample_rate, batch, "melody", prepare_row)


def windowed(
    melodies: Sequence[Melody | None],
    offset_seconds: float,
    window_seconds: float,
    beyond_window: bool,
    config: MelodyConfig,
) -> tuple[Float32[np.ndarray, "b f p"], Bool[np.ndarray, "b f"]]:
    """The chromagrams `[b, f, p]` that condition one window of the music, and the mask of their valid frames.

    f is `config.num_frames`, p is `config.num_bins`. The chromagram of music that fits in one window is that of the
    whole melody, cut or repeated. That of longer music is, for each of its windows, of the part of the melody, repeated
    over and over, at that time (as in the published long generation). Rows without a melody are as `config.null` says.
    """
    silence = config.null == "silence"
    null_chroma = chroma.null(config) * silence  # or zeros
    chromagrams = np.repeat(null_chroma[None], len(melodies), axis=0)
    mask = np.full(chromagrams.shape[:2], silence)
    # Samples after the last frame's window do not count.
    num_samples = (config.num_frames - 1) * config.hop_length + config.fft_size
    transformed: dict[int, np.ndarray] = {}  # one melody for all rows is transformed once
    for row, melody in enumerate(melodies):
        if melody is None:
            continue
        if id(melody) not in transformed:
            audio = melody
            if beyond_window:
                start, length = (round(s * config.sample_rate) for s in (offset_seconds, window_seconds))
                audio = np.take(melody, np.arange(start, start + length), mode="wrap")
            chromagram = np.asarray(chroma.chromagram(audio[None, :num_samples], config))
            transformed[id(melody)] = chroma.repeated(chromagram, config.num_frames)[0]
        chromagrams[row], mask[row] = transformed[id(melody)], True
    return chromagrams, mask


def _prepare_row(melody: Any, sample_rate: int, label: str, config: MelodyConfig, separate: Any) -> Melody:
    """One melody, checked; messages call it `label`."""
    is_stems = isinstance(melody, Mapping)
    audio = reference_audio.sound(mixed(melody) if is_stems else melody, label, "melody")
    seconds, shortest = len(audio) / sample_rate, config.hop_length / config.sample_rate
    if seconds < shortest:
        raise ValueError(f"{label} lasts {seconds:.3g} seconds, less than one frame of the chromagram ({shortest:.3g})")
    if separate is not None and not is_stems:
        audio = separated(audio, sample_rate, separate)
        problem = f"{label} is silent after separation, which takes out drums and bass"
        reference_audio.check_not_silent(audio, problem, "melody")
    mono = reference_audio.mono(audio, label, "melody")
    return np.ascontiguousarray(waveform.resample(mono, sample_rate, config.sample_rate)[:, 0])
