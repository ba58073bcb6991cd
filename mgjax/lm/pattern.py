"""Patterns: how K streams of codes become one sequence of steps, each holding at most one code of every codebook.

A pattern is a value. Its tables are computed on the host from the number of frames alone, so that inside `jax.jit` only
gathers remain. Copet et al. 2023 (MusicGen), section 2.2 and figure 1, compares the patterns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from mgjax.config.model import LMConfig
from mgjax.errors import ConfigError
from mgjax.nn import AnyArray

Frames = Int32[np.ndarray, "s k"]  # the frame that each codebook holds at each step, -1 for none

_FEW_FRAMES = 2000


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Which frame each codebook holds at each step; made by `delay`, `parallel`, `flattened`, ..."""

    num_codebooks: int
    # Of num_frames and num_codebooks, not cut: a slow codebook's last steps run past `num_frames` in the fast ones.
    lay_out: Callable[..., Frames]
    numbers: tuple[Any, ...]  # further arguments of `lay_out`

    def __post_init__(self) -> None:
        if self.num_codebooks < 1:
            raise ConfigError(f"a pattern needs 1 or more codebooks, got {self.num_codebooks}")

    def _frames(self, num_frames: int) -> Frames:
        return self.lay_out(num_frames, self.num_codebooks, *self.numbers)

    def layout(self, num_frames: int) -> Frames:
        """The frame that each codebook holds at each step, int32 [s, k], -1 where none.

        The first step is all -1: it stands for the start and holds only special tokens (unless the pattern leaves it
        out, see `delay`).
        """
        frames = self._frames(num_frames)
        return np.where(frames < num_frames, frames, -1)

    def steps(self, num_frames: int, num_steps: int | None = None) -> Int32[np.ndarray, "t k"]:
        """The step that holds each code, int32 [t, k]: the inverse of `layout`. -1 for `num_steps` and later."""
        layout = self.layout(num_frames)[:num_steps]
        steps = np.full((num_frames, self.num_codebooks), -1, np.int32)
        step, codebook = np.nonzero(layout >= 0)
        steps[layout[step, codebook], codebook] = step
        return steps

    def num_steps(self, num_frames: int) -> int:
        """The length of the whole layout, in steps."""
        # Each frame beyond the first few takes as many steps as the last: hours need no table.
        few = min(num_frames, _FEW_FRAMES)
        steps = len(self._frames(few))
        return steps + (num_frames - few) * (len(self._frames(few + 1)) - steps)

    def valid_steps(self, num_frames: int) -> int:
        """The length of the layout up to where the fastest codebook runs out of frames, in steps.

        Training on a cutting from a longer piece stops here: what follows would teach the model that the music ends.
        """
        frames = self._frames(num_frames)
        return len(frames) - (int(frames.max()) + 1 - num_frames)

    def build(
        self, codes: Int[AnyArray, "b t k"], special: int, *, num_steps: int | None = None
    ) -> Int[AnyArray, "b s k"]:
        """The sequence of `codes`, with `special` where the layout has no frame: in numpy where the codes are in numpy.

        Only its first `num_steps` steps (`valid_steps(t)` in training); None for all.
        """
        layout = self.layout(codes.shape[1])[:num_steps]
        xp = np if isinstance(codes, np.ndarray) else jnp
        padded = xp.pad(codes, ((0, 0), (0, 1), (0, 0)), constant_values=special)
        return padded[:, layout, self._codebooks()]  # -1 names the last row, which is special

    def revert_logits(
        self, logits: Float[Array, "b s k v"], num_frames: int
    ) -> tuple[Float[Array, "b {num_frames} k v"], Bool[np.ndarray, "{num_frames} k"]]:
        """The prediction of each code, zero where the sequence has none, and the mask of those that it has.

        The logits at a step predict the step after it, so those of the last step predict nothing. In a layout cut at
        `valid_steps` the delayed codebooks' last frames have no prediction, and none of them may enter the loss.
        A pattern without a start step predicts in place, as masked models do.
        """
        steps = self.steps(num_frames, logits.shape[1])
        known = steps >= 0
        starts = bool(np.all(self.layout(num_frames)[0] < 0))
        sources = np.maximum(steps - starts, 0)
        return jnp.where(known[None, :, :, None], logits[:, sources, self._codebooks()], 0.0), known

    def first_step(self, num_frames: int, offset_frames: int) -> int:
        """The first step that holds the frame `offset_frames` or a later one: where a continuation starts.

        This and later steps may also hold frames before the offset, which are the prompt's and must be kept.
        """
        if not 0 <= offset_frames < num_frames:
            raise ValueError(
                f"a prompt of {offset_frames} frames leaves nothing to generate in {num_frames} frames: "
                "ask for a longer result or give a shorter prompt"
            )
        return int(np.argmax(np.any(self.layout(num_frames) >= offset_frames, axis=1)))

    def frames_complete(self, num_frames: int) -> Int32[np.ndarray, " s"]:
        """How many leading frames have all their codes once a step is done, int32 [s]: what can be decoded by then."""
        done = np.maximum.accumulate(self.steps(num_frames).max(axis=1))
        return np.searchsorted(done, np.arange(self.num_steps(num_frames)), side="right").astype(np.int32)

    def _codebooks(self) -> Int32[np.ndarray, "1 k"]:
        return np.arange(self.num_codebooks, dtype=np.int32)[None]


def delay(
    num_codebooks: int, delays: Sequence[int] | None = None, *, flatten_first: int = 0, empty_initial: int = 0
) -> Pattern:
    """The delay pattern: codebook k comes `delays[k]` steps late, so that it sees the coarser codes of its frame.

    The delays are 0, 1, 2, ... where None. The first `flatten_first` frames are emitted one codebook per step. At the
    start are `empty_initial` further steps without codes; -1 leaves out the start step too.
    """
    delays = _checked_delays(range(num_codebooks) if delays is None else delays, num_codebooks)
    if flatten_first < 0:
        raise ConfigError(f"flatten_first must be 0 or more frames, got {flatten_first}")
    return Pattern(num_codebooks, _delayed, (delays, flatten_first, empty_initial))


def _delayed(num_frames: int, k: int, delays: tuple[int, ...], flatten_first: int, empty_initial: int) -> Frames:
    flat = _one_by_one(min(num_frames, flatten_first), range(k), k)
    rest = np.arange(flatten_first, num_frames + max(delays), dtype=np.int32)
    rest = rest[:, None] - np.asarray(delays, np.int32)[None]
    rest = np.where(rest >= flatten_first, rest, -1)
    return np.concatenate([_empty(max(1 + empty_initial, 0), k), flat, rest])


def parallel(num_codebooks: int, *, empty_initial: int = 0) -> Pattern:
    """All codes of a frame in one step; `empty_initial` as for `delay`."""
    return delay(num_codebooks, (0,) * num_codebooks, empty_initial=empty_initial)


def flattened(
    num_codebooks: int, flattening: Sequence[int] | None = None, delays: Sequence[int] | None = None
) -> Pattern:
    """Several steps per frame: codebook k stands in its frame's inner step `flattening[k]`, `delays[k]` frames late.

    Codebooks may share an inner step, and must then share their delay. One codebook per step where None, no delays.
    """
    flattening = tuple(range(num_codebooks) if flattening is None else flattening)
    delays = _checked_delays((0,) * num_codebooks if delays is None else delays, num_codebooks)
    if len(flattening) != num_codebooks or list(flattening) != sorted(flattening) or min(flattening) < 0:
        raise ConfigError(
            f"flattening must be {num_codebooks} ascending inner steps from 0, one per codebook, got {flattening}"
        )
    if len(set(zip(flattening, delays, strict=True))) != len(set(flattening)):
        raise ConfigError(
            f"codebooks that share an inner step must share their delay, got flattening {flattening} "
            f"and delays {delays}"
        )
    return Pattern(num_codebooks, _unrolled, (flattening, delays))


def _unrolled(num_frames: int, k: int, flattening: tuple[int, ...], delays: tuple[int, ...]) -> Frames:
    inner_steps = range(max(flattening) + 1)
    groups = [tuple(codebook for codebook in range(k) if flattening[codebook] == step) for step in inner_steps]
    num_rounds = num_frames + max(delays)
    # (round, frame, codebooks): sorting them puts a delayed frame before the later ones of its round.
    steps: list[tuple[int, int, tuple[int, ...]]] = []
    for frame in range(num_rounds):
        for group in groups:
            if not group:
                steps.append((frame, -1, ()))  # an inner step that no codebook uses stays as a gap
            elif frame + delays[group[0]] < num_rounds:
                steps.append((frame + delays[group[0]], frame, group))
    layout = _empty(1 + len(steps), k)
    for step, (_, frame, group) in enumerate(sorted(steps), start=1):
        layout[step, list(group)] = frame
    return layout


def coarse_first(num_codebooks: int, delays: Sequence[int] | None = None) -> Pattern:
    """The first codebook of all frames, then the others with `delays` (one fewer than codebooks; 0 where None).

    This is the order of VALL-E (Wang et al. 2023). A model trained with it must generate its full training length.
    """
    if num_codebooks < 2:
        raise ConfigError("coarse_first needs 2 or more codebooks, got 1: use parallel")
    delays = _checked_delays((0,) * (num_codebooks - 1) if delays is None else delays, num_codebooks - 1)
    return Pattern(num_codebooks, _coarse_then_fine, (delays,))


def _coarse_then_fine(num_frames: int, k: int, delays: tuple[int, ...]) -> Frames:
    fine = np.arange(num_frames + max(delays), dtype=np.int32)[:, None]
    fine = np.maximum(fine - np.asarray(delays, np.int32)[None], -1)
    fine = np.concatenate([_empty(len(fine), 1), fine], axis=1)
    return np.concatenate([_empty(1, k), _one_by_one(num_frames, range(1), k), fine])


def musiclm(num_codebooks: int, group_by: int = 2) -> Pattern:
    """Groups of `group_by` codebooks one after the other, each over all frames and one code per step.

    This is the order of MusicLM (Agostinelli et al. 2023), coarse and fine acoustic modelling.
    """
    if group_by < 1 or num_codebooks % group_by:
        raise ConfigError(f"{num_codebooks} codebooks cannot be split into groups of {group_by}")
    return Pattern(num_codebooks, _in_groups, (group_by,))


def _in_groups(num_frames: int, k: int, group_by: int) -> Frames:
    groups = [_one_by_one(num_frames, range(first, first + group_by), k) for first in range(0, k, group_by)]
    return np.concatenate([_empty(1, k), *groups])


PATTERNS: dict[str, Callable[..., Pattern]] = {
    "delay": delay,
    "parallel": parallel,
    "flattened": flattened,
    "coarse_first": coarse_first,
    "musiclm": musiclm,
}


def from_config(config: LMConfig) -> Pattern:
    """The pattern that `config` names."""
    return PATTERNS[config.pattern](config.num_codebooks, **numbers(config))


def numbers(config: LMConfig) -> dict[str, Any]:
    """The keyword arguments of the pattern's function in PATTERNS, from a config; None for its defaults."""
    late, empty = {"delays": config.frame_delays or None}, {"empty_initial": config.empty_initial}
    arguments: dict[str, dict[str, Any]] = {
        "delay": {"delays": config.delays, "flatten_first": config.flatten_first} | empty,
        "parallel": empty,
        "flattened": {"flattening": config.flattening or None} | late,
        "coarse_first": late,
        "musiclm": {"group_by": config.group_by},
    }
    return arguments[config.pattern]


def _empty(num_steps: int, num_codebooks: int) -> Frames:
    return np.full((num_steps, num_codebooks), -1, np.int32)


def _one_by_one(num_frames: int, codebooks: range, num_codebooks: int) -> Frames:
    """Frame after frame, each codebook of `codebooks` in a step of its own."""
    layout = _empty(num_frames * len(codebooks), num_codebooks)
    for inner, codebook in enumerate(codebooks):
        layout[inner :: len(codebooks), codebook] = np.arange(num_frames)
    return layout


def _checked_delays(delays: Sequence[int], count: int) -> tuple[int, ...]:
    if len(delays) != count or min(delays, default=0) < 0:
        raise ConfigError(f"delays must be {count} numbers from 0, got {tuple(delays)}")
    return tuple(delays)
