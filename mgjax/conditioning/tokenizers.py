"""The tokenizers of a model's text encoders, T5 and CLAP, loaded with the checks that they belong to the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int32

from mgjax.config.conditioning import ClapConfig
from mgjax.config.model import ModelConfig
from mgjax.errors import CheckpointError
from mgjax.inputs import files

TEXT_LENGTHS = (16, 32, 64, 128, 256, 512)  # in tokens, of batches: few, because each is a program to compile
_CLAP_LENGTH = 77  # tokens of every row: what CLAP was trained with
_CLAP_SPECIAL = ("<s>", "</s>", "<pad>")  # before a text, after it, beside it
_LARGEST = 2**20  # tokens
_CLAP_HINT = "Download tokenizer.json, or vocab.json and merges.txt, of the CLAP model (RoBERTa's) into this directory"
SPECIAL = ("<pad>", "</s>", "<unk>")  # the first ids of every vocabulary of T5


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A text encoder's tokenizer: texts as ids of pieces of its vocabulary. The defaults are T5's.

    Attributes:
      text_to_ids: The function from a text to its ids, without its start and its end.
      vocab_size: All ids are below this. T5's 100 `<extra_id_...>` are not counted: they occur in no text.
      lengths: The lengths that batches may have, in tokens.
      start, end, pad: The ids before a text (None for none), after it, and beside it.
      encoder: What messages call the encoder, which reads no more than the longest of `lengths`.
    """

    text_to_ids: Callable[[str], list[int]]
    vocab_size: int
    lengths: tuple[int, ...] = TEXT_LENGTHS
    start: int | None = None
    end: int = 1
    pad: int = 0
    encoder: str = "the text encoder"

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
        """Token ids of a batch, and the mask of valid ones; `l` is the shortest of `lengths` that holds all texts.

        The rows of `None` and "" are padding alone. What is beyond the longest is dropped with a warning.
        """
        rows = [self._ids(text) if text else [] for text in texts]
        sizes = np.array([len(row) for row in rows], np.int32)
        length = next(length for length in self.lengths if length >= sizes.max(initial=0))
        ids = np.full((len(rows), length), self.pad, np.int32)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        return ids, np.arange(length)[None] < sizes[:, None]

    def _ids(self, text: str) -> list[int]:
        start = [] if self.start is None else [self.start]
        room = self.lengths[-1] - len(start) - 1
        ids = self.text_to_ids(text.encode(errors="replace").decode())  # a command line may hold undecodable bytes
        if len(ids) > room:
            warnings.warn(
                f"the text beginning {text[:40]!r} has {len(ids)} tokens, {len(ids) - room} more than "
                f"{self.encoder} reads: its end is ignored. Shorten it",
                stacklevel=3,
            )
        return [*start, *ids[:room], self.end]


def ids_of_json(content: dict[str, Any]) -> Callable[[str], list[int]]:
    """The function from a text to its ids by the content of a tokenizer.json, without special tokens."""
    content["post_processor"] = content["truncation"] = content["padding"] = None
    return ids_by(tokenizers.Tokenizer.from_str(json.dumps(content)))


def ids_by(model: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    """The function from a text to its ids by a model of the library tokenizers."""
    return lambda text: model.encode(text, add_special_tokens=False).ids


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
        text_ids = ids_of_json(content)
    except CheckpointError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise _malformed(path, error) from error
    vocab_size = sum(not piece.startswith("<extra_id_") for piece in pieces)
    return text_ids, vocab_size


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


def clap_tokenizer(directory: str | os.PathLike) -> Tokenizer:
    """Loads the tokenizer in `tokenizer.json`, else that in `vocab.json` and `merges.txt`.

    Both give the ids of transformers' RobertaTokenizer, but names of special tokens, like `</s>`, are text as any
    other.

    Raises:
      CheckpointError: There are no such files, or they do not hold such a vocabulary.
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        path, read = directory / "tokenizer.json", _roberta_from_json
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        path, read = directory / "vocab.json", _roberta_from_vocabulary
    else:
        raise CheckpointError(f"{directory} holds no tokenizer of CLAP. {_CLAP_HINT}")
    try:
        pieces, vocab = read(path)
        start, end, pad = (vocab[name] for name in _CLAP_SPECIAL)
        if not all(type(number) is int and 0 <= number < _LARGEST for number in vocab.values()):
            raise ValueError(f"its tokens are not numbered from 0 to {_LARGEST}")
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise CheckpointError(
            f"{path} is not a readable tokenizer of RoBERTa ({type(error).__name__}: {error}): it may be damaged, "
            f"or belong to another model. {_CLAP_HINT}"
        ) from error
    return Tokenizer(pieces, max(vocab.values()) + 1, (_CLAP_LENGTH,), start, end, pad, "CLAP")


def _roberta_from_vocabulary(path: Path) -> tuple[Callable[[str], list[int]], dict[str, int]]:
    vocab = files.read_json(path)
    lines = files.read_text(path.with_name("merges.txt")).split("\n")
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [(first, second) for first, second in merges]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return ids_by(model), vocab


def _roberta_from_json(path: Path) -> tuple[Callable[[str], list[int]], dict[str, int]]:
    content: dict[str, Any] = files.read_json(path)
    if content["model"].get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {content['model']['type']}, not BPE")
    content["added_tokens"] = []  # special tokens are not searched for in a text, and no merge makes one
    return ids_of_json(content), content["model"]["vocab"]


def load(model: ModelConfig, directory: Path | None) -> Tokenizer:
    """Loads a T5's tokenizer from the folder of its files, if any; raises CheckpointError if none fits."""
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


def load_clap(clap: ClapConfig, directory: Path | None) -> Tokenizer:
    """Loads the tokenizer of a CLAP from its folder; raises CheckpointError for None, or if it is another one's."""
    if directory is None:
        raise CheckpointError(
            "this model came without the tokenizer of its CLAP, so it cannot read texts: put tokenizer.json, or "
            "vocab.json and merges.txt, of the CLAP (RoBERTa's) into the folder clap inside its folder"
        )
    tokenizer = clap_tokenizer(directory)
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
