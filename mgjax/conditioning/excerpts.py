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
from mgjax.nn import jit_apply

# Mono, of `StyleConfig.seconds`, at the rate of the style's encoder.
Excerpt = Float32[np.ndarray, "_"]
Encode = Callable[[Float32[np.ndarray, "b n"]], Int32[np.ndarray, "b t k"]]  # mono audio -> codes


def prepare(style: Any, sample_rate: Any, seeds: Sequence[int], config: ModelConfig) -> list[Excerpt | None]:
    """Cuts the excerpt that conditions each row, as mono audio at the rate of the style's encoder; None for none.

    The style is in the forms of `reference_audio.rows`. What is shorter than an excerpt is repeated; of what is longer,
    the row's seed chooses where the excerpt of `config.style.seconds` seconds begins.

    Raises:
      TypeError, ValueError: `style` is no audio, or not one piece for each row.
    """
    style_config = config.style
    assert style_config is not None
    target_rate = (style_config.features or config.codec).sample_rate

    def with_rate(row: Any, rate: int, label: str) -> tuple[Float32[np.ndarray, "m 1"], int]:
        return reference_audio.mono(reference_audio.sound(row, label, "style"), label, "style"), rate

    styles = reference_audio.converted(style, sample_rate, len(seeds), "style", with_rate)
    return [
        None if style is None else _excerpt(*style, seed, target_rate, style_config)
        for style, seed in zip(styles, seeds, strict=True)
    ]


def _excerpt(
    mono: Float32[np.ndarray, "m 1"], sample_rate: int, seed: int, target_rate: int, config: StyleConfig
) -> Excerpt:
    audio = waveform.resample(excerpt(mono, sample_rate, config.seconds, seed), sample_rate, target_rate)[:, 0]
    length = round(config.seconds * target_rate)  # rounding may give a sample more or less
    return np.pad(audio[:length], (0, max(0, length - len(audio))))


def encode(
    excerpts: Sequence[Excerpt | None], config: StyleConfig, variables: Mapping[str, Any], codec: Encode
) -> list[Float32[np.ndarray, "l d"] | None]:
    """Encodes the excerpts of `prepare` to the vectors of their styles, None where there is none.

    `variables` are those of the style conditioner, and under "features" the parameters of the excerpts' encoder if it
    has one; `codec` encodes the excerpts where it has none.
    """
    present = [excerpt for excerpt in excerpts if excerpt is not None]
    if not present:
        return [None] * len(excerpts)
    audio = np.stack(present)
    if config.features is None:
        inputs = codec(audio)
    else:
        inputs = jit_apply(Hubert(config.features), {"params": variables["features"]}, audio)
    of_module = {name: variables[name] for name in ("params", "batch_stats", "codebooks")}
    styles = iter(np.asarray(jit_apply(StyleConditioner(config), of_module, inputs)))
    return [None if excerpt is None else next(styles) for excerpt in excerpts]
