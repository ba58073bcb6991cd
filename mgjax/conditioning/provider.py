"""A model's encoders, as audiocraft's ConditioningProvider: from the inputs of each row to the model's conditions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mgjax.conditioning import clap, tokenizers
from mgjax.conditioning.condition import Condition, attends_to_null, condition
from mgjax.conditioning.excerpts import Encode, Excerpt, encode
from mgjax.conditioning.labels import vectors
from mgjax.conditioning.melody import Melody, windowed
from mgjax.conditioning.t5 import T5Encoder
from mgjax.conditioning.tokenizers import TEXT_LENGTHS, Tokenizer
from mgjax.config.conditioning import LabelConfig, MelodyConfig, NumberConfig, StyleConfig
from mgjax.config.model import ModelConfig
from mgjax.nn import jit_apply

Encoded = tuple[Float[Array, "b l d"] | Float[np.ndarray, "b l d"], Bool[np.ndarray, "b l"]]  # vectors, valid mask


@dataclasses.dataclass(frozen=True, eq=False)
class ConditioningInputs:
    """The conditioning inputs of one row of a batch; None or empty where a condition is null."""

    text: str | None = None  # the prompt
    melody: Melody | None = None  # as `mgjax.conditioning.melody.prepare` gives it
    chroma: Float[np.ndarray, "f p"] | None = None  # the chromagram of a melody, in the place of the melody
    excerpt: Excerpt | None = None  # of a style, as `mgjax.conditioning.excerpts.prepare` cuts it
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of labels and numbers by name
    style: Float[np.ndarray, "l d"] | None = None  # the vectors of the excerpt, from `ConditionProvider.styles`

    def __bool__(self) -> bool:
        """Whether there is any condition; without one this is an unconditional row."""
        inputs = (self.melody, self.chroma, self.excerpt, self.style)
        return bool(self.text or self.labels) or any(x is not None for x in inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """The window of the music that conditions are for."""

    offset_seconds: float  # where the window begins in the music
    seconds: float  # its length
    beyond_window: bool  # whether the music is longer than a window


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTexts:
    """The different texts of a request through the text encoders (one row of zeros without an encoder or any text)."""

    index: dict[str, int]  # where each text stands in the arrays
    tokens: Float[Array, "u l d"]  # T5's hidden states
    mask: Bool[np.ndarray, "u l"]  # which of them are valid
    clap: Float[Array, "v j"]  # joint embeddings of CLAP, quantized where the model does that


@dataclasses.dataclass(frozen=True, eq=False)
class ConditionProvider:
    """The encoders of a model's conditions, with their weights and tokenizers.

    Texts and excerpts are encoded once for a request (`encode`, `styles`); `conditions` then builds the conditions of
    each window of the music. With `compat="audiocraft"` padding is attended to, as in the original, so that a row
    depends on its batch.
    """

    config: ModelConfig
    variables: Mapping[str, Any]
    tokenizer_files: Path | None = None
    clap_tokenizer_files: Path | None = None
    compat: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokenizers, which cannot be pickled and are read again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("tokenizer", "_clap_tokenizer")}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's T5; raises as `tokenizers.load`."""
        return tokenizers.load(self.config, self.tokenizer_files)

    @functools.cached_property
    def _clap_tokenizer(self) -> Tokenizer:
        assert self.config.clap is not None
        return tokenizers.load_clap(self.config.clap.clap, self.clap_tokenizer_files)

    def encode(self, texts: Sequence[str | None]) -> EncodedTexts:
        """Encodes each different text once, None and "" excepted."""
        unique = list(dict.fromkeys(text for text in texts if text))
        index = {text: i for i, text in enumerate(unique)}
        return EncodedTexts(index, *self._t5(unique), self._clap(unique))

    def styles(self, excerpts: Sequence[Excerpt | None], codec: Encode) -> list[Float[np.ndarray, "l d"] | None]:
        """The vectors of each row's style, of the excerpts that `mgjax.conditioning.excerpts.prepare` cuts.

        `codec` encodes mono audio, for a style conditioner that reads codes.
        """
        assert self.config.style is not None
        return encode(excerpts, self.config.style, self.variables["style"], codec)

    def _t5(self, texts: Sequence[str]) -> tuple[Float[Array, "u l d"], Bool[np.ndarray, "u l"]]:
        config = self.config.text
        if config is None or not texts:
            shape = (1, TEXT_LENGTHS[0])
            return jax.device_put(np.zeros((*shape, config.dim if config else 1), np.float32)), np.zeros(shape, bool)
        ids, mask = self.tokenizer.encode(_padded_texts(texts))
        return jit_apply(T5Encoder(config), {"params": self.variables["text"]}, ids, mask), mask

    def _clap(self, texts: Sequence[str]) -> Float[Array, "v j"]:
        config = self.config.clap
        if config is None or not texts:
            return jax.device_put(np.zeros((1, config.clap.dim if config else 1), np.float32))
        variables = self.variables["clap"]
        ids, mask = self._clap_tokenizer.encode(_padded_texts(texts))
        embeddings = jit_apply(clap.ClapText(config.clap), variables["text"], ids, mask)
        return _quantized(embeddings, variables["codebooks"]["embed"]) if "codebooks" in variables else embeddings

    def conditions(
        self, sets: Sequence[Sequence[ConditioningInputs]], texts: EncodedTexts, span: Span
    ) -> dict[str, Condition]:
        """The conditions of a batch by name, for one window.

        The `sets` are the rows of the batch, then for guidance the same rows with fewer conditions or none, any number
        of times; the arrays hold all of them, one set after the other. `texts` are all of theirs. A condition that no
        row has is left out where that has no effect.
        """
        model, batch = self.config, len(sets[0])
        conditions = {}
        for name, (tokens, mask) in self._encoded([row for rows in sets for row in rows], texts, span).items():
            if mask.any() or attends_to_null(model, name):
                # A null condition is as long as the one that it replaces: a shorter prefix would move the positions.
                null_length = np.tile(np.maximum(mask[:batch].sum(axis=1), 1), len(sets))
                padded = self.compat == "audiocraft"
                conditions[name] = condition(model, name, tokens, mask, null_length=null_length, pad_to_longest=padded)
        return conditions

    def _encoded(self, rows: Sequence[ConditioningInputs], texts: EncodedTexts, span: Span) -> dict[str, Encoded]:
        """Every condition that the model has, by name."""
        model = self.config
        encoded: dict[str, Encoded] = {}
        index = np.array([texts.index.get(row.text or "", 0) for row in rows])
        has_text = np.array([[bool(row.text)] for row in rows])
        if model.text is not None:
            encoded["text"] = jnp.take(texts.tokens, index, axis=0), texts.mask[index] & has_text
        if model.clap is not None:
            encoded["clap"] = jnp.take(texts.clap, index, axis=0)[:, None], has_text
        if model.style is not None:
            encoded["style"] = _style(rows, model.style)
        if model.melody is not None:
            encoded["melody"] = _melody(rows, span, model.melody)
        labels: tuple[LabelConfig | NumberConfig, ...] = (*model.labels, *model.numbers)
        for label in labels:
            encoded[label.name] = vectors([row.labels.get(label.name) for row in rows], label)
        return encoded


def _style(rows: Sequence[ConditioningInputs], config: StyleConfig) -> Encoded:
    length = max((len(row.style) for row in rows if row.style is not None), default=1)
    null = np.zeros((length, config.dim), np.float32)
    has_style = np.array([[row.style is not None] for row in rows])
    return np.stack([null if row.style is None else row.style for row in rows]), np.repeat(has_style, length, axis=1)


def _melody(rows: Sequence[ConditioningInputs], span: Span, config: MelodyConfig) -> Encoded:
    """The chromagrams of the window; one that the user computed is repeated."""
    melodies = [row.melody for row in rows]
    chroma, mask = windowed(melodies, span.offset_seconds, span.seconds, span.beyond_window, config)
    for i, row in enumerate(rows):
        if row.chroma is not None:
            chroma[i], mask[i] = np.roll(row.chroma, -round(span.offset_seconds * config.frame_rate), axis=0), True
    return chroma, mask


def _padded_texts(texts: Sequence[str]) -> list[str]:
    """The texts, and the last one again until their number is a power of two: each number is a program to compile."""
    return [*texts, *[texts[-1]] * (2 ** (len(texts) - 1).bit_length() - len(texts))]


_quantized = jax.jit(clap.quantized)
