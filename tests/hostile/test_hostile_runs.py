"""The xp.cfg in audiocraft's files: of language models that read text or text and a melody, and of codecs."""

import dataclasses

import tiny_files
import yaml
from fuzzing import Door

from mgjax.checkpoints import audiocraft, audiocraft_config, random_weights
from mgjax.checkpoints.files import torch_file
from mgjax.checkpoints.tables import matching, musicgen
from mgjax.config.conditioning import MelodyConfig
from mgjax.config.model import Fused

PREFIXES = (Fused("melody", 12, "prefix"), Fused("text", 6, "prefix"))
MODELS = {
    "text": tiny_files.MODEL,
    "melody": dataclasses.replace(
        tiny_files.MODEL, lm=dataclasses.replace(tiny_files.LM, conditions=PREFIXES), melody=MelodyConfig(num_frames=5)
    ),
}


def write(folder):
    for name, config in MODELS.items():
        tiny_files.write(folder / name / "t5", "huggingface")
        runs = {"state_dict": audiocraft_config.lm_run(config, "t5-tiny")}
        runs["compression_state_dict"] = audiocraft_config.codec_run(config.codec)
        for stem, run in runs.items():
            (folder / name / f"{stem}.cfg").write_text(yaml.safe_dump(run))


def read(folder):
    config = MODELS[folder.name]
    arrays = random_weights.random_variables(config, place=tiny_files.in_place)
    states = {"state_dict": matching.export(musicgen.audiocraft(config), arrays)}
    states["compression_state_dict"] = matching.export(musicgen.audiocraft_codec(config.codec), arrays["codec"])
    for stem, state in states.items():
        path = folder / f"{stem}.cfg"
        text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
        torch_file.write(folder / f"{stem}.bin", {"best_state": state, "xp.cfg": text})
    audiocraft.read_config(folder, fetch=lambda name: folder / "t5")
    audiocraft.read_model(folder, place=tiny_files.in_place, fetch=lambda name: folder / "t5")


DOOR = Door(write, read, ("*.cfg",))


def test_runs(endure):
    endure("runs")
