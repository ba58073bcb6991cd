"""What the golden models are asked for: the same calls when the files were made and when they are tested."""

from __future__ import annotations

from typing import Any

import numpy as np

import mgjax

RATE = 8000  # hertz, of the tiny models
GREEDY = mgjax.Sampling(temperature=0.0, guidance=2.0)
WORDS = ("a", "slow", "waltz", "loud", "drums", "piano", "techno", "with")


def tune(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Notes of a quarter of a second, float32 [n]."""
    pitches = 220 * 2 ** (np.random.default_rng(seed).integers(0, 12, 40) / 12)
    time = np.arange(round(seconds * rate)) / rate
    notes = pitches[(4 * time).astype(int)]
    return (0.3 * np.sin(2 * np.pi * notes * time) + 0.1 * np.sin(6 * np.pi * notes * time)).astype(np.float32)


def of_text() -> dict[str, dict[str, Any]]:
    """Calls of `generate_codes` for a model that reads texts alone, and for each of its forms."""
    return {"greedy": dict(texts="slow waltz", seconds=1.0, sampling=GREEDY)}


def of_melody() -> dict[str, dict[str, Any]]:
    """For the stereo melody model in the form of transformers."""
    return {"greedy": dict(texts="loud drums", seconds=0.6, sampling=GREEDY, melody=tune(0.8))}


def of_conditions() -> dict[str, dict[str, Any]]:
    """For the model that follows everything. Six rows, each steered by something else, share one program."""

    def only(row: int, value: Any) -> list[Any]:
        return [value if i == row else None for i in range(6)]

    waltz = "a piano waltz"
    drawn = mgjax.Sampling(temperature=(1.2, 1.0, 0.8, 0.6), top_p=0.9, guidance=((0.0, 1.5), (0.6, 3.0)))
    return {
        "rows": dict(
            texts=[waltz, [(0.0, waltz), (0.3, "loud drums")], waltz, waltz, waltz, waltz],
            seconds=0.8,
            sampling=GREEDY,
            blend=0.1,
            negative=only(2, "drums"),
            melody=only(3, tune(1.0)),
            style=only(4, tune(1.0, seed=1)),
            labels=only(5, {"genre": "polka", "bpm": 180}),
        ),
        "all at once": dict(
            texts="loud drums",
            seconds=0.6,
            seed=11,
            sampling=mgjax.Sampling(temperature=0.0, guidance=2.0, text_guidance=1.5),
            melody=tune(1.0, 4000),
            melody_sample_rate=4000,
            style=tune(1.5, 4000, seed=1),
            style_sample_rate=4000,
            labels={"genre": "waltz", "bpm": 90},
        ),
        "windows": dict(
            texts="slow waltz", seconds=1.5, seed=5, window=0.8, stride=0.3, sampling=mgjax.Sampling(top_k=5)
        ),
        "audio prompt": dict(
            texts="slow waltz", seconds=0.8, seed=7, sampling=drawn, prompt=tune(0.3, 16_000), prompt_sample_rate=16_000
        ),
    }


def of_logits() -> dict[str, Any]:
    """What it is asked to score by, beside codes and a text."""
    return {"melody": tune(1.0), "style": tune(1.0, seed=1), "labels": {"genre": "waltz", "bpm": 90}}


def streamed() -> dict[str, Any]:
    """A call of `stream` for the model of texts, in several pieces."""
    return dict(texts="loud drums", seconds=2.5, seed=4, sampling=mgjax.Sampling(top_k=8))


def of_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """What `mgjax generate --again` makes of a recipe, as far as that of the golden one goes."""
    sampling = {name: tuple(value) if isinstance(value, list) else value for name, value in recipe["sampling"].items()}
    return dict(
        texts=[[(0.0, recipe["prompt"]), *map(tuple, recipe["then"])]],
        seconds=recipe["seconds"],
        seed=[recipe["seed"]],
        negative=recipe["negative"],
        blend=recipe["blend"],
        sampling=mgjax.Sampling(**sampling),
    )


def of_mini() -> dict[str, Any]:
    """Rows: greedy, drawn as the model's own default from three seeds, and greedy along a melody."""
    default = mgjax.load("mini").config.sampling
    greedy = mgjax.Sampling(temperature=0.0, guidance=3.0)
    return dict(
        texts=["a slow waltz on accordion", *["driving techno with a deep bass"] * 3, "calm piano, rain"],
        seconds=2.0,
        seed=[0, 1, 2, 5, 0],
        sampling=[greedy, default, default, default, greedy],
        melody=[None, None, None, None, tune(2.0, 24_000)],
        melody_sample_rate=24_000,
    )
