"""The text encoder of a run: a pretrained one, frozen or trained on, or a new one."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from mgjax.checkpoints import hub, huggingface, native, random_weights
from mgjax.checkpoints.tables import matching
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.config.conditioning import T5Config
from mgjax.errors import CheckpointError, ConfigError
from mgjax.storage import cache


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A T5 encoder and its tokenizer; `config` and `weights` are None for a model without text prompts."""

    config: T5Config | None = None
    weights: dict[str, Any] | None = None  # numpy arrays; None for a new one
    tokenizer_files: pathlib.Path | None = None  # their folder
    tokenizer: str = "sentencepiece"  # or "bytes"


def read(source: str | None, with_weights: bool = True) -> TextEncoder:
    """Reads a pretrained text encoder, or its config alone.

    `source` is a directory or the Hub id of a T5 or of a model that has one; "debug"; or None for no text encoder.

    Raises:
      CheckpointError: There is nothing readable.
      ConfigError: The model at `source` has no text encoder.
    """
    if source is None:
        return TextEncoder()
    if source == "debug":
        model = random_weights.DEBUG
        weights = random_weights.random_variables(model, place=lambda path, array: array)["text"]
        return TextEncoder(model.text, weights if with_weights else None, None, model.tokenizer)
    directory = hub.fetch(source)
    if native.read_json(directory / "config.json").get("format") != "mgjax":
        config, match = huggingface.match_text_encoder(directory)
        weights = matching.load(match, place=lambda path, array: array) if with_weights else None
        return TextEncoder(config, weights, native.find_tokenizer(directory))
    model = native.read_config(directory)
    if model.text is None:
        raise ConfigError(f"{source} reads no text: give a model that does, or a T5, as text_encoder")
    weights = native.read_model(directory, place=lambda path, array: array).variables["text"] if with_weights else None
    return TextEncoder(model.text, weights, native.find_tokenizer(directory), model.tokenizer)


def _vocabulary_folder(source: str) -> pathlib.Path | None:
    """The local folder of a vocabulary, or of a copy of it; None where there is none."""
    try:
        return native.find_tokenizer(
            cache.local_folder(source, lambda names: [name for name in names if name in native.TOKENIZER_FILES])
        )
    except FileNotFoundError:
        return None


def new(config: T5Config, vocabulary: str | None) -> TextEncoder:
    """A text encoder to be trained from scratch, without weights yet.

    A `vocab_size` that is left at T5's own becomes that of the `vocabulary`: a folder with a spiece.model, as `mgjax
    corpus vocabulary` writes it; None or "bytes" for bytes.

    Raises:
      CheckpointError: There is no vocabulary.
      ConfigError: The vocabulary has more pieces than `config.vocab_size`.
    """
    if vocabulary in (None, "bytes"):
        tokenizer, files, kind = Tokenizer.bytes(), None, "bytes"
    else:
        files, kind = _vocabulary_folder(vocabulary), "sentencepiece"
        if files is None:
            raise CheckpointError(
                f"{vocabulary} holds no vocabulary: make one by `mgjax corpus vocabulary CORPUS --out {vocabulary}`, "
                'or set vocabulary to "bytes", which needs none'
            )
        tokenizer = Tokenizer.from_directory(files)
    if config.vocab_size == T5Config().vocab_size:
        config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
    if config.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"new_text.vocab_size must be {tokenizer.vocab_size} or more, as many pieces as the vocabulary "
            f"({vocabulary or 'bytes'}) has, got {config.vocab_size}"
        )
    return TextEncoder(config, None, files, kind)
