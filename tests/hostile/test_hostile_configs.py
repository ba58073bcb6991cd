"""The settings of models: config.json and generation_config.json, in mgjax's form and in that of transformers."""

import json

import tiny_files
from fuzzing import Door

from mgjax.checkpoints import huggingface_config, sources
from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.native import write_codec
from mgjax.checkpoints.random_weights import random_variables
from mgjax.checkpoints.tables import matching, musicgen
from mgjax.codec import weight_norm


def write(folder):
    tiny_files.write(folder / "mgjax", "mgjax")
    tiny_files.write(folder / "steered", "mgjax", tiny_files.STEERED)
    tiny_files.write(folder / "transformers", "huggingface")
    codec = random_variables(tiny_files.MODEL, place=tiny_files.in_place)["codec"]
    write_codec(folder / "codec", tiny_files.CODEC, codec)
    config, variables = weight_norm.unfold(tiny_files.CODEC, codec)
    (folder / "encodec").mkdir()
    (folder / "encodec" / "config.json").write_text(json.dumps(huggingface_config.codec_values(config)))
    safetensors.write(folder / "encodec", matching.export(musicgen.huggingface_codec(config), variables))


def read(folder):
    if folder.name in ("codec", "encodec"):
        sources.read_codec(folder, place=tiny_files.in_place)
    else:
        tiny_files.read(folder)


DOOR = Door(write, read, ("*config.json",), cases=500)


def test_configs(endure):
    endure("configs")
