"""Composes melodies of recurring motives, in phrases with cadences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgjax.synthetic import harmony
from mgjax.synthetic.form import USUAL_VELOCITY, Bar, Event, pick
from mgjax.synthetic.instruments import INSTRUMENTS
from mgjax.synthetic.styles.style import BEATS, STEPS, Part, Style, parse_rhythm


@dataclass(frozen=True)
class _Motive:
    """A motive: the start and length of its notes in steps, and its contour in scale steps."""

    notes: tuple[tuple[int, int], ...]
    contour: tuple[int, ...]


_MOTIVE_BARS = 2
_WIDEST_LEAP = 7  # semitones from the end of a unit to the start of the next, before it moves to a chord tone
_WIDEST_CONTOUR = 5  # scale steps from a motive's first note

# The motives of the units of a section, by the number of units.
_PLANS = {1: ("a",), 2: ("ab", "aa"), 3: ("aab", "aba"), 4: ("aaba", "abac", "aabc", "abab"), 6: ("abacbd", "aabaac")}


def melody(
    part: Part, instrument: str, bars: list[Bar], scale: frozenset[int], style: Style, rng: np.random.Generator
) -> list[Event]:
    """The events of a melody. Sections of the same letter have the same theme, later ones with ornaments."""
    low, high = INSTRUMENTS[instrument].low, INSTRUMENTS[instrument].high
    themes = {letter: int(rng.integers(2**31)) for letter in "AB"}
    sections: dict[tuple[str, int], list[Bar]] = {}
    for bar in bars:
        sections.setdefault((bar.section, bar.take), []).append(bar)
    events: list[Event] = []
    for (letter, take), section in sections.items():
        if letter == ">":
            tonic = section[0].chord_at(0).root
            last = harmony.nearest(events[-1].pitch if events else 72, (tonic,), low, high)
            events.append(Event(section[0].start, STEPS[style.metre], last, USUAL_VELOCITY))
            continue
        theme = _theme(part, low, high, section, scale, style, np.random.default_rng(themes[letter]))
        events += _ornamented(theme, scale, rng) if take else theme
    return events


def _theme(
    part: Part, low: int, high: int, bars: list[Bar], scale: frozenset[int], style: Style, rng: np.random.Generator
) -> list[Event]:
    """The melody of a section: units of one motive each, by a plan such as aaba, with cadences."""
    steps = STEPS[style.metre]
    size = _MOTIVE_BARS if len(bars) % _MOTIVE_BARS == 0 else 1
    units = [bars[i : i + size] for i in range(0, len(bars), size)]
    plan = _plan(len(units), rng)
    motives = {letter: _motive(part, size, steps, rng) for letter in sorted(set(plan))}
    starts: dict[str, int] = {}
    centre = 0.55 * low + 0.45 * high
    pitch, events = centre, []
    for number, (letter, unit) in enumerate(zip(plan, units, strict=True)):
        start = starts.get(letter, 0.5 * pitch + 0.5 * centre + int(rng.integers(-3, 6)))
        start = min(max(start, pitch - _WIDEST_LEAP), pitch + _WIDEST_LEAP)
        motive = motives[letter]
        if number % 4 == 3 or number == len(units) - 1:
            motive = _cadence(motive, size * steps, steps)
        phrase = _phrase(motive, start, unit, low, high, scale, style)
        starts.setdefault(letter, phrase[0].pitch)
        pitch = phrase[-1].pitch
        events += phrase
    return events


def _plan(units: int, rng: np.random.Generator) -> str:
    """The motives of the units of a section, as in `_PLANS`; long sections alternate four units and a variation."""
    if units in _PLANS:
        return pick(rng, _PLANS[units])
    four = pick(rng, _PLANS[4])
    answer = four[:3] + "d"
    return ((four + answer) * (units // 8 + 1))[:units]


def _motive(part: Part, bars: int, steps: int, rng: np.random.Generator) -> _Motive:
    """A motive of so many bars, with rhythms of the part and a contour of mostly steps with a few leaps."""
    notes = [
        (bar * steps + start, length)
        for bar in range(bars)
        for start, length, _ in parse_rhythm(pick(rng, part.rhythms))
    ]
    contour, direction = [0], int(pick(rng, (-1, 1)))
    for _ in notes[1:]:
        move = int(rng.choice([0, 1, 2, 3], p=[0.12, 0.66, 0.14, 0.08]))
        if abs(contour[-1] + direction * move) > _WIDEST_CONTOUR:
            direction = -direction
        contour.append(contour[-1] + direction * move)
        if move > 1 or rng.random() < 0.3:  # the direction changes after a leap
            direction = -direction
    return _Motive(tuple(notes), tuple(contour))


def _cadence(motive: _Motive, length: int, steps: int) -> _Motive:
    """The motive with one long note as its last bar."""
    kept = [i for i, (start, _) in enumerate(motive.notes) if start < length - steps]
    notes = [motive.notes[i] for i in kept] + [(length - steps, steps - steps // 8)]
    return _Motive(tuple(notes), tuple(motive.contour[i] for i in range(len(notes))))


def _phrase(
    motive: _Motive, start_pitch: float, bars: list[Bar], low: int, high: int, scale: frozenset[int], style: Style
) -> list[Event]:
    """The motive over the chords of `bars`: it starts on a chord tone near `start_pitch`, and rests on chord tones."""
    steps = STEPS[style.metre]
    beat = steps // BEATS[style.metre]
    events: list[Event] = []
    for (start, length), height in zip(motive.notes, motive.contour, strict=True):
        bar = bars[start // steps]
        chord = bar.chord_at(start % steps)
        classes = harmony.chord_scale(scale, chord)
        first = events[0].pitch if events else start_pitch
        base = harmony.nearest(first, classes, low, high)
        pitch = harmony.step_from(base, height, classes)
        if not low <= pitch <= high:  # the contour is inverted at the end of the instrument's range
            pitch = harmony.nearest(harmony.step_from(base, -height, classes), classes, low, high)
        if not events or start % steps == 0 or length >= 2 * beat:
            pitch = harmony.nearest(pitch, chord.pitch_classes, low, high)
        accent = 8 if start % steps == 0 else 3 if start % beat == 0 else 0
        events.append(Event(bars[0].start + start, length * 0.95, pitch, USUAL_VELOCITY + accent + 0.8 * height))
    return events


def _ornamented(events: list[Event], scale: frozenset[int], rng: np.random.Generator) -> list[Event]:
    """The events, with some long notes split by a neighbouring note of the scale."""
    ornamented = []
    for event in events:
        if event.steps < 3.5 or event.pitch % 12 not in scale or rng.random() > 0.2:
            ornamented.append(event)
            continue
        half = event.steps / 2
        neighbour = harmony.step_from(event.pitch, int(pick(rng, (-1, 1))), scale)
        ornamented.append(event._replace(steps=half / 2))
        ornamented.append(Event(event.step + half / 2, half / 2, neighbour, event.velocity - 8))
        ornamented.append(Event(event.step + half, half, event.pitch, event.velocity - 4))
    return ornamented
