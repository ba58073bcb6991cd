"""From notes to sound: players on the General MIDI soundfont that comes with pretty_midi, and a small mixing desk."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy import signal

from mgjax.audio import files as audio_files
from mgjax.synthetic.composition import Score, Track
from mgjax.synthetic.instruments import INSTRUMENTS
from mgjax.synthetic.mastering import mastered, room
from mgjax.synthetic.notes import Notes
from mgjax.synthetic.soundfont import DRUM_BANK, SoundFont

Stem = Float32[np.ndarray, "2 n"]  # what is struck hard, and what is struck softly and so is to be duller

_TAIL = 3.0  # seconds after the last note, for its reverberation
_DRUM_SECONDS = 2.0
_RELEASE = 1.5  # seconds that a note sounds after its end, at most
_HARD, _SOFT = 100, 30  # velocities from which a note is as bright as the font has it, and all dull
_DULL = 1600.0  # hertz: the low-pass filter, of 6 dB an octave, of what is all dull

# Decibels of each role in the mix, share that is sent to the room, and places between left (-1) and right (1).
_LEVELS = {"melody": 0.0, "chords": -5.0, "arpeggio": -5.0, "bass": -3.0, "drums": -2.0}
_SENDS = {"melody": 1.0, "chords": 1.0, "arpeggio": 1.0, "bass": 0.15, "drums": 0.4}
_PLACES = {"melody": (0.0, 0.1), "chords": (-0.35, 0.35), "arpeggio": (0.4, -0.4), "bass": (0.0,), "drums": (0.0,)}

_NOTES = Notes(most_bytes=384 * 2**20)


def render(score: Score, sample_rate: int = 32000, channels: int = 1) -> audio_files.Audio:
    """The sound of a score, float32 `[n, c]`, at about -14 LUFS with peaks of -1 dB at most.

    The same score gives the same samples. It ends where the last sound has died away.

    Args:
      score: What to play.
      sample_rate: In hertz.
      channels: 1 or 2.

    Raises:
      ImportError: The soundfont is missing.
      ValueError: The rate or the number of channels is out of range.
    """
    if channels not in (1, 2):
        raise ValueError(f"channels must be 1 or 2, got {channels}; mgjax.audio.waveform.to_channels makes others")
    if not 8000 <= sample_rate <= 96000:
        raise ValueError(f"sample_rate must be from 8000 to 96000 hertz, got {sample_rate}")
    length = round((score.seconds + _TAIL) * sample_rate)
    mix, soft, sent = (np.zeros((channels, length), np.float32) for _ in range(3))
    stem = np.empty((2, length), np.float32)
    seen: dict[str, int] = {}
    for track in score.tracks:
        role = track.part.role
        seen[role] = seen.get(role, -1) + 1
        _play(track, stem, sample_rate)
        both = stem[0] + stem[1]
        level = _gain_for(both, _LEVELS[role] + track.part.level, sample_rate)
        place = _PLACES[role][seen[role] % len(_PLACES[role])]
        for channel, gain in enumerate(level * _gains(place) if channels == 2 else [level]):
            mix[channel] += gain * stem[0]
            soft[channel] += gain * stem[1]
            sent[channel] += np.float32(_SENDS[role]) * gain * both
    pole = np.exp(-2 * np.pi * _DULL / sample_rate)
    mix += signal.lfilter(np.float32([1 - pole]), np.float32([1, -pole]), soft)
    share, seconds = score.style.room
    mix += np.float32(share) * signal.oaconvolve(sent, room(seconds, channels, sample_rate), axes=1)[:, :length]
    return _trimmed(mastered(mix, sample_rate), sample_rate).T


def _play(track: Track, stem: Stem, sample_rate: int) -> None:
    """Puts one track alone on `stem`. Each pitch is made once, as long as its longest note, the others cut from it."""
    drums = track.part.role == "drums"
    held: dict[int, float] = {}
    for note in track.notes:
        held[note.pitch] = max(held.get(note.pitch, 0.0), note.seconds)
    font, bank, decay = soundfont(), DRUM_BANK if drums else 0, INSTRUMENTS[track.instrument].decay
    sounds, releases = {}, {}
    for pitch, seconds in held.items():
        releases[pitch] = min(max(font.release(bank, track.program, pitch), 0.05), _RELEASE)
        seconds = _DRUM_SECONDS if drums else seconds + releases[pitch]
        sounds[pitch] = _NOTES.get(font, bank, track.program, pitch, seconds, sample_rate, decay)
    stem[:] = 0
    length = stem.shape[1]
    for note in track.notes:
        start = round(note.start * sample_rate)
        sound = sounds[note.pitch][: length - start]
        if not drums:  # a drum rings as long as it likes
            end = round(note.seconds * sample_rate)
            fall = _fall(round(releases[note.pitch] * sample_rate))
            sound = sound[: end + len(fall)].copy()
            sound[end:] *= fall[: max(len(sound) - end, 0)]
        loud = (note.velocity / 100) ** 1.6
        dull = min(max((_HARD - note.velocity) / (_HARD - _SOFT), 0.0), 1.0)
        stem[0, start : start + len(sound)] += np.float32(loud * (1 - dull)) * sound
        if dull:
            stem[1, start : start + len(sound)] += np.float32(loud * dull) * sound


@functools.lru_cache(maxsize=256)
def _fall(length: int) -> Float32[np.ndarray, "m"]:
    """Gains of a note that is let go, over so many samples: by 60 dB, and then to nothing."""
    time = np.arange(length, dtype=np.float32) / np.float32(length)
    return 10 ** (-3 * time) * (1 - time)


@functools.cache
def soundfont() -> SoundFont:
    """The soundfont that comes with pretty_midi; reading it takes a while, so each process does it once."""
    package = importlib.util.find_spec("pretty_midi")  # not imported: its file is wanted, not its code
    path = Path(*package.submodule_search_locations or ()) / "TimGM6mb.sf2" if package else None
    if path is None or not path.is_file():
        raise ImportError(
            "synthetic music is played on the soundfont that comes with pretty_midi, which is not there; "
            "install it with: pip install 'mgjax[synthetic]'"
        )
    return SoundFont(path)


def _gain_for(sound: Float32[np.ndarray, "n"], decibels: float, sample_rate: int) -> np.float32:
    """The gain that brings a sound to `decibels` around a common level, measured where it sounds."""
    size = sample_rate // 20
    blocks = sound[: len(sound) // size * size].reshape(-1, size)
    energy = np.einsum("bn,bn->b", blocks, blocks) / size
    loud = energy[energy > 1e-3 * energy.max()]
    return np.float32(0.1 * 10 ** (decibels / 20) / np.sqrt(loud.mean()))


def _gains(place: float) -> Float32[np.ndarray, "2"]:
    """Gains of the left and the right channel that keep the power."""
    angle = (place + 1) * np.pi / 4
    return (np.sqrt(2) * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)


def _trimmed(sound: Float32[np.ndarray, "c n"], sample_rate: int) -> Float32[np.ndarray, "c m"]:
    """The sound without the near silence at its end, faded out over the last quarter of a second."""
    heard = np.flatnonzero(np.abs(sound).max(axis=0) > 0.01)
    sound = sound[:, : heard[-1] + 1].copy()
    fade = min(sound.shape[1], sample_rate // 4)
    sound[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound
