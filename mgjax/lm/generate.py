"""Music of any length: windows over the model's span, chunks within a window, codes handed out as they are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM, Context
from mgjax.lm.sample import Draws, Layout, advance, capacity_for, grow, start

# Frames between two returns to Python: about a second of music.
_CHUNK_FRAMES = 50
# Steps that a chunk takes at most, in patterns that complete their frames late.
_CHUNK_STEPS = 256
# A cache that starts shorter than this would soon be compiled again.
_FIRST_CAPACITY = 512


class Window(NamedTuple):
    """A stretch of the piece that the model sees at once, in frames: it starts at `offset`, and its first `given`
    frames are known."""

    offset: int
    num_frames: int
    given: int


def windows(num_frames: int, prompt_frames: int, window_frames: int, stride_frames: int) -> list[Window]:
    """The windows that make `num_frames` frames, each `stride_frames` after the one before.

    Every window after the first starts from the frames it shares with the one before it, and counts its positions
    from 0, as the published system does.
    """
    if not 0 < stride_frames < window_frames and num_frames > window_frames:
        raise ValueError(
            f"stride must be above 0 and below the window, got a stride of {stride_frames} frames "
            f"and a window of {window_frames} frames"
        )
    plan = [Window(0, min(num_frames, window_frames), prompt_frames)]
    while (done := plan[-1].offset + plan[-1].num_frames) < num_frames:
        offset = plan[-1].offset + stride_frames
        plan.append(Window(offset, min(num_frames - offset, window_frames), done - offset))
    return plan


def generate(
    module: LM,
    params: dict,
    context_for: Callable[[Window], Context],
    prompt: Int[np.ndarray, "b p k"],
    plan: list[Window],
    draws: Draws,
    progress: Callable[[int, int], None] | None = None,
    layout: Layout | None = None,
) -> Iterator[Int[np.ndarray, "b t k"]]:
    """Yields the codes of the piece in order, the prompt's included, as soon as all codebooks of a frame are known.

    Args:
      context_for: The conditions of a window, with null rows after the others for guidance.
      prompt: Codes that the piece starts with (no frames for none).
      plan: What `windows` gave.
      draws: How to sample.
      progress: Called with the frames made so far and in all, after each chunk.
      layout: Where the pieces lie on many devices; None for one.
    """
    pattern = patterns.from_config(module.config)
    total = plan[-1].offset + plan[-1].num_frames
    known = prompt  # what the next window starts from
    handed_out = 0
    for window, following in zip(plan, [*plan[1:], None], strict=True):
        steps = pattern.steps(window.num_frames)
        for tokens, num_complete in _decode(module, params, context_for(window), known, window, draws, layout):
            # The frames of a code that is not known yet stand after `num_complete`.
            codes = tokens[:, steps, np.arange(pattern.num_codebooks)][:, :num_complete]
            made = window.offset + num_complete
            if made > handed_out:
                yield codes[:, handed_out - window.offset :]
                handed_out = made
            if progress:
                progress(made, total)
        if following:
            known = codes[:, following.offset - window.offset :]


def _decode(
    module: LM,
    params: dict,
    context: Context,
    given: Int[np.ndarray, "b p k"],
    window: Window,
    draws: Draws,
    layout: Layout | None,
) -> Iterator[tuple[Int[np.ndarray, "b s k"], int]]:
    """Yields, chunk by chunk, the steps of one window and how many of its frames are complete."""
    pattern = patterns.from_config(module.config)
    frames = pattern.layout(window.num_frames)
    complete = pattern.frames_complete(window.num_frames)
    last_step = len(frames) - 1
    first_step = pattern.first_step(window.num_frames, window.given)
    # Times of steps are unique over all windows, so that no two codes are drawn with the same random numbers.
    clock = jnp.int32(pattern.num_steps(window.offset) if window.offset else 0)

    codes = np.pad(given, ((0, 0), (0, window.num_frames - window.given), (0, 0)))
    tokens = np.array(pattern.build(jnp.asarray(codes), module.config.special_token))
    free = frames >= window.given

    def fitted(table: np.ndarray, axis: int) -> np.ndarray:
        """The table cut or padded to the capacity, so that programs are compiled for few lengths."""
        table = np.take(table, np.arange(min(capacity, len(frames))), axis)
        return np.pad(table, [(0, capacity - n if i == axis else 0) for i, n in enumerate(table.shape)])

    def placed(tokens: np.ndarray) -> Array:
        return jnp.asarray(fitted(tokens, 1)) if layout is None else jax.device_put(fitted(tokens, 1), layout.tokens)

    def after(step: int) -> int:
        """The last step of the chunk after `step`: one that completes a whole number of chunks of frames."""
        target = min(complete[step] + _CHUNK_FRAMES, window.num_frames)
        return min(int(np.argmax(complete >= target)), step + _CHUNK_STEPS, last_step)

    step = first_step - 1
    capacity = capacity_for(min(len(frames), max(after(step) + 1, _FIRST_CAPACITY)))
    num_read = min(capacity_for(step), capacity) if step else 0
    state = start(module, params, context, placed(tokens), jnp.int32(step), num_read, layout)
    while step < last_step:
        step = after(step)
        if step >= capacity:
            capacity = capacity_for(step + 1)
            state = grow(state, placed(tokens), layout)
        may_draw = fitted(free, 0)
        state = advance(module, params, context, state, may_draw, draws, jnp.int32(step), clock, layout)
        made = np.asarray(state.tokens)[:, : len(frames)]
        tokens[:, : made.shape[1]] = made
        yield tokens, int(complete[step])
