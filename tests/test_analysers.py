"""What hears tempo and key in the benchmarks is right where there is no doubt."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import analysers

RATE = 8000


def tone(pitch: int, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time) * np.exp(-3 * time)


def test_the_tempo_of_clicks():
    bpm, sound = 97, np.zeros(8 * RATE, np.float32)
    for beat in np.arange(0.3, 7.9, 60 / bpm):
        start = round(beat * RATE)
        sound[start : start + 200] = np.random.default_rng(0).standard_normal(200)
    assert analysers.tempo(sound, RATE) == pytest.approx(bpm, rel=0.02)
    assert analysers.tempo_verdict(2 * bpm, bpm) == "octave"
    assert analysers.tempo_verdict(1.2 * bpm, bpm) == "wrong"


def test_the_key_of_cadences_in_keys_that_were_never_heard():
    def cadence(tonic: int, third: int) -> np.ndarray:
        chords = [(0, third, 7), (5, 5 + third, 12), (7, 11, 14), (0, third, 7)]
        return np.concatenate([sum(tone(48 + tonic + pitch, 1.0) for pitch in (-12, *chord)) for chord in chords])

    names = {4: "major", 3: "minor"}
    known = [(tonic, third) for tonic in (0, 2) for third in names]
    ear = analysers.Ear(
        [cadence(*key).astype(np.float32) for key in known],
        RATE,
        [f"{'C' if tonic == 0 else 'D'} {names[third]}" for tonic, third in known],
        ["piano", "flute", "piano", "flute"],
    )
    for tonic, third in ((5, 4), (9, 3)):
        assert ear.key(cadence(tonic, third).astype(np.float32)) == (tonic, third == 3)


@pytest.mark.parametrize(
    ("heard", "key", "verdict"),
    [
        ((3, False), "Eb major", "right"),
        ((6, True), "F# dorian", "right"),
        ((7, True), "G blues", "right"),
        ((0, True), "Eb major", "relative"),
        ((0, False), "A minor", "relative"),
        ((0, True), "C mixolydian", "wrong"),
    ],
)
def test_keys_are_compared_as_musicians_do(heard, key, verdict):
    assert analysers.key_verdict(heard, key) == verdict


def test_every_instrument_that_leads_a_style_has_a_family():
    from mgjax.synthetic import STYLES

    leaders = {
        name for style in STYLES.values() for part in style.parts if part.role == "melody" for name in part.instruments
    }
    assert {analysers.family(name) for name in leaders} <= set(analysers.FAMILIES)
    with pytest.raises(ValueError, match="in no family"):
        analysers.family("kazoo")
