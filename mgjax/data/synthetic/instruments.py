"""The instruments of the synthetic music: sounds of General MIDI, and how they are played."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Instrument:
    """A sound of General MIDI and how it is played.

    Attributes:
      program: Its number in General MIDI, from 0; a drum kit's for drums.
      low: Lowest pitch of a melody on it.
      high: Highest pitch of a melody on it.
      decay: Seconds in which a held note at middle C falls to a third; 0 for one that sustains.
      attack: Seconds that a note takes to swell.
      release: Seconds that it takes to die after its end.
    """

    program: int
    low: int = 60
    high: int = 84
    decay: float = 0.0
    attack: float = 0.003
    release: float = 0.08


# By the names that captions use.
INSTRUMENTS = {
    "piano": Instrument(0, 57, 86, decay=2.2, release=0.15),
    "electric piano": Instrument(4, 57, 84, decay=1.8, release=0.15),
    "harpsichord": Instrument(6, 57, 84, decay=1.0, release=0.1),
    "clavinet": Instrument(7, 55, 79, decay=0.7, release=0.06),
    "celesta": Instrument(8, 67, 93, decay=1.2, release=0.4),
    "glockenspiel": Instrument(9, 72, 96, decay=1.0, release=0.6),
    "music box": Instrument(10, 67, 91, decay=1.2, release=0.6),
    "vibraphone": Instrument(11, 60, 84, decay=1.8, release=0.4),
    "marimba": Instrument(12, 55, 84, decay=0.4, release=0.3),
    "organ": Instrument(16, 55, 84, attack=0.008),
    "church organ": Instrument(19, 55, 84, attack=0.02, release=0.3),
    "accordion": Instrument(21, 60, 86, attack=0.02),
    "harmonica": Instrument(22, 62, 86, attack=0.02),
    "nylon guitar": Instrument(24, 55, 81, decay=1.0, release=0.12),
    "acoustic guitar": Instrument(25, 55, 81, decay=1.2, release=0.12),
    "jazz guitar": Instrument(26, 55, 79, decay=1.0, release=0.1),
    "electric guitar": Instrument(27, 55, 81, decay=1.4, release=0.1),
    "muted guitar": Instrument(28, 50, 76, decay=0.3, release=0.05),
    "overdriven guitar": Instrument(29, 55, 83, decay=5.0, release=0.08),
    "distorted guitar": Instrument(30, 52, 83, decay=6.0, release=0.08),
    "double bass": Instrument(32, decay=0.9, release=0.1),
    "electric bass": Instrument(33, decay=1.3, release=0.08),
    "picked bass": Instrument(34, decay=1.2, release=0.08),
    "fretless bass": Instrument(35, decay=1.6, release=0.1),
    "slap bass": Instrument(36, decay=0.9, release=0.06),
    "synth bass": Instrument(38, decay=1.2, release=0.05),
    "violin": Instrument(40, 62, 90, attack=0.04, release=0.15),
    "cello": Instrument(42, 48, 70, attack=0.05, release=0.2),
    "pizzicato strings": Instrument(45, 55, 84, decay=0.35, release=0.2),
    "harp": Instrument(46, 55, 88, decay=1.4, release=0.5),
    "strings": Instrument(48, 55, 86, attack=0.12, release=0.35),
    "synth strings": Instrument(50, 55, 86, attack=0.15, release=0.4),
    "choir": Instrument(52, 55, 79, attack=0.15, release=0.4),
    "trumpet": Instrument(56, 60, 84, attack=0.02, release=0.08),
    "trombone": Instrument(57, 48, 70, attack=0.03, release=0.1),
    "tuba": Instrument(58, attack=0.02, release=0.1),
    "muted trumpet": Instrument(59, 60, 84, attack=0.02, release=0.08),
    "french horn": Instrument(60, 50, 74, attack=0.05, release=0.15),
    "brass section": Instrument(61, 55, 79, attack=0.02, release=0.1),
    "soprano saxophone": Instrument(64, 62, 86, attack=0.03, release=0.1),
    "alto saxophone": Instrument(65, 57, 81, attack=0.03, release=0.1),
    "tenor saxophone": Instrument(66, 52, 76, attack=0.03, release=0.1),
    "oboe": Instrument(68, 62, 86, attack=0.03, release=0.12),
    "clarinet": Instrument(71, 57, 84, attack=0.03, release=0.12),
    "piccolo": Instrument(72, 74, 98, attack=0.02, release=0.1),
    "flute": Instrument(73, 65, 91, attack=0.04, release=0.15),
    "recorder": Instrument(74, 67, 91, attack=0.02, release=0.1),
    "pan flute": Instrument(75, 64, 88, attack=0.04, release=0.15),
    "whistle": Instrument(78, 72, 93, attack=0.03, release=0.1),
    "square lead": Instrument(80, 60, 86, attack=0.005, release=0.1),
    "saw lead": Instrument(81, 60, 86, attack=0.005, release=0.1),
    "synth pluck": Instrument(81, 55, 86, decay=0.25, release=0.12),
    "warm pad": Instrument(89, 55, 84, attack=0.4, release=0.9),
    "synth pad": Instrument(90, 55, 84, attack=0.25, release=0.7),
    "halo pad": Instrument(94, 55, 84, attack=0.5, release=1.0),
    "sweep pad": Instrument(95, 55, 84, attack=0.4, release=1.0),
    "banjo": Instrument(105, 60, 86, decay=0.5, release=0.1),
    "kalimba": Instrument(108, 60, 86, decay=0.5, release=0.4),
    "fiddle": Instrument(110, 62, 88, attack=0.03, release=0.1),
    "steel drum": Instrument(114, 60, 84, decay=0.8, release=0.3),
    "drums": Instrument(0),
    "rock drums": Instrument(16),
    "electronic drums": Instrument(24),
    "drum machine": Instrument(25),
    "jazz drums": Instrument(32),
    "brushed drums": Instrument(40),
    "marching drums": Instrument(48),
}

# The pitch that sounds each drum in General MIDI.
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
