"""What a language model has to beat: predictions that know nothing of the music before a code."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64

from mgjax.data.corpus import Corpus


def uniform(codebook_size: int) -> float:
    """The cross-entropy, in nats, of holding all codes equally likely."""
    return math.log(codebook_size)


def token_counts(corpus: Corpus) -> Int64[np.ndarray, "k v"]:
    """How often each code of each codebook occurs in a corpus of tokens."""
    counts = np.zeros((corpus.width, corpus.codebook_size), np.int64)
    for piece, length in enumerate(corpus.lengths):
        codes = corpus.read(piece, 0, int(length))
        for k in range(corpus.width):
            counts[k] += np.bincount(codes[:, k], minlength=corpus.codebook_size)
    return counts


def unigram(train: Int64[np.ndarray, "k v"], valid: Int64[np.ndarray, "k v"]) -> Float64[np.ndarray, " k"]:
    """The cross-entropy per codebook, in nats, of predicting each code by how often it occurs in training.

    Every code is counted once more than it occurs (Laplace), so that none is held impossible.
    """
    likely = (train + 1) / (train + 1).sum(axis=1, keepdims=True)
    return -(valid * np.log(likely)).sum(axis=1) / valid.sum(axis=1)
