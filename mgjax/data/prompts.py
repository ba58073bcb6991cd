"""Text augmentation: the text of a training example is assembled from its piece's metadata each time it is drawn.

Each example has another selection of the metadata, as in audiocraft (Copet et al. 2023, section 3.2), so that the model
learns short prompts as well as full descriptions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mgjax.audio.metadata import Metadata
from mgjax.config.serialization import ranged

FIELDS = ("key", "bpm", "genre", "moods", "keywords", "instrument")  # of the metadata, those about the music itself


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text augmentation. The defaults are MusicGen's; its large models have 0.2 for `word_dropout`.

    Attributes:
      merge_text_p: The probability that fields of the metadata are merged into the text.
      drop_desc_p: If they are, the probability that the description is dropped.
      keep_other_p: If they are, the probability of each field to be kept (audiocraft calls this `drop_other_p`).
      word_dropout: The probability of each word to be dropped.
      max_tokens: The length of texts in a batch, in tokens; longer ones are truncated.
    """

    merge_text_p: float = 0.25
    drop_desc_p: float = 0.5
    keep_other_p: float = 0.5
    word_dropout: float = 0.3
    max_tokens: int = 128

    def __post_init__(self) -> None:
        ranged(self, "from 0 to 1", "merge_text_p drop_desc_p keep_other_p word_dropout")
        ranged(self, "1 or more", "max_tokens")

    @property
    def keeps_descriptions(self) -> bool:
        """Whether every text is the unchanged description of its piece."""
        return self.merge_text_p == 0 and self.word_dropout == 0


def assemble(metadata: Metadata, config: TextConfig, rng: np.random.Generator) -> str | None:
    """The text of a training example; None for no text.

    Dropout of the whole condition, for classifier-free guidance, is apart (conditions.py).
    """
    description, fields = raw_text(metadata), []
    if rng.random() < config.merge_text_p:
        known = [(field, getattr(metadata, field)) for field in FIELDS]
        kept = [rendered(field, value) for field, value in known if value and rng.random() < config.keep_other_p]
        fields = [kept[i] for i in rng.permutation(len(kept))]
        if rng.random() < config.drop_desc_p:
            description = None
    if description and config.merge_text_p:
        # Every description ends with a full stop, even if nothing follows, as the published models were trained.
        description = ". ".join([description.rstrip("."), *(fields or [""])]).strip()
    text = description or ". ".join(fields)
    if config.word_dropout:
        words = text.split(" ")
        mask = rng.random(len(words)) >= config.word_dropout
        text = " ".join(word for word, keep in zip(words, mask, strict=True) if keep)
    return text or None


def raw_text(metadata: Metadata) -> str | None:
    """The unchanged description, the text of validations; None if there is none."""
    return (metadata.description or "").strip() or None


def rendered(field: str, value: Any) -> str:
    """A field of the metadata as text, "moods: calm, sad"."""
    return f"{field}: {value if isinstance(value, str | int | float) else ', '.join(value)}"
