"""What people ask of a model, checked at the door: each function returns it in one form, or says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

# The published systems move on by 18 of 30 seconds.
_STRIDE_SECONDS = 18.0
_STRIDE_SHARE = 0.6


def texts(texts: Any, batch: int | None = None) -> list[str | None]:
    """A list of texts, one per row: a single text is a batch of one, or is used for all of `batch` rows."""
    rows = [texts] if texts is None or isinstance(texts, str) else texts
    if not isinstance(rows, Sequence) or not all(row is None or isinstance(row, str) for row in rows):
        raise TypeError(f"texts must be a string, None, or a list of them, got {texts!r}")
    if not rows:
        raise ValueError("there is no text: give at least one (None for music without a description)")
    if batch is None or len(rows) == batch:
        return list(rows)
    if len(rows) == 1:
        return list(rows) * batch
    raise ValueError(f"{len(rows)} texts do not fit {batch} rows: give one text, or one for each row")


def seeds(seed: Any, batch: int) -> list[int]:
    """One seed per row: `seed + i` for row i of a single number."""
    rows = [seed + i for i in range(batch)] if _is_whole(seed) else seed
    if not isinstance(rows, Sequence) or not all(_is_whole(row) for row in rows):
        raise TypeError(f"seed must be a whole number or a list of them, got {seed!r}")
    if len(rows) != batch:
        raise ValueError(f"{len(rows)} seeds do not fit {batch} texts: give one seed, or one for each text")
    if not all(0 <= row < 2**32 for row in rows):
        raise ValueError(f"a seed must be 0 or above and below 2**32, got {seed!r}")
    return [int(row) for row in rows]


def num_frames(seconds: Any, frame_rate: float) -> int:
    """`seconds` in whole frames, rounded down."""
    frames = _to_frames(seconds, frame_rate, "seconds")
    if frames < 1:
        raise ValueError(f"seconds must be at least {1 / frame_rate:g} (one frame), got {seconds}")
    return frames


def window_and_stride(
    window: float | None, stride: float | None, default_window: float, frame_rate: float
) -> tuple[int, int]:
    """The window and the stride of long music, in frames."""
    window = default_window if window is None else window
    window_frames = _to_frames(window, frame_rate, "window")
    if window_frames < 2:
        raise ValueError(f"window must be at least {2 / frame_rate:g} seconds (two frames), got {window}")
    if stride is None:
        stride_frames = max(1, _to_frames(min(_STRIDE_SECONDS, _STRIDE_SHARE * window), frame_rate, "stride"))
    else:
        stride_frames = _to_frames(stride, frame_rate, "stride")
        if not 0 < stride_frames < window_frames:
            raise ValueError(
                f"stride must be above 0 and below the window of {window:g} seconds, got {stride}: "
                "the rest of the window is what ties a new part to the one before"
            )
    return window_frames, stride_frames


def prompt_codes(codec: Any, prompt: Any, sample_rate: int | None, batch: int) -> Int32[np.ndarray, "b t k"]:
    """The codes of the audio to continue, once for each row."""
    prompt = np.asarray(prompt)
    if prompt.ndim == 3 and prompt.shape[0] not in (1, batch):
        raise ValueError(f"{prompt.shape[0]} prompts do not fit {batch} texts: give one prompt, or one for each text")
    codes = codec.encode(prompt, sample_rate=sample_rate)
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
    codes = np.asarray(codes)
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


def _to_frames(seconds: Any, frame_rate: float, name: str) -> int:
    try:
        seconds = float(seconds)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number of seconds, got {seconds!r}") from None
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"{name} must be a finite number of seconds above 0, got {seconds}")
    # 2.3 seconds are 115 frames of 20 ms, although 2.3 * 50 is 114.99999999999999.
    return math.floor(round(seconds * frame_rate, 6))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
