"""The tokenizer of CLAP's text tower, RoBERTa."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from mgjax.conditioning.text import padded
from mgjax.errors import CheckpointError
from mgjax.inputs import files

LENGTH = 77  # tokens of every row: what CLAP was trained with
_LARGEST = 2**20  # tokens
SPECIAL = ("<s>", "<pad>", "</s>")  # before a text, beside it, after it

_HINT = "Download tokenizer.json, or vocab.json and merges.txt, of the CLAP model (RoBERTa's) into this directory"


@dataclasses.dataclass(frozen=True)
class ClapTokenizer:
    """RoBERTa's tokenizer: texts as ids of pieces of its vocabulary (byte pair encoding of UTF-8's bytes).

    Attributes:
      pieces: Gives the ids of a text, without its start and its end.
      start, pad, end: The ids of the special tokens.
      vocab_size: All ids are below this.
    """

    pieces: Callable[[str], list[int]]
    start: int
    pad: int
    end: int
    vocab_size: int

    @classmethod
    def from_directory(cls, directory: str | os.PathLike) -> ClapTokenizer:
        """Loads the tokenizer in `tokenizer.json`, else that in `vocab.json` and `merges.txt`.

        Both give the ids of transformers' RobertaTokenizer, but names of special tokens, like `</s>`, are text as any
        other.

        Raises:
          CheckpointError: There are no such files, or they do not hold such a vocabulary.
        """
        directory = Path(directory)
        if (directory / "tokenizer.json").is_file():
            path, read = directory / "tokenizer.json", _from_json
        elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            path, read = directory / "vocab.json", _from_vocabulary
        else:
            raise CheckpointError(f"{directory} holds no tokenizer of CLAP. {_HINT}")
        try:
            model, vocab = read(path)
            start, pad, end = (vocab[name] for name in SPECIAL)
            if not all(type(number) is int and 0 <= number < _LARGEST for number in vocab.values()):
                raise ValueError(f"its tokens are not numbered from 0 to {_LARGEST}")
        except Exception as error:  # `tokenizers` raises bare Exceptions
            raise CheckpointError(
                f"{path} is not a readable tokenizer of RoBERTa ({type(error).__name__}: {error}): it may be damaged, "
                f"or belong to another model. {_HINT}"
            ) from error

        def pieces(text: str) -> list[int]:
            return model.encode(text, add_special_tokens=False).ids

        return cls(pieces, start, pad, end, max(vocab.values()) + 1)

    def encode(self, texts: Sequence[str | None]) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Token ids of a batch, and the mask of valid ones; l is LENGTH.

        The rows of `None` and "" are padding alone. What does not fit is dropped with a warning.
        """
        return padded([self._ids(text) if text else [] for text in texts], LENGTH, self.pad)

    def _ids(self, text: str) -> list[int]:
        pieces = self.pieces(text.encode(errors="replace").decode())  # a command line may hold undecodable bytes
        dropped = len(pieces) - (LENGTH - 2)
        if dropped > 0:
            warnings.warn(
                f"the text beginning {text[:40]!r} has {len(pieces)} tokens, {dropped} more than CLAP reads: its end "
                "is ignored. Shorten it",
                stacklevel=3,
            )
        return [self.start, *pieces[: LENGTH - 2], self.end]


def _from_vocabulary(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    vocab = files.read_json(path)
    lines = files.read_text(path.with_name("merges.txt")).split("\n")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [(first, second) for first, second in merges]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model, vocab


def _from_json(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    content: dict[str, Any] = files.read_json(path)
    if content["model"].get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {content['model']['type']}, not BPE")
    content["added_tokens"] = []  # special tokens are not searched for in a text, and no merge makes one
    content["post_processor"] = content["truncation"] = content["padding"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(content)), content["model"]["vocab"]
