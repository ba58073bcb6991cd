"""Sound files of every kind, asked what they are, read, and read in blocks at another rate."""

import damage
import numpy as np
import soundfile
from fuzzing import Door

from mgjax.audio import files as audio_files

KINDS = {
    "wav": ("WAV", "PCM_16"), "adpcm.wav": ("WAV", "IMA_ADPCM"), "flac": ("FLAC", "PCM_24"), "ogg": ("OGG", "VORBIS"),
    "opus.ogg": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "FLOAT"),
    "caf": ("CAF", "ALAC_16"), "w64": ("W64", "PCM_16"), "rf64": ("RF64", "PCM_16"),
}  # fmt: skip


def write(folder):
    sound = 0.3 * np.random.default_rng(0).standard_normal((2000, 1), np.float32).clip(-3, 3)
    for suffix, (container, coding) in KINDS.items():
        (folder / suffix).mkdir()
        path = folder / suffix / f"song.{suffix}"
        soundfile.write(path, sound, 8000, coding, format=container)
        if container == "OGG":  # the number of its stream is drawn at random
            pages = damage.ogg_pages(path.read_bytes())
            path.write_bytes(b"".join(damage.with_checksum(page[:14] + bytes(4) + page[18:]) for page in pages))


def read(folder):
    path = folder / f"song.{folder.name}"
    audio_files.info(path)
    audio_files.read(path, start_seconds=0.01, seconds=0.05)
    for _ in audio_files.blocks(path, 0.1, 4000, 1):
        pass


DOOR = Door(write, read, cases=500)


def test_sounds(endure):
    endure("sounds")
