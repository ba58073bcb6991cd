"""What batches tell of their music: texts, melodies and labels, and how often they leave it untold."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from mgjax.conditioning.labels import from_metadata, vectors
from mgjax.config.conditioning import LabelConfig, MelodyConfig, NumberConfig
from mgjax.config.serialization import ranged
from mgjax.data.pieces import Pieces
from mgjax.data.prompts import TextConfig, assemble, plain
from mgjax.errors import ConfigError, DataError

Tokenize = Callable[[Sequence[str | None]], tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]]


@dataclasses.dataclass(frozen=True)
class Dropout:
    """How often training examples are told less than is known, each by its own chance.

    The defaults are those of the published recipes for text (`conditions`) and for melodies; the published large and
    melody models have 0.2 for `conditions`, the style model 0.1, with 0.4 for `text` and `style`.

    Attributes:
      conditions: The share of examples that are told nothing at all, for classifier-free guidance.
      text: Of the others, the share without text.
      melody: Of the others, the share without melody.
      style: Of the others, the share without style.
      clap: Of the others, the share without a place in CLAP's space.
      labels: Of the others, the share without one of the labels and numbers; each for itself.
    """

    conditions: float = 0.3
    text: float = 0.0
    melody: float = 0.5
    style: float = 0.4
    clap: float = 0.0
    labels: float = 0.5

    def __post_init__(self):
        ranged(self, "from 0 to 1", "conditions text melody style clap labels", "dropout.")

    def kept(self, names: Sequence[str], rng: np.random.Generator) -> frozenset[str]:
        """Which of the conditions `names` an example is told."""
        shares = vars(self)
        is_told = rng.random() >= self.conditions
        draws = rng.random(len(names))
        chances = [shares[name] if name in ("text", "melody", "style", "clap") else self.labels for name in names]
        return frozenset(
            name for name, draw, chance in zip(names, draws, chances, strict=True) if is_told and draw >= chance
        )


@dataclasses.dataclass(frozen=True)
class Told:
    """What batches tell of their music.

    Attributes:
      text: How texts are made; None for batches without texts.
      tokenize: Token ids of texts, and which of them are there. Not asked where the corpora hold token ids and `text`
        leaves the descriptions as they are.
      melody: The chromagram that is asked for; None for none.
      style: Seconds of the excerpt of each segment that says what it sounds like; None for none.
      clap: Token ids of texts for CLAP, which stand for the music in validations; None for no place in its space.
      labels: The labels and numbers that are asked for.
      dropout: How often less is told.
      is_complete: Whether all is told as at generation: see `complete`.
    """

    text: TextConfig | None = None
    tokenize: Tokenize | None = None
    melody: MelodyConfig | None = None
    style: float | None = None
    clap: Tokenize | None = None
    labels: tuple[LabelConfig | NumberConfig, ...] = ()
    dropout: Dropout = dataclasses.field(default_factory=Dropout)
    is_complete: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that are asked for."""
        named = [name for name in ("text", "melody", "style", "clap") if getattr(self, name) is not None]
        return (*named, *(label.name for label in self.labels))

    def complete(self) -> Told:
        """All that is known, as it stands: what is told in a validation."""
        text = self.text and dataclasses.replace(self.text, merge_text_p=0.0, word_dropout=0.0)
        return dataclasses.replace(self, text=text, dropout=Dropout(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), is_complete=True)


class Drawn(NamedTuple):
    """A segment of a piece: where it begins and how much music is in it, in samples or frames; and the generator that
    all else about it is drawn from."""

    piece: int
    start: int
    length: int
    rng: np.random.Generator


class Teller:
    """Makes what the rows of a batch are told.

    Raises:
      ConfigError: The corpora do not have the melodies or the labels that are asked for.
      DataError: There is no tokenizer for the texts, or another than that of the corpora.
    """

    def __init__(self, pieces: Pieces, told: Told):
        self._pieces, self._told = pieces, told
        self._tokenize = None if told.text is None else _tokenizer(pieces, told.text, told.tokenize)
        if told.melody is not None:
            _check_melodies(pieces, told.melody)
        for label in told.labels:
            from_metadata({}, label)  # metadata have such a field

    def __call__(self, drawn: Sequence[Drawn]) -> dict[str, np.ndarray]:
        """Arrays of the rows `drawn`, named as `pipeline.batches` says."""
        told = self._told
        kept = [told.dropout.kept(told.names, one.rng) for one in drawn]
        batch = {}
        if told.text is not None:
            batch |= self._texts(drawn, ["text" in names for names in kept], told.text)
        if told.melody is not None:
            batch |= self._melodies(drawn, ["melody" in names for names in kept], told.melody)
        if told.style is not None:
            batch |= self._excerpts(drawn, ["style" in names for names in kept], told.style)
        if told.clap is not None:
            batch["clap_mask"] = np.array(["clap" in names for names in kept])
            if told.is_complete:
                ids, mask = told.clap([plain(self._pieces.metadata(one.piece)) for one in drawn])
                batch |= {"clap_ids": ids, "clap_ids_mask": mask, "clap_mask": batch["clap_mask"] & mask.any(axis=1)}
        for label in told.labels:
            values = [
                from_metadata(vars(self._pieces.metadata(one.piece)), label) if label.name in names else None
                for one, names in zip(drawn, kept, strict=True)
            ]
            name = f"label_{label.name}"
            batch |= dict(zip((name, f"{name}_mask"), vectors(values, label), strict=True))
        return batch

    def _texts(self, drawn: Sequence[Drawn], kept: Sequence[bool], config: TextConfig) -> dict[str, np.ndarray]:
        """Token ids of a text for each row."""
        length = config.max_tokens
        ids, mask = np.zeros((len(drawn), length), np.int32), np.zeros((len(drawn), length), bool)
        for row, tokens in enumerate(self._token_ids(drawn, kept, config)):
            if len(tokens) > length:
                warnings.warn(
                    "some texts have more tokens than max_tokens and lose their end: set it higher", stacklevel=1
                )
                tokens = np.append(tokens[: length - 1], tokens[-1])  # the last one says that the text is over
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return {"text_ids": ids, "text_mask": mask}

    def _token_ids(self, drawn: Sequence[Drawn], kept: Sequence[bool], config: TextConfig) -> list[np.ndarray]:
        rows = list(zip(drawn, kept, strict=True))
        if self._tokenize is None:  # the corpora hold the ids
            return [self._pieces.text_ids(one.piece) if keep else np.zeros(0, np.int32) for one, keep in rows]
        texts = [assemble(self._pieces.metadata(one.piece), config, one.rng) if keep else None for one, keep in rows]
        ids, mask = self._tokenize(texts)
        return [row[there] for row, there in zip(ids, mask, strict=True)]

    def _melodies(self, drawn: Sequence[Drawn], kept: Sequence[bool], config: MelodyConfig) -> dict[str, np.ndarray]:
        """Which frames of the chromagrams there are, and of corpora of codes the chromagrams themselves."""
        steps = config.frame_rate / self._pieces.rate  # frames of the chromagram per sample or frame
        melody = np.zeros((len(drawn), config.num_frames, config.num_bins), np.float32)
        mask = np.zeros(melody.shape[:2], bool)
        for row, one in enumerate(drawn):
            if kept[row]:
                mask[row, : math.ceil(round(one.length * steps, 6))] = True
            if kept[row] and self._pieces.kind == "tokens":
                found = self._pieces.melody(one.piece, round(one.start * steps), config.num_frames)
                melody[row, : len(found)] = found
                mask[row, len(found) :] = False
        if self._pieces.kind == "audio":
            return {"melody_mask": mask}
        if config.bottleneck == "dominant":
            melody = _dominant(melody)
        return {"melody": melody * mask[..., None], "melody_mask": mask}

    def _excerpts(self, drawn: Sequence[Drawn], kept: Sequence[bool], seconds: float) -> dict[str, np.ndarray]:
        """Where an excerpt begins in each row, in samples or frames, and whether it is there: some rows are short."""
        size = round(seconds * self._pieces.rate)
        starts = [one.rng.integers(max(one.length - size, 0) + 1) for one in drawn]
        there = [keep and one.length >= size for one, keep in zip(drawn, kept, strict=True)]
        return {"style_start": np.array(starts, np.int32), "style_mask": np.array(there, bool)}


def stored_melody(config: MelodyConfig) -> MelodyConfig:
    """What a corpus of codes keeps for melodies of `config`: the strengths that its strongest are chosen from, of whole
    pieces, whatever stands for no melody."""
    defaults = MelodyConfig()
    bottleneck = "none" if config.bottleneck == "dominant" else config.bottleneck
    return dataclasses.replace(config, bottleneck=bottleneck, num_frames=defaults.num_frames, null=defaults.null)


def _dominant(chroma: Float32[np.ndarray, "b f p"]) -> Float32[np.ndarray, "b f p"]:
    """1 for the strongest pitch class of each frame, the first of several; 0 for the others."""
    return np.eye(chroma.shape[-1], dtype=np.float32)[np.argmax(chroma, axis=-1)]


def _check_melodies(pieces: Pieces, config: MelodyConfig) -> None:
    expected = stored_melody(config)
    for corpus in pieces.corpora:
        if config.sample_rate != corpus.sample_rate:
            raise ConfigError(
                f"melody.sample_rate is {config.sample_rate}, but the music in {corpus.directory} has "
                f"{corpus.sample_rate} Hz: set it to that"
            )
        found = corpus.description.melody
        if corpus.kind == "tokens" and found != expected:
            has = "no melodies" if found is None else f"melodies of {found}"
            raise ConfigError(
                f"{corpus.directory} holds {has}, and this run needs those of {expected}: make it anew with "
                "`mgjax corpus tokenize --melody` and the same settings, or train on the corpus of sound"
            )


def _tokenizer(pieces: Pieces, text: TextConfig, tokenize: Tokenize | None) -> Tokenize | None:
    """What makes the ids of texts; None where those in the corpora serve."""
    stored = [corpus.text_ids(0) for corpus in pieces.corpora]
    if not text.keeps_descriptions or any(ids is None for ids in stored):
        if tokenize is None:
            raise DataError("texts need a tokenizer: hand over the text encoder's as `tokenize`, or text=None for none")
        return tokenize
    if tokenize is not None:
        for corpus, ids in zip(pieces.corpora, stored, strict=True):
            expected, there = tokenize([plain(corpus.metadata(0))])
            if not np.array_equal(expected[there], ids):
                raise DataError(
                    f"the token ids in the corpus {corpus.directory} are not those of this run's text encoder: "
                    "tokenize the corpus anew with it"
                )
    return None
