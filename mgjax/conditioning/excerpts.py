"""From the music that people hand over to the vectors of its style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from mgjax.audio import waveform
from mgjax.conditioning import reference_audio
from mgjax.conditioning.hubert import Hubert
from mgjax.conditioning.style import StyleConditioner, excerpt
from mgjax.config.conditioning import StyleConfig
from mgjax.config.model import ModelConfig
from mgjax.nn import applied

# Mono, as long and at the rate that the style conditioner hears.
Excerpt = Float32[np.ndarray, "n"]
Encode = Callable[[Float32[np.ndarray, "b n"]], Int32[np.ndarray, "b t k"]]  # mono audio -> codes


def prepare(style: Any, sample_rate: int | None, seeds: Sequence[int], config: ModelConfig) -> list[Excerpt | None]:
    """The excerpt that each row is to sound like; None where a row has none.

    Args:
      style: Music, mono or stereo: `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with an array or None for
        each row. What is shorter than an excerpt is repeated.
      sample_rate: Of the style, in hertz.
      seeds: Of each row: it chooses the excerpt, of `config.style.seconds` seconds.
      config: Of a model with a style conditioner.

    Raises:
      TypeError, ValueError: What was handed over is no music, or not one piece for each row.
    """
    rows = reference_audio.rows(style, len(seeds), "style")
    if any(row is not None for row in rows):
        sample_rate = reference_audio.sample_rate(sample_rate, "style")
    target = config.codec.sample_rate if config.style.features is None else config.style.features.sample_rate
    found: list[Excerpt | None] = []
    known: dict[int, Float32[np.ndarray, "m 1"]] = {}  # one style for all rows is checked once
    for row, what, seed in zip(rows, reference_audio.called(rows, "style"), seeds, strict=True):
        if row is not None and id(row) not in known:
            known[id(row)] = reference_audio.mono(reference_audio.sound(row, what, "style"), what, "style")
        found.append(None if row is None else _excerpt(known[id(row)], sample_rate, seed, target, config.style))
    return found


def _excerpt(
    mono: Float32[np.ndarray, "m 1"], sample_rate: int, seed: int, target: int, config: StyleConfig
) -> Excerpt:
    piece = waveform.resample(excerpt(mono, sample_rate, config.seconds, seed), sample_rate, target)[:, 0]
    length = round(config.seconds * target)  # rounding may give a sample more or less
    return np.pad(piece[:length], (0, max(0, length - len(piece))))


def encode(
    excerpts: Sequence[Excerpt | None], config: StyleConfig, variables: Mapping[str, Any], codec: Encode
) -> list[Float32[np.ndarray, "l d"] | None]:
    """The vectors of each row's style; None where there is none.

    Args:
      excerpts: As `prepare` gives them.
      config: Of the style conditioner.
      variables: Of the style conditioner, and under "features" those of the encoder of the excerpts, if it has one.
      codec: Encodes the excerpts where there is no such encoder.
    """
    there = [one for one in excerpts if one is not None]
    if not there:
        return [None] * len(excerpts)
    sounds = np.stack(there)
    if config.features is None:
        inputs = codec(sounds)
    else:
        inputs = applied(Hubert(config.features), {"params": variables["features"]}, sounds)
    of_module = {name: variables[name] for name in ("params", "batch_stats", "codebooks")}
    vectors = iter(np.asarray(applied(StyleConditioner(config), of_module, inputs)))
    return [None if one is None else next(vectors) for one in excerpts]
