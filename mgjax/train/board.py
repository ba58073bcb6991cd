"""Writes TensorBoard's event files, with curves, sounds and their spectrograms, without TensorFlow."""

from __future__ import annotations

import io
import pathlib
import tempfile
import threading
import time
from collections.abc import Mapping

import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mgjax.inputs import files
from mgjax.storage.paths import Path
from mgjax.train.metrics import Sound

_WINDOW = 2048  # samples
_HEIGHT, _WIDTH = 256, 1024  # pixels; a short sound has a pixel for each frame
_DECIBELS = 80.0  # of dynamic range, from the maximum to black
_COLORS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], np.float32)


class Board:
    """The curves and sounds of a run in a folder for `tensorboard --logdir`, going on after the training step `step`.

    Event files of earlier processes are continued; TensorBoard drops what they wrote about later steps. To a bucket,
    `sync` and `close` write them, each time a new one.
    """

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self._writer: EventFileWriter | None = None
        self._lock = threading.Lock()
        is_remote = not isinstance(folder, pathlib.Path)
        self._local = tempfile.TemporaryDirectory(prefix="mgjax-") if is_remote else None
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve, by name."""
        self._add_values(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def sounds(self, step: int, sounds: Mapping[str, Sound]) -> None:
        """Adds sounds and their spectrograms, by name."""
        values = []
        for name, sound in sounds.items():
            audio = np.asarray(sound.audio, np.float32)
            values.append(Summary.Value(tag=name, audio=_wav(audio, sound.sample_rate)))
            values.append(Summary.Value(tag=f"{name}/spectrogram", image=_png(spectrogram(audio, sound.sample_rate))))
        self._add_values(step, values)

    def sync(self) -> None:
        """Writes what was added so far to a bucket, as an event file of its own; on a disk, that happens by itself."""
        if self._local is not None:
            self._end_file()

    def close(self) -> None:
        """Flushes and closes the event file."""
        try:
            self._end_file()
        finally:
            if self._local is not None:
                self._local.cleanup()

    def _end_file(self) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            if self._local is not None:
                for file in sorted(pathlib.Path(self._local.name).iterdir()):
                    with files.replacing(self._folder / file.name) as copy:
                        copy.write(file.read_bytes())
                    file.unlink()

    def _add_values(self, step: int, values: list[Summary.Value]) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        with self._lock:
            if self._writer is None:
                self._writer = EventFileWriter(
                    str(self._folder if self._local is None else self._local.name), flush_secs=10
                )
            self._writer.add_event(event)


def spectrogram(audio: Float[np.ndarray, "n c"], sample_rate: int) -> UInt8[np.ndarray, "y x 3"]:
    """A spectrogram as an RGB image, with a logarithmic frequency axis from 40 Hz upwards."""
    mono = np.mean(audio, axis=1)
    mono = np.pad(mono, (_WINDOW // 2, _WINDOW))
    starts = np.arange(0, len(audio) + 1, max(_WINDOW // 4, -(-len(audio) // _WIDTH)))[:_WIDTH]
    frames = mono[starts[:, None] + np.arange(_WINDOW)[None]] * np.hanning(_WINDOW)[None].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames)))
    hertz = np.geomspace(sample_rate / 2, 40.0, _HEIGHT)
    power = power[:, np.rint(hertz * _WINDOW / sample_rate).astype(int)].T
    decibels = 10 * np.log10(np.maximum(power, 1e-20) / max(float(power.max()), 1e-10))
    level = np.clip(1 + decibels / _DECIBELS, 0, 1) * (len(_COLORS) - 1)
    colors = [np.interp(level, np.arange(len(_COLORS)), _COLORS[:, channel]) for channel in range(3)]
    return np.stack(colors, axis=-1).astype(np.uint8)


def _wav(audio: Float[np.ndarray, "n c"], sample_rate: int) -> Summary.Audio:
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1), sample_rate, format="WAV", subtype="PCM_16")
    return Summary.Audio(
        sample_rate=sample_rate,
        num_channels=audio.shape[1],
        length_frames=audio.shape[0],
        encoded_audio_string=file.getvalue(),
        content_type="audio/wav",
    )


def _png(image: UInt8[np.ndarray, "y x 3"]) -> Summary.Image:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    height, width, _ = image.shape
    return Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
