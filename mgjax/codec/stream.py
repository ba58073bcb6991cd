"""Running a part of the codec over a signal that arrives in blocks, with the result of running it over the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mgjax.codec import layers
from mgjax.codec.conv import paddings, trims
from mgjax.codec.lstm import State, zero_state
from mgjax.config.model import CodecConfig


class ReceptiveField(NamedTuple):
    """How much of its input a part of the codec sees, in frames."""

    left: int  # frames that a frame depends on before it
    right: int  # and after it
    start: int  # that the first frame depends on: padded by reflection, on later ones even in a causal codec
    unit_in: int  # input samples per frame
    unit_out: int  # output samples per frame


def receptive_field(config: CodecConfig, part: Sequence[layers.Layer]) -> ReceptiveField:
    """The receptive field of a part of the codec, such as `layers.encoder(config).before`."""
    convs = [layer for layer in layers.flat(part) if not isinstance(layer, layers.ELU)]
    unit_in, unit_out = (math.prod(layer.stride for layer in convs if layer.transposed is up) for up in (False, True))
    # The samples [low, high) that the last frame depends on, and the first `start` that the first one does, walked from
    # the output back to the input.
    low, high, start = 0, unit_out, unit_out
    for layer in reversed(convs):
        if isinstance(layer, layers.Fold) and layer.transposed:
            low, high, start = low // layer.stride, -(-high // layer.stride), -(-start // layer.stride)
        elif isinstance(layer, layers.Fold):
            low, high, start = low * layer.stride, high * layer.stride, start * layer.stride
        elif layer.transposed:
            left, _ = trims(config, layer.width, layer.stride)
            low = math.ceil((low + left - layer.width + 1) / layer.stride)
            high, start = ((end - 1 + left) // layer.stride + 1 for end in (high, start))
        else:
            span = (layer.width - 1) * layer.dilation + 1
            left, right = paddings(config, span, layer.stride)
            reflects = config.pad_mode == "reflect"
            # At the end of the signal, the samples that are mirrored may lie further back than those of the kernel.
            low = low * layer.stride - max(left, right + layer.stride - 1 if reflects else 0)
            high, start = ((end - 1) * layer.stride - left + span for end in (high, start))
            start = max(start, left + 1 if reflects else 0)
    frames = math.ceil(-low / unit_in), math.ceil(high / unit_in) - 1, math.ceil(start / unit_in)
    return ReceptiveField(*frames, unit_in, unit_out)


def bucket(units: int) -> int:
    """The buffer size for `units`: at least 8 and at most a quarter more, so that few programs serve all lengths."""
    step = 2 ** max(1, (units - 1).bit_length() - 3)
    return max(8, math.ceil(units / step) * step)


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """`x` with zeros after it, up to `size` along the second axis."""
    return np.pad(x, [(0, 0), (0, size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def windowed(
    run: Callable[[np.ndarray, int], np.ndarray | jax.Array],
    field: ReceptiveField,
    max_frames: int,
    blocks: Iterable[np.ndarray],
    one_size: bool = False,
) -> Iterator[np.ndarray]:
    """The output of a part with a limited receptive field, each piece as soon as the blocks that it depends on came.

    `run`, (buffer [b, size * unit_in, ...], length) -> [b, size * unit_out, ...], of which `length` is valid, is called
    for windows of at most `max_frames` and their receptive field. With `one_size` all buffers are as large as the
    largest, so that one program serves them all.
    """
    max_frames = max(max_frames, 2 * (field.left + field.right + field.start))
    buffer: np.ndarray | None = None  # input that later output depends on
    origin = done = 0  # its first frame, and the frames that were returned
    for block in itertools.chain(blocks, [None]):
        if block is not None:
            buffer = block if buffer is None else np.concatenate([buffer, block], axis=1)
        while buffer is not None:
            last = block is None and buffer.shape[1] <= max_frames * field.unit_in
            frames = -(-buffer.shape[1] // field.unit_in) if last else min(buffer.shape[1] // field.unit_in, max_frames)
            end = origin + frames
            ready = end if last else end - field.right
            if ready <= done or (not last and end < field.start):
                break
            window = buffer[:, : frames * field.unit_in]
            size = bucket(max_frames if one_size else frames) * field.unit_in
            y = np.asarray(run(padded(window, size), window.shape[1]))
            yield y[:, (done - origin) * field.unit_out : (ready - origin) * field.unit_out]
            done, start = ready, max(0, ready - field.left)
            buffer, origin = buffer[:, (start - origin) * field.unit_in :], start


def recurrent(
    run: Callable[[np.ndarray, int, State], tuple[np.ndarray | jax.Array, State]],
    num_layers: int,
    max_frames: int,
    blocks: Iterable[np.ndarray],
    one_size: bool = False,
) -> Iterator[np.ndarray]:
    """The output of `num_layers` recurrent layers, with the state carried along.

    `run` is (buffer [b, size, d], length, state) -> ([b, size, d], state); see `windowed` for the rest.
    """
    state = None
    for block in blocks:
        state = zero_state(num_layers, block.shape[0], block.shape[2]) if state is None else state
        for start in range(0, block.shape[1], max_frames):
            piece = block[:, start : start + max_frames]
            size = bucket(max_frames if one_size else piece.shape[1])
            y, state = run(padded(piece, size), piece.shape[1], state)
            yield np.asarray(y)[:, : piece.shape[1]]
