"""Music of any length: windows over the model's span, chunks within a window, codes handed out as they are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mgjax.errors import NotFiniteError
from mgjax.generation.sampling import Draws, Layout, advance, capacity_for, grow, start
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM, Context
from mgjax.nn import not_finite

# Frames between two returns to Python: about a second of music.
_CHUNK_FRAMES = 50
# Steps that a chunk takes at most, in patterns that complete their frames late.
_CHUNK_STEPS = 256
# More windows are a slip of the hand, and their plan alone would take minutes.
_MOST_WINDOWS = 100_000
# A cache that starts shorter than this would soon be compiled again.
_FIRST_CAPACITY = 512


class Window(NamedTuple):
    """A stretch of the piece that the model sees at once, in frames.

    It starts at `offset`, its first `given` frames are known, and those before `until` are made; the others are only
    there for the codes that a pattern draws early.
    """

    offset: int
    num_frames: int
    given: int
    until: int


def windows(num_frames: int, prompt_frames: int, window_frames: int, stride_frames: int) -> list[Window]:
    """The windows that make `num_frames` frames, each `stride_frames` after the one before.

    Every window after the first starts from the frames it shares with the one before it, and counts its positions
    from 0, as the published system does.
    """
    if num_frames > _MOST_WINDOWS * stride_frames + window_frames:
        raise ValueError(f"a stride of {stride_frames} frames is too short for {num_frames} frames: make it longer")
    first = min(num_frames, window_frames)
    plan = [Window(0, first, prompt_frames, first)]
    while (done := plan[-1].offset + plan[-1].num_frames) < num_frames:
        offset = plan[-1].offset + stride_frames
        size = min(num_frames - offset, window_frames)
        plan.append(Window(offset, size, done - offset, size))
    return plan


def cut(plan: list[Window], frames: Iterable[int]) -> list[Window]:
    """The same windows, cut where something changes: what is made before one of `frames` is given to what follows.

    Where nothing changes after all, the same codes are drawn as without the cut, up to rounding.
    """
    pieces = []
    for window in plan:
        within = {frame - window.offset for frame in frames}
        ends = [*sorted(end for end in within if window.given < end < window.until), window.until]
        starts = [window.given, *ends[:-1]]
        pieces += [window._replace(given=start, until=end) for start, end in zip(starts, ends, strict=True)]
    return pieces


class Steering(NamedTuple):
    """What steers a window.

    Attributes:
      context: The conditions of the batch, followed by lesser ones of the same rows for guidance.
      strengths: How strong guidance is at each frame; see `sample.guide`.
      layout: Where these rows lie on many devices; None for one.
    """

    context: Context
    strengths: Float[np.ndarray, "f r b"]
    layout: Layout | None = None


def generate(
    module: LM,
    params: dict,
    steer: Callable[[Window], Steering],
    prompt: Int[np.ndarray, "b p k"],
    plan: list[Window],
    draws: Draws,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Int[np.ndarray, "b t k"]]:
    """Yields the codes of the piece in order, the prompt's included, as soon as all codebooks of a frame are known.

    Args:
      steer: The conditions of a window.
      prompt: Codes that the piece starts with (no frames for none).
      plan: What `windows` and `cut` gave.
      draws: How to sample.
      progress: Called with the frames made so far and in all, after each chunk.

    Raises:
      NotFiniteError: A row's logits are NaN or infinite; all frames before that were yielded.
    """
    pattern = patterns.from_config(module.config)
    total = plan[-1].offset + plan[-1].until
    known = prompt  # what the next window starts from
    handed_out = 0
    for window, following in zip(plan, [*plan[1:], None], strict=True):
        steps = pattern.steps(window.num_frames)
        for tokens, num_complete in _decode(module, params, steer(window), known, window, draws):
            # The frames of a code that is not known yet stand after `num_complete`.
            num_complete = min(num_complete, window.until)
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
    steering: Steering,
    given: Int[np.ndarray, "b p k"],
    window: Window,
    draws: Draws,
) -> Iterator[tuple[Int[np.ndarray, "b s k"], int]]:
    """Yields, chunk by chunk, the steps of one window and how many of its frames are complete."""
    pattern = patterns.from_config(module.config)
    frames = pattern.layout(window.num_frames)
    complete = pattern.frames_complete(window.num_frames)
    last_step = int(np.argmax(complete >= window.until))
    first_step = pattern.first_step(window.num_frames, window.given)
    # Times of steps are unique over all windows, so that no two codes are drawn with the same random numbers. A code
    # that is drawn again after a cut gets the same ones.
    clock = jnp.int32(pattern.num_steps(window.offset) if window.offset else 0)
    context, layout = steering.context, steering.layout
    strengths = steering.strengths[np.maximum(frames.max(axis=1), 0)]  # a step is as new as the newest of its codes

    codes = np.pad(given, ((0, 0), (0, window.num_frames - window.given), (0, 0)))
    tokens = pattern.build(codes, module.config.special_token)
    free = frames >= window.given

    def fitted(table: np.ndarray, axis: int) -> np.ndarray:
        """The table cut or padded to the capacity, so that programs are compiled for few lengths."""
        table = np.take(table, np.arange(min(capacity, len(frames))), axis)
        return np.pad(table, [(0, capacity - n if i == axis else 0) for i, n in enumerate(table.shape)])

    def placed(tokens: np.ndarray) -> Array:
        return jnp.asarray(fitted(tokens, 1)) if layout is None else jax.device_put(fitted(tokens, 1), layout.tokens)

    def after(step: int) -> int:
        """The last step of the chunk after `step`: one that completes a whole number of chunks of frames."""
        target = min(complete[step] + _CHUNK_FRAMES, window.until)
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
        tables = fitted(free, 0), draws, fitted(strengths, 0)
        state = advance(module, params, context, state, *tables, jnp.int32(step), clock, layout)
        made, bad = jax.device_get((state.tokens, state.bad))
        tokens[:, : made.shape[1]] = made[:, : len(frames)]
        good = min(step, int(bad.min()) - 1)
        yield tokens, int(complete[good])
        if good < step:
            what = "conditions (text, melody, style, labels)" if not_finite(context) else "predictions"
            rows = ", ".join(map(str, np.flatnonzero(bad <= step)))
            made = window.offset + min(int(complete[good]), window.until)
            raise NotFiniteError(f"the {what} of row {rows} are not finite, after {made} good frames")
