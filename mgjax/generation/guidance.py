"""How a call steers its music: what each row is told, when that changes, and how strongly."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from mgjax.conditioning.provider import ConditioningInputs
from mgjax.config.model import Sampling


class Change(NamedTuple):
    """A text, and the frame from which on it counts."""

    frame: int
    text: str | None


class Part(NamedTuple):
    """What steers a part of a piece in which no text begins or ends.

    Attributes:
      sets: The rows of the batch with all that they are told, followed, for guidance, by the same rows with less.
      strengths: How strong the guidance from each set to the one before it is, at each frame.
    """

    sets: list[list[ConditioningInputs]]
    strengths: Float32[np.ndarray, "f r b"]


@dataclasses.dataclass(frozen=True, eq=False)
class Steering:
    """What a call asks for, row by row.

    Attributes:
      texts: The texts of each row, in the order of time, the first from frame 0 on.
      others: All else that each row is told.
      negatives: What each row is to keep away from.
      samplings: How each row is drawn and guided.
      blend: How many frames a change of text takes; 0 for at once.
      frame_rate: Frames per second.
    """

    texts: Sequence[Sequence[Change]]
    others: Sequence[ConditioningInputs]
    negatives: Sequence[str | None]
    samplings: Sequence[Sampling]
    blend: int
    frame_rate: float

    @property
    def all_texts(self) -> list[str | None]:
        """Every text that any row is told at any time."""
        return [change.text for changes in self.texts for change in changes] + list(self.negatives)

    @property
    def is_guided(self) -> bool:
        """Whether guidance makes a difference: it needs something to be guided to."""
        asked = any(self.all_texts) or any(self.others)
        return asked and any(sampling.is_guided for sampling in self.samplings)

    def warnings(self) -> list[str]:
        """What is asked for and has no effect."""
        found = []
        for texts, other, negative, sampling in zip(
            self.texts, self.others, self.negatives, self.samplings, strict=True
        ):
            told = any(change.text for change in texts) or other
            if sampling.is_guided and not told and not negative:
                found.append("a text is empty: nothing steers the music there, and guidance has no effect")
            if negative and not sampling.is_guided:
                found.append("a negative text works through guidance, which is off (1): it has no effect")
        return list(dict.fromkeys(found))

    def cuts(self) -> set[int]:
        """The frames at which a text or a blend begins or ends."""
        begins = {change.frame for changes in self.texts for change in changes[1:]}
        return begins | {frame + self.blend for frame in begins}

    def part(self, start: int, offset: int, num_frames: int) -> Part:
        """What steers the part that begins at the frame `start`, for `num_frames` frames from `offset` on."""
        frames = offset + np.arange(num_frames)
        now = [self._at(changes, start) for changes in self.texts]
        full = [self._row(i, text) for i, (text, _, _) in enumerate(now)]
        sets, strengths = [full], []
        if any(before is not None for _, before, _ in now):
            # Guidance from the old text to the new one that grows from 0 to 1.
            sets.append([self._row(i, before.text if before else text) for i, (text, before, _) in enumerate(now)])
            shares = [np.clip((frames - begun + 1) / (self.blend + 1), 0, 1) for _, _, begun in now]
            strengths.append([share if one[1] else np.ones(num_frames) for share, one in zip(shares, now, strict=True)])
        if self.is_guided:
            guidance = np.stack([self._guidance(sampling, frames) for sampling in self.samplings])
            apart = np.array([1.0 if one.text_guidance is None else one.text_guidance for one in self.samplings])
            if (apart != 1).any():
                if any(self.others) or any(self.negatives):
                    sets.append([dataclasses.replace(row, text=None) for row in self.others])
                    strengths.append(np.repeat(apart[:, None], num_frames, axis=1))
                else:  # what is left without the text is nothing
                    guidance = guidance * apart[:, None]
            sets.append([ConditioningInputs(text=negative) for negative in self.negatives])
            strengths.append(guidance)
        table = np.asarray(strengths, np.float32).reshape(len(strengths), len(full), num_frames)
        return Part(sets, np.ascontiguousarray(table.transpose(2, 0, 1)))

    def _at(self, changes: Sequence[Change], frame: int) -> tuple[str | None, Change | None, int]:
        """The text at a frame, the one that it takes over from where that is still going on, and since when."""
        place = bisect.bisect_right([change.frame for change in changes], frame) - 1
        text, begun = changes[place].text, changes[place].frame
        blending = place > 0 and frame < begun + self.blend
        return text, changes[place - 1] if blending else None, begun

    def _row(self, row: int, text: str | None) -> ConditioningInputs:
        return dataclasses.replace(self.others[row], text=text)

    def _guidance(self, sampling: Sampling, frames: Any) -> np.ndarray:
        times, values = zip(*sampling.guidance_points, strict=True)
        return np.interp(frames / self.frame_rate, times, values)
