"""Music of any length: windows over it, chunks of steps within a window, codes yielded as soon as they are complete."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mgjax.conditioning.condition import Condition
from mgjax.errors import NotFiniteError
from mgjax.generation import sampling
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM, Context
from mgjax.nn import jit_apply, not_finite

# Frames between two returns to Python: about a second of music.
_CHUNK_FRAMES = 50
# Steps that a chunk takes at most, in patterns that complete their frames late.
_CHUNK_STEPS = 256
# A cache that starts shorter than this would soon be compiled again.
_FIRST_CAPACITY = 512


class Extent(NamedTuple):
    """The frames of a window."""

    offset: int  # its first frame, counted from the start of the result
    num_frames: int
    num_known: int  # how many of its first frames are known: the audio prompt, or the overlap with the window before
    end: int  # how many are known afterwards; later ones serve the codes that a pattern samples early


class Window(NamedTuple):
    """A window, with its conditions and guidance scales."""

    extent: Extent
    conditions: dict[str, Condition]  # of (r + 1) b rows: the batch's, then with guidance those with fewer conditions
    guidance_scales: Float[np.ndarray, "f r b"]  # of each frame; see `sampling.guide`


def extents(num_frames: int, num_prompt_frames: int, window_frames: int, stride_frames: int) -> Iterator[Extent]:
    """Yields the windows of `num_frames` frames, each `stride_frames` after the one before.

    Every window after the first starts from its overlap with the one before it, and counts its positions from 0, as the
    published system does.
    """
    done = num_prompt_frames
    for offset in itertools.count(0, stride_frames):
        size = min(num_frames - offset, window_frames)
        yield Extent(offset, size, done - offset, size)
        done = offset + size
        if done == num_frames:
            return


def split(extent: Extent, frames: Iterable[int]) -> Iterator[Extent]:
    """Yields the window in parts that end at those of `frames` (of the result) that it decodes.

    Where the conditions stay the same, the same codes are sampled as without the split, up to rounding.
    """
    inside = sorted({frame - extent.offset for frame in frames})
    ends = [*(end for end in inside if extent.num_known < end < extent.end), extent.end]
    for num_known, end in itertools.pairwise([extent.num_known, *ends]):
        yield extent._replace(num_known=num_known, end=end)


def decode(
    module: LM,
    params: dict[str, Any],
    windows: Iterable[Window],
    audio_prompt: Int[np.ndarray, "b p k"],
    sampling_params: sampling.SamplingParams,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Int[np.ndarray, "b t k"]]:
    """Yields the codes of all windows, the audio prompt's included, as soon as all codebooks of a frame are known.

    The next window is taken from the iterator once the last has been decoded. `progress` is called with the number of
    frames decoded so far, after each chunk.

    Raises:
      NotFiniteError: A row's logits are NaN or infinite; all frames before that were yielded.
    """
    pattern = patterns.from_config(module.config)
    codes, offset = audio_prompt, 0  # of the last window
    num_yielded = 0
    for window in windows:
        extent, scales = window.extent, window.guidance_scales
        batch, num_sets = scales.shape[2], scales.shape[1] + 1
        context = sampling.placed_context(module, params, window.conditions, num_sets * batch, mesh)
        shardings = None if mesh is None else sampling.state_shardings(module.config, batch, num_sets, mesh)
        known, offset = codes[:, extent.offset - offset :], extent.offset
        steps = pattern.steps(extent.num_frames)
        for tokens, num_complete in _chunks(module, params, context, extent, known, scales, sampling_params, shardings):
            # Frames with codes that are not known yet come after `num_complete`.
            num_complete = min(num_complete, extent.end)
            codes = tokens[:, steps, np.arange(pattern.num_codebooks)][:, :num_complete]
            num_decoded = offset + num_complete
            if num_decoded > num_yielded:
                yield codes[:, num_yielded - offset :]
                num_yielded = num_decoded
            if progress:
                progress(num_decoded)


def score(
    module: LM, params: dict[str, Any], window: Window, codes: Int[np.ndarray, "b t k"], *, mesh: Mesh | None = None
) -> Float[Array, "b t k v"]:
    """The logits of every code given the codes before it in the interleaved sequence (teacher-forced), float32."""
    pattern = patterns.from_config(module.config)
    context = sampling.placed_context(module, params, window.conditions, len(codes), mesh)
    tokens = pattern.build(codes, module.config.special_token)
    num_steps = tokens.shape[1]
    # Few lengths, few programs: steps after the music do not change those before.
    padding = [(0, 0), (0, sampling.capacity_for(num_steps) - num_steps), (0, 0)]
    logits = jit_apply(module, {"params": params}, jnp.asarray(np.pad(tokens, padding)), context)
    return _logits_of_codes(pattern, logits, codes.shape[1])


@functools.partial(jax.jit, static_argnames=("pattern", "num_frames"))
def _logits_of_codes(pattern: patterns.Pattern, logits: Float[Array, "b s k v"], num_frames: int) -> Array:
    """The logits of each code, [b, t, k, v], from those of the steps of a padded sequence."""
    return pattern.revert_logits(logits[:, : pattern.num_steps(num_frames)], num_frames)[0]


def _chunks(
    module: LM,
    params: dict[str, Any],
    context: Context,
    extent: Extent,
    known: Int[np.ndarray, "b p k"],
    guidance_scales: Float[np.ndarray, "f r b"],
    sampling_params: sampling.SamplingParams,
    shardings: sampling.StateShardings | None,
) -> Iterator[tuple[Int[np.ndarray, "b s k"], int]]:
    """Yields, chunk by chunk, the interleaved sequence of one window and how many of its frames are complete."""
    pattern = patterns.from_config(module.config)
    frames = pattern.layout(extent.num_frames)
    complete = pattern.frames_complete(extent.num_frames)
    last_step = int(np.argmax(complete >= extent.end))
    first_step = pattern.first_step(extent.num_frames, extent.num_known)
    # Times of steps are unique over all windows, so that no two codes are sampled with the same random numbers. A code
    # that is sampled again after a split gets the same ones.
    clock = jax.device_put(np.int32(pattern.num_steps(extent.offset) if extent.offset else 0))
    scales = guidance_scales[np.maximum(frames.max(axis=1), 0)]  # a step is as new as the newest of its codes

    codes = np.pad(known, ((0, 0), (0, extent.num_frames - extent.num_known), (0, 0)))
    tokens = np.asarray(pattern.build(codes, module.config.special_token))
    sampled = frames >= extent.num_known

    def fitted(table: np.ndarray, axis: int) -> np.ndarray:
        """The table cut or padded to the capacity, so that programs are compiled for few lengths."""
        table = np.take(table, np.arange(min(capacity, len(frames))), axis)
        return np.pad(table, [(0, capacity - n if i == axis else 0) for i, n in enumerate(table.shape)])

    def placed(tokens: np.ndarray) -> Array:
        tokens = fitted(tokens, 1)
        return jax.device_put(tokens, None if shardings is None else shardings.tokens)

    def end_of_chunk(step: int) -> int:
        """The last step of the chunk after `step`: one that completes a whole number of chunks of frames."""
        target = min(complete[step] + _CHUNK_FRAMES, extent.end)
        return min(int(np.argmax(complete >= target)), step + _CHUNK_STEPS, last_step)

    step = first_step - 1
    capacity = sampling.capacity_for(min(len(frames), max(end_of_chunk(step) + 1, _FIRST_CAPACITY)))
    num_read = min(sampling.capacity_for(step), capacity) if step else 0
    first = jax.device_put(np.int32(step))
    state = sampling.prefill(module, params, context, placed(tokens), first, num_read, shardings)
    while step < last_step:
        step = end_of_chunk(step)
        if step >= capacity:
            capacity = sampling.capacity_for(step + 1)
            state = sampling.grow(state, placed(tokens), shardings)
        inputs = fitted(sampled, 0), sampling_params, fitted(scales, 0), jax.device_put(np.int32(step)), clock
        state = sampling.decode_steps(module, params, context, state, *inputs, shardings)
        decoded, non_finite_step = jax.device_get((state.tokens, state.non_finite_step))
        tokens[:, : decoded.shape[1]] = decoded[:, : len(frames)]
        good_step = min(step, int(non_finite_step.min()) - 1)
        yield tokens, int(complete[good_step])
        if good_step < step:
            cause = "conditions (text, melody, style, labels)" if not_finite(context) else "predictions"
            rows = ", ".join(map(str, np.flatnonzero(non_finite_step <= step)))
            num_good = extent.offset + min(int(complete[good_step]), extent.end)
            raise NotFiniteError(f"the {cause} of row {rows} are not finite, after {num_good} good frames")
