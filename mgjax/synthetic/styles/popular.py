"""Popular styles of the synthetic music; `style` says how to read them."""

from mgjax.synthetic.styles.style import FOUR_ON_THE_FLOOR, SYNCOPATED, TUNE, Part, Style

STYLES = (
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
                TUNE + SYNCOPATED,
            ),
            Part(
                "chords",
                ("strings", "warm pad", "synth pad"),
                ("x---------------",),
                level=-4,
                chance=0.6,
                centre=64,
                spread="open",
            ),
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
                patterns=(
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
                (*TUNE, "x-x-x-x-x---x---"),
            ),
            Part(
                "chords",
                ("distorted guitar", "overdriven guitar"),
                ("X-x-x-x-X-x-x-x-", "X---X-x-..X-x-x-", "X-------X---X-x-"),
                centre=50,
                spread="power",
                strum=0.004,
            ),
            Part("chords", ("organ",), ("x---------------",), level=-5, chance=0.35, centre=62),
            Part(
                "bass", ("picked bass", "electric bass"), ("R-R-R-R-R-R-R-R-", "R-R-R-R-R-R-5-a-", "R---R-R-..R-R-a-")
            ),
            Part(
                "drums",
                ("rock drums", "drums"),
                patterns=(
                    {"kick": "X.......X.X.....", "snare": "....X.......X...", "hat": "X.x.X.x.X.x.X.x."},
                    {"kick": "X.x.....X.......", "snare": "....X.......X...", "ride": "X.x.X.x.X.x.X.x."},
                    {"kick": "X.....X...X.....", "snare": "....X.......X...", "open hat": "X...X...X...X..."},
                ),
                level=1,
            ),
        ),
        moods={"major": ("powerful", "driving", "triumphant"), "minor": ("dark", "intense", "driving", "gritty")},
        words=("guitar-driven", "loud"),
        room=(0.12, 0.9),
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
            ),
            Part(
                "chords",
                ("piano", "electric guitar", "organ"),
                ("x---..x-x---..x-", "x-x-x-x-x-x-x-x-", "....x-......x-..", "X-----x---------"),
                level=-1,
                centre=58,
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
                patterns=(
                    {"kick": "X.......X.......", "snare": "....X.......X...", "ride": "X.x.X.x.X.x.X.x."},
                    {"kick": "X.....x.X.......", "snare": "....X.......X...", "hat": "X.o.X.o.X.o.X.o."},
                ),
            ),
        ),
        moods={"major": ("soulful", "gritty", "earthy", "laid-back")},
        words=("bluesy", "shuffle"),
        swing=(0.66, 4),
        looseness=0.01,
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
            ),
            Part(
                "chords",
                ("electric guitar", "muted guitar", "piano"),
                ("....x.......x...", "....xx......x...", "..x...x...x...x."),
                centre=64,
                strum=0.005,
            ),
            Part("chords", ("organ",), ("..xx..xx..xx..xx", "..x...x...x...x."), level=-4, chance=0.7),
            Part(
                "bass",
                ("electric bass", "fretless bass"),
                ("R-..R-3-5-..5-3-", "R---..R-5-3-R-..", "..R-R-..5-5-3-R-", "R--R--5-........"),
                level=3,
            ),
            Part(
                "drums",
                ("drums",),
                patterns=(
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
            ),
            Part(
                "chords",
                ("clavinet", "electric guitar", "electric piano"),
                ("x..x..x...x..x..", "..x.x..x..x.x..x", "x..xx..x.x..x.x."),
            ),
            Part(
                "chords",
                ("brass section",),
                ("x-..............", "....x.......x-..", "x--x............"),
                level=-2,
                chance=0.6,
                centre=66,
            ),
            Part(
                "bass",
                ("slap bass", "electric bass"),
                ("R-.R..8-R.R-..7.", "R--R..R-..5-7-8-", "R.R...8.R.R...a-"),
                level=2,
            ),
            Part(
                "drums",
                ("drums",),
                patterns=(
                    {"kick": "X.x....x..x..x..", "snare": "....X..o.o..X..o", "hat": "x.x.x.x.x.x.x.x."},
                    {"kick": "X..x..x...x.....", "snare": "....X..o....X.o.", "hat": "xoxoxoxoxoxoxoxo"},
                ),
                level=1,
            ),
        ),
        moods={"major": ("groovy", "playful", "bright"), "minor": ("groovy", "gritty", "cool")},
        words=("syncopated", "tight", "danceable"),
        swing=(0.54, 2),
        looseness=0.006,
        room=(0.1, 0.8),
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
            Part(
                "melody",
                ("trumpet", "flute", "trombone", "alto saxophone"),
                SYNCOPATED,
            ),
            Part("arpeggio", ("piano",), ("0.12.30.12.3.12.", "0.2.13.02.1.3.2.", "03.12.03.12.03.1"), centre=66),
            Part(
                "chords",
                ("brass section",),
                ("x-..............", "......x-..x-....", "x--x--x-........"),
                level=-2,
                chance=0.5,
                centre=66,
            ),
            Part(
                "bass",
                ("electric bass", "double bass"),
                ("R-....5-....8-..", "R-....5-....a-..", "...R..5-...R..8-"),
                level=1,
            ),
            Part(
                "drums",
                ("drums",),
                patterns=(
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
                TUNE + SYNCOPATED,
            ),
            Part(
                "chords",
                ("muted guitar", "electric guitar", "clavinet"),
                ("x.xx.xx.x.xx.xx.", "..x...x...x...x.", "..xx..xx..xx..xx"),
                level=-1,
                centre=66,
                strum=0.003,
            ),
            Part("chords", ("electric piano", "piano"), ("x-----x---------", "x---x---x---x---"), level=-2, chance=0.7),
            Part("bass", ("electric bass", "synth bass"), ("R-8-R-8-R-8-R-8-", "R-8-R-8-R-5-8-a-"), level=1),
            Part(
                "drums",
                ("drums",),
                patterns=(
                    {
                        "kick": FOUR_ON_THE_FLOOR,
                        "snare": "....X.......X...",
                        "open hat": "..x...x...x...x.",
                        "hat": "x...x...x...x...",
                    },
                    {
                        "kick": FOUR_ON_THE_FLOOR,
                        "clap": "....X.......X...",
                        "open hat": "..x...x...x...x.",
                        "tambourine": "xoxoxoxoxoxoxoxo",
                    },
                ),
                level=1,
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
            Part(
                "melody",
                ("fiddle", "harmonica", "electric guitar", "acoustic guitar"),
                TUNE,
            ),
            Part("chords", ("acoustic guitar",), ("....x-x-....x-x-", "....x-......x-x-"), strum=0.01),
            Part(
                "arpeggio",
                ("banjo",),
                ("0-21-203-120-213", "0-1203-1021-2031", "0-2-1-2-3-2-1-2-"),
                level=-1,
                chance=0.6,
                centre=66,
            ),
            Part("bass", ("double bass", "electric bass"), ("R-------5-------", "R-------5---a---")),
            Part(
                "drums",
                ("brushed drums", "drums"),
                patterns=(
                    {"kick": "X.......X.......", "snare": "o.o.X.o.o.o.X.oo"},
                    {"kick": "X.......X.......", "rim": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."},
                ),
                level=-2,
                chance=0.85,
                fills=False,
            ),
        ),
        moods={"major": ("cheerful", "warm", "easygoing", "heartfelt")},
        words=("rural", "twangy"),
        looseness=0.01,
        room=(0.13, 0.9),
    ),
)
