"""The tokenizers of a model's text encoders, loaded with the checks that they belong to the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from mgjax.conditioning.clap_text import ClapTokenizer
from mgjax.conditioning.text import Tokenizer
from mgjax.config.conditioning import ClapConfig
from mgjax.config.model import ModelConfig
from mgjax.errors import CheckpointError


def load(model: ModelConfig, directory: Path | None) -> Tokenizer:
    """Loads the tokenizer of a model's T5.

    Args:
      model: `model.tokenizer` is the kind.
      directory: The folder that holds its files, or None.

    Raises:
      CheckpointError: The model has no T5, came without its tokenizer, or with one that has more tokens than the T5.
    """
    if model.text is None:
        raise CheckpointError("this model has no T5, and so no tokenizer of one")
    if model.tokenizer == "bytes":
        tokenizer = Tokenizer.bytes()
    elif directory is None:
        raise CheckpointError(
            "this model came without a tokenizer, so it cannot read texts: put spiece.model or tokenizer.json (those "
            "of t5-base for the published models) into its folder"
        )
    else:
        tokenizer = Tokenizer.from_directory(directory)
    if tokenizer.vocab_size > model.text.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size} tokens, and the text encoder knows "
            f"{model.text.vocab_size}: they do not belong together"
        )
    return tokenizer


def load_clap(clap: ClapConfig, directory: Path | None) -> ClapTokenizer:
    """Loads the tokenizer of a CLAP, from the folder that holds its files.

    Raises:
      CheckpointError: The model came without its tokenizer (None), or with another one's.
    """
    if directory is None:
        raise CheckpointError(
            "this model came without the tokenizer of its CLAP, so it cannot read texts: put tokenizer.json, or "
            "vocab.json and merges.txt, of the CLAP (RoBERTa's) into the folder clap inside its folder"
        )
    tokenizer = ClapTokenizer.from_directory(directory)
    if tokenizer.vocab_size > clap.text.vocab_size or tokenizer.pad != clap.text.pad_token:
        raise CheckpointError(
            f"the tokenizer in {directory} ({tokenizer.vocab_size} tokens, padding {tokenizer.pad}) does not belong to "
            f"the text tower ({clap.text.vocab_size} tokens, padding {clap.text.pad_token}): use the model's own"
        )
    return tokenizer


def vocabulary_hash(directories: Iterable[Path | None]) -> str:
    """Twelve hexadecimal digits that tell the vocabularies in some folders (None: no files) from others."""
    digest = hashlib.sha256()
    for directory in filter(None, directories):
        paths = [directory / name for name in ("spiece.model", "tokenizer.json", "merges.txt")]
        digest.update(next(path for path in paths if path.is_file()).read_bytes())
    return digest.hexdigest()[:12]
