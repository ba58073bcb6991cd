"""The settings of models: config.json and generation_config.json, in mgjax's form and in that of transformers."""

import tiny_files
from fuzzing import Door

from mgjax.checkpoints import huggingface, sources
from mgjax.checkpoints.native import write_codec
from mgjax.checkpoints.random_weights import random_variables


def write(folder):
    tiny_files.write(folder / "mgjax", "mgjax")
    tiny_files.write(folder / "steered", "mgjax", tiny_files.STEERED)
    tiny_files.write(folder / "transformers", "huggingface")
    codec = random_variables(tiny_files.MODEL, place=tiny_files.in_place)["codec"]
    write_codec(folder / "codec", tiny_files.CODEC, codec)
    huggingface.write_codec(folder / "encodec", tiny_files.CODEC, codec)


def read(folder):
    if folder.name in ("codec", "encodec"):
        sources.read_codec(folder, place=tiny_files.in_place)
    else:
        tiny_files.read(folder)


DOOR = Door(write, read, ("*config.json",), cases=500)


def test_configs(endure):
    endure("configs")
