"""The encoders of conditions that lie in folders of their own, as transformers writes them: T5, CLAP and HuBERT."""

import tiny_files
from fuzzing import Door

from mgjax.checkpoints import huggingface
from mgjax.checkpoints.tables import clap, hubert, matching


def write(folder):
    tiny_files.write(folder / "t5", "huggingface")
    tiny_files.write_clap(folder / "clap")
    tiny_files.write_hubert(folder / "hubert")


def read(folder):
    finders = {"t5": huggingface.match_text_encoder, "clap": clap.match_clap, "hubert": hubert.match_hubert}
    matching.read(finders[folder.name](folder), place=tiny_files.in_place)


DOOR = Door(write, read, ("*config.json",))


def test_encoders(endure):
    endure("encoders")
