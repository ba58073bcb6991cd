"""Audio in chunks that are coded apart and faded into each other, as the 48 kHz EnCodec does."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from mgjax.config.model import CodecConfig
from mgjax.nn import AnyArray


@dataclasses.dataclass(frozen=True)
class Chunks:
    """What `Codec.encode` returns where chunks are coded apart, and `Codec.decode` takes.

    Attributes:
      codes: Codes of each chunk. A chunk that the end of the audio cuts short is padded with zeros.
      scales: What each chunk's audio was divided by.
      num_samples: The length of the audio.
    """

    codes: Int32[np.ndarray, "b chunks t k"]
    scales: Float32[np.ndarray, "b chunks"]
    num_samples: int


@dataclasses.dataclass(frozen=True)
class ChunkLayout:
    """Where the chunks lie: chunk i begins at sample i * stride and is at most `length` samples long."""

    length: int
    stride: int
    hop_length: int

    @classmethod
    def of(cls, config: CodecConfig) -> ChunkLayout:
        """The layout of a codec with `chunk_seconds`."""
        assert config.chunk_seconds is not None
        length = int(config.chunk_seconds * config.sample_rate)
        return cls(length, max(1, int((1.0 - config.chunk_overlap) * length)), config.hop_length)


def volume(audio: Float[AnyArray, "b n c"]) -> Float[AnyArray, " b"]:
    """The scale that a codec that renormalises divides by: the RMS of each row's mean over channels, plus 1e-8."""
    xp = np if isinstance(audio, np.ndarray) else jnp
    return xp.sqrt(xp.mean(xp.square(xp.mean(audio, axis=2)), axis=1)) + np.float32(1e-8)


def split(blocks: Iterable[np.ndarray], layout: ChunkLayout) -> Iterator[tuple[np.ndarray, int]]:
    """The chunks [b, n, c] of a signal that arrives in blocks, each with how many samples it is ahead of the next."""
    buffer = None
    for block in blocks:
        buffer = block if buffer is None else np.concatenate([buffer, block], axis=1)
        while buffer.shape[1] >= layout.length:
            yield buffer[:, : layout.length], layout.stride
            buffer = buffer[:, layout.stride :]
    while buffer is not None and buffer.shape[1]:
        yield buffer, min(layout.stride, buffer.shape[1])
        buffer = buffer[:, layout.stride :]


def merge(pieces: Iterable[Chunks]) -> Chunks:
    """The pieces one after the other."""
    pieces = list(pieces)
    frames = max(piece.codes.shape[2] for piece in pieces)
    codes = [np.pad(piece.codes, ((0, 0), (0, 0), (0, frames - piece.codes.shape[2]), (0, 0))) for piece in pieces]
    return Chunks(
        np.concatenate(codes, axis=1),
        np.concatenate([piece.scales for piece in pieces], axis=1),
        sum(piece.num_samples for piece in pieces),
    )


def unpadded(pieces: Iterable[Chunks], layout: ChunkLayout) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(codes [b, t, k], scale [b], samples ahead of the next) of each chunk, without its padding.

    A chunk overlaps the next one, so its length is known once the next one has come.
    """
    waiting: list[tuple[np.ndarray, np.ndarray, int]] = []
    for piece in itertools.chain(pieces, [None]):
        if piece:
            count = piece.codes.shape[1]
            for i in range(count):
                ahead = layout.stride if i < count - 1 else piece.num_samples - layout.stride * (count - 1)
                if not 0 < ahead <= layout.stride:
                    raise ValueError(
                        f"{count} chunks of {layout.length} samples every {layout.stride} cannot hold "
                        f"{piece.num_samples} samples"
                    )
                waiting.append((piece.codes[:, i], piece.scales[:, i], ahead))
        while waiting:
            samples = sum(ahead for *_, ahead in waiting)
            if piece and samples < layout.length + layout.stride:
                break
            codes, scale, ahead = waiting.pop(0)
            frames = math.ceil(min(layout.length, samples) / layout.hop_length)
            yield codes[:, :frames], scale, ahead


def overlap_add(pieces: Iterable[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    """The audio [b, n, c] of (chunk [b, m, c], samples ahead of the next), where chunks overlap faded linearly.

    Each chunk is weighted by a triangle over the first chunk's length, and the sum divided by the weights' sum.
    """
    weights = None
    for chunk, ahead in pieces:
        if weights is None:
            m = chunk.shape[1]
            weights = 0.5 - np.abs(np.linspace(0, 1, m + 2, dtype=np.float32)[1:-1] - np.float32(0.5))
            total = np.zeros((chunk.shape[0], 0, chunk.shape[2]), np.float32)
            weight = np.zeros(0, np.float32)
        chunk_weight = weights[: chunk.shape[1]]
        size = max(total.shape[1], chunk.shape[1])
        total = np.pad(total, ((0, 0), (0, size - total.shape[1]), (0, 0)))
        weight = np.pad(weight, (0, size - weight.shape[0]))
        total[:, : chunk.shape[1]] += chunk_weight[None, :, None] * chunk
        weight[: chunk.shape[1]] += chunk_weight
        yield total[:, :ahead] / weight[None, :ahead, None]
        total, weight = total[:, ahead:], weight[ahead:]
