"""Reads several corpora as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from mgjax.audio.metadata import Metadata
from mgjax.data.corpus import Corpus
from mgjax.errors import DataError


class Pieces:
    """The pieces of several corpora as one list."""

    def __init__(self, corpora: Corpus | Sequence[Corpus]):
        self.corpora = list(corpora) if isinstance(corpora, Sequence) else [corpora]
        _check(self.corpora)
        self.counts = np.array([len(corpus.lengths) for corpus in self.corpora])
        self.lengths = np.concatenate([corpus.lengths for corpus in self.corpora])
        self.kind, self.rate = self.corpora[0].kind, self.corpora[0].rate
        self._ends = np.cumsum(self.counts)

    def read(self, piece: int, start: int, length: int) -> np.ndarray:
        """`length` samples or frames of a piece from `start` on, or fewer where it ends before."""
        with self._reading(piece) as (corpus, number):
            return corpus.read(number, start, length)

    def metadata(self, piece: int) -> Metadata:
        """The metadata of a piece."""
        with self._reading(piece) as (corpus, number):
            return corpus.metadata(number)

    def melody(self, piece: int, start: int, length: int) -> Float32[np.ndarray, "m p"]:
        """As `Corpus.melody`."""
        with self._reading(piece) as (corpus, number):
            return corpus.melody(number, start, length)

    def text_ids(self, piece: int) -> Int32[np.ndarray, "l"]:
        """As `Corpus.text_ids`, of corpora that store them."""
        with self._reading(piece) as (corpus, number):
            ids = corpus.text_ids(number)
        assert ids is not None, f"{corpus.directory} stores no token ids"
        return ids

    @contextlib.contextmanager
    def _reading(self, piece: int) -> Iterator[tuple[Corpus, int]]:
        """The corpus of a piece and its index in it, to read from in the block; raises DataError where that fails."""
        index = int(np.searchsorted(self._ends, piece, side="right"))
        corpus, number = self.corpora[index], piece - int(self._ends[index] - self.counts[index])
        try:
            yield corpus, number
        except (ValueError, OSError) as error:
            raise DataError(
                f"piece {number} of the corpus {corpus.directory} ({corpus.split}) cannot be read: {error}"
            ) from error


def _check(corpora: Sequence[Corpus]) -> None:
    """Raises DataError unless the corpora can be read as one."""
    if not corpora:
        raise DataError("there is no corpus to read: name at least one directory in `corpora`")
    for corpus in corpora:
        if not len(corpus.lengths) or corpus.lengths.min() < 1:
            trouble = "has an empty piece" if len(corpus.lengths) else "has no pieces"
            raise DataError(
                f"the corpus {corpus.directory} ({corpus.split}) {trouble}: build it again, from more music"
            )
    for name in ("kind", "sample_rate", "rate", "width", "codebook_size", "codec_hash"):
        values = [getattr(corpus, name) for corpus in corpora]
        if len(set(values)) > 1:
            listed = ", ".join(f"{corpus.directory}: {value}" for corpus, value in zip(corpora, values, strict=True))
            raise DataError(f"corpora that are read together must have the same {name}, but these have {listed}")
