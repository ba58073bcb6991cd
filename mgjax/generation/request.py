"""A checked request for music, as plain data; `generation.arguments` makes it of what users hand over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from mgjax.conditioning.provider import ConditioningInputs
from mgjax.config.model import Sampling


class TimedPrompt(NamedTuple):
    """A prompt, and the frame at which it begins."""

    frame: int
    text: str | None


Schedule = Sequence[TimedPrompt]  # in the order of time, the first from frame 0 on


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A checked request for music, of b rows.

    Attributes:
      frame_rate: Frames per second.
      num_frames: Length of the result, the audio prompt included.
      window_frames: Length of a window.
      stride_frames: Frames from the start of a window to that of the next one.
      schedules: The prompt schedule of each row; one prompt is a schedule too.
      crossfade_frames: Length of the crossfade from a prompt to the next; 0 for none.
      negatives: The negative prompt of each row, None for none.
      inputs: The conditioning inputs of each row but for its text.
      samplings: The sampling parameters and the guidance scale of each row.
      seeds: The seed of each row, below 2**32.
      audio_prompt: Codes that the result starts with, [b, p, k]; p is 0 for none.
    """

    frame_rate: float
    num_frames: int
    window_frames: int
    stride_frames: int
    schedules: Sequence[Schedule]
    crossfade_frames: int
    negatives: Sequence[str | None]
    inputs: Sequence[ConditioningInputs]
    samplings: Sequence[Sampling]
    seeds: Sequence[int]
    audio_prompt: Int32[np.ndarray, "b p k"]

    @property
    def texts(self) -> list[str | None]:
        """Every prompt of any row at any time, the negative ones last."""
        return [prompt.text for schedule in self.schedules for prompt in schedule] + list(self.negatives)
