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
    """A checked request for music, of b rows."""

    frame_rate: float  # frames per second
    num_frames: int  # of the result, the audio prompt included
    window_frames: int
    stride_frames: int  # from the start of a window to that of the next one
    schedules: Sequence[Schedule]  # the prompt schedule of each row; one prompt is a schedule too
    crossfade_frames: int  # from a prompt to the next; 0 for none
    negatives: Sequence[str | None]  # the negative prompt of each row
    inputs: Sequence[ConditioningInputs]  # of each row but for its text
    samplings: Sequence[Sampling]  # sampling parameters and guidance scale of each row
    seeds: Sequence[int]  # of each row, below 2**32
    audio_prompt: Int32[np.ndarray, "b p k"]  # codes that the result starts with; p is 0 for none

    @property
    def texts(self) -> list[str | None]:
        """Every prompt of any row at any time, the negative ones last."""
        return [prompt.text for schedule in self.schedules for prompt in schedule] + list(self.negatives)
