"""What tests of training share."""

import jax
import numpy as np
import pytest
import tiny_corpora

import mgjax
from mgjax.audio.metadata import Metadata
from mgjax.data import corpus_writing
from mgjax.data.corpus import Description
from mgjax.devices import sharding
from mgjax.train.task import MeshConfig


@pytest.fixture
def one_device(monkeypatch):
    """Has runs of language models use one of the devices, for which programs are compiled in half the time."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(MeshConfig, "make", lambda config: mesh)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Pieces in which each frame follows from the one before: every code is 3 more, from any first frame."""
    rng = np.random.default_rng(0)
    description = Description(
        kind="tokens", sample_rate=32_000, channels=1, frame_rate=50.0, num_codebooks=4, codebook_size=64,
        codec_source="debug", codec_hash=mgjax.load_codec("debug").hash,
    )  # fmt: skip

    def pieces(count):
        for i in range(count):
            content = (rng.integers(0, 64, 4) + 3 * np.arange(60)[:, None]) % 64
            yield corpus_writing.Piece(f"piece {i}", Metadata(description="a scale"), content.astype(np.uint16))

    directory = tmp_path_factory.mktemp("corpus") / "scales"
    tiny_corpora.write(directory, description, {"train": list(pieces(24)), "valid": list(pieces(8))})
    return directory
