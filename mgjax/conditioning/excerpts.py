"""From a user's style reference, a piece of music, to the vectors of its style."""

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

# Mono, of `StyleConfig.seconds`, at the rate of the style's encoder.
Excerpt = Float32[np.ndarray, "_"]
Encode = Callable[[Float32[np.ndarray, "b n"]], Int32[np.ndarray, "b t k"]]  # mono audio -> codes


def prepare(style: Any, sample_rate: Any, seeds: Sequence[int], config: ModelConfig) -> list[Excerpt | None]:
    """Cuts the excerpt that each row is conditioned on, as mono audio at the rate of the style's encoder.

    Args:
      style: Music, mono or stereo: `[n]` or `[n, c]` for all rows, `[b, n, c]`, or a list with an array or None for
        each row. What is shorter than an excerpt is repeated.
      sample_rate: Of the style, in hertz; None where there is no style.
      seeds: One for each row, which chooses where its excerpt of `config.style.seconds` seconds begins.
      config: Of a model with a style conditioner.

    Returns:
      An excerpt for each row, None where it has no style.

    Raises:
      TypeError, ValueError: `style` is no audio, or not one piece for each row.
    """
    style_config = config.style
    assert style_config is not None
    rows = reference_audio.rows(style, len(seeds), "style")
    if any(row is not None for row in rows):
        sample_rate = reference_audio.sample_rate(sample_rate, "style")
    target = (style_config.features or config.codec).sample_rate
    excerpts: list[Excerpt | None] = []
    checked: dict[int, Float32[np.ndarray, "m 1"]] = {}  # one style for all rows is checked once
    for row, label, seed in zip(rows, reference_audio.row_labels(rows, "style"), seeds, strict=True):
        if row is not None and id(row) not in checked:
            checked[id(row)] = reference_audio.mono(reference_audio.sound(row, label, "style"), label, "style")
        excerpts.append(None if row is None else _excerpt(checked[id(row)], sample_rate, seed, target, style_config))
    return excerpts


def _excerpt(
    mono: Float32[np.ndarray, "m 1"], sample_rate: int, seed: int, target: int, config: StyleConfig
) -> Excerpt:
    audio = waveform.resample(excerpt(mono, sample_rate, config.seconds, seed), sample_rate, target)[:, 0]
    length = round(config.seconds * target)  # rounding may give a sample more or less
    return np.pad(audio[:length], (0, max(0, length - len(audio))))


def encode(
    excerpts: Sequence[Excerpt | None], config: StyleConfig, variables: Mapping[str, Any], codec: Encode
) -> list[Float32[np.ndarray, "l d"] | None]:
    """Encodes the excerpts of a batch to the vectors of their styles, None where there is none.

    Args:
      excerpts: As `prepare` gives them.
      config: Of the style conditioner.
      variables: Of the style conditioner, and under "features" the parameters of the excerpts' encoder if it has one.
      codec: Encodes the excerpts where there is no such encoder.
    """
    present = [excerpt for excerpt in excerpts if excerpt is not None]
    if not present:
        return [None] * len(excerpts)
    audio = np.stack(present)
    if config.features is None:
        inputs = codec(audio)
    else:
        inputs = applied(Hubert(config.features), {"params": variables["features"]}, audio)
    of_module = {name: variables[name] for name in ("params", "batch_stats", "codebooks")}
    styles = iter(np.asarray(applied(StyleConditioner(config), of_module, inputs)))
    return [None if excerpt is None else next(styles) for excerpt in excerpts]
