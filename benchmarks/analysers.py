"""What hears the tempo, the key and the leading instrument's family in a clip; no model has a part in it.

The tempo is librosa's, unaided. The key and the family are told by two classifiers of scikit-learn that are fitted to
real synthetic pieces of a seed of their own, never to what a model made: published key profiles (Krumhansl, Temperley)
name the exact key of half of these clips only, and single notes say little about an instrument within a mix.
"""

from __future__ import annotations

from collections.abc import Sequence

import librosa
import numpy as np
import scipy.fft
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

SEED = 900_000  # of the pieces that the classifiers are fitted to; neither trained on by a model nor held out

FAMILIES = {
    "keyboard": ("piano", "electric piano", "harpsichord", "clavinet"),
    "mallets": ("celesta", "music box", "vibraphone", "marimba", "xylophone", "glockenspiel", "kalimba"),
    "organ": ("organ", "church organ", "accordion", "harmonica"),
    "plucked": (
        *("nylon guitar", "acoustic guitar", "jazz guitar", "electric guitar", "muted guitar", "overdriven guitar"),
        *("distorted guitar", "harp", "banjo"),
    ),
    "bowed or sung": ("violin", "viola", "cello", "strings", "synth strings", "fiddle", "choir"),
    "brass": ("trumpet", "trombone", "tuba", "muted trumpet", "french horn", "brass section"),
    "reed": ("soprano saxophone", "alto saxophone", "tenor saxophone", "oboe", "clarinet", "bassoon"),
    "pipe": ("piccolo", "flute", "recorder", "pan flute", "ocarina"),
    "synth": ("square lead", "saw lead", "synth pluck", "warm pad", "synth pad", "halo pad", "sweep pad"),
}
MINOR = ("minor", "dorian")

_NAMES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_LOWEST, _HIGHEST = 28, 100  # MIDI pitches that are looked at, the last one not among them
_TEMPO_RATIOS = (1 / 3, 1 / 2, 2 / 3, 3 / 2, 2, 3)
_QUIET = 1e-9


def tempo(sound: np.ndarray, sample_rate: int) -> float:
    """Beats per minute of a clip [n]: of the line through the times of librosa's beats; 0 where it finds none."""
    hop = round(sample_rate / 94)  # librosa's tempo is a whole number of steps, the line's is not
    power = librosa.feature.melspectrogram(y=sound, sr=sample_rate, n_fft=1024, hop_length=hop, n_mels=64)
    onsets = librosa.onset.onset_strength(S=librosa.power_to_db(power), sr=sample_rate, hop_length=hop)
    _, beats = librosa.beat.beat_track(onset_envelope=onsets, sr=sample_rate, hop_length=hop, trim=False)
    if len(beats) < 4:
        return 0.0
    return float(60 * sample_rate / hop / np.polyfit(np.arange(len(beats)), beats, 1)[0])


def tempo_verdict(heard: float, bpm: float) -> str:
    """ "right" within 5 %, "octave" within 5 % of two or three times, half, a third, two thirds or three halves."""
    if abs(heard / bpm - 1) <= 0.05:
        return "right"
    return "octave" if any(abs(heard / (bpm * ratio) - 1) <= 0.05 for ratio in _TEMPO_RATIOS) else "wrong"


def key_verdict(heard: tuple[int, bool], key: str) -> str:
    """ "right" for the tonic and the third of the key ("Eb major"), "relative" for its relative key, or "wrong".

    Dorian counts as minor and mixolydian as major; of the blues, which has both thirds, the tonic alone counts.
    """
    tonic, is_minor = read_key(key)
    if heard[0] == tonic and is_minor in (heard[1], None):
        return "right"
    relative = ((tonic + 3) % 12, False) if is_minor else ((tonic - 3) % 12, True)
    return "relative" if is_minor is not None and heard == relative else "wrong"


def read_key(key: str) -> tuple[int, bool | None]:
    """The pitch class of the tonic and whether it is minor (None: blues) of a key as in metadata, "F# dorian"."""
    tonic, mode = key.split()
    pitch = _NAMES[tonic[0]] + tonic.count("#") - tonic[1:].count("b")
    return pitch % 12, None if mode == "blues" else mode in MINOR


def family(instrument: str) -> str:
    """The family of an instrument by its name in metadata.

    Raises:
      ValueError: It is in none.
    """
    for name, members in FAMILIES.items():
        if instrument in members:
            return name
    raise ValueError(f"{instrument!r} is in no family: add it to FAMILIES in benchmarks/analysers.py")


class Ear:
    """Tells the key and the family of the leading instrument."""

    def __init__(self, sounds: Sequence[np.ndarray], sample_rate: int, keys: Sequence[str], leads: Sequence[str]):
        """Is fitted to real clips [n] at a rate in hertz.

        Args:
          sounds: The clips.
          sample_rate: In hertz; that of all it will hear.
          keys: Of each.
          leads: The leading instrument of each.
        """
        self._rate = sample_rate
        turned, answers = [], []
        for sound, key in zip(sounds, keys, strict=True):
            tonic, is_minor = read_key(key)
            turned.append(_turned(sound, sample_rate))
            answers.append([0] * 12)
            answers[-1][tonic] = 2 if is_minor else 1
        self._key = LogisticRegression(C=0.5, max_iter=500).fit(np.concatenate(turned), np.concatenate(answers))
        self._family = make_pipeline(StandardScaler(), SVC(C=10))
        self._family.fit([timbre(sound, sample_rate) for sound in sounds], [family(lead) for lead in leads])

    def key(self, sound: np.ndarray) -> tuple[int, bool]:
        """The pitch class of the tonic, and whether the key is minor."""
        none, major, minor = self._key.decision_function(_turned(sound, self._rate)).T
        tonic, is_minor = divmod(int(np.argmax(np.stack([major - none, minor - none], axis=1))), 2)
        return tonic, bool(is_minor)

    def family(self, sound: np.ndarray) -> str:
        """A name in `FAMILIES`."""
        return str(self._family.predict([timbre(sound, self._rate)])[0])


def pitches(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """The strength of each semitone from MIDI pitch 28 up over time, [72, f], by windows of two thirds of a second."""
    size = 2 ** round(np.log2(0.68 * sample_rate))
    spectrum = np.abs(librosa.stft(sound, n_fft=size, hop_length=size // 4)) * (4 / size)
    midi = librosa.hz_to_midi(np.maximum(librosa.fft_frequencies(sr=sample_rate, n_fft=size), 1.0))
    weights = np.exp(-0.5 * ((midi - np.arange(_LOWEST, _HIGHEST)[:, None]) / 0.25) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)) @ spectrum


def chroma(strengths: np.ndarray, low: int = _LOWEST, high: int = _HIGHEST) -> np.ndarray:
    """The strength of each pitch class over time, [12, f], of what `pitches` gives from pitch `low` to below `high`."""
    classes = np.arange(low, high) % 12
    return np.stack([strengths[low - _LOWEST : high - _LOWEST][classes == i].sum(axis=0) for i in range(12)])


def tonality(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """What a key is told by, [9, 12], each row by pitch class: of registers, bass notes, chords, beginning and end."""
    plain = pitches(sound, sample_rate)
    loud = np.log1p(1000 * plain)
    middle, whole = chroma(plain, 48, 96), chroma(loud, 36, 84)
    bass = np.bincount(chroma(plain, 28, 52).argmax(axis=0), minlength=12) / plain.shape[1]
    rows = [
        chroma(loud, 48, 96).mean(axis=1),
        chroma(loud, 28, 52).mean(axis=1),
        chroma(loud, 60, 100).mean(axis=1),
        (middle / (middle.max(axis=0) + _QUIET)).mean(axis=1),
        whole[:, :8].mean(axis=1),
        whole[:, -8:].mean(axis=1),
    ]
    rows = [row / (np.linalg.norm(row) + _QUIET) for row in rows]
    return np.stack([*rows, np.sqrt(bass), *np.sqrt(_chords(whole)).reshape(2, 12)])


def _chords(strengths: np.ndarray) -> np.ndarray:
    """The share of the time of each major and each minor triad, [24], in a chromagram [12, f]."""
    triads = np.zeros((24, 12))
    for root in range(12):
        for row, third in ((root, 4), (12 + root, 3)):
            triads[row, [root, (root + third) % 12, (root + 7) % 12]] = (1.2, 1, 1)
    triads -= triads.mean(axis=1, keepdims=True)
    triads /= np.linalg.norm(triads, axis=1, keepdims=True)
    likeness = np.exp(20 * triads @ (strengths / (np.linalg.norm(strengths, axis=0) + _QUIET)))
    return (likeness / likeness.sum(axis=0)).mean(axis=1)


def _turned(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """The tonality as it looks from each pitch class, [12, 108]: all keys are told by the same numbers."""
    found = tonality(sound, sample_rate)
    return np.stack([np.roll(found, -tonic, axis=1).ravel() for tonic in range(12)])


def timbre(sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """What a family is told by, [576]: statistics over time of 96 log mel bands and of 24 cepstral coefficients."""
    power = librosa.feature.melspectrogram(
        y=sound, sr=sample_rate, n_fft=2048, hop_length=512, n_mels=96, fmin=30.0, fmax=min(12_000.0, sample_rate / 2)
    )
    bands = librosa.power_to_db(power, top_db=80)
    shape = bands - bands.mean(axis=0)
    cepstrum = scipy.fft.dct(bands, axis=0, norm="ortho")[:24]
    changes, bends = np.diff(cepstrum, axis=1), np.diff(cepstrum, n=2, axis=1)
    rows = [bands.mean(axis=1) - bands.mean(), bands.std(axis=1), np.abs(np.diff(bands, axis=1)).mean(axis=1)]
    rows += [np.percentile(shape, share, axis=1) for share in (90, 10)]
    rows += [cepstrum.mean(axis=1), *(part.std(axis=1) for part in (cepstrum, changes, bends))]
    return np.concatenate(rows)
