"""Turns events on the grid into timed notes: swing, human timing, accents and dynamics."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from mgjax.synthetic.form import Bar, Event
from mgjax.synthetic.instruments import DRUMS
from mgjax.synthetic.styles.style import BEATS, STEPS, Part, Style

_LEAD_IN = 0.05  # seconds before the first beat, so that notes can be early
_DYNAMICS = {"<": -8, "A": 0, "B": 6, ">": 6}  # added to the velocities of sections
_MOST_OFFSET = 0.03  # seconds before or after the beat
_HATS = {DRUMS["hat"], DRUMS["shaker"], DRUMS["ride"], DRUMS["tambourine"]}
_PHRASE = 4  # bars of a crescendo and decrescendo
_SWELL = 7  # range of its velocities


class Note(NamedTuple):
    """A note in seconds, with a MIDI pitch (which selects the drum in a kit) and a velocity from 1 to 127."""

    start: float
    seconds: float
    pitch: int
    velocity: int


def seconds_at(step: float, style: Style, tempo: float) -> float:
    """The time of a step in seconds, with swing, which delays the second half of each pair."""
    ratio, pair = style.swing
    whole, within = divmod(step, pair)
    within /= pair
    swung = within / 0.5 * ratio if within < 0.5 else ratio + (within - 0.5) / 0.5 * (1 - ratio)
    steps_in_beat = STEPS[style.metre] / BEATS[style.metre]
    return _LEAD_IN + (whole + swung) * pair * 60 / tempo / steps_in_beat


def perform(
    part: Part, events: list[Event], bars: list[Bar], style: Style, tempo: float, rng: np.random.Generator
) -> tuple[Note, ...]:
    """Plays events with human timing and dynamics.

    A player has a constant offset from the beat, and others for each step of the bar, in time and in velocity, that
    recur in every bar. Notes of one step stay together, except for strings that are strummed, down on the beat and up
    between beats. Styles without looseness have exact timing.

    Args:
      part: The part.
      events: Its events on the grid.
      bars: The bars of the piece.
      style: The style, with swing and looseness.
      tempo: Beats per minute.
      rng: Draws the deviations.
    """
    is_drums, looseness = part.role == "drums", style.looseness
    offset = float(rng.normal(0, 0.5 * looseness))
    steps = STEPS[style.metre]
    bar_steps = sorted({event.step % steps for event in events})
    delays = {
        step: min(max(offset + float(rng.normal(0, 0.5 * looseness)), -_MOST_OFFSET), _MOST_OFFSET)
        for step in bar_steps
    }
    events = sorted(events, key=lambda event: (event.step, event.pitch))
    sizes = Counter(event.step for event in events)
    accents = {step: float(rng.normal(0, 3.5 if looseness else 1.5)) for step in bar_steps}
    deviations = rng.normal(0, 1.0 if looseness else 0.0, len(events)).tolist()
    notes = []
    seen: Counter[float] = Counter()
    beat = steps // BEATS[style.metre]
    for event, deviation in zip(events, deviations, strict=True):
        order = seen[event.step]  # in a strummed chord, from the string that is struck first
        seen[event.step] += 1
        if event.step % beat and not is_drums:
            order = sizes[event.step] - 1 - order
        end = seconds_at(event.step + event.steps, style, tempo)
        start = max(0.0, seconds_at(event.step, style, tempo) + delays[event.step % steps] + order * part.strum)
        velocity = event.velocity + _dynamics(part, event, bars, style) + accents[event.step % steps] + deviation
        notes.append(Note(start, max(end - start, 0.03), event.pitch, int(min(max(velocity, 20), 127))))
    return tuple(notes)


def _dynamics(part: Part, event: Event, bars: list[Bar], style: Style) -> float:
    """The contribution of accent, phrase and section to a note's velocity."""
    steps = STEPS[style.metre]
    bar = bars[int(event.step // steps)]
    within = event.step % steps
    beat = steps // BEATS[style.metre]
    dynamic = _DYNAMICS[bar.section]
    if part.role == "drums":
        accent = (4 if within % beat == 0 else -5) if event.pitch in _HATS else 0
        return 0.5 * dynamic + accent
    accent = 5 if within == 0 else 1 if within % beat == 0 else -4
    along = (bar.index % _PHRASE + within / steps) / _PHRASE
    swell = _SWELL * (np.sin(np.pi * along**1.5) - 0.5)  # the maximum is in the third bar
    return dynamic + accent + float(swell)
