"""Notes of a soundfont, made once and kept for the pieces that follow."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import numpy as np

from mgjax.synthetic.soundfont import Sound, SoundFont

_SHORTEST = 0.5  # seconds; notes are made this long, or twice, four times, ... as long
_INAUDIBLE = 3e-5  # of a note's peak: what is left at its end below that is cut off


class Notes:
    """Notes by preset, pitch and length, at most so many bytes of them: those that were not asked for longest go.

    A note does not depend on what was asked for before: lengths are rounded up to one of a few.
    """

    def __init__(self, most_bytes: int):
        """Takes the bytes that it may keep."""
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple, Sound] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, font: SoundFont, bank: int, program: int, pitch: int, seconds: float, sample_rate: int, decay: float
    ) -> Sound:
        """A held note, read-only, of `seconds` or a little more; less where it has died before.

        Args:
          font: Plays it.
          bank: Of the preset.
          program: Of the preset.
          pitch: MIDI number.
          seconds: At least so much of it.
          sample_rate: In hertz.
          decay: Seconds in which it falls to a third, besides what the font says; 0 for not at all.

        Raises:
          ValueError: The font has no such preset.
        """
        length = _SHORTEST * 2 ** max(0, math.ceil(math.log2(seconds / _SHORTEST)))
        key = (font, bank, program, pitch, length, sample_rate, decay)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        sound = font.note(bank, program, pitch, length, sample_rate)
        if decay:
            sound *= np.exp(np.arange(len(sound), dtype=np.float32) * np.float32(-1 / (decay * sample_rate)))
        loud = np.abs(sound)
        heard = np.flatnonzero(loud > _INAUDIBLE * loud.max())
        sound = sound[: heard[-1] + 1 if len(heard) else 0].copy()
        sound.flags.writeable = False
        with self._lock:
            self._bytes += sound.nbytes - (self._kept[key].nbytes if key in self._kept else 0)
            self._kept[key] = sound
            while self._bytes > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return sound
