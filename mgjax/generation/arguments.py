"""What people ask of a model, checked at the door: each function returns it in one form, or says what is wrong."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from mgjax.conditioning.labels import row_values, vectors
from mgjax.conditioning.reference_audio import rows as rows_of
from mgjax.config.model import ModelConfig, Sampling
from mgjax.generation.guidance import Change
from mgjax.inputs import arguments
from mgjax.inputs.arguments import is_number, is_whole, shown

# The published systems move on by 18 of 30 seconds.
_STRIDE_SECONDS = 18.0
_STRIDE_SHARE = 0.6
# More than these are slips of the hand, and would fill the memory before anyone hears of it.
_MOST_SECONDS = 24 * 3600
_MOST_WINDOWS = 10  # times the window of training
_MOST_CHARACTERS = 100_000  # of a text, of which the first few hundred words are read

_SEEDS = 2**32


def texts(texts: Any, frame_rate: float, num_frames: int, blend_frames: int) -> list[list[Change]]:
    """The texts of each row in the order of time: a single text, or one that changes, is a batch of one.

    Those that begin when the music is over are left out, with a warning.
    """
    rows = [texts] if _is_text(texts) or _is_schedule(texts) else texts
    if not isinstance(rows, Sequence) or not all(_is_text(row) or _is_schedule(row) for row in rows):
        raise TypeError(
            f"texts must be a string, None, a list of (seconds, text), or a list with one of these for each row, got "
            f"{shown(texts)}"
        )
    if not rows:
        raise ValueError("there is no text: give at least one (None for music without a description)")
    return [
        _changes(row, frame_rate, num_frames, blend_frames) if _is_schedule(row) else [Change(0, row or None)]
        for row in rows
    ]


def can_read(texts: Sequence[str | None], config: ModelConfig) -> None:
    """Raises ValueError where there is a text for a model that reads none, or one that is far too long."""
    if any(texts) and config.text is None and config.clap is None:
        raise ValueError("this model was not trained with texts: give None (on the command line: an empty prompt)")
    longest = max((len(text) for text in texts if text), default=0)
    if longest > _MOST_CHARACTERS:
        raise ValueError(f"a text has {longest} characters, the most is {_MOST_CHARACTERS}: its beginning is enough")


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_schedule(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(_is_change(one) for one in value)


def _is_change(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and is_number(value[0]) and _is_text(value[1])


def _changes(schedule: Sequence[Any], frame_rate: float, num_frames: int, blend_frames: int) -> list[Change]:
    times = [arguments.number(seconds, "the time of a text", " of seconds") for seconds, _ in schedule]
    if not all(0 <= time <= _MOST_SECONDS for time in times):
        raise ValueError(f"the times of texts must be 0 or above, and at most {_MOST_SECONDS} (a day), got {times}")
    changes = [Change(round(time * frame_rate), text or None) for time, (_, text) in zip(times, schedule, strict=True)]
    if any(after.frame <= before.frame for before, after in itertools.pairwise(changes)):
        raise ValueError(f"the times of texts must rise, by {1 / frame_rate:g} s (a frame) or more, got {times}")
    if changes[0].frame > 0:
        changes.insert(0, Change(0, None))
    late = [change for change in changes if change.frame >= num_frames]
    if late:
        warnings.warn(
            f"the text {late[0].text!r} begins at {late[0].frame / frame_rate:g} s, when the music is over "
            f"({num_frames / frame_rate:g} s): it is not heard",
            stacklevel=3,
        )
    # A text that is there already is no change.
    changes = [changes[0], *(after for before, after in itertools.pairwise(changes) if after.text != before.text)]
    changes = changes[: len(changes) - sum(change.frame >= num_frames for change in changes)]
    for before, after in itertools.pairwise(changes[1:]):
        if after.frame - before.frame < blend_frames:
            raise ValueError(
                f"a blend of {blend_frames / frame_rate:g} s is longer than the time between the texts at "
                f"{before.frame / frame_rate:g} s and {after.frame / frame_rate:g} s: make it shorter"
            )
    return changes


def plain_texts(texts: Any, batch: int, name: str) -> list[str | None]:
    """One text for each row, from one for all or one for each; messages call them `name`."""
    rows = [texts] if _is_text(texts) else texts
    if not isinstance(rows, Sequence) or not all(_is_text(row) for row in rows):
        raise TypeError(f"{name} must be a string, None, or a list of them, got {shown(texts)}")
    return [row or None for row in arguments.each(rows, batch, name)]


def samplings(sampling: Any, batch: int, num_codebooks: int) -> list[Sampling]:
    """How to draw each row, from one for all or one for each."""
    rows = [sampling] if isinstance(sampling, Sampling) else sampling
    if not isinstance(rows, Sequence) or not all(isinstance(row, Sampling) for row in rows):
        raise TypeError(f"sampling must be a mgjax.Sampling or a list of them, got {shown(sampling)}")
    for row in rows:
        if isinstance(row.temperature, tuple) and len(row.temperature) != num_codebooks:
            raise ValueError(f"the model has {num_codebooks} codebooks: give one temperature, or as many, got {row}")
    return arguments.each(rows, batch, "samplings")


def blend(seconds: Any, frame_rate: float) -> int:
    """How many frames a change of text takes."""
    value = arguments.number(seconds, "blend", " of seconds")
    if not 0 <= value < _MOST_SECONDS:
        raise ValueError(f"blend must be 0 (at once) or more seconds, got {seconds}")
    return round(value * frame_rate)


def labels(labels: Any, batch: int, config: ModelConfig) -> list[dict[str, Any]]:
    """The values of each row's labels and numbers by name, all of them known to the model."""
    known = (*config.labels, *config.numbers)
    rows = row_values(labels, batch, [one.name for one in known])
    for one in known:
        vectors([row.get(one.name) for row in rows], one)
    return rows


def seeds(seed: Any, batch: int) -> list[int]:
    """One seed per row: `seed + i` for row i of a single number (from 0 again after 2**32 - 1)."""
    rows = [seed] if is_whole(seed) else seed.tolist() if isinstance(seed, np.ndarray) else seed
    if not isinstance(rows, Sequence) or not all(is_whole(row) for row in rows):
        raise TypeError(f"seed must be a whole number or a list of them, got {shown(seed)}")
    if not all(0 <= row < _SEEDS for row in rows):
        raise ValueError(f"a seed must be 0 or above and below 2**32, got {shown(seed)}")
    if is_whole(seed):
        return [(int(seed) + i) % _SEEDS for i in range(batch)]
    if len(rows) != batch:
        raise ValueError(f"{len(rows)} seeds do not fit {batch} texts: give one seed, or one for each text")
    return [int(row) for row in rows]


def num_frames(seconds: Any, frame_rate: float) -> int:
    """`seconds` in whole frames, rounded down."""
    frames = _to_frames(seconds, frame_rate, "seconds")
    if frames < 1:
        raise ValueError(f"seconds must be at least {1 / frame_rate:g} (one frame), got {seconds}")
    if frames > _MOST_SECONDS * frame_rate:
        raise ValueError(f"seconds must be at most {_MOST_SECONDS} (a day), got {seconds}: make it in parts")
    return frames


def window_and_stride(
    window: float | None, stride: float | None, default_window: float, frame_rate: float
) -> tuple[int, int]:
    """The window and the stride of long music, in frames."""
    window_frames = _to_frames(default_window if window is None else window, frame_rate, "window")
    shortest, longest = 2 / frame_rate, _MOST_WINDOWS * default_window
    if not 2 <= window_frames <= longest * frame_rate:
        raise ValueError(f"window must be from {shortest:g} to {longest:g} seconds, got {window}")
    if stride is None:
        share = min(_STRIDE_SECONDS * frame_rate, _STRIDE_SHARE * window_frames)
        return window_frames, max(1, math.floor(share))
    stride_frames = _to_frames(stride, frame_rate, "stride")
    if not 1 <= stride_frames < window_frames:
        raise ValueError(
            f"stride must be at least {1 / frame_rate:g} seconds (one frame) and below the window of "
            f"{window_frames / frame_rate:g} seconds, got {stride}: the rest of the window ties a new part to the last"
        )
    return window_frames, stride_frames


def prompt_codes(codec: Any, prompt: Any, sample_rate: int | None, batch: int) -> Int32[np.ndarray, "b t k"]:
    """The codes of the audio to continue, once for each row."""
    rows = rows_of(prompt, batch, "prompt")
    if any(row is None for row in rows):
        raise ValueError("all rows of a batch begin with a prompt, or none: make those without in another call")
    codes = codec.encode(rows[:1] if all(row is rows[0] for row in rows) else rows, sample_rate=sample_rate)
    if not isinstance(codes, np.ndarray):
        raise ValueError("this codec codes its chunks apart and cannot give the start of a piece to continue")
    return np.broadcast_to(codes, (batch, *codes.shape[1:]))


def prompt_length(prompt_frames: int, num_frames: int, window_frames: int, frame_rate: float) -> None:
    """Raises ValueError unless there is something to generate after the prompt, and the model can see all of it."""
    seconds = prompt_frames / frame_rate
    if prompt_frames >= num_frames:
        raise ValueError(
            f"the prompt lasts {seconds:g} seconds and is part of the result, so seconds must be above {seconds:g}, "
            f"got {num_frames / frame_rate:g}"
        )
    if prompt_frames >= window_frames:
        raise ValueError(
            f"the prompt lasts {seconds:g} seconds, and the model sees {window_frames / frame_rate:g} at once: give "
            "only the end of the prompt (on the command line: --trim-prompt)"
        )


def codes(codes: Any, num_codebooks: int, codebook_size: int) -> Int32[np.ndarray, "b t k"]:
    """Codes as a batch."""
    codes = arguments.array(codes, "codes")
    if codes.ndim == 2:
        codes = codes[None]
    if codes.ndim != 3 or codes.shape[2] != num_codebooks or 0 in codes.shape:
        raise ValueError(
            f"codes must be [frames, {num_codebooks}] or [rows, frames, {num_codebooks}], got {codes.shape}"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise TypeError(f"codes must be whole numbers, got {codes.dtype}")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(f"codes must be from 0 to {codebook_size - 1}, got {codes.min()} to {codes.max()}")
    return codes.astype(np.int32)


def chroma(chroma: Any, batch: int, num_frames: int, num_classes: int) -> Float32[np.ndarray, "b f p"]:
    """A chromagram for each row."""
    chroma = arguments.array(chroma, "chroma").astype(np.float32)
    if chroma.ndim != 3 or chroma.shape[0] not in (1, batch) or chroma.shape[1:] != (num_frames, num_classes):
        raise ValueError(
            f"chroma must be [1 or {batch} rows, {num_frames} frames, {num_classes} pitch classes], got "
            f"{list(chroma.shape)}"
        )
    if not np.isfinite(chroma).all():
        raise ValueError("chroma must be finite: it holds NaN or infinity")
    return np.broadcast_to(chroma, (batch, num_frames, num_classes))


def dtype(name: Any) -> str | None:
    """The name of a type that weights may have; None as it is."""
    known = ("float32", "bfloat16", "float16")
    if name is None or name in known:
        return name
    for good in known:
        if not isinstance(name, str) and getattr(name, "__name__", getattr(name, "name", None)) == good:
            return good  # jnp.bfloat16 or np.dtype("float32")
    raise ValueError(f"dtype must be one of {', '.join(known)}, got {name!r}")


def _to_frames(seconds: Any, frame_rate: float, name: str) -> int:
    frames = min(arguments.seconds(seconds, name) * frame_rate, 2.0**53)
    # 2.3 seconds are 115 frames of 20 ms, although 2.3 * 50 is 114.99999999999999.
    return math.floor(round(frames, 6))
