"""Reads a SoundFont 2 file and renders single notes of it.

It implements the part of the specification (2.04) for a note that is held at one pitch: zones with their generators
(section 8), loops, tuning, attenuation, the volume envelope, and the low-pass filter with its modulation envelope.
Modulators, low frequency oscillators, velocity zones and generators of presets are left out, which the font in use does
not have. The left and right samples of a stereo sound are mixed.

No library does: symusic 0.5.9 renders this font out of tune (the organ's A at 352 Hz, the nylon guitar's at 1231 Hz)
and 0.6.0 not at all; others need a sound server or a compiler.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from scipy import fft

Sound = Float32[np.ndarray, "n"]

DRUM_BANK = 128

# Generators: their numbers in section 8.1.2, and their defaults.
_DEFAULTS = {
    "start_loop_offset": (2, 0),
    "end_loop_offset": (3, 0),
    "cutoff": (8, 13500),
    "resonance": (9, 0),
    "envelope_to_cutoff": (11, 0),
    "filter_attack": (26, -12000),
    "filter_hold": (27, -12000),
    "filter_decay": (28, -12000),
    "filter_sustain": (29, 0),
    "start_loop_coarse": (45, 0),
    "end_loop_coarse": (50, 0),
    "attack": (34, -12000),
    "hold": (35, -12000),
    "decay": (36, -12000),
    "sustain": (37, 0),
    "release": (38, -12000),
    "key_to_hold": (39, 0),
    "key_to_decay": (40, 0),
    "attenuation": (48, 0),
    "coarse_tune": (51, 0),
    "fine_tune": (52, 0),
    "loops": (54, 0),
    "scale_tuning": (56, 100),
    "root_key": (58, -1),
}
_LOWEST_HERTZ = 8.176  # 0 absolute cents
_RINGING = 2048  # samples of a filter's impulse response
_OPEN = 0.62  # of the sample rate; a filter with a cutoff at or above it has next to no effect

_KEYS, _INSTRUMENT, _SAMPLE = 43, 41, 53

_HEADERS = {
    "phdr": [("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("rest", "V12")],
    "pbag": [("generator", "<u2"), ("modulator", "<u2")],
    "pgen": [("operator", "<u2"), ("amount", "<i2")],
    "inst": [("name", "S20"), ("bag", "<u2")],
    "ibag": [("generator", "<u2"), ("modulator", "<u2")],
    "igen": [("operator", "<u2"), ("amount", "<i2")],
    "shdr": [
        *[("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("start_loop", "<u4"), ("end_loop", "<u4")],
        *[("rate", "<u4"), ("pitch", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")],
    ],
}


@dataclass(frozen=True)
class Zone:
    """A zone of a preset: the lowest and highest key, the index of its sample, and its generators by name."""

    keys: tuple[int, int]
    sample: int
    generators: dict[str, int]


class SoundFont:
    """A SoundFont 2 file.

    Args:
      path: The file.

    Raises:
      ValueError: It is not a SoundFont.
      OSError: It cannot be read.
    """

    def __init__(self, path: Path):
        chunks = _chunks(path.read_bytes(), path)
        self._sound = np.frombuffer(chunks["smpl"], "<i2")
        self._tables = {name: np.frombuffer(chunks[name], dtype) for name, dtype in _HEADERS.items()}
        presets = self._tables["phdr"][:-1]
        self._presets = {(int(p["bank"]), int(p["program"])): i for i, p in enumerate(presets)}

    @functools.cache  # noqa: B019 - a font lives as long as its process
    def zones(self, bank: int, program: int) -> tuple[Zone, ...]:
        """The zones of a preset.

        Raises:
          ValueError: The font has no such preset.
        """
        if (bank, program) not in self._presets:
            raise ValueError(f"the soundfont has no program {program} in bank {bank}")
        zones = []
        for layer in self._generators("phdr", "pbag", "pgen", self._presets[bank, program], _INSTRUMENT):
            for amounts in self._generators("inst", "ibag", "igen", layer[_INSTRUMENT], _SAMPLE):
                keys = amounts.get(_KEYS, 127 << 8) & 0xFFFF  # two bytes: the lowest and the highest
                generators = {name: amounts.get(number, default) for name, (number, default) in _DEFAULTS.items()}
                zones.append(Zone((keys & 0xFF, keys >> 8), amounts[_SAMPLE], generators))
        return tuple(zones)

    def note(self, bank: int, program: int, pitch: int, seconds: float, sample_rate: int) -> Sound:
        """Renders a note while its key is held, at most `seconds` of it.

        Raises:
          ValueError: The font has no such preset.
        """
        sounds = [self._play(zone, pitch, seconds, sample_rate) for zone in self._zones_of(bank, program, pitch)]
        mixed = np.zeros(max(map(len, sounds)), np.float32)
        for sound in sounds:
            mixed[: len(sound)] += sound
        return mixed

    def release(self, bank: int, program: int, pitch: int) -> float:
        """Seconds in which a note decays by 100 dB after its key is released.

        Raises:
          ValueError: The font has no such preset.
        """
        return max(_time(zone.generators["release"]) for zone in self._zones_of(bank, program, pitch))

    def _zones_of(self, bank: int, program: int, pitch: int) -> list[Zone]:
        """The zones of a key, or the nearest ones if it has none."""
        zones = self.zones(bank, program)
        distances = [max(zone.keys[0] - pitch, pitch - zone.keys[1], 0) for zone in zones]
        return [zone for zone, distance in zip(zones, distances, strict=True) if distance == min(distances)]

    def _play(self, zone: Zone, pitch: int, seconds: float, sample_rate: int) -> Sound:
        """The contribution of a zone to a note."""
        import soxr

        generators = zone.generators
        header = self._tables["shdr"][zone.sample]
        root = generators["root_key"] if generators["root_key"] >= 0 else int(header["pitch"])
        cents = (pitch - root) * generators["scale_tuning"] + 100 * generators["coarse_tune"]
        cents += generators["fine_tune"] + int(header["correction"])
        rate = int(header["rate"]) * 2 ** (cents / 1200)  # the rate at which the sample has this pitch
        recorded = self._looped(header, generators, round(seconds * rate) + 1)
        sound = soxr.resample(recorded, rate, sample_rate, quality="HQ")
        sound = sound[: round(seconds * sample_rate)]
        sound = _filtered(sound, generators, sample_rate)
        # Fonts are made for the first synthesizers, which applied 0.4 of the attenuation.
        gain = 10 ** (-0.4 * generators["attenuation"] / 200)
        return sound * _envelope(generators, pitch, len(sound), sample_rate) * np.float32(gain)

    def _looped(self, header: Any, generators: dict[str, int], length: int) -> Sound:
        """The sample, with its loop repeated up to `length`."""
        first, last = int(header["start"]), int(header["end"])
        if generators["loops"] not in (1, 3):
            return self._sound[first : min(last, first + length)].astype(np.float32) / 32768
        start = int(header["start_loop"]) + generators["start_loop_offset"] + 32768 * generators["start_loop_coarse"]
        end = int(header["end_loop"]) + generators["end_loop_offset"] + 32768 * generators["end_loop_coarse"]
        if first + length <= end:
            return self._sound[first : first + length].astype(np.float32) / 32768
        repeats = -(-(length - (end - first)) // max(end - start, 1))
        loop = self._sound[start : max(end, start + 1)]
        return np.concatenate([self._sound[first:end], np.tile(loop, repeats)])[:length].astype(np.float32) / 32768

    def _generators(self, heads: str, bags: str, generators: str, index: int, final: int) -> list[dict[int, int]]:
        """The generators of each zone of a preset or an instrument, including those of its global zone."""
        head, bag, generator = self._tables[heads], self._tables[bags], self._tables[generators]
        global_amounts: dict[int, int] = {}
        zones = []
        for zone in range(int(head["bag"][index]), int(head["bag"][index + 1])):
            rows = generator[int(bag["generator"][zone]) : int(bag["generator"][zone + 1])]
            amounts = {int(operator): int(amount) for operator, amount in rows}
            if final in amounts:
                zones.append(global_amounts | amounts)
            elif not zones:
                global_amounts = amounts
        return zones


def _chunks(data: bytes, path: Path) -> dict[str, bytes]:
    """The chunks of a RIFF file by name, with lists flattened."""
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise ValueError(f"{path}: is no SoundFont file")
    chunks, position = {}, 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        if name == b"LIST":
            position += 12
            continue
        chunks[name.decode("ascii")] = data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    return chunks


def _time(timecents: float) -> float:
    """Timecents in seconds."""
    return 2.0 ** (timecents / 1200)


def _envelope(generators: dict[str, int], pitch: int, length: int, sample_rate: int) -> Sound:
    """The volume envelope of a held key: a linear attack, a hold, a decay that is linear in decibels, sustained."""
    attack = _time(generators["attack"])
    hold = _time(generators["hold"] + generators["key_to_hold"] * (60 - pitch))
    decay = _time(generators["decay"] + generators["key_to_decay"] * (60 - pitch))
    sustain = min(max(generators["sustain"], 0), 1000) / 10  # decibels below full
    time = np.arange(length, dtype=np.float32) / np.float32(sample_rate)
    fall = np.clip(np.float32(100 / decay) * (time - np.float32(attack + hold)), 0, np.float32(sustain))
    return np.minimum(time / np.float32(attack), 1) * np.exp(fall * np.float32(-np.log(10) / 20))


def _filtered(sound: Sound, generators: dict[str, int], sample_rate: int) -> Sound:
    """The sound through a low-pass filter of 12 dB per octave, whose cutoff follows the modulation envelope.

    The moving filter is a crossfade between static ones, at most an octave apart.
    """
    attack, hold, decay = (_time(generators[f"filter_{name}"]) for name in ("attack", "hold", "decay"))
    highest = 1200 * np.log2(_OPEN * sample_rate / _LOWEST_HERTZ)
    if min(generators["cutoff"], generators["cutoff"] + generators["envelope_to_cutoff"]) >= highest:
        return sound
    time = np.arange(len(sound), dtype=np.float32) / np.float32(sample_rate)
    rise = np.minimum(time / np.float32(attack), 1)
    fall = np.clip((time - np.float32(attack + hold)) / np.float32(decay), 0, generators["filter_sustain"] / 1000)
    cents = generators["cutoff"] + generators["envelope_to_cutoff"] * (rise - fall)
    cents = np.clip(cents, 1500, np.float32(highest))
    low, high = float(cents.min()), float(cents.max())
    cutoffs = np.linspace(low, high, 1 + int(np.ceil((high - low) / 1200)))
    position = (cents - np.float32(low)) * np.float32((len(cutoffs) - 1) / max(high - low, 1))
    mixed = np.zeros(len(sound), np.float32)
    for number, cutoff in enumerate(cutoffs):
        weight = np.maximum(1 - np.abs(position - np.float32(number)), 0)
        used = np.flatnonzero(weight > 0)
        if len(used):
            first, end = int(used[0]), int(used[-1]) + 1
            start = max(first - _RINGING, 0)
            static = _static_filter(sound[start:end], float(cutoff), generators["resonance"], sample_rate)
            mixed[first:end] += weight[first:end] * static[first - start :]
    return mixed


def _static_filter(sound: Sound, cutoff: float, resonance: int, sample_rate: int) -> Sound:
    """A low-pass filter of 12 dB per octave at `cutoff` cents, with a `resonance` in tenths of a decibel."""
    size = fft.next_fast_len(len(sound) + _RINGING, real=True)
    hertz = _LOWEST_HERTZ * 2 ** (cutoff / 1200)
    ratio = np.arange(size // 2 + 1, dtype=np.float32) * np.float32(sample_rate / size / hertz)
    response = np.empty(len(ratio), np.complex64)
    response.real, response.imag = 1 - np.square(ratio), ratio * np.float32(10 ** (-resonance / 200) / np.sqrt(0.5))
    return fft.irfft(fft.rfft(sound, size) / response, size)[: len(sound)]
