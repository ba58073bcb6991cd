"""The tokenizer of T5."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int32

from mgjax.errors import CheckpointError
from mgjax.inputs import files

END = 1  # </s>, after every text
BUCKETS = (16, 32, 64, 128, 256, 512)  # the lengths of batches: few, because each is a program to compile
SPECIAL = ("<pad>", "</s>", "<unk>")  # the first ids of every vocabulary of T5


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """T5's tokenizer: texts as ids of pieces of a vocabulary, where 0 is padding and 1 the end of a text.

    Attributes:
      pieces: Gives the ids of a text, without its end.
      vocab_size: All ids are below this. T5's 100 `<extra_id_...>` are not counted: they occur in no text.
    """

    pieces: Callable[[str], list[int]]
    vocab_size: int

    @classmethod
    def from_directory(cls, directory: str | os.PathLike) -> Tokenizer:
        """Loads the tokenizer in `spiece.model`, else that in `tokenizer.json`.

        Both give the same ids; known exceptions are the control character U+0085, and accents put on characters that
        are normalised away, such as full-width letters. Names of special tokens, like `</s>`, are text as any other.

        Raises:
          CheckpointError: There is no such file, or it does not hold a vocabulary of T5.
        """
        readers = {"spiece.model": _from_sentencepiece, "tokenizer.json": _from_json}
        for name, read in readers.items():
            path = Path(directory, name)
            if path.is_file():
                return cls(*read(path))
        raise CheckpointError(
            f"{os.fspath(directory)} holds no tokenizer: expected {' or '.join(readers)}. "
            "Download the one that belongs to the model (MusicGen has that of t5-base) into this directory"
        )

    @classmethod
    def bytes(cls) -> Tokenizer:
        """A tokenizer that needs no file: each byte of the UTF-8 text is a piece."""
        return cls(lambda text: [3 + byte for byte in text.encode()], 3 + 256)

    def encode(self, texts: Sequence[str | None]) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Token ids of a batch, and the mask of valid ones; `l` is the shortest of BUCKETS that holds the longest text.

        The rows of `None` and "" are padding alone. Text beyond the longest bucket is dropped with a warning.
        """
        rows = [self._ids(text) if text else [] for text in texts]
        longest = max(map(len, rows), default=0)
        return padded(rows, next(size for size in BUCKETS if size >= longest), pad=0)

    def _ids(self, text: str) -> list[int]:
        pieces = self.pieces(text.encode(errors="replace").decode())  # a command line may hold undecodable bytes
        dropped = len(pieces) - (BUCKETS[-1] - 1)
        if dropped > 0:
            warnings.warn(
                f"the text beginning {text[:40]!r} has {len(pieces)} tokens, {dropped} more than the text encoder is "
                "given: its end is ignored. Shorten it",
                stacklevel=2,
            )
        return [*pieces[: BUCKETS[-1] - 1], END]


def padded(
    rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    """Rows of token ids as one array, filled up to `length` with `pad`, and the mask of valid ids."""
    ids = np.full((len(rows), length), pad, np.int32)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, np.arange(length)[None] < np.array([len(tokens) for tokens in rows], np.int32)[:, None]


def _from_sentencepiece(path: Path) -> tuple[Callable[[str], list[int]], int]:
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(files.read_bytes(path, error=CheckpointError))
        first = [model.IdToPiece(i) for i in range(min(len(SPECIAL), model.GetPieceSize()))]
    except (RuntimeError, ValueError) as error:
        raise _malformed(path, error) from error
    _check(path, first)
    return model.EncodeAsIds, model.GetPieceSize()


def _from_json(path: Path) -> tuple[Callable[[str], list[int]], int]:
    try:
        content = files.read_json(path)
        vocab = content["model"]["vocab"]
        pieces = [piece for piece, _ in vocab]
        _check(path, pieces[: len(SPECIAL)])
        # Special tokens are to be text like any other, as they are to sentencepiece: here too they are not searched
        # for, and in the vocabulary a character that normalisation removes from texts keeps them from matching.
        special = {token["content"] for token in content["added_tokens"] if token["special"]}
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
        content["model"]["vocab"] = [["\0" + piece if piece in special else piece, score] for piece, score in vocab]
        content["model"]["unk_id"] = SPECIAL.index("<unk>")  # without it, texts would fail later
        content["post_processor"] = content["truncation"] = content["padding"] = None
        model = tokenizers.Tokenizer.from_str(json.dumps(content))
    except CheckpointError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise _malformed(path, error) from error
    vocab_size = sum(not piece.startswith("<extra_id_") for piece in pieces)
    return lambda text: model.encode(text, add_special_tokens=False).ids, vocab_size


def _check(path: Path, first: list[str]) -> None:
    if first != list(SPECIAL):
        raise CheckpointError(
            f"{path} is not a vocabulary of T5: expected it to begin with {', '.join(SPECIAL)}, found "
            f"{', '.join(first)}. Use the tokenizer that belongs to the model"
        )


def _malformed(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable tokenizer ({type(error).__name__}: {error}): it may be damaged or incomplete. "
        "Download it again"
    )
