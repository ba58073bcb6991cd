"""Scales, chord symbols, voicings and voice leading.

Pitches are MIDI numbers (60 is middle C); a pitch class is a pitch modulo 12, C being 0.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_CLEAR = 50  # the lowest pitch of clear thirds

# Semitones above the tonic.
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "blues": (0, 3, 5, 6, 7, 10),
}

_FLAT_NAMES = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_SHARP_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
TONIC_NAMES = {
    "major": _FLAT_NAMES,
    "minor": _SHARP_NAMES,
    "dorian": _SHARP_NAMES,
    "mixolydian": _FLAT_NAMES,
    "blues": _FLAT_NAMES,
}

_NUMERALS = {"I": 0, "II": 2, "III": 4, "IV": 5, "V": 7, "VI": 9, "VII": 11}  # of the major scale, in any mode
_MAJOR_QUALITIES = {
    "": (0, 4, 7),
    "6": (0, 4, 7, 9),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "9": (0, 4, 7, 10, 2),
    "maj9": (0, 4, 7, 11, 2),
    "add9": (0, 4, 7, 2),
    "sus2": (0, 2, 7),
    "sus4": (0, 5, 7),
    "7sus4": (0, 5, 7, 10),
    "5": (0, 7),
}
_MINOR_QUALITIES = {
    "": (0, 3, 7),
    "6": (0, 3, 7, 9),
    "7": (0, 3, 7, 10),
    "9": (0, 3, 7, 10, 2),
    "add9": (0, 3, 7, 2),
    "o": (0, 3, 6),
    "o7": (0, 3, 6, 9),
    "m7b5": (0, 3, 6, 10),
}


@dataclass(frozen=True)
class Chord:
    """A chord in a key: its symbol, and its pitch classes, the root first."""

    symbol: str
    pitch_classes: tuple[int, ...]

    @property
    def root(self) -> int:
        """The pitch class of the root."""
        return self.pitch_classes[0]


def chord(symbol: str, tonic: int) -> Chord:
    """The chord of a Roman numeral in the key of the pitch class `tonic`.

    Numerals count on the major scale whatever the mode, so that a minor key's sixth degree is `bVI`. Capitals are
    major, small letters minor; a quality may follow, as in `V7`, `ii7`, `Imaj7`, `viio`, `iim7b5`.

    Raises:
      ValueError: The symbol is not such a numeral and quality.
    """
    match = re.fullmatch(r"([b#]?)([IV]+|[iv]+)(.*)", symbol)
    if not match or match[2].upper() not in _NUMERALS:
        raise ValueError(f"{symbol!r} is no chord; expected a Roman numeral and a quality, as bVI, ii7, V7 or Imaj7")
    accidental, numeral, quality = match.groups()
    qualities = _MAJOR_QUALITIES if numeral.isupper() else _MINOR_QUALITIES
    if quality not in qualities:
        raise ValueError(f"{symbol!r}: unknown quality {quality!r}; expected one of {', '.join(qualities)}")
    root = tonic + _NUMERALS[numeral.upper()] + {"": 0, "b": -1, "#": 1}[accidental]
    return Chord(symbol, tuple((root + interval) % 12 for interval in qualities[quality]))


def key_name(tonic: int, mode: str) -> str:
    """The name of a key, such as `Eb major`."""
    return f"{TONIC_NAMES[mode][tonic]} {mode}"


def scale_classes(tonic: int, mode: str) -> frozenset[int]:
    """The pitch classes of a key."""
    return frozenset((tonic + step) % 12 for step in SCALES[mode])


def chord_scale(scale: frozenset[int], over: Chord) -> frozenset[int]:
    """The pitch classes to play over a chord: the scale, with the chord's tones in place of their neighbours.

    Over V7 in a minor key, for example, the leading note replaces the flat seventh. The blues scale is not changed: it
    is meant to clash with the chords.
    """
    if len(scale) < 7:
        return scale
    foreign = set(over.pitch_classes) - scale
    # Major thirds, sixths and sevenths replace the tone below, all others the tone above.
    replaced = {(tone - 1 if (tone - over.root) % 12 in (4, 9, 11) else tone + 1) % 12 for tone in foreign}
    return frozenset((scale - (replaced - set(over.pitch_classes))) | foreign)


def nearest(pitch: float, classes: frozenset[int] | tuple[int, ...], low: int = 0, high: int = 127) -> int:
    """The pitch from `low` to `high`, of one of the `classes`, that is nearest to `pitch`."""
    return min((p for p in range(low, high + 1) if p % 12 in classes), key=lambda p: (abs(p - pitch), p))


def step_from(pitch: int, steps: int, classes: frozenset[int]) -> int:
    """The pitch `steps` scale steps above `pitch` (below, if negative)."""
    direction = 1 if steps > 0 else -1
    for _ in range(abs(steps)):
        pitch += direction
        while pitch % 12 not in classes:
            pitch += direction
    return pitch


def voicings(over: Chord, centre: int, spread: str) -> list[tuple[int, ...]]:
    """The voicings of a chord around a pitch, each from its lowest pitch up.

    Args:
      over: The chord. If it has five or more tones, the root is left to the bass.
      centre: The pitch in the middle.
      spread: "close" (within an octave), "open" (the second highest an octave lower) or "power" (root, fifth, octave).
    """
    if spread == "power":
        roots = [p for p in range(centre - 11, centre + 1) if p % 12 == over.root]
        fifth = (over.pitch_classes[2] - over.root) % 12
        return [(root, root + fifth, root + 12) for root in roots]
    tones = over.pitch_classes[1:] if len(over.pitch_classes) > 4 else over.pitch_classes
    candidates = []
    for first, base in itertools.product(range(len(tones)), range(centre - 12, centre + 1)):
        if base % 12 != tones[first]:
            continue
        pitches = sorted({base + (tone - base) % 12 for tone in tones})
        if spread == "open" and len(pitches) > 2:
            pitches[-2] -= 12
        candidates.append(tuple(sorted(pitches)))
    return [pitches for pitches in candidates if not _muddy(pitches)] or candidates


def _muddy(pitches: tuple[int, ...]) -> bool:
    """Whether low tones are too close together to be clear."""
    return any(low < _CLEAR and high - low < 5 for low, high in itertools.pairwise(pitches))


def lead(over: Chord, previous: tuple[int, ...], centre: int, spread: str = "close") -> tuple[int, ...]:
    """Voice leading: the voicing with the least movement from `previous` (`()` for none) that stays near `centre`."""

    def cost(pitches: tuple[int, ...]) -> float:
        moves = sum(min(abs(pitch - other) for other in previous) for pitch in pitches) if previous else 0
        return moves + 0.7 * abs(sum(pitches) / len(pitches) - centre)

    return min(voicings(over, centre, spread), key=lambda pitches: (cost(pitches), pitches))
