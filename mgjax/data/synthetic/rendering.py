"""From notes to sound: players on the General MIDI soundfont that comes with pretty_midi, and a small mixing desk."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mgjax.data import audio
from mgjax.data.synthetic.composition import Score, Track
from mgjax.data.synthetic.instruments import INSTRUMENTS
from mgjax.data.synthetic.soundfont import DRUM_BANK, SoundFont

Stem = Float32[np.ndarray, "n"]

LOUDNESS = -14.0  # LUFS
PEAK = 0.89  # -1 dB

_TAIL = 3.0  # seconds after the last note, for its reverberation
_DRUM_SECONDS = 2.0
_RELEASE = 1.5  # seconds that a note sounds after its end, at most

# Decibels of each role in the mix, share that is sent to the room, and places between left (-1) and right (1).
_LEVELS = {"melody": 0.0, "chords": -5.0, "arpeggio": -5.0, "bass": -3.0, "drums": -2.0}
_SENDS = {"melody": 1.0, "chords": 1.0, "arpeggio": 1.0, "bass": 0.15, "drums": 0.4}
_PLACES = {"melody": (0.0, 0.1), "chords": (-0.35, 0.35), "arpeggio": (0.4, -0.4), "bass": (0.0,), "drums": (0.0,)}


def render(score: Score, sample_rate: int = 32000, channels: int = 1) -> audio.Audio:
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
        raise ValueError(f"channels must be 1 or 2, got {channels}; mgjax.data.audio.to_channels makes others")
    if not 8000 <= sample_rate <= 96000:
        raise ValueError(f"sample_rate must be from 8000 to 96000 hertz, got {sample_rate}")
    length = round((score.seconds + _TAIL) * sample_rate)
    dry, sent = np.zeros((length, channels), np.float32), np.zeros((length, channels), np.float32)
    seen: dict[str, int] = {}
    for track in score.tracks:
        role = track.part.role
        seen[role] = seen.get(role, -1) + 1
        stem = _leveled(_play(track, length, sample_rate), _LEVELS[role] + track.part.level, sample_rate)
        place = _PLACES[role][seen[role] % len(_PLACES[role])]
        placed = stem[:, None] * (_gains(place) if channels == 2 else np.ones(1, np.float32))
        dry += placed
        sent += np.float32(_SENDS[role]) * placed
    share, seconds = score.style.room
    mix = dry + np.float32(share) * _room(sent, seconds, sample_rate)
    return _trimmed(_mastered(_without_rumble(mix, sample_rate), sample_rate), sample_rate)


def _play(track: Track, length: int, sample_rate: int) -> Stem:
    """One track alone. Each pitch is taken from the font once, as long as its longest note, and the notes from that."""
    sound = INSTRUMENTS[track.instrument]
    drums = track.part.role == "drums"
    held: dict[int, float] = {}
    for note in track.notes:
        held[note.pitch] = max(held.get(note.pitch, 0.0), note.seconds)
    font, bank = soundfont(), DRUM_BANK if drums else 0
    samples = {
        pitch: font.note(bank, sound.program, pitch, _DRUM_SECONDS if drums else seconds + _RELEASE, sample_rate)
        for pitch, seconds in held.items()
    }
    stem = np.zeros(length, np.float32)
    for note in track.notes:
        sample, release = samples[note.pitch]
        start = round(note.start * sample_rate)
        if not drums:  # a drum rings as long as it likes
            sample = _released(sample, note.seconds, release, sound.decay, sample_rate)
        sample = sample[: length - start]
        stem[start : start + len(sample)] += np.float32((note.velocity / 100) ** 1.6) * sample
    return stem


def _released(sample: Stem, seconds: float, release: float, decay: float, sample_rate: int) -> Float32[np.ndarray, "m"]:
    """The beginning of a held note as one that ends after `seconds`."""
    release = min(max(release, 0.05), _RELEASE)
    end, stop = round(seconds * sample_rate), round((seconds + release) * sample_rate)
    sample = sample[:stop].copy()
    tail = np.arange(len(sample) - end, dtype=np.float32) / np.float32(release * sample_rate)
    sample[end:] *= 10 ** (-3 * tail) * (1 - tail)
    if decay:
        sample *= np.exp(-np.arange(len(sample), dtype=np.float32) / np.float32(decay * sample_rate))
    return sample


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


def _leveled(stem: Stem, decibels: float, sample_rate: int) -> Stem:
    """The stem at a level of `decibels` around a common one, measured where it plays."""
    size = sample_rate // 20
    energy = np.square(stem[: len(stem) // size * size]).reshape(-1, size).mean(axis=1)
    loud = energy[energy > 1e-3 * energy.max()]
    return stem * np.float32(0.1 * 10 ** (decibels / 20) / np.sqrt(loud.mean()))


def _gains(place: float) -> Float32[np.ndarray, "2"]:
    """Gains of the left and the right channel that keep the power."""
    angle = (place + 1) * np.pi / 4
    return (np.sqrt(2) * np.array([np.cos(angle), np.sin(angle)])).astype(np.float32)


def _room(sent: audio.Audio, seconds: float, sample_rate: int) -> audio.Audio:
    """The reverberation of what is sent into a room in which sound dies by 60 dB in `seconds`.

    The room is decaying noise, darker than white, a different one for each channel.
    """
    length = round(seconds * sample_rate)
    noise = np.random.default_rng(0).standard_normal((length, sent.shape[1])).astype(np.float32)
    time = np.arange(length, dtype=np.float32)[:, None] / np.float32(sample_rate)
    echo = noise * 10 ** (-3 * time / np.float32(seconds))
    echo = np.concatenate([np.zeros((round(0.012 * sample_rate), echo.shape[1]), np.float32), echo])
    size = _fourier_size(len(sent) + len(echo))
    hertz = np.fft.rfftfreq(size, 1 / sample_rate)[:, None].astype(np.float32)
    response = np.fft.rfft(echo, size, axis=0) / (1 + np.square(hertz / 4000))
    response *= np.square(hertz) / (np.square(hertz) + 150**2)
    power = np.square(np.fft.irfft(response, size, axis=0)).sum() / echo.shape[1]
    wet = np.fft.irfft(response * np.fft.rfft(sent, size, axis=0), size, axis=0)[: len(sent)]
    return (wet / np.sqrt(power)).astype(np.float32)


def _without_rumble(mix: audio.Audio, sample_rate: int) -> audio.Audio:
    """The mix without what lies below hearing: some samples of the font are not centred on zero."""
    size = _fourier_size(len(mix))
    hertz = np.fft.rfftfreq(size, 1 / sample_rate)[:, None].astype(np.float32)
    kept = np.square(hertz) / (np.square(hertz) + 20**2)
    return np.fft.irfft(kept * np.fft.rfft(mix, size, axis=0), size, axis=0)[: len(mix)].astype(np.float32)


def _fourier_size(length: int) -> int:
    """The next length that factorises well."""
    return -(-length // 65536) * 65536


def _mastered(mix: audio.Audio, sample_rate: int) -> audio.Audio:
    """The mix at the loudness wanted; what would pass `PEAK` is turned down, some milliseconds before it comes."""
    headroom = 24.0  # `normalize_loudness` clips at 1: nothing should come near that there
    quiet = audio.normalize_loudness(mix / np.abs(mix).max(), sample_rate, LOUDNESS - headroom)
    loud = quiet * np.float32(10 ** (headroom / 20))
    size = sample_rate // 200
    blocks = -(-len(loud) // size)
    peaks = np.zeros(blocks * size, np.float32)
    peaks[: len(loud)] = np.abs(loud).max(axis=1)
    needed = np.minimum(1.0, PEAK / np.maximum(peaks.reshape(blocks, size).max(axis=1), 1e-9))
    reach = 8  # blocks; the gain of a block is the least of those around, so that its smoothed curve is never above
    around = np.pad(needed, 2 * reach, constant_values=1.0)
    least = np.lib.stride_tricks.sliding_window_view(around, 2 * reach + 1).min(axis=1)
    window = np.hanning(2 * reach + 1)[1:-1]
    smooth = np.convolve(least, window / window.sum(), "same")[reach:-reach]
    gain = np.interp(np.arange(len(loud)), (np.arange(blocks) + 0.5) * size, smooth)
    return np.clip(loud * gain[:, None].astype(np.float32), -PEAK, PEAK)


def _trimmed(sound: audio.Audio, sample_rate: int) -> Float32[np.ndarray, "m c"]:
    """The sound without the silence at its end, faded out over the last tenth of a second."""
    heard = np.flatnonzero(np.abs(sound).max(axis=1) > 3e-3)
    sound = sound[: heard[-1] + 1].copy()
    fade = min(len(sound), sample_rate // 10)
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    return sound
