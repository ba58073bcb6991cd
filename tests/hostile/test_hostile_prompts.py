"""Files of prompts, a text or a JSON object a line, and the recipes that lie beside sounds."""

import dataclasses
import json

from fuzzing import Door

from mgjax import Sampling
from mgjax.cli.recipe import Recipe, read_lines, read_recipe

LINES = [
    {"prompt": "calm piano, rain", "seconds": 8.0, "seed": 3, "name": "one", "labels": {"genre": "waltz", "bpm": 120}},
    {"text": "polka", "then": [[4.0, "a march"]], "negative": "drums", "melody": "a.wav", "id": 7},
    {"description": "fanfare", "style": "b.wav", "labels": {"moods": ["calm", "dark"]}},
]
RECIPE = Recipe("calm piano", 8.0, 3, "mini", Sampling(guidance=((0.0, 3.0), (4.0, 1.0))), then=((4.0, "a march"),))


def write(folder):
    for name in ("texts", "lines", "recipe"):
        (folder / name).mkdir()
    (folder / "texts" / "prompts.txt").write_text("calm piano\n\na march\n")
    (folder / "lines" / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    labels = {"genre": "waltz", "bpm": 120.0}
    (folder / "recipe" / "song.json").write_text(json.dumps(dataclasses.asdict(RECIPE) | {"labels": labels}))


def read(folder):
    path = next(folder.glob("*.*"), folder / "song.json")
    (read_recipe if folder.name == "recipe" else read_lines)(path)


DOOR = Door(write, read)


def test_prompts(endure):
    endure("prompts")
