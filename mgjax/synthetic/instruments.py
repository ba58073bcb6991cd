"""The instruments of synthetic music, as programs of General MIDI."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instrument:
    """An instrument.

    Attributes:
      programs: General MIDI programs to choose from, from 0; of drum kits for drums.
      low: Lowest pitch of a melody.
      high: Highest pitch of a melody.
      decay: Time constant in seconds of an additional decay of held notes; 0 for that of the soundfont alone.
    """

    programs: tuple[int, ...]
    low: int = 60
    high: int = 84
    decay: float = 0.0


# By name, as in captions.
INSTRUMENTS = {
    "piano": Instrument((0, 1), 57, 86),
    "electric piano": Instrument((4, 5), 57, 84),
    "harpsichord": Instrument((6,), 57, 84),
    "clavinet": Instrument((7,), 55, 79),
    "celesta": Instrument((8,), 67, 93),
    "music box": Instrument((10,), 67, 91),
    "vibraphone": Instrument((11,), 60, 84),
    "organ": Instrument((16, 17), 55, 84),
    "church organ": Instrument((19,), 55, 84),
    "accordion": Instrument((21, 23), 60, 86),
    "harmonica": Instrument((22,), 62, 86),
    "nylon guitar": Instrument((24,), 55, 81),
    "acoustic guitar": Instrument((25,), 55, 81),
    "jazz guitar": Instrument((26,), 55, 79),
    "electric guitar": Instrument((27,), 55, 81),
    "muted guitar": Instrument((28,), 50, 76),
    "overdriven guitar": Instrument((29,), 55, 83),
    "distorted guitar": Instrument((30,), 52, 83),
    "double bass": Instrument((32,)),
    "electric bass": Instrument((33,)),
    "picked bass": Instrument((34,)),
    "fretless bass": Instrument((35,)),
    "slap bass": Instrument((36, 37)),
    "synth bass": Instrument((38, 39)),
    "violin": Instrument((40,), 62, 90),
    "cello": Instrument((42,), 48, 70),
    "harp": Instrument((46,), 55, 88),
    "strings": Instrument((48,), 55, 86),
    "synth strings": Instrument((50, 51), 55, 86),
    "choir": Instrument((52, 53), 55, 79),
    "trumpet": Instrument((56,), 60, 84),
    "trombone": Instrument((57,), 48, 70),
    "tuba": Instrument((58,)),
    "muted trumpet": Instrument((59,), 60, 84),
    "french horn": Instrument((60,), 50, 74),
    "brass section": Instrument((61,), 55, 79),
    "soprano saxophone": Instrument((64,), 62, 86),
    "alto saxophone": Instrument((65,), 57, 81),
    "tenor saxophone": Instrument((66,), 52, 76),
    "oboe": Instrument((68,), 62, 86),
    "clarinet": Instrument((71,), 57, 84),
    "piccolo": Instrument((72,), 74, 98),
    "flute": Instrument((73,), 65, 91),
    "recorder": Instrument((74,), 67, 91),
    "pan flute": Instrument((75,), 64, 88),
    "ocarina": Instrument((79,), 67, 88),
    "square lead": Instrument((80,), 60, 86),
    "saw lead": Instrument((81,), 60, 86),
    "synth pluck": Instrument((81,), 55, 86, decay=0.25),
    "warm pad": Instrument((89,), 55, 84),
    "synth pad": Instrument((90,), 55, 84),
    "halo pad": Instrument((94,), 55, 84),
    "sweep pad": Instrument((95,), 55, 84),
    "banjo": Instrument((105,), 60, 86),
    "kalimba": Instrument((108,), 60, 86),
    "fiddle": Instrument((110,), 62, 88),
    "drums": Instrument((0, 8)),
    "rock drums": Instrument((16,)),
    "electronic drums": Instrument((24,)),
    "drum machine": Instrument((25,)),
    "jazz drums": Instrument((32,)),
    "brushed drums": Instrument((40,)),
    "marching drums": Instrument((48,)),
}

# The pitch of each drum in General MIDI.
DRUMS = {
    "kick": 36,
    "rim": 37,
    "snare": 38,
    "clap": 39,
    "hat": 42,
    "low tom": 45,
    "open hat": 46,
    "mid tom": 47,
    "crash": 49,
    "high tom": 50,
    "ride": 51,
    "tambourine": 54,
    "cowbell": 56,
    "high conga": 63,
    "low conga": 64,
    "shaker": 70,
    "claves": 75,
}
