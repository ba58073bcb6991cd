"""The form of a piece: its sections, and their bars with chords and playing parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from mgjax.synthetic import harmony
from mgjax.synthetic.harmony import Chord
from mgjax.synthetic.styles.style import BEATS, STEPS, Part, Style

T = TypeVar("T")

USUAL_VELOCITY = 90

_SECTION_SECONDS = 11.0
_INTRO_SECONDS = 1.5
USUAL_LENGTHS = (20.0, 58.0)  # seconds of the shortest and of the longest piece
_FORMS = ("A", "AB", "AAB", "ABA", "AABA", "ABAB", "AABAB", "ABABA", "AABABA", "ABABAB")


class Event(NamedTuple):
    """A note on the grid, with its start and length in steps."""

    step: float
    steps: float
    pitch: int
    velocity: float


@dataclass(frozen=True)
class Bar:
    """A bar of the form.

    Attributes:
      start: Its first step.
      chords: The first step of each chord within the bar, and the chord.
      section: The letter of its section; "<" for the intro, ">" for the last bar.
      take: How often the section has occurred before.
      index: Its index within the section.
      last: Whether it is the last of its section.
      layers: Indices of the parts that play.
    """

    start: int
    chords: tuple[tuple[int, Chord], ...]
    section: str
    take: int
    index: int
    last: bool
    layers: frozenset[int]

    def chord_at(self, step: int) -> Chord:
        """The chord at a step of the bar."""
        return [chord for start, chord in self.chords if start <= step][-1]


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """A random choice (numpy's own would convert it to an array)."""
    return choices[int(rng.integers(len(choices)))]


def lay_out(
    style: Style,
    parts: tuple[Part, ...],
    mode: str,
    tonic: int,
    tempo: float,
    rng: np.random.Generator,
    lengths: tuple[float, float],
) -> tuple[str, list[Bar]]:
    """A form, as the letters of its sections and its bars, of a length within `lengths` or else the shortest."""
    progressions = {letter: pick(rng, style.progressions[mode]).split() for letter in "AB"}
    bar_seconds = BEATS[style.metre] * 60 / tempo
    section_bars = {
        letter: max(1, round(_SECTION_SECONDS / (bar_seconds * len(chords)))) * len(chords)
        for letter, chords in progressions.items()
    }
    # Short, so that a caption is true of any excerpt of some seconds.
    intro = int(rng.integers(2)) * min(2, max(1, round(_INTRO_SECONDS / bar_seconds)))
    seconds = {form: bar_seconds * (intro + sum(section_bars[letter] for letter in form) + 1) for form in _FORMS}
    form = pick(rng, [form for form in _FORMS if lengths[0] <= seconds[form] <= lengths[1]] or _FORMS[:1])

    plan = [("<", 0, i, intro, progressions["A"][i % len(progressions["A"])]) for i in range(intro)]
    for number, letter in enumerate(form):
        count, chords = section_bars[letter], progressions[letter]
        take = form[:number].count(letter)
        plan += [(letter, take, i, count, chords[i % len(chords)]) for i in range(count)]
    plan.append((">", 0, 0, 1, _home(progressions["A"], mode)))

    layers = _layers(parts, form)
    steps = STEPS[style.metre]
    bars = []
    for number, (letter, take, index, count, symbols) in enumerate(plan):
        names = symbols.split("-")
        starts = tuple((i * steps // len(names), harmony.chord(name, tonic)) for i, name in enumerate(names))
        bars.append(Bar(number * steps, starts, letter, take, index, index == count - 1, layers[letter, take]))
    return form, bars


def _home(progression: list[str], mode: str) -> str:
    """The tonic chord that ends a piece: that of the progression if it has one."""
    tonics = [name for bar in progression for name in bar.split("-") if name.upper().rstrip("6789MAJD") == "I"]
    return tonics[0] if tonics else ("i" if mode in ("minor", "dorian") else "I")


def _layers(parts: tuple[Part, ...], form: str) -> dict[tuple[str, int], frozenset[int]]:
    """The indices of the parts in each section, by its letter and take: all, but no melody in the intro."""
    all_parts = frozenset(range(len(parts)))
    others = frozenset(i for i in all_parts if parts[i].role != "melody")
    takes = {(letter, form[:number].count(letter)): all_parts for number, letter in enumerate(form)}
    return {("<", 0): others, **takes, (">", 0): all_parts}
