"""The styles of the synthetic music, as tables: harmony, rhythm, instruments.

Rhythms are strings with one letter a step, a step being a quarter of a beat in 4/4 and 3/4 and a sixth of a beat in
6/8, so that a bar has 16 steps in 4/4 and 12 in 3/4 and 6/8. A letter begins a note, `-` holds it, `.` is a rest.
What the letters mean depends on the role:

    chords    X loud, x, o soft: the whole chord
    arpeggio  0 1 2 ...: that tone of the chord, counted from below, going on in the next octave
    bass      R root, 3, 5, 7 chord tones, 6 the sixth, 8 the octave, c any chord tone nearby, a a step to the next root
    melody    x: a note; which one is composed
    drums     X loud, x, o soft
"""

from __future__ import annotations

from dataclasses import dataclass

BEATS = {"4/4": 4, "3/4": 3, "6/8": 2}  # beats in a bar: what bpm counts
STEPS = {"4/4": 16, "3/4": 12, "6/8": 12}  # steps in a bar


# How drummers end a section.
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
    """What one player does: a role, the instruments to choose from and the rhythms.

    Attributes:
      role: "chords", "arpeggio", "bass", "melody" or "drums".
      instruments: Names in `instruments.INSTRUMENTS`.
      rhythms: Strings of one bar or more; for drums a dict of such, drum by drum.
      level: Decibels above or below the usual loudness of the role.
      chance: Probability that a piece has this part.
      centre: The pitch in the middle of its chords.
      spread: How chords are laid out, see `harmony.voicings`.
      strum: Seconds from one string to the next.
      motive_bars: Melody only: bars of a motive.
      fills: Drums only: a fill ends most sections.
    """

    role: str
    instruments: tuple[str, ...]
    rhythms: tuple[str | dict[str, str], ...]
    level: float = 0.0
    chance: float = 1.0
    centre: int = 60
    spread: str = "close"
    strum: float = 0.0
    motive_bars: int = 1
    fills: bool = True


@dataclass(frozen=True)
class Style:
    """A style of music.

    Attributes:
      name: As captions call it.
      metre: "4/4", "3/4" or "6/8".
      bpm: Slowest and fastest tempo in beats per minute; a beat of 6/8 is a dotted quarter.
      progressions: For each mode, chord progressions to choose from: a bar each, `-` between the chords of one bar.
      parts: The players. The first melody leads.
      swing: Where in its pair the second of two notes falls, 0.5 is even; and the steps of a pair.
      looseness: Standard deviation of the players' timing, in seconds.
      room: Share of reverberation in the sound, and the seconds in which it dies by 60 dB.
      moods: For major and minor keys (dorian counts as minor, the others as major): words to choose from.
      words: Other names and descriptions that are true of the style.
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


_TUNE_4 = (
    "x---x---x---x---",
    "x-----x-x---x---",
    "x---x-x-x-------",
    "x-x-x---x-x-x---",
    "..x-x-x-x---x---",
    "x-------x---x---",
    "x-----x-----x---",
)
_TUNE_3 = ("x---x---x---", "x-------x---", "x-----x-x---", "x---x-x-x-x-", "x-----------", "x-x-x---x---")
_JAZZ_TUNE = ("x---x-x-..x-x---", "..x-x-x-x---..x-", "x-x-x-x-x---....", "x-----x-....x-x-", "....x-x-x-x-x---")
_SYNCOPATED = ("x--x--x-x--x--x-", "x--x--x-----x-x-", "..x-..x-x-x-x---", "x-x---x---x---x-", "x-----x--x--x---")
_CALM = ("x-------x-------", "x-----------x---", "x---------------", "....x-------x---")

_FOUR_ON_THE_FLOOR = "X...X...X...X..."

_ALL = (
    Style(
        name="pop",
        metre="4/4",
        bpm=(84, 128),
        progressions={
            "major": ("I V vi IV", "vi IV I V", "I vi IV V", "I iii IV V", "IV I V vi", "I IV vi V", "I V IV IV"),
            "minor": ("i bVI bIII bVII", "i iv bVI bVII", "bVI bVII i i", "i bVII bVI bVII", "i bIII bVII iv"),
        },
        parts=(
            Part(
                "melody",
                ("piano", "electric guitar", "saw lead", "flute", "violin"),
                _TUNE_4 + _SYNCOPATED,
                motive_bars=2,
            ),
            Part("chords", ("strings", "warm pad", "synth pad"), ("x---------------",), -4, 0.6, 64, "open"),
            Part(
                "chords",
                ("piano", "acoustic guitar", "electric piano"),
                ("X---x---X---x---", "X-----x-..x-x---", "X--x--x-X--x--x-"),
                strum=0.005,
            ),
            Part(
                "bass", ("electric bass", "picked bass"), ("R-----R-R---5---", "R---R---R---R-a-", "R-R-R-R-R-R-R-a-")
            ),
            Part(
                "drums",
                ("drums",),
                (
                    {"kick": "X.......X.x.....", "snare": "....X.......X...", "hat": "x.o.x.o.x.o.x.o."},
                    {"kick": "X.....x.X.......", "snare": "....X.......X..o", "hat": "xoxoxoxoxoxoxoxo"},
                    {"kick": "X..x....X.x.....", "snare": "....X.......X...", "tambourine": "..x...x...x...x."},
                ),
            ),
        ),
        moods={
            "major": ("happy", "uplifting", "bright", "cheerful"),
            "minor": ("melancholic", "emotional", "bittersweet"),
        },
        words=("catchy", "melodic"),
    ),
    Style(
        name="rock",
        metre="4/4",
        bpm=(108, 152),
        progressions={
            "major": ("I V vi IV", "I IV V IV", "I I IV V", "vi IV I V"),
            "minor": ("i bVI bVII i", "i bVI bIII bVII", "i bVII bVI bVII", "i i bVI bVII"),
            "mixolydian": ("I bVII IV I", "I I bVII IV"),
        },
        parts=(
            Part(
                "melody",
                ("overdriven guitar", "electric guitar", "organ"),
                (*_TUNE_4, "x-x-x-x-x---x---"),
                motive_bars=2,
            ),
            Part(
                "chords",
                ("distorted guitar", "overdriven guitar"),
                ("X-x-x-x-X-x-x-x-", "X---X-x-..X-x-x-", "X-------X---X-x-"),
                0,
                1,
                50,
                "power",
                0.004,
            ),
            Part("chords", ("organ",), ("x---------------",), -5, 0.35, 62),
            Part(
                "bass", ("picked bass", "electric bass"), ("R-R-R-R-R-R-R-R-", "R-R-R-R-R-R-5-a-", "R---R-R-..R-R-a-")
            ),
            Part(
                "drums",
                ("rock drums", "drums"),
                (
                    {"kick": "X.......X.X.....", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
                    {"kick": "X.x.....X.......", "snare": "....X.......X...", "ride": "X.x.X.x.X.x.X.x."},
                    {"kick": "X.....X...X.....", "snare": "....X.......X...", "open hat": "X...X...X...X..."},
                ),
                1,
            ),
        ),
        moods={"major": ("powerful", "driving", "triumphant"), "minor": ("dark", "intense", "driving", "gritty")},
        words=("guitar-driven", "loud"),
        room=(0.12, 0.9),
    ),
    Style(
        name="swing jazz",
        metre="4/4",
        bpm=(116, 192),
        progressions={
            "major": (
                "ii7 V7 Imaj7 vi7",
                "Imaj7-vi7 ii7-V7 iii7-vi7 ii7-V7",
                "Imaj7 vi7 ii7 V7",
                "Imaj7 IV7 iii7-VI7 ii7-V7",
            ),
            "minor": ("iim7b5 V7 i6 i6", "i7 iv7 iim7b5 V7", "i6 bVI7 iim7b5 V7", "iv7 bVII7 bIIImaj7 V7"),
        },
        parts=(
            Part(
                "melody",
                ("tenor saxophone", "alto saxophone", "muted trumpet", "clarinet", "vibraphone", "trumpet"),
                _JAZZ_TUNE,
                motive_bars=2,
            ),
            Part("melody", ("piano", "jazz guitar", "vibraphone"), _JAZZ_TUNE, 0, 0.4, motive_bars=2),
            Part(
                "chords",
                ("piano", "jazz guitar"),
                ("x--...x-........", "..x-......x-....", "x-....x-..x---..", "....x---....x---"),
                -1,
                1,
                60,
                strum=0.004,
            ),
            Part("bass", ("double bass",), ("R---c---c---a---", "R---c---5---a---"), 1),
            Part(
                "drums",
                ("jazz drums", "brushed drums"),
                (
                    {"ride": "X...x.o.X...x.o.", "hat": "....x.......x...", "kick": "o...o...o...o..."},
                    {
                        "ride": "X...x.o.X...x.o.",
                        "hat": "....x.......x...",
                        "snare": "......o.......o.",
                        "kick": "o.........x.....",
                    },
                ),
                -3,
                fills=False,
            ),
        ),
        moods={
            "major": ("playful", "sophisticated", "sunny", "relaxed"),
            "minor": ("smoky", "cool", "moody", "nocturnal"),
        },
        words=("swinging", "walking bass"),
        swing=(0.64, 4),
        looseness=0.01,
        room=(0.16, 1.1),
    ),
    Style(
        name="bossa nova",
        metre="4/4",
        bpm=(112, 140),
        progressions={
            "major": ("Imaj7 Imaj7 II7 II7 ii7 V7 Imaj7 V7", "Imaj9 vi7 ii9 V7", "Imaj7 iv7 iii7 VI7 ii7 V7 Imaj7 V7"),
            "minor": ("i9 iv7 iim7b5 V7", "i7 bVII7 bVImaj7 V7", "i9 i9 iv9 V7"),
        },
        parts=(
            Part(
                "melody",
                ("flute", "soprano saxophone", "clarinet", "vibraphone", "nylon guitar"),
                ("x-----x-----x---", "..x---x-x-----x-", "x---x---..x---x-", "x--x--x---------", "x---------x-x-x-"),
                motive_bars=2,
            ),
            Part(
                "chords",
                ("nylon guitar",),
                (
                    "x-..x-..x-..x-..x-..x-....x-..x-",
                    "x-....x-..x-....x-....x-....x-..",
                    "..x-..x---..x-....x-..x-..x---..",
                ),
                0,
                1,
                60,
                strum=0.006,
            ),
            Part("bass", ("double bass", "fretless bass"), ("R-----5-5-----R-", "R-----5-5-----a-")),
            Part(
                "drums",
                ("brushed drums", "drums"),
                (
                    {"rim": "x.....x.....x.......x.....x.....", "hat": "o.x.o.x.o.x.o.x.", "kick": "x.....xox.....xo"},
                    {
                        "rim": "x.....x.....x.......x.....x.....",
                        "shaker": "xoxoxoxoxoxoxoxo",
                        "kick": "x.....x.x.....x.",
                    },
                ),
                -4,
                fills=False,
            ),
        ),
        moods={
            "major": ("relaxed", "warm", "sunny", "romantic"),
            "minor": ("wistful", "tender", "longing", "romantic"),
        },
        words=("Brazilian", "syncopated", "gentle"),
        room=(0.18, 1.2),
    ),
    Style(
        name="blues",
        metre="4/4",
        bpm=(84, 128),
        progressions={
            "blues": (
                "I7 I7 I7 I7 IV7 IV7 I7 I7 V7 IV7 I7 V7",
                "I7 IV7 I7 I7 IV7 IV7 I7 I7 V7 IV7 I7 V7",
            ),
        },
        parts=(
            Part(
                "melody",
                ("electric guitar", "harmonica", "overdriven guitar", "tenor saxophone", "piano"),
                ("x-x-x---x-x-....", "x---x-x-x---....", "..x-x-x-x-------", "x-x---x-x-x-x---"),
                motive_bars=2,
            ),
            Part(
                "chords",
                ("piano", "electric guitar", "organ"),
                ("x---..x-x---..x-", "x-x-x-x-x-x-x-x-", "....x-......x-..", "X-----x---------"),
                -1,
                1,
                58,
                strum=0.005,
            ),
            Part(
                "bass",
                ("electric bass", "double bass"),
                ("R---3---5---6---", "R-R-3-3-5-5-6-6-", "R---R---5---a---", "R---3---5---6---8---6---5---3---"),
            ),
            Part(
                "drums",
                ("drums",),
                (
                    {"kick": "X.......X.......", "snare": "....X.......X...", "ride": "X.x.X.x.X.x.X.x."},
                    {"kick": "X.....x.X.......", "snare": "....X.......X...", "hat": "X.o.X.o.X.o.X.o."},
                ),
            ),
        ),
        moods={"major": ("soulful", "gritty", "earthy", "laid-back")},
        words=("12-bar", "shuffle"),
        swing=(0.66, 4),
        looseness=0.01,
    ),
    Style(
        name="waltz",
        metre="3/4",
        bpm=(96, 168),
        progressions={
            "major": ("I I V7 V7 V7 V7 I I", "I vi ii V7", "I I IV IV V7 V7 I I", "I I ii ii V7 V7 I V7"),
            "minor": ("i i V7 V7 V7 V7 i i", "i iv V7 i", "i bVI iv V7", "i i iv iv V7 V7 i i"),
        },
        parts=(
            Part("melody", ("accordion", "violin", "clarinet", "flute", "piano", "music box"), _TUNE_3, motive_bars=2),
            Part(
                "chords",
                ("piano", "strings", "accordion", "acoustic guitar"),
                ("....x-..x-..", "....x---x---"),
                -1,
                1,
                62,
                strum=0.003,
            ),
            Part("chords", ("strings",), ("x-----------",), -6, 0.3, 66, "open"),
            Part("bass", ("double bass", "cello", "tuba"), ("R-------....", "R-----------")),
        ),
        moods={
            "major": ("elegant", "graceful", "charming", "nostalgic"),
            "minor": ("wistful", "nostalgic", "mysterious", "melancholic"),
        },
        words=("dance", "three-four", "acoustic"),
        room=(0.22, 1.6),
    ),
    Style(
        name="techno",
        metre="4/4",
        bpm=(124, 138),
        progressions={
            "minor": ("i i i i", "i i bVI bVII", "i i i bVII", "i i bVI bVI"),
            "dorian": ("i i i IV", "i7 i7 i7 i7", "i i bVII IV"),
        },
        parts=(
            Part(
                "melody",
                ("square lead", "saw lead", "synth pluck"),
                ("x--x--x---------", "x-....x-..x-....", "..x-..x---..x-x-"),
                -3,
                0.5,
                motive_bars=2,
            ),
            Part(
                "arpeggio",
                ("synth pluck", "saw lead", "square lead"),
                ("0.12.10.12.10.12", "0120120120120120", "0..1..2..0..1.2."),
                0,
                1,
                64,
            ),
            Part(
                "chords",
                ("synth pad", "sweep pad", "synth strings"),
                ("x---------------", "x--x--x-........", "..x...x...x...x."),
                -3,
                0.8,
                62,
            ),
            Part("bass", ("synth bass",), ("..R-..R-..R-..R-", ".RRR.RRR.RRR.RRR", "R-.R-.R-R-.R-.8-"), 1),
            Part(
                "drums",
                ("drum machine", "electronic drums"),
                (
                    {"kick": _FOUR_ON_THE_FLOOR, "open hat": "..x...x...x...x.", "clap": "....x.......x..."},
                    {
                        "kick": _FOUR_ON_THE_FLOOR,
                        "hat": "o.x.o.x.o.x.o.xo",
                        "clap": "....x.......x...",
                        "rim": "...x..x....x..x.",
                    },
                    {"kick": _FOUR_ON_THE_FLOOR, "hat": "xoxoxoxoxoxoxoxo", "snare": "....x.......x..o"},
                ),
                2,
                fills=False,
            ),
        ),
        moods={"minor": ("hypnotic", "dark", "driving", "intense")},
        words=("electronic", "four-on-the-floor", "club", "repetitive"),
        looseness=0.0,
        room=(0.15, 1.5),
    ),
    Style(
        name="house",
        metre="4/4",
        bpm=(116, 126),
        progressions={
            "major": ("Imaj7 vi7 ii7 V7", "IVmaj7 iii7 vi7 vi7", "vi7 IVmaj7 I V"),
            "minor": ("i7 iv7 bVII7 bIIImaj7", "i7 bVImaj7 bVII iv7", "i7 i7 iv7 bVII"),
        },
        parts=(
            Part(
                "melody",
                ("saw lead", "vibraphone", "organ", "flute", "synth pluck"),
                _SYNCOPATED,
                -2,
                0.8,
                motive_bars=2,
            ),
            Part(
                "chords",
                ("piano", "organ", "electric piano"),
                ("x--x--x---x-x---", "..x-..x-..x-..x-", "x--x--x-.x-x--x-"),
                0,
                1,
                62,
            ),
            Part("chords", ("warm pad", "strings", "synth strings"), ("x---------------",), -4, 0.5, 66, "open"),
            Part(
                "bass", ("synth bass", "electric bass"), ("..R-..R-..R-..8-", "R--R--R-..R-5-a-", "R-.R..R-R-.R..8-"), 1
            ),
            Part(
                "drums",
                ("drum machine", "electronic drums"),
                (
                    {
                        "kick": _FOUR_ON_THE_FLOOR,
                        "clap": "....X.......X...",
                        "open hat": "..x...x...x...x.",
                        "shaker": "xoxoxoxoxoxoxoxo",
                    },
                    {
                        "kick": _FOUR_ON_THE_FLOOR,
                        "clap": "....X.......X..o",
                        "open hat": "..x...x...x...x.",
                        "rim": "x..x..x...x.x...",
                    },
                ),
                1,
                fills=False,
            ),
        ),
        moods={
            "major": ("uplifting", "joyful", "groovy", "sunny"),
            "minor": ("deep", "groovy", "soulful", "late-night"),
        },
        words=("electronic", "four-on-the-floor", "dance", "club"),
        looseness=0.002,
    ),
    Style(
        name="synthwave",
        metre="4/4",
        bpm=(84, 116),
        progressions={
            "minor": ("i bVI bIII bVII", "i bVII bVI bVII", "i i bVI bVII", "bVI bVII i i"),
            "major": ("I V vi IV", "vi IV I V", "I I IV IV"),
        },
        parts=(
            Part("melody", ("saw lead", "square lead"), _TUNE_4, motive_bars=2),
            Part(
                "arpeggio",
                ("synth pluck", "square lead"),
                ("0-1-2-3-4-3-2-1-", "0123012301230123", "0-2-1-2-3-2-1-2-"),
                -1,
                0.8,
                64,
            ),
            Part(
                "chords",
                ("synth strings", "synth pad", "warm pad", "sweep pad"),
                ("x---------------",),
                -1,
                1,
                62,
                "open",
            ),
            Part("bass", ("synth bass",), ("R-R-R-R-R-R-R-R-", "RRRRRRRRRRRRRRRR", "R-R-8-R-R-R-8-R-"), 1),
            Part(
                "drums",
                ("electronic drums", "drum machine"),
                (
                    {"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
                    {"kick": "X.......X.......", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
                ),
                1,
            ),
        ),
        moods={
            "minor": ("nostalgic", "dreamy", "cinematic", "nocturnal"),
            "major": ("nostalgic", "euphoric", "dreamy"),
        },
        words=("80s", "retro", "electronic", "synthesizers"),
        looseness=0.0,
        room=(0.25, 1.8),
    ),
    Style(
        name="folk",
        metre="4/4",
        bpm=(88, 124),
        progressions={
            "major": ("I IV I V", "I V vi IV", "I I IV I IV I V I", "I vi IV V"),
            "dorian": ("i bVII i IV", "i i bVII bVII", "i IV i bVII"),
            "mixolydian": ("I bVII IV I", "I I bVII I"),
        },
        parts=(
            Part(
                "melody", ("fiddle", "flute", "harmonica", "ocarina", "recorder", "accordion"), _TUNE_4, motive_bars=2
            ),
            Part("chords", ("acoustic guitar",), ("X---x-x-..x-x-x-", "X---x---x-x-x-x-"), 0, 1, 58, strum=0.012),
            Part(
                "arpeggio",
                ("banjo", "acoustic guitar", "nylon guitar"),
                ("0-2-1-2-3-2-1-2-", "0-1-2-1-3-1-2-1-"),
                -2,
                0.6,
                62,
            ),
            Part("bass", ("double bass",), ("R-------5-------", "R-------5---a---"), -1, 0.8),
            Part(
                "drums",
                ("drums",),
                ({"tambourine": "....x.......x...", "kick": "x.......x......."}, {"shaker": "x.xox.xox.xox.xo"}),
                -6,
                0.4,
                fills=False,
            ),
        ),
        moods={"major": ("warm", "hopeful", "rustic", "heartfelt"), "minor": ("wistful", "rustic", "pensive")},
        words=("acoustic", "traditional"),
        looseness=0.012,
        room=(0.14, 1.0),
    ),
    Style(
        name="classical piano",
        metre="4/4",
        bpm=(72, 132),
        progressions={
            "major": ("I V7 I IV I V7 I I", "I vi ii V7", "I IV V7 I", "I I IV I ii V7 I V7", "I iii IV V7"),
            "minor": ("i iv V7 i", "i bVI iv V7", "i i iv i iim7b5 V7 i V7", "i bVII bVI V7"),
        },
        parts=(
            Part("melody", ("piano",), (*_TUNE_4, "x---x---xxxxx---", "x-----xxx---x---"), motive_bars=2),
            Part("arpeggio", ("piano",), ("0-2-1-2-0-2-1-2-", "0-1-2-3-4-3-2-1-", "0-2-1-2-3-2-1-2-"), 0, 1, 56),
            Part("bass", ("piano",), ("R-------........", "R---------------"), -2, 0.6),
        ),
        moods={
            "major": ("elegant", "graceful", "serene", "bright"),
            "minor": ("dramatic", "pensive", "melancholic", "tender"),
        },
        words=("classical", "solo piano", "acoustic"),
        looseness=0.012,
        room=(0.25, 1.9),
    ),
    Style(
        name="ambient",
        metre="4/4",
        bpm=(60, 84),
        progressions={
            "major": (
                "Imaj9 Imaj9 IVmaj9 IVmaj9",
                "Imaj7 iii7 IVmaj7 iii7",
                "Iadd9 V vi7 IVmaj7",
                "IVmaj9 Iadd9 IVmaj9 vi7",
            ),
            "minor": ("i9 i9 bVImaj7 bVImaj7", "iadd9 bVImaj7 bIIImaj7 bVII", "i9 iv9 i9 bVII"),
            "dorian": ("i9 IV i9 IV", "i7 ii7 i7 IV"),
        },
        parts=(
            Part(
                "melody",
                ("celesta", "vibraphone", "flute", "electric piano", "kalimba", "pan flute"),
                _CALM,
                -2,
                0.7,
                motive_bars=2,
            ),
            Part(
                "chords",
                ("warm pad", "halo pad", "sweep pad", "choir", "synth strings"),
                ("x---------------",),
                1,
                1,
                60,
                "open",
            ),
            Part(
                "arpeggio",
                ("harp", "kalimba", "electric piano", "vibraphone", "music box"),
                ("0---2---1---3---", "0-1-2-3-........", "0-----2-----1---", "0-1-2-1-3-1-2-1-"),
                -3,
                0.75,
                66,
            ),
            Part("bass", ("fretless bass", "cello", "synth bass"), ("R---------------",), -2, 0.7),
        ),
        moods={
            "major": ("peaceful", "dreamy", "spacious", "meditative"),
            "minor": ("mysterious", "spacious", "brooding", "meditative"),
        },
        words=("atmospheric", "no drums", "slowly evolving"),
        looseness=0.015,
        room=(0.5, 4.0),
    ),
    Style(
        name="reggae",
        metre="4/4",
        bpm=(66, 90),
        progressions={
            "major": ("I IV I V", "I vi IV V", "I I IV IV", "I ii IV I"),
            "minor": ("i iv i bVII", "i bVII i i", "i bVI bVII i"),
        },
        parts=(
            Part(
                "melody",
                ("trombone", "harmonica", "organ", "alto saxophone", "trumpet"),
                ("x---x-x-....x-x-", "..x-x---x-x-....", "x-x-x---........", "x-----x-x---x---"),
                motive_bars=2,
            ),
            Part(
                "chords",
                ("electric guitar", "muted guitar", "piano"),
                ("....x.......x...", "....xx......x...", "..x...x...x...x."),
                0,
                1,
                64,
                strum=0.005,
            ),
            Part("chords", ("organ",), ("..xx..xx..xx..xx", "..x...x...x...x."), -4, 0.7, 60),
            Part(
                "bass",
                ("electric bass", "fretless bass"),
                ("R-..R-3-5-..5-3-", "R---..R-5-3-R-..", "..R-R-..5-5-3-R-", "R--R--5-........"),
                3,
            ),
            Part(
                "drums",
                ("drums",),
                (
                    {"kick": "........X.......", "rim": "........X.......", "hat": "x.o.x.o.x.o.x.oo"},
                    {"kick": "X...X...X...X...", "rim": "........X.......", "hat": "..x...x...x...x."},
                ),
            ),
        ),
        moods={"major": ("laid-back", "sunny", "relaxed"), "minor": ("laid-back", "moody", "heavy")},
        words=("off-beat", "Jamaican"),
        swing=(0.54, 4),
        room=(0.2, 1.6),
    ),
    Style(
        name="march",
        metre="4/4",
        bpm=(104, 126),
        progressions={
            "major": ("I I V7 V7 V7 V7 I I", "I IV I V7", "I I IV I ii V7 I I", "I vi ii V7"),
            "minor": ("i i V7 V7 iv i V7 i", "i iv V7 i"),
        },
        parts=(
            Part(
                "melody",
                ("trumpet", "piccolo", "clarinet", "brass section"),
                ("x---x--xx---x---", "x---x---x-x-x---", "x--xx--xx---....", "x-x-x-x-x---x---", "x-----x-x---x---"),
                motive_bars=2,
            ),
            Part(
                "chords",
                ("french horn", "brass section", "trombone"),
                ("..x...x...x...x.", "....x.......x..."),
                -1,
                1,
                60,
            ),
            Part("bass", ("tuba",), ("R---5---R---5---", "R---....5---....")),
            Part(
                "drums",
                ("marching drums", "drums"),
                (
                    {"kick": "X.......X.......", "snare": "X..oX.xxX..oX.x."},
                    {"kick": "X...x...X...x...", "snare": "x.xxx.xxx.xxx.xx"},
                    {"kick": "X.......X.......", "snare": "..x...x...x.xxx.", "crash": "........o......."},
                ),
                -2,
                fills=False,
            ),
        ),
        moods={"major": ("proud", "festive", "triumphant", "ceremonial"), "minor": ("solemn", "stern", "ceremonial")},
        words=("brass band", "military", "steady"),
        room=(0.25, 1.7),
    ),
    Style(
        name="funk",
        metre="4/4",
        bpm=(94, 116),
        progressions={
            "dorian": ("i7 i7 i7 IV7", "i7 IV7 i7 IV7", "i9 i9 IV9 IV9"),
            "mixolydian": ("I7 I7 I7 IV7", "I9 I9 IV9 I9", "I7 bVII IV7 I7"),
        },
        parts=(
            Part(
                "melody",
                ("alto saxophone", "trumpet", "organ", "electric guitar", "tenor saxophone"),
                ("x--x--x-....x-x-", "..x-..xxx---....", "x-.x-.x---..x---", "x-x---.x-x------"),
                motive_bars=2,
            ),
            Part(
                "chords",
                ("clavinet", "electric guitar", "electric piano"),
                ("x..x..x...x..x..", "..x.x..x..x.x..x", "x..xx..x.x..x.x."),
                0,
                1,
                60,
            ),
            Part(
                "chords", ("brass section",), ("x-..............", "....x.......x-..", "x--x............"), -2, 0.6, 66
            ),
            Part(
                "bass", ("slap bass", "electric bass"), ("R-.R..8-R.R-..7.", "R--R..R-..5-7-8-", "R.R...8.R.R...a-"), 2
            ),
            Part(
                "drums",
                ("drums",),
                (
                    {"kick": "X.x....x..x..x..", "snare": "....X..o.o..X..o", "hat": "x.x.x.x.x.x.x.x."},
                    {"kick": "X..x..x...x.....", "snare": "....X..o....X.o.", "hat": "xoxoxoxoxoxoxoxo"},
                ),
                1,
            ),
        ),
        moods={"major": ("groovy", "playful", "bright"), "minor": ("groovy", "gritty", "cool")},
        words=("syncopated", "tight", "danceable"),
        swing=(0.54, 2),
        looseness=0.006,
        room=(0.1, 0.8),
    ),
    Style(
        name="lullaby",
        metre="6/8",
        bpm=(40, 54),
        progressions={
            "major": ("I I IV I", "I vi IV V", "I IV I V7", "I V vi IV"),
            "minor": ("i iv i V7", "i bVI bIII bVII", "i bVII bVI V7"),
        },
        parts=(
            Part(
                "melody",
                ("music box", "celesta", "flute", "harp", "violin", "clarinet"),
                ("x-----x-----", "x---x-x-----", "x---x-x---x-", "x-x-x-x-----", "x-----x---x-"),
                motive_bars=2,
            ),
            Part(
                "arpeggio",
                ("piano", "harp", "nylon guitar", "music box"),
                ("0-1-2-3-2-1-", "0-1-2-1-2-1-", "0---1-2---1-"),
                -1,
                1,
                57,
            ),
            Part("chords", ("strings", "choir", "warm pad"), ("x-----------",), -3, 0.5, 62, "open"),
            Part("bass", ("double bass", "cello"), ("R-----------", "R-----5-----"), -3, 0.5),
        ),
        moods={"major": ("soothing", "tender", "gentle", "innocent"), "minor": ("tender", "wistful", "soothing")},
        words=("bedtime", "no drums", "soft"),
        looseness=0.014,
        room=(0.3, 2.2),
    ),
    Style(
        name="Irish jig",
        metre="6/8",
        bpm=(100, 124),
        progressions={
            "major": ("I I V V I I IV-V I", "I IV I V", "I V vi IV-V"),
            "dorian": ("i i bVII bVII i i bVII i", "i bVII i bVII"),
            "mixolydian": ("I I bVII bVII I I bVII I", "I bVII IV I"),
        },
        parts=(
            Part(
                "melody",
                ("fiddle", "ocarina", "flute", "accordion"),
                ("x-x-x-x-x-x-", "x---x-x-x-x-", "x-x-x-x---x-", "x---x-x---x-"),
                motive_bars=2,
            ),
            Part("chords", ("acoustic guitar", "accordion"), ("X---x-X---x-", "X-x-x-X-x-x-"), -1, 1, 58, strum=0.006),
            Part("bass", ("double bass",), ("R-----5-----", "R-----R-----"), -1, 0.8),
            Part(
                "drums",
                ("drums",),
                ({"low tom": "X...o.x...o.", "tambourine": "....x.....x."}, {"low tom": "X.o.x.x.o.x."}),
                -3,
                0.6,
                fills=False,
            ),
        ),
        moods={"major": ("merry", "festive", "cheerful"), "minor": ("spirited", "mischievous", "rousing")},
        words=("Celtic", "traditional", "acoustic", "dance"),
        room=(0.15, 1.0),
    ),
    Style(
        name="lo-fi hip hop",
        metre="4/4",
        bpm=(68, 90),
        progressions={
            "major": ("ii9 V7 Imaj9 vi7", "IVmaj7 iii7 vi7 Imaj7", "Imaj7 vi7 ii7 V7", "IVmaj9 IVmaj9 iii7 vi9"),
            "minor": ("i9 iv9 bVImaj7 V7", "i7 bVImaj7 bIIImaj7 bVII", "iv9 i9 iv9 i9"),
        },
        parts=(
            Part(
                "melody",
                ("vibraphone", "jazz guitar", "muted trumpet", "electric piano", "piano", "flute"),
                ("x---x-x-....x-x-", "..x-x---x-------", "x-x---x---......", "....x-x-x---x---"),
                -2,
                motive_bars=2,
            ),
            Part(
                "chords",
                ("electric piano", "piano", "jazz guitar"),
                ("x---------x-----", "x-----x-----x---", "x---------------"),
                1,
                1,
                60,
                strum=0.012,
            ),
            Part(
                "bass",
                ("electric bass", "double bass", "fretless bass"),
                ("R-----..R-5-....", "R--R....R---5-a-", "R-------..R-5---"),
                1,
            ),
            Part(
                "drums",
                ("drums", "drum machine"),
                (
                    {"kick": "X......x..X.....", "snare": "....X.......X...", "hat": "x.x.x.xxx.x.x.x."},
                    {"kick": "X..x......X.....", "snare": "....X.......X..o", "hat": "x.o.x.o.x.o.x.o."},
                ),
                0,
                fills=False,
            ),
        ),
        moods={"major": ("mellow", "cozy", "relaxed"), "minor": ("mellow", "nostalgic", "rainy", "pensive")},
        words=("chill", "beats", "study music"),
        swing=(0.58, 2),
        looseness=0.012,
        room=(0.18, 1.2),
    ),
    Style(
        name="baroque",
        metre="4/4",
        bpm=(76, 112),
        progressions={
            "major": ("I V vi iii IV I IV V", "I IV V7 I", "I-V vi-iii IV-I ii-V", "I vi ii V"),
            "minor": ("i iv bVII bIII bVI iim7b5 V i", "i V i bVII bIII bVII i V", "i bVII bVI V"),
        },
        parts=(
            Part(
                "melody",
                ("violin", "recorder", "oboe", "flute", "trumpet"),
                ("x-x-x-x-x-x-x-x-", "x---x-x-x-x-x---", "x--xx--xx-x-x-x-", "xxxxx-x-x-x-x---", "x---x---x-x-x-x-"),
                motive_bars=2,
            ),
            Part("arpeggio", ("harpsichord",), ("0123210301232103", "0-1-2-3-2-1-2-1-", "0-2-1-2-0-2-1-2-"), -1, 1, 62),
            Part("chords", ("strings", "church organ"), ("x-------x-------", "x---------------"), -3, 0.7, 62),
            Part("bass", ("cello",), ("R---3---5---a---", "R-R-c-c-5-5-a-a-", "R-------5-------")),
        ),
        moods={"major": ("stately", "bright", "elegant", "joyful"), "minor": ("solemn", "dramatic", "noble")},
        words=("chamber music", "no drums", "ornate"),
        looseness=0.008,
        room=(0.28, 2.0),
    ),
    Style(
        name="drum and bass",
        metre="4/4",
        bpm=(164, 176),
        progressions={
            "minor": ("i i bVI bVI bIII bIII bVII bVII", "i i bVII bVII bVI bVI bVII bVII", "i9 i9 bVImaj7 bVImaj7"),
            "dorian": ("i7 i7 IV IV", "i9 i9 bVII bVII"),
        },
        parts=(
            Part(
                "melody",
                ("saw lead", "electric piano", "flute", "vibraphone", "synth pluck"),
                ("x-------x-------", "x-----x-----x---", "x---x---x-------"),
                -2,
                0.8,
                motive_bars=2,
            ),
            Part(
                "chords",
                ("warm pad", "sweep pad", "synth strings", "electric piano"),
                ("x---------------",),
                0,
                1,
                62,
                "open",
            ),
            Part("arpeggio", ("synth pluck", "kalimba"), ("0-1-2-3-2-1-2-1-", "0---2---1---3---"), -3, 0.4, 68),
            Part("bass", ("synth bass",), ("R-------R-R-....", "R-----------R---", "R---..R---..8-a-"), 3),
            Part(
                "drums",
                ("drums", "electronic drums"),
                (
                    {"kick": "X.........X.....", "snare": "....X..o.o..X..o", "hat": "x.x.x.x.x.x.x.x."},
                    {"kick": "X.x.......x.....", "snare": "....X.......X.o.", "ride": "x.x.x.x.x.x.x.x."},
                ),
                1,
            ),
        ),
        moods={"minor": ("urgent", "futuristic", "dark", "atmospheric")},
        words=("electronic", "breakbeat", "club"),
        looseness=0.0,
        room=(0.2, 1.8),
    ),
    Style(
        name="salsa",
        metre="4/4",
        bpm=(92, 112),
        progressions={
            "major": ("I IV V7 IV", "I I V7 V7 V7 V7 I I", "I vi ii V7"),
            "minor": ("i iv V7 V7", "i iv V7 i", "i bVII bVI V7"),
        },
        parts=(
            Part("melody", ("trumpet", "flute", "trombone", "alto saxophone"), _SYNCOPATED, motive_bars=2),
            Part("arpeggio", ("piano",), ("0.12.30.12.3.12.", "0.2.13.02.1.3.2.", "03.12.03.12.03.1"), 0, 1, 66),
            Part(
                "chords", ("brass section",), ("x-..............", "......x-..x-....", "x--x--x-........"), -2, 0.5, 66
            ),
            Part(
                "bass",
                ("electric bass", "double bass"),
                ("R-....5-....8-..", "R-....5-....a-..", "...R..5-...R..8-"),
                1,
            ),
            Part(
                "drums",
                ("drums",),
                (
                    {
                        "high conga": "....o.......o...",
                        "low conga": "......xx......xx",
                        "cowbell": "X.x.X.x.X.x.X.x.",
                        "claves": "x..x..x...x.x...",
                    },
                    {
                        "high conga": "..o.x...o.x.....",
                        "low conga": "......xx......xx",
                        "shaker": "xoxoxoxoxoxoxoxo",
                        "claves": "x..x..x...x.x...",
                        "kick": "X......x........",
                    },
                ),
                0,
                fills=False,
            ),
        ),
        moods={"major": ("festive", "joyful", "fiery"), "minor": ("fiery", "passionate", "spicy")},
        words=("Latin", "syncopated", "dance", "congas"),
        room=(0.15, 1.1),
    ),
    Style(
        name="disco",
        metre="4/4",
        bpm=(108, 126),
        progressions={
            "major": ("I vi ii V", "Imaj7 vi7 ii7 V7", "IV V iii vi", "I IV ii V"),
            "minor": ("i7 iv7 bVII bIIImaj7", "i bVII bVI V7", "i7 bVImaj7 iv7 V7"),
        },
        parts=(
            Part(
                "melody",
                ("strings", "brass section", "flute", "saw lead", "alto saxophone"),
                _TUNE_4 + _SYNCOPATED,
                motive_bars=2,
            ),
            Part(
                "chords",
                ("muted guitar", "electric guitar", "clavinet"),
                ("x.xx.xx.x.xx.xx.", "..x...x...x...x.", "..xx..xx..xx..xx"),
                -1,
                1,
                66,
                strum=0.003,
            ),
            Part("chords", ("electric piano", "piano"), ("x-----x---------", "x---x---x---x---"), -2, 0.7, 60),
            Part("bass", ("electric bass", "synth bass"), ("R-8-R-8-R-8-R-8-", "R-8-R-8-R-5-8-a-"), 1),
            Part(
                "drums",
                ("drums",),
                (
                    {
                        "kick": _FOUR_ON_THE_FLOOR,
                        "snare": "....X.......X...",
                        "open hat": "..x...x...x...x.",
                        "hat": "x...x...x...x...",
                    },
                    {
                        "kick": _FOUR_ON_THE_FLOOR,
                        "clap": "....X.......X...",
                        "open hat": "..x...x...x...x.",
                        "tambourine": "xoxoxoxoxoxoxoxo",
                    },
                ),
                1,
            ),
        ),
        moods={"major": ("joyful", "glamorous", "uplifting"), "minor": ("glamorous", "passionate", "groovy")},
        words=("70s", "four-on-the-floor", "danceable", "octave bass"),
        looseness=0.005,
    ),
    Style(
        name="country",
        metre="4/4",
        bpm=(92, 132),
        progressions={
            "major": ("I I IV IV I I V V", "I IV I V", "I V IV I", "I I IV I I V I I"),
        },
        parts=(
            Part("melody", ("fiddle", "harmonica", "electric guitar", "acoustic guitar"), _TUNE_4, motive_bars=2),
            Part("chords", ("acoustic guitar",), ("....x-x-....x-x-", "....x-......x-x-"), 0, 1, 60, strum=0.01),
            Part("arpeggio", ("banjo",), ("0-21-203-120-213", "0-1203-1021-2031", "0-2-1-2-3-2-1-2-"), -1, 0.6, 66),
            Part("bass", ("double bass", "electric bass"), ("R-------5-------", "R-------5---a---")),
            Part(
                "drums",
                ("brushed drums", "drums"),
                (
                    {"kick": "X.......X.......", "snare": "o.o.X.o.o.o.X.oo"},
                    {"kick": "X.......X.......", "rim": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
                ),
                -2,
                0.85,
                fills=False,
            ),
        ),
        moods={"major": ("cheerful", "warm", "easygoing", "heartfelt")},
        words=("rural", "twangy"),
        looseness=0.01,
        room=(0.13, 0.9),
    ),
)

# By name.
STYLES = {style.name: style for style in _ALL}
