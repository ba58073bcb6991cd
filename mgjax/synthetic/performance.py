"""From the grid to the hands of players: swing, push and pull, accents, phrases that swell and fade."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mgjax.synthetic.form import Bar, Event
from mgjax.synthetic.instruments import DRUMS
from mgjax.synthetic.styles.style import BEATS, STEPS, Part, Style

_LEAD_IN = 0.05  # seconds before the first beat, for players who are early
_DYNAMICS = {"<": -8, "A": 0, "B": 6, ">": 6}  # added to velocities, section by section
_EARLIEST = 0.03  # seconds before the beat, or after it, at most
_HATS = {DRUMS["hat"], DRUMS["shaker"], DRUMS["ride"], DRUMS["tambourine"]}
_PHRASE = 4  # bars that swell and fade
_SWELL = 7  # velocities from the quiet end of a phrase to its height


class Note(NamedTuple):
    """A note as it sounds: times in seconds, MIDI pitch (for drums: which drum) and velocity of 1 to 127."""

    start: float
    seconds: float
    pitch: int
    velocity: int


def seconds_at(step: float, style: Style, tempo: float) -> float:
    """When a step sounds: swing delays the second half of each pair."""
    ratio, pair = style.swing
    whole, within = divmod(step, pair)
    within /= pair
    swung = within / 0.5 * ratio if within < 0.5 else ratio + (within - 0.5) / 0.5 * (1 - ratio)
    steps_in_beat = STEPS[style.metre] / BEATS[style.metre]
    return _LEAD_IN + (whole + swung) * pair * 60 / tempo / steps_in_beat


def perform(
    part: Part, events: list[Event], bars: list[Bar], style: Style, tempo: float, rng: np.random.Generator
) -> tuple[Note, ...]:
    """Events as notes in seconds, as people play them.

    Each player sits a little before or behind the beat, and has a feel for each place in the bar that comes back in
    every bar; what is struck together stays together, but for strings that are strummed, down on the beat and up
    between. Machines, in styles of no looseness, do none of that.

    Args:
      part: Who plays.
      events: What, on the grid.
      bars: The bars of the piece.
      style: Its swing and looseness.
      tempo: Beats per minute.
      rng: The players' chances.
    """
    drums, looseness = part.role == "drums", style.looseness
    lean = float(rng.normal(0, 0.5 * looseness))
    steps = STEPS[style.metre]
    places = sorted({event.step % steps for event in events})
    early = {place: min(max(lean + float(rng.normal(0, 0.5 * looseness)), -_EARLIEST), _EARLIEST) for place in places}
    events = sorted(events, key=lambda event: (event.step, event.pitch))
    struck: dict[float, int] = {}
    for event in events:
        struck[event.step] = struck.get(event.step, 0) + 1
    habits = {place: float(rng.normal(0, 3.5 if looseness else 1.5)) for place in places}
    unevenness = rng.normal(0, 1.0 if looseness else 0.0, len(events)).tolist()
    notes = []
    met: dict[float, int] = {}
    beat = steps // BEATS[style.metre]
    for event, uneven in zip(events, unevenness, strict=True):
        order = met[event.step] = met.get(event.step, -1) + 1  # of a strummed chord, from the string struck first
        if event.step % beat and not drums:
            order = struck[event.step] - 1 - order
        end = seconds_at(event.step + event.steps, style, tempo)
        start = max(0.0, seconds_at(event.step, style, tempo) + early[event.step % steps] + order * part.strum)
        velocity = event.velocity + _shape(part, event, bars, style) + habits[event.step % steps] + uneven
        notes.append(Note(start, max(end - start, 0.03), event.pitch, int(min(max(velocity, 20), 127))))
    return tuple(notes)


def _shape(part: Part, event: Event, bars: list[Bar], style: Style) -> float:
    """What accents, the phrase and the section add to a note's velocity."""
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
    swell = _SWELL * (np.sin(np.pi * along**1.5) - 0.5)  # its height lies in the third bar
    return dynamic + accent + float(swell)
