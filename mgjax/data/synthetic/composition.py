"""Composes: from a style and a random generator to the notes of a piece.

A piece is a form (sections of repeated letters, an intro, a last bar), over which each part plays its role. All is
composed on the grid of steps that `styles` describes; `_perform` then turns steps into seconds, with swing and the
small unevenness of players.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from mgjax.data.synthetic import harmony
from mgjax.data.synthetic.harmony import Chord
from mgjax.data.synthetic.instruments import DRUMS, INSTRUMENTS
from mgjax.data.synthetic.styles import BEATS, FILLS, STEPS, Part, Style

T = TypeVar("T")

_LOUD = {"X": 112, "o": 62}  # velocities of rhythms' letters; all others are usual
_USUAL = 90
_LEAD_IN = 0.05  # seconds before the first beat, for players who are early
_SECTION_SECONDS = 11.0
_BASS_RANGE = (28, 47)
_FORMS = {2: ("AB",), 3: ("AAB", "ABA"), 4: ("AABA", "ABAB"), 5: ("AABAB", "ABABA"), 6: ("AABABA", "ABABAB")}


class Note(NamedTuple):
    """A note as it sounds: times in seconds, MIDI pitch (for drums: which drum) and velocity of 1 to 127."""

    start: float
    seconds: float
    pitch: int
    velocity: int


class Sounding(NamedTuple):
    """A chord of the accompaniment and the seconds from and to which it governs."""

    start: float
    end: float
    chord: Chord


@dataclass(frozen=True)
class Track:
    """What one player plays."""

    part: Part
    instrument: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Score:
    """The notes of a piece and what is true of all of them.

    Attributes:
      style: The style that it was composed in.
      tonic: Pitch class of the key.
      mode: Name of the key's scale in `harmony.SCALES`.
      bpm: Beats per minute; a beat of 6/8 is a dotted quarter.
      form: Letters of the sections.
      chords: What the accompaniment is built on, from the first beat to the end.
      tracks: The players that play at all.
    """

    style: Style
    tonic: int
    mode: str
    bpm: int
    form: str
    chords: tuple[Sounding, ...]
    tracks: tuple[Track, ...]

    @property
    def seconds(self) -> float:
        """When the last note ends."""
        return max(note.start + note.seconds for track in self.tracks for note in track.notes)

    @property
    def key(self) -> str:
        """The key in words."""
        return harmony.key_name(self.tonic, self.mode)


class _Event(NamedTuple):
    """A note on the grid: where it begins and how long it is, in steps from the beginning of the piece."""

    step: float
    steps: float
    pitch: int
    velocity: float


@dataclass(frozen=True)
class _Bar:
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


def compose(style: Style, rng: np.random.Generator) -> Score:
    """A piece in `style`: all chances are taken from `rng`."""
    mode = pick(rng, tuple(style.progressions))
    tonic = int(rng.integers(12))
    bpm = int(rng.integers(style.bpm[0], style.bpm[1] + 1))
    parts = tuple(part for part in style.parts if rng.random() < part.chance)
    form, bars = _form(style, parts, mode, tonic, bpm, rng)
    tracks = []
    for index, part in enumerate(parts):
        played = [bar for bar in bars if index in bar.layers]
        instrument = pick(rng, part.instruments)
        events = _ROLES[part.role](part, instrument, played, harmony.scale_classes(tonic, mode), style, rng)
        if events:
            tracks.append(Track(part, instrument, _perform(part, events, style, bpm, rng)))
    return Score(style, tonic, mode, bpm, form, tuple(_soundings(bars, style, bpm)), tuple(tracks))


def parse_rhythm(rhythm: str) -> list[tuple[int, int, str]]:
    """Each note of a rhythm: the step where it begins, its length in steps and its letter."""
    notes = []
    for step, letter in enumerate(rhythm):
        if letter == "-" and notes and sum(notes[-1][:2]) == step:
            start, steps, name = notes[-1]
            notes[-1] = (start, steps + 1, name)
        elif letter not in "-.":
            notes.append((step, 1, letter))
    return notes


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of `choices`, as it is (numpy would make arrays of them)."""
    return choices[int(rng.integers(len(choices)))]


# Form


def _form(
    style: Style, parts: tuple[Part, ...], mode: str, tonic: int, bpm: int, rng: np.random.Generator
) -> tuple[str, list[_Bar]]:
    """The letters of a form of 20 to 60 seconds, and its bars."""
    progressions = {letter: pick(rng, style.progressions[mode]).split() for letter in "AB"}
    bar_seconds = BEATS[style.metre] * 60 / bpm
    section_bars = {
        letter: max(1, round(_SECTION_SECONDS / (bar_seconds * len(bars)))) * len(bars)
        for letter, bars in progressions.items()
    }
    count = round(rng.uniform(24, 50) / (bar_seconds * np.mean(list(section_bars.values()))))
    form = pick(rng, _FORMS[min(max(count, 2), 6)])
    intro = int(rng.integers(2)) * min(len(progressions["A"]), max(1, round(5 / bar_seconds)))

    plan = [("<", 0, i, intro, progressions["A"][i]) for i in range(intro)]
    for number, letter in enumerate(form):
        bars = section_bars[letter]
        chords = progressions[letter]
        take = form[:number].count(letter)
        plan += [(letter, take, i, bars, chords[i % len(chords)]) for i in range(bars)]
    plan.append((">", 0, 0, 1, _home(progressions["A"], mode)))

    layers = _layers(parts, form, rng)
    steps = STEPS[style.metre]
    bars = []
    for number, (letter, take, index, count, symbols) in enumerate(plan):
        names = symbols.split("-")
        chords = tuple((i * steps // len(names), harmony.chord(name, tonic)) for i, name in enumerate(names))
        bars.append(_Bar(number * steps, chords, letter, take, index, index == count - 1, layers[letter, take]))
    return form, bars


def _home(progression: list[str], mode: str) -> str:
    """The tonic's chord that a piece ends on: the progression's own where it has one."""
    tonics = [name for bar in progression for name in bar.split("-") if name.upper().rstrip("6789MAJD") == "I"]
    return tonics[0] if tonics else ("i" if mode in ("minor", "dorian") else "I")


def _layers(parts: tuple[Part, ...], form: str, rng: np.random.Generator) -> dict[tuple[str, int], frozenset[int]]:
    """The numbers of the parts that play in each section, by its letter and take.

    Melodies take turns from letter to letter. The intro is some of the accompaniment, and the first section may wait
    with one part of it. All come together for the last bar.
    """
    melodies = [i for i, part in enumerate(parts) if part.role == "melody"]
    others = [i for i, part in enumerate(parts) if part.role != "melody"]
    layers = {(">", 0): frozenset(range(len(parts)))}
    size = int(rng.integers(1, len(others) + 1))
    layers["<", 0] = frozenset(int(i) for i in rng.permutation(others)[:size])
    for number, letter in enumerate(form):
        playing = set(others)
        if number == 0 and len(others) > 2 and rng.random() < 0.4:
            playing.discard(pick(rng, others))
        if melodies:
            playing.add(melodies[(ord(letter) - ord("A")) % len(melodies)])
        layers[letter, form[:number].count(letter)] = frozenset(playing)
    return layers


def _soundings(bars: list[_Bar], style: Style, bpm: int) -> Iterator[Sounding]:
    ends = [*[bar.start + step for bar in bars for step, _ in bar.chords][1:], bars[-1].start + STEPS[style.metre]]
    for (step, chord), end in zip(((b.start + s, c) for b in bars for s, c in b.chords), ends, strict=True):
        yield Sounding(_seconds(step, style, bpm), _seconds(end, style, bpm), chord)


# Roles: each returns the events of one part


def _rhythm_of(part: Part, rng: np.random.Generator) -> dict[str, str]:
    """The rhythm that a part keeps to in each letter: mostly the same one throughout."""
    first, second = pick(rng, part.rhythms), pick(rng, part.rhythms)
    return {"A": first, "<": first, ">": first, "B": second if rng.random() < 0.5 else first}


def _bar_of(rhythm: str, bar: _Bar, steps: int) -> str:
    """The bar of a rhythm of several bars that falls on `bar`."""
    bars = len(rhythm) // steps
    return rhythm[bar.index % bars * steps :][:steps]


def _strokes(bar: _Bar, rhythm: str, steps: int) -> Iterator[tuple[int, int, str, Chord]]:
    """The notes of a bar's rhythm and their chords; a held note begins anew with a new chord; the last bar is held."""
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


def _chords(part: Part, instrument: str, bars: list[_Bar], scale, style: Style, rng) -> list[_Event]:
    """The whole chord at each note of the rhythm, led from voicing to voicing."""
    del instrument, scale
    rhythms, steps = _rhythm_of(part, rng), STEPS[style.metre]
    events, voicing, previous = [], (), None
    for bar in bars:
        for start, length, letter, chord in _strokes(bar, rhythms[bar.section], steps):
            if chord != previous:
                voicing, previous = harmony.lead(chord, voicing, part.centre, part.spread), chord
            velocity = _LOUD.get(letter, _USUAL)
            events += [_Event(bar.start + start, length, pitch, velocity) for pitch in voicing]
    return events


def _arpeggio(part: Part, instrument: str, bars: list[_Bar], scale, style: Style, rng) -> list[_Event]:
    """The tones of the chord one by one, as the digits of the rhythm count them."""
    del instrument, scale
    rhythms, steps = _rhythm_of(part, rng), STEPS[style.metre]
    events, voicing, previous = [], (), None
    for bar in bars:
        for start, length, letter, chord in _strokes(bar, rhythms[bar.section], steps):
            if chord != previous:
                voicing, previous = harmony.lead(chord, voicing, part.centre, part.spread), chord
            octave, tone = divmod(int(letter), len(voicing))
            accent = 10 if start == 0 else 0
            pitches = voicing if bar.section == ">" else (voicing[tone] + 12 * octave,)
            events += [_Event(bar.start + start, length, pitch, _USUAL - 8 + accent) for pitch in pitches]
    return events


def _bass(part: Part, instrument: str, bars: list[_Bar], scale: frozenset[int], style: Style, rng) -> list[_Event]:
    """Roots and what leads from one to the next."""
    del instrument
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
            aim = harmony.nearest(pitch, (roots[number + 1],), low, high)
            classes = harmony.chord_scale(scale, chord)
            near = [p for p in (aim - 2, aim - 1, aim + 1, aim + 2) if p % 12 in classes] or [aim]
            pitch = pick(rng, near)
        else:
            seventh = (chord.pitch_classes[3] - chord.root) % 12 if len(chord.pitch_classes) > 3 else 12
            pitch = root + {"3": third, "5": fifth, "7": seventh, "6": 9, "8": 12}.get(letter, 0)
        events.append(_Event(bar.start + start, length * 0.95, pitch, _USUAL + (8 if start == 0 else 0)))
    return events


def _drums(part: Part, instrument: str, bars: list[_Bar], scale, style: Style, rng) -> list[_Event]:
    """The drums' rhythms, with a fill at the end of most sections and a cymbal after it."""
    del instrument, scale
    steps = STEPS[style.metre]
    patterns = {letter: pick(rng, part.rhythms) for letter in "AB"}
    events, filled = [], False
    for bar in bars:
        pattern = patterns["B" if bar.section == "B" else "A"]
        if bar.section == ">":
            pattern = {name: "X" for name in pattern if name in ("kick", "crash", "snare", "ride", "shaker")}
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
            begin = min(start for rhythm in fill.values() for start, _, _ in parse_rhythm(rhythm))
            strokes = [stroke for stroke in strokes if stroke[0] < begin or stroke[1] == "kick"]
            strokes += [
                (start, name, letter) for name, rhythm in fill.items() for start, _, letter in parse_rhythm(rhythm)
            ]
        events += [_Event(bar.start + s, 1, DRUMS[name], _LOUD.get(letter, _USUAL)) for s, name, letter in strokes]
    return events


# Melody


@dataclass(frozen=True)
class _Motive:
    """A figure: where its notes begin and how long they are, in steps; and its contour, in scale steps."""

    notes: tuple[tuple[int, int], ...]
    contour: tuple[int, ...]


_PLANS = {1: ("a",), 2: ("ab", "aa"), 3: ("aab", "aba"), 4: ("aaba", "abac", "aabc", "abab"), 6: ("a.a.bc", "aabaac")}


def _melody(
    part: Part, instrument: str, bars: list[_Bar], scale: frozenset[int], style: Style, rng: np.random.Generator
) -> list[_Event]:
    """Phrases made of motives that come back: a section's second take is its first, a little ornamented."""
    sound = INSTRUMENTS[instrument]
    themes = {letter: int(rng.integers(2**31)) for letter in "AB"}
    sections: dict[tuple[str, int], list[_Bar]] = {}
    for bar in bars:
        sections.setdefault((bar.section, bar.take), []).append(bar)
    events: list[_Event] = []
    for (letter, take), section in sections.items():
        if letter == ">":
            tonic = section[0].chord_at(0).root
            near = harmony.nearest(events[-1].pitch if events else 72, (tonic,), sound.low, sound.high)
            events.append(_Event(section[0].start, STEPS[style.metre], near, _USUAL))
            continue
        played = _theme(part, sound.low, sound.high, section, scale, style, np.random.default_rng(themes[letter]))
        events += _ornamented(played, scale, rng) if take else played
    return events


def _theme(
    part: Part, low: int, high: int, bars: list[_Bar], scale: frozenset[int], style: Style, rng: np.random.Generator
) -> list[_Event]:
    """The melody of a section: units of one motive each, laid out by a plan such as aaba, with a cadence at the end."""
    steps = STEPS[style.metre]
    size = part.motive_bars if len(bars) % part.motive_bars == 0 else 1
    units = [bars[i : i + size] for i in range(0, len(bars), size)]
    plan = _plan(len(units), rng)
    motives = {letter: _motive(part, size, steps, rng) for letter in sorted(set(plan) - {"."})}
    starts: dict[str, int] = {}
    centre = 0.55 * low + 0.45 * high
    pitch, events = centre, []
    for number, (letter, unit) in enumerate(zip(plan, units, strict=True)):
        if letter == ".":
            continue
        aim = starts.get(letter, 0.5 * pitch + 0.5 * centre + int(rng.integers(-3, 6)))
        motive = motives[letter]
        if number % 4 == 3 or number == len(units) - 1:
            motive = _cadence(motive, size * steps, steps)
        played = _sung(motive, aim, unit, low, high, scale, style)
        starts.setdefault(letter, played[0].pitch)
        pitch = played[-1].pitch
        events += played
    return events


def _plan(units: int, rng: np.random.Generator) -> str:
    """A letter for each unit of a section, the same for the same motive; `.` is left to the accompaniment."""
    if units in _PLANS:
        return pick(rng, _PLANS[units])
    four = pick(rng, _PLANS[4])
    answer = four[:3] + "d"
    return ((four + answer) * (units // 8 + 1))[:units]


def _motive(part: Part, bars: int, steps: int, rng: np.random.Generator) -> _Motive:
    """A motive of so many bars: rhythms of the part, and a contour of mostly steps with a leap here and there."""
    notes = [
        (bar * steps + start, length)
        for bar in range(bars)
        for start, length, _ in parse_rhythm(pick(rng, part.rhythms))
    ]
    contour, direction = [0], int(pick(rng, (-1, 1)))
    for _ in notes[1:]:
        move = int(rng.choice([0, 1, 1, 1, 2, 3], p=[0.12, 0.22, 0.22, 0.22, 0.14, 0.08]))
        contour.append(contour[-1] + direction * move)
        # A leap is answered by turning back, and so is going far.
        if move > 1 or abs(contour[-1]) > 4 or rng.random() < 0.3:
            direction = -direction if abs(contour[-1]) <= 4 else -int(np.sign(contour[-1]))
    return _Motive(tuple(notes), tuple(contour))


def _cadence(motive: _Motive, length: int, steps: int) -> _Motive:
    """The motive with its last bar come to rest: one long note on the beat."""
    kept = [i for i, (start, _) in enumerate(motive.notes) if start < length - steps]
    notes = [motive.notes[i] for i in kept] + [(length - steps, steps - steps // 8)]
    return _Motive(tuple(notes), tuple(motive.contour[i] for i in range(len(notes))))


def _sung(
    motive: _Motive, aim: float, bars: list[_Bar], low: int, high: int, scale: frozenset[int], style: Style
) -> list[_Event]:
    """The motive over the chords of `bars`: it begins on a chord tone near `aim`, and rests on chord tones."""
    steps = STEPS[style.metre]
    beat = steps // BEATS[style.metre]
    events: list[_Event] = []
    for (start, length), height in zip(motive.notes, motive.contour, strict=True):
        bar = bars[start // steps]
        chord = bar.chord_at(start % steps)
        classes = harmony.chord_scale(scale, chord)
        first = events[0].pitch if events else aim
        pitch = harmony.step_from(harmony.nearest(first, classes, low, high), height, classes)
        while pitch > high:
            pitch -= 12
        while pitch < low:
            pitch += 12
        if not events or start % steps == 0 or length >= 2 * beat:
            pitch = harmony.nearest(pitch, chord.pitch_classes, low, high)
        accent = 8 if start % steps == 0 else 3 if start % beat == 0 else 0
        events.append(_Event(bars[0].start + start, length * 0.95, pitch, _USUAL + accent + 0.8 * height))
    return events


def _ornamented(events: list[_Event], scale: frozenset[int], rng: np.random.Generator) -> list[_Event]:
    """The events, some long notes of them split by a neighbouring note of the scale."""
    played = []
    for event in events:
        if event.steps < 3.5 or event.pitch % 12 not in scale or rng.random() > 0.2:
            played.append(event)
            continue
        half = event.steps / 2
        neighbour = harmony.step_from(event.pitch, int(pick(rng, (-1, 1))), scale)
        played.append(event._replace(steps=half / 2))
        played.append(_Event(event.step + half / 2, half / 2, neighbour, event.velocity - 8))
        played.append(_Event(event.step + half, half, event.pitch, event.velocity - 4))
    return played


_ROLES: dict[str, Callable[..., list[_Event]]] = {
    "chords": _chords,
    "arpeggio": _arpeggio,
    "bass": _bass,
    "melody": _melody,
    "drums": _drums,
}


# Performance


def _seconds(step: float, style: Style, bpm: int) -> float:
    """When a step sounds: swing delays the second half of each pair."""
    ratio, pair = style.swing
    whole, within = divmod(step, pair)
    within /= pair
    swung = within / 0.5 * ratio if within < 0.5 else ratio + (within - 0.5) / 0.5 * (1 - ratio)
    steps_in_beat = STEPS[style.metre] / BEATS[style.metre]
    return _LEAD_IN + (whole + swung) * pair * 60 / bpm / steps_in_beat


def _perform(part: Part, events: list[_Event], style: Style, bpm: int, rng: np.random.Generator) -> tuple[Note, ...]:
    """Events as notes in seconds, played by people."""
    notes = []
    struck: dict[float, int] = {}
    for event in sorted(events, key=lambda event: (event.step, event.pitch)):
        order = struck[event.step] = struck.get(event.step, -1) + 1
        start = _seconds(event.step, style, bpm)
        end = _seconds(event.step + event.steps, style, bpm)
        early = float(np.clip(rng.normal(0, style.looseness), -0.03, 0.03))
        velocity = int(np.clip(event.velocity + rng.normal(0, 4), 20, 127))
        begin = max(0.0, start + early + order * part.strum)
        notes.append(Note(begin, max(end - begin, 0.03), event.pitch, velocity))
    return tuple(notes)
