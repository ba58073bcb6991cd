"""Electronic styles of the synthetic music; `style` says how to read them."""

from mgjax.synthetic.styles.style import FOUR_ON_THE_FLOOR, SYNCOPATED, TUNE, Part, Style

_CALM = ("x-------x-------", "x-----------x---", "x---------------", "....x-------x---")

STYLES = (
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
                level=-3,
                chance=0.5,
            ),
            Part(
                "arpeggio",
                ("synth pluck", "saw lead", "square lead"),
                ("0.12.10.12.10.12", "0120120120120120", "0..1..2..0..1.2."),
                centre=64,
            ),
            Part(
                "chords",
                ("synth pad", "sweep pad", "synth strings"),
                ("x---------------", "x--x--x-........", "..x...x...x...x."),
                level=-3,
                chance=0.8,
                centre=62,
            ),
            Part("bass", ("synth bass",), ("..R-..R-..R-..R-", ".RRR.RRR.RRR.RRR", "R-.R-.R-R-.R-.8-"), level=1),
            Part(
                "drums",
                ("drum machine", "electronic drums"),
                patterns=(
                    {"kick": FOUR_ON_THE_FLOOR, "open hat": "..x...x...x...x.", "clap": "....x.......x..."},
                    {
                        "kick": FOUR_ON_THE_FLOOR,
                        "hat": "o.x.o.x.o.x.o.xo",
                        "clap": "....x.......x...",
                        "rim": "...x..x....x..x.",
                    },
                    {"kick": FOUR_ON_THE_FLOOR, "hat": "xoxoxoxoxoxoxoxo", "snare": "....x.......x..o"},
                ),
                level=2,
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
                SYNCOPATED,
                level=-2,
                chance=0.8,
            ),
            Part(
                "chords",
                ("piano", "organ", "electric piano"),
                ("x--x--x---x-x---", "..x-..x-..x-..x-", "x--x--x-.x-x--x-"),
                centre=62,
            ),
            Part(
                "chords",
                ("warm pad", "strings", "synth strings"),
                ("x---------------",),
                level=-4,
                chance=0.5,
                centre=66,
                spread="open",
            ),
            Part(
                "bass",
                ("synth bass", "electric bass"),
                ("..R-..R-..R-..8-", "R--R--R-..R-5-a-", "R-.R..R-R-.R..8-"),
                level=1,
            ),
            Part(
                "drums",
                ("drum machine", "electronic drums"),
                patterns=(
                    {
                        "kick": FOUR_ON_THE_FLOOR,
                        "clap": "....X.......X...",
                        "open hat": "..x...x...x...x.",
                        "shaker": "xoxoxoxoxoxoxoxo",
                    },
                    {
                        "kick": FOUR_ON_THE_FLOOR,
                        "clap": "....X.......X..o",
                        "open hat": "..x...x...x...x.",
                        "rim": "x..x..x...x.x...",
                    },
                ),
                level=1,
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
            Part(
                "melody",
                ("saw lead", "square lead"),
                TUNE,
            ),
            Part(
                "arpeggio",
                ("synth pluck", "square lead"),
                ("0-1-2-3-4-3-2-1-", "0123012301230123", "0-2-1-2-3-2-1-2-"),
                level=-1,
                chance=0.8,
                centre=64,
            ),
            Part(
                "chords",
                ("synth strings", "synth pad", "warm pad", "sweep pad"),
                ("x---------------",),
                level=-1,
                centre=62,
                spread="open",
            ),
            Part("bass", ("synth bass",), ("R-R-R-R-R-R-R-R-", "RRRRRRRRRRRRRRRR", "R-R-8-R-R-R-8-R-"), level=1),
            Part(
                "drums",
                ("electronic drums", "drum machine"),
                patterns=(
                    {"kick": "X...X...X...X...", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
                    {"kick": "X.......X.......", "snare": "....X.......X...", "hat": "xoxoxoxoxoxoxoxo"},
                ),
                level=1,
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
                level=-2,
                chance=0.7,
            ),
            Part(
                "chords",
                ("warm pad", "halo pad", "sweep pad", "choir", "synth strings"),
                ("x---------------",),
                level=1,
                spread="open",
            ),
            Part(
                "arpeggio",
                ("harp", "kalimba", "electric piano", "vibraphone", "music box"),
                ("0---2---1---3---", "0-1-2-3-........", "0-----2-----1---", "0-1-2-1-3-1-2-1-"),
                level=-3,
                chance=0.75,
                centre=66,
            ),
            Part("bass", ("fretless bass", "cello", "synth bass"), ("R---------------",), level=-2, chance=0.7),
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
                level=-2,
            ),
            Part(
                "chords",
                ("electric piano", "piano", "jazz guitar"),
                ("x---------x-----", "x-----x-----x---", "x---------------"),
                level=1,
                strum=0.012,
            ),
            Part(
                "bass",
                ("electric bass", "double bass", "fretless bass"),
                ("R-----..R-5-....", "R--R....R---5-a-", "R-------..R-5---"),
                level=1,
            ),
            Part(
                "drums",
                ("drums", "drum machine"),
                patterns=(
                    {"kick": "X......x..X.....", "snare": "....X.......X...", "hat": "x.x.x.xxx.x.x.x."},
                    {"kick": "X..x......X.....", "snare": "....X.......X..o", "hat": "x.o.x.o.x.o.x.o."},
                ),
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
                level=-2,
                chance=0.8,
            ),
            Part(
                "chords",
                ("warm pad", "sweep pad", "synth strings", "electric piano"),
                ("x---------------",),
                centre=62,
                spread="open",
            ),
            Part(
                "arpeggio",
                ("synth pluck", "kalimba"),
                ("0-1-2-3-2-1-2-1-", "0---2---1---3---"),
                level=-3,
                chance=0.4,
                centre=68,
            ),
            Part("bass", ("synth bass",), ("R-------R-R-....", "R-----------R---", "R---..R---..8-a-"), level=3),
            Part(
                "drums",
                ("drums", "electronic drums"),
                patterns=(
                    {"kick": "X.........X.....", "snare": "....X..o.o..X..o", "hat": "x.x.x.x.x.x.x.x."},
                    {"kick": "X.x.......x.....", "snare": "....X.......X.o.", "ride": "x.x.x.x.x.x.x.x."},
                ),
                level=1,
            ),
        ),
        moods={"minor": ("urgent", "futuristic", "dark", "atmospheric")},
        words=("electronic", "breakbeat", "club"),
        looseness=0.0,
        room=(0.2, 1.8),
    ),
)
