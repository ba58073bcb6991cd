"""The tables of a style of synthetic music: harmony, rhythms and instruments.

Rhythms are strings with a letter for each step, which is a quarter of a beat in 4/4 and 3/4 and a sixth of a beat in
6/8: a bar has 16 steps in 4/4 and 12 in 3/4 and 6/8. A letter starts a note, `-` holds it, `.` is a rest. The meaning
of the letters depends on the role:

    chords    X loud, x, o soft: the whole chord
    arpeggio  0 1 2 ...: that tone of the chord, counted from below, and on in the next octave
    bass      R root, 3, 5, 7 chord tones, 6 the sixth, 8 the octave, c any chord tone nearby, a a step to the next root
    melody    x: a note, whose pitch is composed
    drums     X loud, x, o soft
"""

from __future__ import annotations

from dataclasses import dataclass

BEATS = {"4/4": 4, "3/4": 3, "6/8": 2}  # beats in a bar, the unit of bpm
STEPS = {"4/4": 16, "3/4": 12, "6/8": 12}  # steps in a bar

# Drum fills at the end of a section.
FILLS = {
    "4/4": (
        {"snare": "........x.x.xxXX"},
        {"snare": "........xxxx....", "mid tom": "............xx..", "low tom": "..............XX"},
        {"high tom": "........x.x.....", "mid tom": "............x.x."},
        {"snare": "............xxXX"},
    ),
    "3/4": ({"snare": "....x.x.xxXX"}, {"high tom": "....x.x.....", "low tom": "........X.x."}),
    "6/8": ({"snare": "......xxxxXX"}, {"high tom": "......x.x.x.", "low tom": "..........X."}),
}


@dataclass(frozen=True)
class Part:
    """A part in the musical sense: a role with its instruments and rhythms, one of which a piece chooses.

    Attributes:
      role: "chords", "arpeggio", "bass", "melody" or "drums".
      instruments: Names in `instruments.INSTRUMENTS`.
      rhythms: Strings of one bar or more; empty for drums.
      patterns: For drums, a rhythm for each drum.
      level: Decibels relative to the usual level of the role.
      chance: Probability that a piece has this part.
      centre: The pitch in the middle of its chords.
      spread: The spacing of chords, as of `harmony.voicings`.
      strum: Seconds from one string to the next.
      fills: For drums, whether a fill ends most sections.
    """

    role: str
    instruments: tuple[str, ...]
    rhythms: tuple[str, ...] = ()
    patterns: tuple[dict[str, str], ...] = ()
    level: float = 0.0
    chance: float = 1.0
    centre: int = 60
    spread: str = "close"
    strum: float = 0.0
    fills: bool = True


@dataclass(frozen=True)
class Style:
    """A style of music.

    Attributes:
      name: Its name in captions.
      metre: "4/4", "3/4" or "6/8".
      bpm: Slowest and fastest tempo in beats per minute; a beat of 6/8 is a dotted quarter.
      progressions: For each mode, chord progressions to choose from: bars of chords, with `-` between those of one bar.
      parts: Its parts.
      moods: Words to choose from for major and minor keys (dorian counts as minor, the others as major).
      words: Other names and descriptions of the style.
      swing: The position of the second note of a pair, 0.5 is even; and the steps of a pair.
      looseness: Standard deviation of the timing, in seconds.
      room: Share of reverberation in the sound, and its decay time by 60 dB in seconds.
    """

    name: str
    metre: str
    bpm: tuple[int, int]
    progressions: dict[str, tuple[str, ...]]
    parts: tuple[Part, ...]
    moods: dict[str, tuple[str, ...]]
    words: tuple[str, ...]
    swing: tuple[float, int] = (0.5, 4)
    looseness: float = 0.008
    room: tuple[float, float] = (0.15, 1.2)


# Rhythms that several styles share.
TUNE = (
    "x---x---x---x---",
    "x-----x-x---x---",
    "x---x-x-x-------",
    "x-x-x---x-x-x---",
    "..x-x-x-x---x---",
    "x-------x---x---",
    "x-----x-----x---",
)
SYNCOPATED = ("x--x--x-x--x--x-", "x--x--x-----x-x-", "..x-..x-x-x-x---", "x-x---x---x---x-", "x-----x--x--x---")
FOUR_ON_THE_FLOOR = "X...X...X...X..."


def parse_rhythm(rhythm: str) -> list[tuple[int, int, str]]:
    """The notes of a rhythm as (first step, length in steps, letter)."""
    notes: list[tuple[int, int, str]] = []
    for step, letter in enumerate(rhythm):
        if letter == "-" and notes and sum(notes[-1][:2]) == step:
            start, steps, name = notes[-1]
            notes[-1] = (start, steps + 1, name)
        elif letter not in "-.":
            notes.append((step, 1, letter))
    return notes
