"""A model's encoders: what the rows of a batch are told, as the conditions that its language model reads."""

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

from mgjax.conditioning import clap as joint
from mgjax.conditioning import style as styles
from mgjax.conditioning.clap_text import ClapTokenizer
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.excerpts import Encode, Excerpt, encode
from mgjax.conditioning.labels import vectors
from mgjax.conditioning.melody import Melody, windowed
from mgjax.conditioning.t5 import T5Encoder
from mgjax.conditioning.text import BUCKETS, Tokenizer
from mgjax.config.conditioning import MelodyConfig, StyleConfig
from mgjax.config.model import ModelConfig
from mgjax.errors import CheckpointError
from mgjax.nn import applied


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """What one row of a batch is told; None or empty for nothing.

    Attributes:
      text: A description.
      melody: A melody to follow.
      chroma: Its chromagram instead.
      style: What `Conditioner.styles` made of an excerpt.
      labels: Values of the model's labels and numbers by name.
    """

    text: str | None = None
    melody: Melody | None = None
    chroma: Float[np.ndarray, "f p"] | None = None
    style: Float[np.ndarray, "l d"] | None = None
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def follows(self) -> bool:
        """Whether there is a melody."""
        return self.melody is not None or self.chroma is not None

    def __bool__(self) -> bool:
        return bool(self.text or self.labels) or self.follows or self.style is not None


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """The stretch of a piece that conditions are for, in seconds; `beyond` where the whole piece is longer."""

    offset: float
    seconds: float
    beyond: bool


@dataclasses.dataclass(frozen=True, eq=False)
class _Texts:
    """Encoded texts: each one's place among them, what became of it, which positions are there, and its CLAP vector."""

    places: dict[str, int]
    tokens: Float[Array, "u l d"]
    mask: Bool[np.ndarray, "u l"]
    joint: Float[Array, "v j"]


class Conditioner:
    """The encoders of a model.

    With `compat="audiocraft"` padding is attended to, as in the original, so that a row depends on its batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Mapping[str, Any],
        *,
        tokenizer_files: Path | None = None,
        clap_tokenizer_files: Path | None = None,
        compat: str | None = None,
    ):
        self._config = config
        self._variables = variables
        self._tokenizer_files = tokenizer_files
        self._clap_tokenizer_files = clap_tokenizer_files
        self._compat = compat

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokenizers, which cannot be pickled and are read again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("tokenizer", "_clap")}

    def encode(self, texts: Sequence[str | None]) -> _Texts:
        """Every different text, encoded once."""
        different = list(dict.fromkeys(text for text in texts if text))
        places = {text: place for place, text in enumerate(different)}
        return _Texts(places, *self._tokens(different), self._joint(different))

    def styles(self, excerpts: Sequence[Excerpt | None], codec: Encode) -> list[Float[np.ndarray, "l d"] | None]:
        """What the style conditioner makes of the excerpts that `mgjax.conditioning.excerpts.prepare` gives."""
        return encode(excerpts, self._config.style, self._variables["style"], codec)

    def _tokens(self, texts: Sequence[str]) -> tuple[Float[Array, "u l d"], Bool[np.ndarray, "u l"]]:
        """What the text encoder makes of texts."""
        config = self._config.text
        if config is None or not texts:
            shape = (1, BUCKETS[0])
            return jnp.zeros((*shape, config.dim if config else 1)), np.zeros(shape, bool)
        ids, mask = self.tokenizer.encode(_rounded_up(texts))
        return applied(T5Encoder(config), {"params": self._variables["text"]}, ids, mask), mask

    def _joint(self, texts: Sequence[str]) -> Float[Array, "u j"]:
        """The vectors of texts in CLAP's space, quantized where the model does that."""
        config = self._config.clap
        if config is None or not texts:
            return jnp.zeros((1, config.clap.dim if config else 1))
        embedded = jnp.asarray(self._clap.embed_text(_rounded_up(texts)))
        codebooks = self._variables["clap"].get("codebooks")
        return embedded if codebooks is None else _quantized(embedded, codebooks["embed"])

    def conditions(self, sets: Sequence[Sequence[Row]], texts: _Texts, span: Span) -> dict[str, Condition]:
        """What the language model reads of a batch in `span`, by name.

        Args:
          sets: The batch with all its conditions, then, for guidance, the same rows with fewer.
          texts: What `encode` made of all the texts in them.
          span: What the conditions are for.
        """
        rows = [row for one in sets for row in one]
        found: dict[str, Condition] = {}
        if self._config.text is not None:
            text = self._text(rows, len(sets[0]), texts)
            # Without any text, cross-attention would give zero in every row: it is left out.
            if any(row.text for row in rows) or self._config.lm.condition("text").fuse == "prefix":
                found["text"] = text
        if self._config.clap is not None and any(row.text for row in rows):
            there = jnp.asarray([bool(row.text) for row in rows])
            found["clap"] = joint.condition(jnp.take(texts.joint, self._places(rows, texts), axis=0), there)
        if self._config.style is not None:
            found["style"] = self._style(rows, len(sets[0]), self._config.style)
        melody = self._config.melody
        if melody is not None and (melody.null == "silence" or any(row.follows for row in rows)):
            found["melody"] = self._melody(rows, span, melody)
        for kind in (*self._config.labels, *self._config.numbers):
            values = [row.labels.get(kind.name) for row in rows]
            if any(value is not None for value in values):
                found[kind.name] = Condition(*map(jnp.asarray, vectors(values, kind)))
        return found

    def _text(self, rows: Sequence[Row], batch: int, texts: _Texts) -> Condition:
        index = self._places(rows, texts)
        there = np.array([bool(row.text) for row in rows])
        mask = texts.mask[index] & there[:, None]
        tokens = jnp.take(texts.tokens, index, axis=0)
        return Condition(tokens, jnp.asarray(mask), attended=self._attended(mask, batch))

    def _places(self, rows: Sequence[Row], texts: _Texts) -> np.ndarray:
        return np.array([texts.places.get(row.text or "", 0) for row in rows])

    def _style(self, rows: Sequence[Row], batch: int, config: StyleConfig) -> Condition:
        """Styles, and zero vectors that are attended to for rows without: as many as the style has that they stand for,
        one where that row has none either."""
        length = max((len(row.style) for row in rows if row.style is not None), default=1)
        there = np.array([row.style is not None for row in rows])
        vectors = np.zeros((len(rows), length, config.dim), np.float32)
        for i, row in enumerate(rows):
            if row.style is not None:
                vectors[i] = row.style
        lengths = np.where(np.tile(there[:batch], len(rows) // batch), length, 1)
        if self._compat == "audiocraft":
            lengths = np.full_like(lengths, length)
        found = styles.condition(jnp.asarray(vectors), jnp.asarray(there))
        return found.replace(attended=jnp.asarray(np.arange(length) < lengths[:, None]))

    def _melody(self, rows: Sequence[Row], span: Span, config: MelodyConfig) -> Condition:
        tokens, mask = windowed([row.melody for row in rows], span.offset, span.seconds, span.beyond, config)
        for i, row in enumerate(rows):
            if row.chroma is not None:
                tokens[i], mask[i] = np.roll(row.chroma, -round(span.offset * config.frame_rate), axis=0), True
        rate = config.frame_rate / self._config.codec.frame_rate
        return Condition(jnp.asarray(tokens), jnp.asarray(mask), rate=rate)

    def _attended(self, mask: np.ndarray, batch: int) -> Array | None:
        """Which positions of the text are attended to, padding included where the published models do that.

        In the melody models the text stands before the music, and a null text is as many zero vectors as the text that
        it stands for has tokens: masking them would move the music. audiocraft pads all rows to the longest.
        """
        lengths = mask.sum(axis=1)
        stands_for = np.tile(lengths[:batch], len(lengths) // batch)
        lengths = np.maximum(np.where(lengths > 0, lengths, stands_for), 1)
        if self._compat == "audiocraft":
            lengths = np.full_like(lengths, lengths.max())
        elif self._config.lm.condition("text").fuse != "prefix":
            return None
        return jnp.asarray(np.arange(mask.shape[1]) < lengths[:, None])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """What cuts texts into the pieces that the text encoder knows; raises as `tokenizer_of`."""
        return tokenizer_of(self._config, self._tokenizer_files)

    @functools.cached_property
    def _clap(self) -> joint.Clap:
        tokenizer = clap_tokenizer_of(self._clap_tokenizer_files)
        return joint.Clap(self._config.clap.clap, self._variables["clap"], tokenizer)


def tokenizer_of(config: ModelConfig, files: Path | None) -> Tokenizer:
    """What cuts texts for the text encoder of a model.

    Args:
      config: Of the model.
      files: The folder that holds the tokenizer's files, or None.

    Raises:
      CheckpointError: The model has no text encoder, or came without its tokenizer.
    """
    if config.text is None:
        raise CheckpointError("this model has no T5, and so no tokenizer of one")
    if config.tokenizer != "bytes" and files is None:
        raise CheckpointError(
            "this model came without a tokenizer, so it cannot read texts: put spiece.model or tokenizer.json (those "
            "of t5-base for the published models) into its folder"
        )
    tokenizer = Tokenizer.bytes() if config.tokenizer == "bytes" else Tokenizer.from_directory(files)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {files} has {tokenizer.vocab_size} tokens, and the text encoder knows "
            f"{config.text.vocab_size}: they do not belong together"
        )
    return tokenizer


def clap_tokenizer_of(files: Path | None) -> ClapTokenizer:
    """What cuts texts for a model's CLAP; raises CheckpointError where the model came without its `files`."""
    if files is None:
        raise CheckpointError(
            "this model came without the tokenizer of its CLAP, so it cannot read texts: put tokenizer.json, or "
            "vocab.json and merges.txt, of the CLAP (RoBERTa's) into the folder clap inside its folder"
        )
    return ClapTokenizer.from_directory(files)


def _rounded_up(texts: Sequence[str]) -> list[str]:
    """The texts, and the last one again until their number is a power of two: each number is a program to compile."""
    return [*texts, *[texts[-1]] * (2 ** (len(texts) - 1).bit_length() - len(texts))]


_quantized = jax.jit(joint.quantized)
