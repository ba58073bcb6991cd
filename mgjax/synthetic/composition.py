"""Composes the notes of a piece, from a style and a random generator.

Each part plays its role over the bars of a form. Notes are composed on the grid of steps of `styles.style`;
`performance` turns steps into seconds, with swing and human timing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mgjax.synthetic import harmony
from mgjax.synthetic.form import USUAL_VELOCITY, Bar, Event, lay_out, pick
from mgjax.synthetic.harmony import Chord
from mgjax.synthetic.instruments import DRUMS, INSTRUMENTS
from mgjax.synthetic.melody import melody
from mgjax.synthetic.performance import Note, perform, seconds_at
from mgjax.synthetic.styles.style import BEATS, FILLS, STEPS, Part, Style, parse_rhythm

_VELOCITIES = {"X": 112, "o": 62}  # of the letters in rhythms; all others have the usual one
# In seconds; a bar lasts a multiple: a frame of codes at 25 per second, two at 50. Repetitions then have the same
# alignment with the frames and nearly the same codes, so that a model can recognise them. It changes a tempo by at most
# 2 %.
BAR_UNIT = 0.04
_LONGEST_REST = 0.8  # seconds
_CLOSING = ("kick", "crash", "snare", "ride", "shaker")  # the drums of the last stroke; all, if a pattern has none
_GHOST = 42  # velocity
_GHOST_STEPS = (3, 6, 7, 9, 11, 15)  # of 16
_BASS_RANGE = (28, 47)


class Sounding(NamedTuple):
    """A chord of the accompaniment, from and to which second."""

    start: float
    end: float
    chord: Chord


@dataclass(frozen=True)
class Track:
    """The notes of a part, with its instrument and the instrument's General MIDI program."""

    part: Part
    instrument: str
    program: int
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Score:
    """A composed piece.

    Attributes:
      style: Its style.
      tonic: Pitch class of the key.
      mode: Name of the key's scale in `harmony.SCALES`.
      tempo: Beats per minute, such that a bar lasts a multiple of `BAR_UNIT`; a beat of 6/8 is a dotted quarter.
      form: Letters of the sections.
      chords: The chords of the accompaniment, from the first beat to the end.
      tracks: The parts with notes.
    """

    style: Style
    tonic: int
    mode: str
    tempo: float
    form: str
    chords: tuple[Sounding, ...]
    tracks: tuple[Track, ...]

    @property
    def seconds(self) -> float:
        """The end of the last note."""
        return max(note.start + note.seconds for track in self.tracks for note in track.notes)

    @property
    def bpm(self) -> int:
        """The tempo in whole beats per minute."""
        return round(self.tempo)

    @property
    def key(self) -> str:
        """The name of the key, "Eb major"."""
        return harmony.key_name(self.tonic, self.mode)


def compose(style: Style, rng: np.random.Generator, lengths: tuple[float, float]) -> Score:
    """Composes a piece in `style`, of a length in seconds within `lengths` if possible, by draws from `rng`."""
    # Some combinations of an intro and its rhythms leave long rests; these pieces are discarded.
    while longest_rest(score := _attempt(style, rng, lengths)) > _LONGEST_REST:
        pass
    return score


def longest_rest(score: Score) -> float:
    """The longest rest of all tracks together in seconds, from the start of a piece to its last note."""
    longest, end = 0.0, 0.0
    for note in sorted(note for track in score.tracks for note in track.notes):
        longest = max(longest, note.start - end)
        end = max(end, note.start + note.seconds)
    return longest


def _attempt(style: Style, rng: np.random.Generator, lengths: tuple[float, float]) -> Score:
    mode = pick(rng, tuple(style.progressions))
    tonic = int(rng.integers(12))
    tempo = _in_units(int(rng.integers(style.bpm[0], style.bpm[1] + 1)), style)
    parts = _one_melody(tuple(part for part in style.parts if rng.random() < part.chance), rng)
    form, bars = lay_out(style, parts, mode, tonic, tempo, rng, lengths)
    scale = harmony.scale_classes(tonic, mode)
    tracks = []
    for index, part in enumerate(parts):
        played = [bar for bar in bars if index in bar.layers]
        instrument = pick(rng, part.instruments)
        program = pick(rng, INSTRUMENTS[instrument].programs)
        if part.role == "melody":
            events = melody(part, instrument, played, scale, style, rng)
        elif part.role == "bass":
            events = _bass(part, played, scale, style, rng)
        else:
            events = {"chords": _chords, "arpeggio": _arpeggio, "drums": _drums}[part.role](part, played, style, rng)
        if events:
            tracks.append(Track(part, instrument, program, perform(part, events, bars, style, tempo, rng)))
    return Score(style, tonic, mode, tempo, form, tuple(_soundings(bars, style, tempo)), tuple(tracks))


def _in_units(bpm: int, style: Style) -> float:
    """The tempo nearest to `bpm` whose bars last a multiple of `BAR_UNIT`."""
    beats = 60 * BEATS[style.metre]
    return beats / (BAR_UNIT * round(beats / bpm / BAR_UNIT))


def _one_melody(parts: tuple[Part, ...], rng: np.random.Generator) -> tuple[Part, ...]:
    """The parts with at most one melody: two would alternate, and a caption has to be true of the whole piece."""
    melodies = [part for part in parts if part.role == "melody"]
    leading = pick(rng, melodies) if melodies else None
    return tuple(part for part in parts if part.role != "melody" or part is leading)


def _rhythm_of(part: Part, rng: np.random.Generator) -> dict[str, str]:
    """The rhythm of a part in the sections of each letter, mostly the same one."""
    first, second = pick(rng, part.rhythms), pick(rng, part.rhythms)
    return {"A": first, "<": first, ">": first, "B": second if rng.random() < 0.5 else first}


def _bar_of(rhythm: str, bar: Bar, steps: int) -> str:
    """The part of a rhythm of several bars for `bar`."""
    bars = len(rhythm) // steps
    return rhythm[bar.index % bars * steps :][:steps]


def _strokes(bar: Bar, rhythm: str, steps: int) -> Iterator[tuple[int, int, str, Chord]]:
    """The notes of a bar as (start, length, letter, chord); notes are split at changes of chord, the last is held."""
    if bar.section == ">":
        letter = rhythm.strip(".-")[0]
        yield 0, steps, letter, bar.chord_at(0)
        return
    changes = [step for step, _ in bar.chords] + [steps]
    for start, length, letter in parse_rhythm(_bar_of(rhythm, bar, steps)):
        while length > 0:
            end = min(start + length, *(change for change in changes if change > start))
            yield start, end - start, letter, bar.chord_at(start)
            start, length = end, start + length - end


def _voiced_strokes(
    part: Part, bars: list[Bar], style: Style, rng: np.random.Generator
) -> Iterator[tuple[Bar, int, int, str, tuple[int, ...]]]:
    """The notes of a rhythm as (bar, start, length, letter, voicing of the chord), with smooth voice leading."""
    rhythms, steps = _rhythm_of(part, rng), STEPS[style.metre]
    voicing: tuple[int, ...] = ()
    previous = None
    for bar in bars:
        for start, length, letter, chord in _strokes(bar, rhythms[bar.section], steps):
            if chord != previous:
                voicing, previous = harmony.lead(chord, voicing, part.centre, part.spread), chord
            yield bar, start, length, letter, voicing


def _chords(part: Part, bars: list[Bar], style: Style, rng: np.random.Generator) -> list[Event]:
    """The whole chord at each note of the rhythm."""
    return [
        Event(bar.start + start, length, pitch, _VELOCITIES.get(letter, USUAL_VELOCITY))
        for bar, start, length, letter, voicing in _voiced_strokes(part, bars, style, rng)
        for pitch in voicing
    ]


def _arpeggio(part: Part, bars: list[Bar], style: Style, rng: np.random.Generator) -> list[Event]:
    """The tones of the chord one by one, indexed by the digits of the rhythm."""
    events = []
    for bar, start, length, letter, voicing in _voiced_strokes(part, bars, style, rng):
        octave, tone = divmod(int(letter), len(voicing))
        accent = 10 if start == 0 else 0
        pitches = voicing if bar.section == ">" else (voicing[tone] + 12 * octave,)
        events += [Event(bar.start + start, length, pitch, USUAL_VELOCITY - 8 + accent) for pitch in pitches]
    return events


def _bass(part: Part, bars: list[Bar], scale: frozenset[int], style: Style, rng: np.random.Generator) -> list[Event]:
    """Roots, chord tones, and approaches to the next root."""
    rhythms, steps = _rhythm_of(part, rng), STEPS[style.metre]
    low, high = _BASS_RANGE
    root = harmony.nearest(35, (bars[0].chord_at(0).root,), low, high)
    pitch = root
    strokes = [(bar, *stroke) for bar in bars for stroke in _strokes(bar, rhythms[bar.section], steps)]
    roots = [stroke[-1].root for stroke in strokes] + [bars[-1].chord_at(0).root]
    events = []
    for number, (bar, start, length, letter, chord) in enumerate(strokes):
        root = harmony.nearest(0.5 * (root + 35), (chord.root,), low, high)
        third, fifth = ((tone - chord.root) % 12 for tone in (chord.pitch_classes * 2)[1:3])
        if letter == "c":
            tones = [p for p in range(low, high + 1) if p % 12 in chord.pitch_classes and 0 < abs(p - pitch) <= 7]
            pitch = pick(rng, tones)
        elif letter == "a":
            target = harmony.nearest(pitch, (roots[number + 1],), low, high)
            classes = harmony.chord_scale(scale, chord)
            pitch = pick(rng, [target + d for d in (-2, -1, 1, 2) if (target + d) % 12 in classes] or [target])
        else:
            seventh = (chord.pitch_classes[3] - chord.root) % 12 if len(chord.pitch_classes) > 3 else 12
            pitch = root + {"3": third, "5": fifth, "7": seventh, "6": 9, "8": 12}.get(letter, 0)
        events.append(Event(bar.start + start, length * 0.95, pitch, USUAL_VELOCITY + (8 if start == 0 else 0)))
    return events


def _drums(part: Part, bars: list[Bar], style: Style, rng: np.random.Generator) -> list[Event]:
    """The drum patterns, with a fill at the end of most sections and a cymbal after it."""
    steps = STEPS[style.metre]
    patterns = {letter: pick(rng, part.patterns) for letter in "AB"}
    ghosts = {letter: _ghosts(patterns[letter], style, rng) for letter in "AB"}
    events, filled = [], False
    for bar in bars:
        if bar.section in "AB":
            events += [Event(bar.start + step, 1, DRUMS["snare"], _GHOST) for step in ghosts[bar.section]]
        pattern = patterns["B" if bar.section == "B" else "A"]
        if bar.section == ">":
            closing = [name for name in pattern if name in _CLOSING] or list(pattern)
            pattern = dict.fromkeys(closing, "X")
        strokes = [
            (start, name, letter)
            for name, rhythm in pattern.items()
            for start, _, letter in parse_rhythm(_bar_of(rhythm, bar, steps) if len(rhythm) > 1 else rhythm)
        ]
        if part.fills and (filled or bar.section == ">"):
            strokes.append((0, "crash", "x"))
        filled = part.fills and bar.last and bar.section in "AB" and rng.random() < 0.8
        if filled:
            fill = pick(rng, FILLS[style.metre])
            first = min(start for rhythm in fill.values() for start, _, _ in parse_rhythm(rhythm))
            strokes = [stroke for stroke in strokes if stroke[0] < first or stroke[1] == "kick"]
            strokes += [
                (start, name, letter) for name, rhythm in fill.items() for start, _, letter in parse_rhythm(rhythm)
            ]
        events += [
            Event(bar.start + s, 1, DRUMS[name], _VELOCITIES.get(letter, USUAL_VELOCITY)) for s, name, letter in strokes
        ]
    return events


def _ghosts(pattern: dict[str, str], style: Style, rng: np.random.Generator) -> list[int]:
    """The steps of ghost notes of the snare, between the backbeats of a pattern."""
    backbeat = pattern.get("snare", "").count("X")
    if not style.looseness or not backbeat or len(pattern["snare"]) != STEPS["4/4"]:
        return []
    taken = {start for start, _, _ in parse_rhythm(pattern["snare"])}
    return [step for step in _GHOST_STEPS if step not in taken and rng.random() < 0.3]


def _soundings(bars: list[Bar], style: Style, tempo: float) -> Iterator[Sounding]:
    ends = [*[bar.start + step for bar in bars for step, _ in bar.chords][1:], bars[-1].start + STEPS[style.metre]]
    for (step, chord), end in zip(((b.start + s, c) for b in bars for s, c in b.chords), ends, strict=True):
        yield Sounding(seconds_at(step, style, tempo), seconds_at(end, style, tempo), chord)
