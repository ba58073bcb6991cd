"""The form of a piece: its sections, their bars, the chords in them and who plays."""

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
    """A note on the grid: where it begins and how long it is, in steps from the beginning of the piece."""

    step: float
    steps: float
    pitch: int
    velocity: float


@dataclass(frozen=True)
class Bar:
    """A bar of the form.

    Attributes:
      start: Its first step.
      chords: The step within the bar where each chord begins, and the chord.
      section: The letter of its section; "<" the intro, ">" the last bar.
      take: How often the section has come before.
      index: Its number within the section.
      last: It is the last of its section.
      layers: Numbers of the parts that play.
    """

    start: int
    chords: tuple[tuple[int, Chord], ...]
    section: str
    take: int
    index: int
    last: bool
    layers: frozenset[int]

    def chord_at(self, step: int) -> Chord:
        """The chord that governs at a step of the bar."""
        return [chord for start, chord in self.chords if start <= step][-1]


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of `choices`, as it is (numpy would make arrays of them)."""
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
    """The letters of a form whose seconds are within `lengths`, the shortest form if none is, and its bars."""
    progressions = {letter: pick(rng, style.progressions[mode]).split() for letter in "AB"}
    bar_seconds = BEATS[style.metre] * 60 / tempo
    section_bars = {
        letter: max(1, round(_SECTION_SECONDS / (bar_seconds * len(bars)))) * len(bars)
        for letter, bars in progressions.items()
    }
    # Short, as a window of some seconds is to hold all that is said of the piece.
    intro = int(rng.integers(2)) * min(2, max(1, round(_INTRO_SECONDS / bar_seconds)))
    seconds = {form: bar_seconds * (intro + sum(section_bars[letter] for letter in form) + 1) for form in _FORMS}
    form = pick(rng, [form for form in _FORMS if lengths[0] <= seconds[form] <= lengths[1]] or _FORMS[:1])

    plan = [("<", 0, i, intro, progressions["A"][i % len(progressions["A"])]) for i in range(intro)]
    for number, letter in enumerate(form):
        bars = section_bars[letter]
        chords = progressions[letter]
        take = form[:number].count(letter)
        plan += [(letter, take, i, bars, chords[i % len(chords)]) for i in range(bars)]
    plan.append((">", 0, 0, 1, _home(progressions["A"], mode)))

    layers = _layers(parts, form)
    steps = STEPS[style.metre]
    bars = []
    for number, (letter, take, index, count, symbols) in enumerate(plan):
        names = symbols.split("-")
        chords = tuple((i * steps // len(names), harmony.chord(name, tonic)) for i, name in enumerate(names))
        bars.append(Bar(number * steps, chords, letter, take, index, index == count - 1, layers[letter, take]))
    return form, bars


def _home(progression: list[str], mode: str) -> str:
    """The tonic's chord that a piece ends on: the progression's own where it has one."""
    tonics = [name for bar in progression for name in bar.split("-") if name.upper().rstrip("6789MAJD") == "I"]
    return tonics[0] if tonics else ("i" if mode in ("minor", "dorian") else "I")


def _layers(parts: tuple[Part, ...], form: str) -> dict[tuple[str, int], frozenset[int]]:
    """The numbers of the parts that play in each section, by its letter and take: all, but no melody in the intro."""
    everyone = frozenset(range(len(parts)))
    others = frozenset(i for i in everyone if parts[i].role != "melody")
    takes = {(letter, form[:number].count(letter)): everyone for number, letter in enumerate(form)}
    return {("<", 0): others, **takes, (">", 0): everyone}
