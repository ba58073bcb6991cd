"""The conditioning inputs of batches: texts, melodies, labels, ..., and how often they are dropped."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from mgjax.conditioning.labels import from_metadata, vectors
from mgjax.config.conditioning import LabelConfig, MelodyConfig, NumberConfig
from mgjax.config.serialization import ranged
from mgjax.data.corpus import Pieces
from mgjax.data.prompts import TextConfig, assemble, raw_text
from mgjax.errors import ConfigError, DataError

Tokenize = Callable[[Sequence[str | None]], tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]]


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Condition dropout: how often training examples lose their conditions, each by its own chance.

    The defaults are those of the published recipes for text (`conditions`) and for melodies; the published large and
    melody models have 0.2 for `conditions`, the style model 0.1, with 0.4 for `text` and `style`.

    Attributes:
      conditions: The share of examples without any condition, for classifier-free guidance.
      text: Of the others, the share without text.
      melody: Of the others, the share without melody.
      style: Of the others, the share without style.
      clap: Of the others, the share without a joint embedding of CLAP.
      labels: Of the others, the share without one of the labels and numbers; each for itself.
    """

    conditions: float = 0.3
    text: float = 0.0
    melody: float = 0.5
    style: float = 0.4
    clap: float = 0.0
    labels: float = 0.5

    def __post_init__(self) -> None:
        ranged(self, "from 0 to 1", "conditions text melody style clap labels", "dropout.")

    def kept(self, names: Sequence[str], rng: np.random.Generator) -> frozenset[str]:
        """Draws which of the conditions `names` an example keeps."""
        shares = vars(self)
        is_conditional = rng.random() >= self.conditions
        draws = rng.random(len(names))
        chances = [shares[name] if name in ("text", "melody", "style", "clap") else self.labels for name in names]
        return frozenset(
            name for name, draw, chance in zip(names, draws, chances, strict=True) if is_conditional and draw >= chance
        )


@dataclasses.dataclass(frozen=True)
class BatchConditions:
    """The conditions whose inputs are in the batches."""

    text: TextConfig | None = None  # how texts are assembled from metadata
    # From texts to token ids and the mask of valid ones. Not called where the corpora hold token ids and `text` leaves
    # the descriptions as they are.
    tokenize: Tokenize | None = None
    melody: MelodyConfig | None = None
    style: float | None = None  # seconds of the excerpt of each segment
    clap: Tokenize | None = None  # of texts for CLAP, which in validations are embedded in the place of the music
    labels: tuple[LabelConfig | NumberConfig, ...] = ()
    dropout: Dropout = dataclasses.field(default_factory=Dropout)
    for_validation: bool = False  # CLAP reads texts, as at generation: see `validation`

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions."""
        named = [name for name in ("text", "melody", "style", "clap") if getattr(self, name) is not None]
        return (*named, *(label.name for label in self.labels))

    def validation(self) -> BatchConditions:
        """The same conditions for a validation: none dropped, and texts as they stand."""
        text = self.text and dataclasses.replace(self.text, merge_text_p=0.0, word_dropout=0.0)
        return dataclasses.replace(self, text=text, dropout=Dropout(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), for_validation=True)


class Segment(NamedTuple):
    """A segment of a piece that was drawn for a row of a batch."""

    piece: int
    start: int  # samples or frames
    length: int  # of music in it, in samples or frames
    rng: np.random.Generator  # for all other draws about it


class ConditionReader:
    """Reads the conditioning inputs of batches from corpora.

    Raises:
      ConfigError: The corpora do not have the melodies or the labels of the conditions.
      DataError: The texts have no tokenizer, or another than the corpora.
    """

    def __init__(self, pieces: Pieces, conditions: BatchConditions):
        self._pieces, self._conditions = pieces, conditions
        self._tokenize = None if conditions.text is None else _tokenizer(pieces, conditions.text, conditions.tokenize)
        if conditions.melody is not None:
            _check_melodies(pieces, conditions.melody)
        for label in conditions.labels:
            from_metadata({}, label)  # metadata have such a field

    def __call__(self, segments: Sequence[Segment]) -> dict[str, np.ndarray]:
        """The arrays of a batch, named as `pipeline.batches` says, with a row for each segment."""
        conditions = self._conditions
        draws = [conditions.dropout.kept(conditions.names, segment.rng) for segment in segments]
        kept = {name: [name in names for names in draws] for name in conditions.names}
        batch: dict[str, np.ndarray] = {}
        if conditions.text is not None:
            batch |= self._texts(segments, kept["text"], conditions.text)
        if conditions.melody is not None:
            batch |= self._melodies(segments, kept["melody"], conditions.melody)
        if conditions.style is not None:
            batch |= self._excerpts(segments, kept["style"], conditions.style)
        if conditions.clap is not None:
            batch["clap_mask"] = np.array(kept["clap"])
            if conditions.for_validation:
                ids, mask = conditions.clap([raw_text(self._pieces.metadata(segment.piece)) for segment in segments])
                batch |= {"clap_ids": ids, "clap_ids_mask": mask, "clap_mask": batch["clap_mask"] & mask.any(axis=1)}
        for label in conditions.labels:
            values = [
                from_metadata(vars(self._pieces.metadata(segment.piece)), label) if keep else None
                for segment, keep in zip(segments, kept[label.name], strict=True)
            ]
            name = f"label_{label.name}"
            batch |= dict(zip((name, f"{name}_mask"), vectors(values, label), strict=True))
        return batch

    def _texts(self, segments: Sequence[Segment], kept: Sequence[bool], config: TextConfig) -> dict[str, np.ndarray]:
        """Token ids of a text for each row, and the mask of valid ones."""
        length = config.max_tokens
        ids, mask = np.zeros((len(segments), length), np.int32), np.zeros((len(segments), length), bool)
        for row, tokens in enumerate(self._token_ids(segments, kept, config)):
            if len(tokens) > length:
                warnings.warn(
                    "some texts have more tokens than max_tokens and lose their end: set it higher", stacklevel=1
                )
                tokens = np.append(tokens[: length - 1], tokens[-1])  # the last one says that the text is over
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return {"text_ids": ids, "text_mask": mask}

    def _token_ids(self, segments: Sequence[Segment], kept: Sequence[bool], config: TextConfig) -> list[np.ndarray]:
        rows = list(zip(segments, kept, strict=True))
        if self._tokenize is None:  # the corpora hold the ids
            return [self._pieces.text_ids(segment.piece) if keep else np.zeros(0, np.int32) for segment, keep in rows]
        texts = [assemble(self._pieces.metadata(row.piece), config, row.rng) if keep else None for row, keep in rows]
        ids, mask = self._tokenize(texts)
        return [row[valid] for row, valid in zip(ids, mask, strict=True)]

    def _melodies(
        self, segments: Sequence[Segment], kept: Sequence[bool], config: MelodyConfig
    ) -> dict[str, np.ndarray]:
        """The mask of the chromagrams' valid frames, and of corpora of codes the chromagrams themselves."""
        steps = config.frame_rate / self._pieces.rate  # frames of the chromagram per sample or frame
        melody = np.zeros((len(segments), config.num_frames, config.num_bins), np.float32)
        mask = np.zeros(melody.shape[:2], bool)
        for row, segment in enumerate(segments):
            if kept[row]:
                mask[row, : math.ceil(round(segment.length * steps, 6))] = True
            if kept[row] and self._pieces.kind == "tokens":
                stored = self._pieces.melody(segment.piece, round(segment.start * steps), config.num_frames)
                melody[row, : len(stored)] = stored
                mask[row, len(stored) :] = False
        if self._pieces.kind == "audio":
            return {"melody_mask": mask}
        if config.bottleneck == "dominant":
            # 1 for the strongest pitch class of each frame, the first of several; 0 for the others.
            melody = np.eye(melody.shape[-1], dtype=np.float32)[np.argmax(melody, axis=-1)]
        return {"melody": melody * mask[..., None], "melody_mask": mask}

    def _excerpts(self, segments: Sequence[Segment], kept: Sequence[bool], seconds: float) -> dict[str, np.ndarray]:
        """Where an excerpt begins in each row, in samples or frames, and whether it is valid: some rows are short."""
        size = round(seconds * self._pieces.rate)
        starts = [segment.rng.integers(max(segment.length - size, 0) + 1) for segment in segments]
        mask = [keep and segment.length >= size for segment, keep in zip(segments, kept, strict=True)]
        return {"style_start": np.array(starts, np.int32), "style_mask": np.array(mask, bool)}


def stored_melody(config: MelodyConfig) -> MelodyConfig:
    """The chromagram that a corpus of codes stores for melodies of `config`.

    It is of whole pieces, before the strongest pitch class of each frame is chosen, whatever the null melody is.
    """
    defaults = MelodyConfig()
    bottleneck = "none" if config.bottleneck == "dominant" else config.bottleneck
    return dataclasses.replace(config, bottleneck=bottleneck, num_frames=defaults.num_frames, null=defaults.null)


def _check_melodies(pieces: Pieces, config: MelodyConfig) -> None:
    expected = stored_melody(config)
    for corpus in pieces.corpora:
        if config.sample_rate != corpus.sample_rate:
            raise ConfigError(
                f"melody.sample_rate is {config.sample_rate}, but the music in {corpus.directory} has "
                f"{corpus.sample_rate} Hz: set it to that"
            )
        stored = corpus.description.melody
        if corpus.kind == "tokens" and stored != expected:
            has = "no melodies" if stored is None else f"melodies of {stored}"
            raise ConfigError(
                f"{corpus.directory} holds {has}, and this run needs those of {expected}: make it anew with "
                "`mgjax corpus tokenize --melody` and the same settings, or train on the corpus of sound"
            )


def _tokenizer(pieces: Pieces, text: TextConfig, tokenize: Tokenize | None) -> Tokenize | None:
    """The tokenizer of texts; None where the corpora hold the token ids."""
    stored = [corpus.text_ids(0) for corpus in pieces.corpora]
    if not text.keeps_descriptions or any(ids is None for ids in stored):
        if tokenize is None:
            raise DataError("texts need a tokenizer: hand over the text encoder's as `tokenize`, or text=None for none")
        return tokenize
    if tokenize is not None:
        for corpus, ids in zip(pieces.corpora, stored, strict=True):
            expected, mask = tokenize([raw_text(corpus.metadata(0))])
            if ids is None or not np.array_equal(expected[mask], ids):
                raise DataError(
                    f"the token ids in the corpus {corpus.directory} are not those of this run's text encoder: "
                    "tokenize the corpus anew with it"
                )
    return None
