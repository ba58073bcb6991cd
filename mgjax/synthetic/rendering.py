"""Renders scores with the General MIDI soundfont of pretty_midi, and mixes the tracks."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy import signal

from mgjax.audio.waveform import Audio
from mgjax.synthetic.composition import Score, Track
from mgjax.synthetic.instruments import INSTRUMENTS
from mgjax.synthetic.mastering import mastered, room
from mgjax.synthetic.notes import Notes
from mgjax.synthetic.soundfont import DRUM_BANK, SoundFont

Stem = Float32[np.ndarray, "2 n"]  # a track in two layers: hard notes, and soft ones for the low-pass filter

_TAIL = 3.0  # seconds after the last note, for its reverberation
_DRUM_SECONDS = 2.0
_RELEASE = 1.5  # seconds of a note's release, at most
_HARD, _SOFT = 100, 30  # velocities of notes that are wholly in the hard, and in the soft layer
_CUTOFF = 1600.0  # hertz, of the low-pass filter of 6 dB per octave on the soft layer

# Level of each role in the mix in decibels, send to the reverberation, and positions from left (-1) to right (1).
_LEVELS = {"melody": 0.0, "chords": -5.0, "arpeggio": -5.0, "bass": -3.0, "drums": -2.0}
_SENDS = {"melody": 1.0, "chords": 1.0, "arpeggio": 1.0, "bass": 0.15, "drums": 0.4}
_PANS = {"melody": (0.0, 0.1), "chords": (-0.35, 0.35), "arpeggio": (0.4, -0.4), "bass": (0.0,), "drums": (0.0,)}

_NOTES = Notes(most_bytes=384 * 2**20)


def render(score: Score, sample_rate: int, channels: int) -> Audio:
    """As `pieces.render`. The same score gives the same samples, which end when the reverberation has decayed."""
    if channels not in (1, 2):
        raise ValueError(f"channels must be 1 or 2, got {channels}; mgjax.audio.waveform.to_channels makes others")
    if not 8000 <= sample_rate <= 96000:
        raise ValueError(f"sample_rate must be from 8000 to 96000 hertz, got {sample_rate}")
    length = round((score.seconds + _TAIL) * sample_rate)
    mix, soft, send = (np.zeros((channels, length), np.float32) for _ in range(3))
    stem = np.empty((2, length), np.float32)
    seen: Counter[str] = Counter()
    for track in score.tracks:
        role = track.part.role
        _play(track, stem, sample_rate)
        both = stem[0] + stem[1]
        level = _gain_for(both, _LEVELS[role] + track.part.level, sample_rate)
        pan = _PANS[role][seen[role] % len(_PANS[role])]
        seen[role] += 1
        for channel, gain in enumerate(level * _gains(pan) if channels == 2 else [level]):
            mix[channel] += gain * stem[0]
            soft[channel] += gain * stem[1]
            send[channel] += np.float32(_SENDS[role]) * gain * both
    pole = np.exp(-2 * np.pi * _CUTOFF / sample_rate)
    mix += signal.lfilter(np.array([1 - pole], np.float32), np.array([1, -pole], np.float32), soft)
    share, seconds = score.style.room
    mix += np.float32(share) * signal.oaconvolve(send, room(seconds, channels, sample_rate), axes=1)[:, :length]
    return _trimmed(mastered(mix, sample_rate), sample_rate).T


def _play(track: Track, stem: Stem, sample_rate: int) -> None:
    """Renders a track into `stem`. Each pitch is rendered once, as long as its longest note, and cut for the others."""
    is_drums = track.part.role == "drums"
    longest: dict[int, float] = {}
    for note in track.notes:
        longest[note.pitch] = max(longest.get(note.pitch, 0.0), note.seconds)
    font, bank, decay = soundfont(), DRUM_BANK if is_drums else 0, INSTRUMENTS[track.instrument].decay
    sounds, releases = {}, {}
    for pitch, seconds in longest.items():
        releases[pitch] = min(max(font.release(bank, track.program, pitch), 0.05), _RELEASE)
        seconds = _DRUM_SECONDS if is_drums else seconds + releases[pitch]
        sounds[pitch] = _NOTES.get(font, bank, track.program, pitch, seconds, sample_rate, decay)
    stem[:] = 0
    length = stem.shape[1]
    for note in track.notes:
        start = round(note.start * sample_rate)
        sound = sounds[note.pitch][: length - start]
        if not is_drums:  # drums ring on
            end = round(note.seconds * sample_rate)
            release = _release(round(releases[note.pitch] * sample_rate))
            sound = sound[: end + len(release)].copy()
            sound[end:] *= release[: max(len(sound) - end, 0)]
        gain = (note.velocity / 100) ** 1.6
        softness = min(max((_HARD - note.velocity) / (_HARD - _SOFT), 0.0), 1.0)
        stem[0, start : start + len(sound)] += np.float32(gain * (1 - softness)) * sound
        if softness:
            stem[1, start : start + len(sound)] += np.float32(gain * softness) * sound


@functools.lru_cache(maxsize=256)
def _release(length: int) -> Float32[np.ndarray, "m"]:
    """The envelope of a release of so many samples: it falls by 60 dB, and to 0 at the end."""
    time = np.arange(length, dtype=np.float32) / np.float32(length)
    return 10 ** (-3 * time) * (1 - time)


@functools.cache
def soundfont() -> SoundFont:
    """The soundfont of pretty_midi, which each process reads once.

    Raises:
      ImportError: It is not installed.
    """
    package = importlib.util.find_spec("pretty_midi")  # not imported, as only its file is needed
    path = Path(*package.submodule_search_locations or ()) / "TimGM6mb.sf2" if package else None
    if path is None or not path.is_file():
        raise ImportError(
            "synthetic music is played on the soundfont that comes with pretty_midi, which is not there; "
            "install it with: pip install 'mgjax[synthetic]'"
        )
    return SoundFont(path)


def _gain_for(sound: Float32[np.ndarray, "n"], decibels: float, sample_rate: int) -> np.float32:
    """The gain that normalizes a track to `decibels` relative to a reference level, measured without its rests."""
    size = sample_rate // 20
    blocks = sound[: len(sound) // size * size].reshape(-1, size)
    energy = np.einsum("bn,bn->b", blocks, blocks) / size
    gated = energy[energy > 1e-3 * energy.max()]
    return np.float32(0.1 * 10 ** (decibels / 20) / np.sqrt(gated.mean()))


def _gains(pan: float) -> Float32[np.ndarray, "2"]:
    """Constant-power panning: the gains of the left and the right channel."""
    angle = (pan + 1) * np.pi / 4
    return (np.sqrt(2) * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)


def _trimmed(sound: Float32[np.ndarray, "c n"], sample_rate: int) -> Float32[np.ndarray, "c m"]:
    """The sound without the quiet end, faded out over the last quarter of a second."""
    audible = np.flatnonzero(np.abs(sound).max(axis=0) > 0.01)
    sound = sound[:, : audible[-1] + 1].copy()
    fade = min(sound.shape[1], sample_rate // 4)
    sound[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound
