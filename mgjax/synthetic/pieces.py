"""The endless sequence of pieces, each a function of a seed and an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mgjax.audio import files as audio_files
from mgjax.synthetic import captions, composition, rendering
from mgjax.synthetic.form import USUAL_LENGTHS
from mgjax.synthetic.styles import STYLES


@dataclass(frozen=True)
class Composition:
    """A composed piece.

    Attributes:
      score: Its notes.
      metadata: Its metadata, in the fields of audiocraft's MusicInfo, as JSON values.
    """

    score: composition.Score
    metadata: dict[str, Any]


def compose(
    seed: int, index: int, *, style: str | None = None, lengths: tuple[float, float] = USUAL_LENGTHS
) -> Composition:
    """Composes piece `index` of `seed`, without rendering it.

    Args:
      seed: 0 or more.
      index: 0 or more.
      style: A name in `STYLES`; None to take turns.
      lengths: Seconds of the shortest and of the longest piece, without the decay of the last note. If no form of the
        style fits, the piece has its shortest form.

    Raises:
      ValueError: A number is negative, there is no such style, or `lengths` are not in order.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, got {seed} and {index}")
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose from {', '.join(STYLES)}")
    if not 0 <= lengths[0] <= lengths[1]:
        raise ValueError(f"lengths must be 0 or more, the longest last, got {lengths}")
    rng = np.random.default_rng([seed, index])
    score = composition.compose(STYLES[style or _style_of(seed, index)], rng, lengths)
    return Composition(score, captions.metadata(score, f"synthetic-{seed}-{index:06d}", rng))


def _style_of(seed: int, index: int) -> str:
    """The styles take turns: each round has every style once, in random order."""
    round_, turn = divmod(index, len(STYLES))
    return tuple(STYLES)[np.random.default_rng([seed, round_, 1]).permutation(len(STYLES))[turn]]


def render(piece: Composition, sample_rate: int = 32000, channels: int = 1) -> audio_files.Audio:
    """Renders a piece as float32 `[n, c]`, at about -14 LUFS with peaks of at most -1 dB.

    Raises:
      ImportError: The extra `synthetic` is not installed.
      ValueError: The rate is not within 8000 to 96000 hertz, or there are not 1 or 2 channels.
    """
    return rendering.render(piece.score, sample_rate, channels)
