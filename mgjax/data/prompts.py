"""The text that a piece of music is trained with, made anew from its metadata each time the piece is drawn.

A model that has only read full descriptions does not know what to make of three words, so that each training example
hears another selection of what is known about its piece (Copet et al. 2023, section 3.2), and sometimes nothing at all
(classifier-free guidance, Ho & Salimans 2022, section 3.2).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mgjax.audio.metadata import Metadata
from mgjax.config.serialization import ranged

FIELDS = ("key", "bpm", "genre", "moods", "keywords", "instrument")  # of the metadata, those that describe the sound


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How texts are made for training. The defaults are MusicGen's; its large models have 0.2 for `word_dropout`.

    Attributes:
      merge_text_p: The share of examples whose text also names the fields of the metadata.
      drop_desc_p: Of these, the share whose description is left out.
      keep_other_p: Of these, the chance of each field to be named (audiocraft calls this `drop_other_p`).
      word_dropout: The chance of each word to be left out.
      max_tokens: The length of every batch's texts. Longer texts lose their end.
    """

    merge_text_p: float = 0.25
    drop_desc_p: float = 0.5
    keep_other_p: float = 0.5
    word_dropout: float = 0.3
    max_tokens: int = 128

    def __post_init__(self):
        ranged(self, "from 0 to 1", "merge_text_p drop_desc_p keep_other_p word_dropout")
        ranged(self, "1 or more", "max_tokens")

    @property
    def keeps_descriptions(self) -> bool:
        """Whether every text is its piece's description, unchanged, or nothing."""
        return self.merge_text_p == 0 and self.word_dropout == 0


def assemble(metadata: Metadata, config: TextConfig, rng: np.random.Generator) -> str | None:
    """A text for one training example, or None for no text.

    Whether it is told at all is drawn elsewhere (see conditions.py).
    """
    description, fields = plain(metadata), []
    if rng.random() < config.merge_text_p:
        known = [(field, getattr(metadata, field)) for field in FIELDS]
        kept = [rendered(field, value) for field, value in known if value and rng.random() < config.keep_other_p]
        fields = [kept[i] for i in rng.permutation(len(kept))]
        if rng.random() < config.drop_desc_p:
            description = None
    if description and config.merge_text_p:
        # A full stop ends every description, also where nothing follows: published models were trained on that.
        description = ". ".join([description.rstrip("."), *(fields or [""])]).strip()
    text = description or ". ".join(fields)
    if config.word_dropout:
        words = text.split(" ")
        kept = rng.random(len(words)) >= config.word_dropout
        text = " ".join(word for word, keep in zip(words, kept, strict=True) if keep)
    return text or None


def plain(metadata: Metadata) -> str | None:
    """The description as it stands, or None where there is none: what a piece is validated with."""
    return (metadata.description or "").strip() or None


def rendered(field: str, value: Any) -> str:
    """A field of the metadata in a text: "moods: calm, sad"."""
    return f"{field}: {value if isinstance(value, str | int | float) else ', '.join(value)}"
