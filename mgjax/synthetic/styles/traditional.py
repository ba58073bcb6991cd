"""Jazz, folk and classical styles of the synthetic music; `style` says how to read them."""

from mgjax.synthetic.styles.style import TUNE, Part, Style

_TUNE_3 = ("x---x---x---", "x-------x---", "x-----x-x---", "x---x-x-x-x-", "x-----------", "x-x-x---x---")
_JAZZ_TUNE = ("x---x-x-..x-x---", "..x-x-x-x---..x-", "x-x-x-x-x---....", "x-----x-....x-x-", "....x-x-x-x-x---")

STYLES = (
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
            ),
            Part(
                "melody",
                ("piano", "jazz guitar", "vibraphone"),
                _JAZZ_TUNE,
                chance=0.4,
            ),
            Part(
                "chords",
                ("piano", "jazz guitar"),
                ("x--...x-........", "..x-......x-....", "x-....x-..x---..", "....x---....x---"),
                level=-1,
                strum=0.004,
            ),
            Part("bass", ("double bass",), ("R---c---c---a---", "R---c---5---a---"), level=1),
            Part(
                "drums",
                ("jazz drums", "brushed drums"),
                patterns=(
                    {"ride": "X...x.o.X...x.o.", "hat": "....x.......x...", "kick": "o...o...o...o..."},
                    {
                        "ride": "X...x.o.X...x.o.",
                        "hat": "....x.......x...",
                        "snare": "......o.......o.",
                        "kick": "o.........x.....",
                    },
                ),
                level=-3,
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
            ),
            Part(
                "chords",
                ("nylon guitar",),
                (
                    "x-..x-..x-..x-..x-..x-....x-..x-",
                    "x-....x-..x-....x-....x-....x-..",
                    "..x-..x---..x-....x-..x-..x---..",
                ),
                strum=0.006,
            ),
            Part("bass", ("double bass", "fretless bass"), ("R-----5-5-----R-", "R-----5-5-----a-")),
            Part(
                "drums",
                ("brushed drums", "drums"),
                patterns=(
                    {"rim": "x.....x.....x.......x.....x.....", "hat": "o.x.o.x.o.x.o.x.", "kick": "x.....xox.....xo"},
                    {
                        "rim": "x.....x.....x.......x.....x.....",
                        "shaker": "xoxoxoxoxoxoxoxo",
                        "kick": "x.....x.x.....x.",
                    },
                ),
                level=-4,
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
        name="waltz",
        metre="3/4",
        bpm=(96, 168),
        progressions={
            "major": ("I I V7 V7 V7 V7 I I", "I vi ii V7", "I I IV IV V7 V7 I I", "I I ii ii V7 V7 I V7"),
            "minor": ("i i V7 V7 V7 V7 i i", "i iv V7 i", "i bVI iv V7", "i i iv iv V7 V7 i i"),
        },
        parts=(
            Part(
                "melody",
                ("accordion", "violin", "clarinet", "flute", "piano", "music box"),
                _TUNE_3,
            ),
            Part(
                "chords",
                ("piano", "strings", "accordion", "acoustic guitar"),
                ("....x-..x-..", "....x---x---"),
                level=-1,
                centre=62,
                strum=0.003,
            ),
            Part("chords", ("strings",), ("x-----------",), level=-6, chance=0.3, centre=66, spread="open"),
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
                "melody",
                ("fiddle", "flute", "harmonica", "ocarina", "recorder", "accordion"),
                TUNE,
            ),
            Part("chords", ("acoustic guitar",), ("X---x-x-..x-x-x-", "X---x---x-x-x-x-"), centre=58, strum=0.012),
            Part(
                "arpeggio",
                ("banjo", "acoustic guitar", "nylon guitar"),
                ("0-2-1-2-3-2-1-2-", "0-1-2-1-3-1-2-1-"),
                level=-2,
                chance=0.6,
                centre=62,
            ),
            Part("bass", ("double bass",), ("R-------5-------", "R-------5---a---"), level=-1, chance=0.8),
            Part(
                "drums",
                ("drums",),
                patterns=(
                    {"tambourine": "....x.......x...", "kick": "x.......x......."},
                    {"shaker": "x.xox.xox.xox.xo"},
                ),
                level=-6,
                chance=0.4,
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
            Part(
                "melody",
                ("piano",),
                (*TUNE, "x---x---xxxxx---", "x-----xxx---x---"),
            ),
            Part("arpeggio", ("piano",), ("0-2-1-2-0-2-1-2-", "0-1-2-3-4-3-2-1-", "0-2-1-2-3-2-1-2-"), centre=56),
            Part("bass", ("piano",), ("R-------........", "R---------------"), level=-2, chance=0.6),
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
            ),
            Part(
                "chords",
                ("french horn", "brass section", "trombone"),
                ("..x...x...x...x.", "....x.......x..."),
                level=-1,
            ),
            Part("bass", ("tuba",), ("R---5---R---5---", "R---....5---....")),
            Part(
                "drums",
                ("marching drums", "drums"),
                patterns=(
                    {"kick": "X.......X.......", "snare": "X..oX.xxX..oX.x."},
                    {"kick": "X...x...X...x...", "snare": "x.xxx.xxx.xxx.xx"},
                    {"kick": "X.......X.......", "snare": "..x...x...x.xxx.", "crash": "........o......."},
                ),
                level=-2,
                fills=False,
            ),
        ),
        moods={"major": ("proud", "festive", "triumphant", "ceremonial"), "minor": ("solemn", "stern", "ceremonial")},
        words=("brass band", "military", "steady"),
        room=(0.25, 1.7),
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
            ),
            Part(
                "arpeggio",
                ("piano", "harp", "nylon guitar", "music box"),
                ("0-1-2-3-2-1-", "0-1-2-1-2-1-", "0---1-2---1-"),
                level=-1,
                centre=57,
            ),
            Part(
                "chords",
                ("strings", "choir", "warm pad"),
                ("x-----------",),
                level=-3,
                chance=0.5,
                centre=62,
                spread="open",
            ),
            Part("bass", ("double bass", "cello"), ("R-----------", "R-----5-----"), level=-3, chance=0.5),
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
            ),
            Part(
                "chords",
                ("acoustic guitar", "accordion"),
                ("X---x-X---x-", "X-x-x-X-x-x-"),
                level=-1,
                centre=58,
                strum=0.006,
            ),
            Part("bass", ("double bass",), ("R-----5-----", "R-----R-----"), level=-1, chance=0.8),
            Part(
                "drums",
                ("drums",),
                patterns=({"low tom": "X...o.x...o.", "tambourine": "....x.....x."}, {"low tom": "X.o.x.x.o.x."}),
                level=-3,
                chance=0.6,
                fills=False,
            ),
        ),
        moods={"major": ("merry", "festive", "cheerful"), "minor": ("spirited", "mischievous", "rousing")},
        words=("Celtic", "traditional", "acoustic", "dance"),
        room=(0.15, 1.0),
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
            ),
            Part(
                "arpeggio",
                ("harpsichord",),
                ("0123210301232103", "0-1-2-3-2-1-2-1-", "0-2-1-2-0-2-1-2-"),
                level=-1,
                centre=62,
            ),
            Part(
                "chords",
                ("strings", "church organ"),
                ("x-------x-------", "x---------------"),
                level=-3,
                chance=0.7,
                centre=62,
            ),
            Part("bass", ("cello",), ("R---3---5---a---", "R-R-c-c-5-5-a-a-", "R-------5-------")),
        ),
        moods={"major": ("stately", "bright", "elegant", "joyful"), "minor": ("solemn", "dramatic", "noble")},
        words=("chamber music", "no drums", "ornate"),
        looseness=0.008,
        room=(0.28, 2.0),
    ),
)
