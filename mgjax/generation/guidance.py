"""From a request to its windows: the conditions of each, those that guidance needs beside them, and its scales."""

from __future__ import annotations

import bisect
import dataclasses
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int

from mgjax.conditioning.excerpts import Encode
from mgjax.conditioning.provider import ConditioningInputs, ConditionProvider, Span
from mgjax.config.model import ModelConfig
from mgjax.generation.request import Request, Schedule, TimedPrompt
from mgjax.generation.windows import Extent, Window, extents, split


def prepare_windows(
    request: Request, config: ModelConfig, provider: ConditionProvider, encode_mono: Encode
) -> Iterator[Window]:
    """The windows of a request in order. Prompts and styles are encoded at once, the rest window by window."""
    excerpts = [row.excerpt for row in request.inputs]
    if any(excerpt is not None for excerpt in excerpts):
        styles = provider.styles(excerpts, encode_mono)
        rows = zip(request.inputs, styles, strict=True)
        request = dataclasses.replace(request, inputs=[dataclasses.replace(row, style=style) for row, style in rows])
    for warning in _ineffective_arguments(request):
        warnings.warn(warning, stacklevel=4)  # where the method of `MusicGen` is called
    texts = provider.encode(request.texts)
    is_long = request.num_frames > request.window_frames

    def window(extent: Extent) -> Window:
        frames = extent.offset + np.arange(extent.num_frames)
        sets, scales = row_sets(request, extent.offset + extent.num_known, frames)
        span = Span(extent.offset / request.frame_rate, config.window_seconds, is_long)
        return Window(extent, provider.conditions(sets, texts, span), scales)

    # The frames at which a prompt or a crossfade begins or ends.
    starts = {prompt.frame for schedule in request.schedules for prompt in schedule[1:]}
    changes = starts | {frame + request.crossfade_frames for frame in starts}
    plan = extents(request.num_frames, request.audio_prompt.shape[1], request.window_frames, request.stride_frames)
    return (window(part) for extent in plan for part in split(extent, changes))


def row_sets(
    request: Request, start: int, frames: Int[np.ndarray, "f"]
) -> tuple[list[list[ConditioningInputs]], Float32[np.ndarray, "f r b"]]:
    """The rows of a window with all conditions, then, for guidance, with fewer of them, down to the unconditional rows.

    The first of its `frames`, counted from the start of the result, that is decoded is `start`: no prompt or crossfade
    begins or ends after it. The styles of the request are encoded.

    Returns:
      r + 1 sets of b rows, and the guidance scale of each of the r first ones over the next, at each frame; see
      `sampling.guide`.
    """
    rows = request.inputs
    prompts = [_prompts_at(schedule, start, request.crossfade_frames) for schedule in request.schedules]
    sets = [_with_texts(rows, [prompt.text for prompt, _ in prompts])]
    scales: list[np.ndarray] = []  # [b, f] each
    if any(previous for _, previous in prompts):
        # Guidance from the previous prompt to the new one, with a scale that grows from 0 to 1.
        sets.append(_with_texts(rows, [(previous or prompt).text for prompt, previous in prompts]))
        scales.append(np.stack([_crossfade_share(*pair, request.crossfade_frames, frames) for pair in prompts]))
    is_conditioned = any(request.texts) or any(rows)  # without a condition, guidance has no effect
    if is_conditioned and any(sampling.is_guided for sampling in request.samplings):
        points = [np.transpose(sampling.guidance_points) for sampling in request.samplings]
        guidance = np.stack([np.interp(frames / request.frame_rate, times, values) for times, values in points])
        text_guidance = [sampling.text_guidance for sampling in request.samplings]
        text_scales = np.array([[1.0 if scale is None else scale] for scale in text_guidance])
        if (text_scales != 1).any():  # double guidance
            if any(rows) or any(request.negatives):
                sets.append(_with_texts(rows, [None] * len(rows)))
                scales.append(np.repeat(text_scales, len(frames), axis=1))
            else:  # the rows without their texts are the unconditional ones
                guidance = guidance * text_scales
        sets.append([ConditioningInputs(text=negative) for negative in request.negatives])
        scales.append(guidance)
    table = np.asarray(scales, np.float32).reshape(len(scales), len(rows), len(frames))
    return sets, np.ascontiguousarray(table.transpose(2, 0, 1))


def _with_texts(rows: Sequence[ConditioningInputs], texts: Sequence[str | None]) -> list[ConditioningInputs]:
    return [dataclasses.replace(row, text=text) for row, text in zip(rows, texts, strict=True)]


def _prompts_at(schedule: Schedule, frame: int, crossfade_frames: int) -> tuple[TimedPrompt, TimedPrompt | None]:
    """The prompt at a frame, and during a crossfade the prompt before it."""
    index = bisect.bisect_right([prompt.frame for prompt in schedule], frame) - 1
    is_fading = index > 0 and frame < schedule[index].frame + crossfade_frames
    return schedule[index], schedule[index - 1] if is_fading else None


def _crossfade_share(
    prompt: TimedPrompt, previous: TimedPrompt | None, crossfade_frames: int, frames: Int[np.ndarray, "f"]
) -> Float[np.ndarray, "f"]:
    """The share of a prompt in the crossfade from the prompt before it; 1 without a crossfade."""
    if previous is None:
        return np.ones(len(frames))
    return np.clip((frames - prompt.frame + 1) / (crossfade_frames + 1), 0, 1)


def _ineffective_arguments(request: Request) -> list[str]:
    """Warnings of arguments without effect."""
    messages = []
    columns = zip(request.schedules, request.inputs, request.negatives, request.samplings, strict=True)
    for schedule, row, negative, sampling in columns:
        is_conditioned = any(prompt.text for prompt in schedule) or row
        if sampling.is_guided and not is_conditioned and not negative:
            messages.append("a text is empty: nothing conditions the music there, and guidance has no effect")
        if negative and not sampling.is_guided:
            messages.append("a negative text works through guidance, which is off (1): it has no effect")
    return list(dict.fromkeys(messages))
