"""A cache of rendered notes of a soundfont."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

import numpy as np

from mgjax.synthetic.soundfont import Sound, SoundFont

_SHORTEST = 0.5  # seconds; notes are rendered this long, or twice, four times, ... as long
_INAUDIBLE = 3e-5  # of a note's peak; its end below that is cut off


class Notes:
    """A least-recently-used cache of notes by preset, pitch and length.

    Lengths are rounded up to one of a few, so that a note does not depend on earlier calls.

    Args:
      most_bytes: Limit of the size of the cached notes.
    """

    def __init__(self, most_bytes: int):
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[object, ...], Sound] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, font: SoundFont, bank: int, program: int, pitch: int, seconds: float, sample_rate: int, decay: float
    ) -> Sound:
        """A held note as a read-only array, of `seconds` or more; less if it dies away before.

        Args:
          font: The soundfont.
          bank: Bank of the preset.
          program: Program of the preset.
          pitch: MIDI number.
          seconds: The least length.
          sample_rate: In hertz.
          decay: Time constant in seconds of an additional decay; 0 for none.

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
        level = np.abs(sound)
        audible = np.flatnonzero(level > _INAUDIBLE * level.max())
        sound = sound[: audible[-1] + 1 if len(audible) else 0].copy()
        sound.flags.writeable = False
        with self._lock:
            self._bytes += sound.nbytes - (self._kept[key].nbytes if key in self._kept else 0)
            self._kept[key] = sound
            while self._bytes > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return sound
