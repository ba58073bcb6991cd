"""The model that comes with mgjax: it is there, small, free, and makes sound that is steered."""

import numpy as np
import pytest

import mgjax
from mgjax.checkpoints import hub


@pytest.fixture(scope="module")
def model():
    return mgjax.load("mini")


def test_it_is_small_and_free(model):
    files = {path.name: path.stat().st_size for path in hub.fetch("mini").iterdir()}
    assert {"config.json", "model.safetensors", "spiece.model", "MODEL_CARD.md"} <= files.keys()
    assert sum(files.values()) <= 32 * 2**20
    assert model.config.license == "Apache-2.0"
    assert model.dtype == "float32"
    assert model.sample_rate >= 24_000
    assert model.config.window_seconds >= 8
    assert mgjax.load_codec("mini").hash == model.codec.hash


def test_it_makes_sound_and_hears_text_and_melody(model):
    rate = model.sample_rate
    audio = model.generate("a slow waltz on accordion", seconds=1.0)
    assert audio.shape == (1, rate, 1)
    assert 0.01 < np.sqrt(np.mean(np.square(audio))) < 0.5
    codes = model.codec.encode(audio)
    tune = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    plain, text, melody = (
        np.asarray(model.logits(codes, **asked))
        for asked in ({"texts": None}, {"texts": "techno"}, {"texts": None, "melody": 0.3 * tune})
    )
    assert np.abs(text - plain).max() > 0.1
    assert np.abs(melody - plain).max() > 0.1
