"""Training of the codec: EnCodec against discriminators (Défossez et al. 2022), as MusicGen's codecs were trained."""

from mgjax.train.codec.config import PUBLISHED, CodecRun
from mgjax.train.codec.training import run, task

__all__ = ["PUBLISHED", "CodecRun", "run", "task"]
