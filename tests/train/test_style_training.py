"""Training of a style by what a MERT hears: that it hears what it hears later, stays as it is, and is saved along."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import tiny_corpora
import torch
import transformers

import mgjax
from mgjax.audio.metadata import Metadata
from mgjax.checkpoints import sources
from mgjax.checkpoints.random_weights import DEBUG
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.hubert import match_hubert
from mgjax.codec.codec import Codec
from mgjax.conditioning import excerpts as styles
from mgjax.conditioning.hubert import Hubert
from mgjax.config.conditioning import HubertConfig, StyleConfig
from mgjax.config.model import Fused
from mgjax.config.serialization import ConfigError
from mgjax.data import corpus_writing
from mgjax.data.conditions import Dropout
from mgjax.data.description import Description, describe_audio
from mgjax.data.pipeline import DataConfig
from mgjax.train import conditions, lm
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig

RATE, HOP, SECONDS = 32_000, 640, 0.2  # of the music, of its codec, of an excerpt
STYLE = StyleConfig(
    features=HubertConfig(normalize=False), dim=8, ffn_dim=16, num_layers=1, num_heads=2, num_codebooks=2,
    codebook_size=8, eval_codebooks=2, downsample=40, seconds=SECONDS,
)  # fmt: skip
RUN = lm.LMRun(
    lm=dataclasses.replace(DEBUG.lm, num_layers=1, conditions=(Fused("style", 8, "prefix"),)),
    codec="debug",
    style=STYLE,
    dropout=Dropout(conditions=0.1, style=0.1),
    data=DataConfig(batch_size=8, segment_seconds=0.4, num_threads=0, prefetch=1),
    optim=OptimConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, average_every=1),
    loop=LoopConfig(steps=3, log_every=1, eval_every=0, show_every=0, save_every=100),
    scan_layers=False,
    prompts=(),
)


@pytest.fixture(scope="module")
def mert(tmp_path_factory):
    """A MERT of 24 kHz, random, as its directory; it asks for clips to be normalised, as the published one does."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, conv_dim=(8, 10, 12),
        conv_kernel=(10, 3, 2), conv_stride=(5, 4, 2), num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=6,
    )  # fmt: skip
    model = transformers.HubertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    directory = tmp_path_factory.mktemp("mert")
    model.save_pretrained(directory)
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(fields | {"model_type": "mert_model", "sample_rate": 24_000}))
    (directory / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return str(directory)


def music(seconds, seed):
    """A few tones that change every tenth of a second, with some hiss."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    steps = 220 * 2 ** (rng.integers(0, 24, int(10 * seconds) + 1)[(10 * times).astype(int)] / 12)
    hiss = scipy.signal.sosfilt(scipy.signal.butter(12, 8000, fs=RATE, output="sos"), rng.standard_normal(len(times)))
    return (0.4 * np.sin(2 * np.pi * np.cumsum(steps) / RATE) + 0.1 * hiss).astype(np.float32)[:, None]


def batch_of(rows=4):
    starts = np.array([0, 1000, 3333, 6400], np.int32)[:rows]
    return {
        "audio": np.stack([music(0.4, i) for i in range(rows)]),
        "num_samples": np.full(rows, 12_800, np.int32),
        "style_start": starts,
        "style_mask": np.arange(rows) != 1,
    }


def test_the_encoder_hears_in_training_what_it_hears_at_generation(mert):
    """The same seconds of the same mix, but for the filter that resamples; and no others."""
    config = lm.resolve(dataclasses.replace(RUN, style_encoder=mert))
    assert (config.style.features.sample_rate, config.style.features.normalize) == (24_000, False)
    features, weights = matching.read(match_hubert(Path(mert)))
    assert features.normalize
    batch = batch_of()
    batch["audio"] = np.concatenate([batch["audio"], batch["audio"][:, ::-1]], axis=2)  # of two channels
    starts = batch["style_start"] // HOP * HOP  # as `excerpt_mask` has them: in whole frames of the codec
    # Softly in and out, since two filters ring differently where a sound is cut.
    batch["audio"] *= np.sin(np.pi * (np.arange(12_800) - starts[:, None]) / 6400)[..., None] ** 2
    hear = jax.jit(lambda batch: conditions.excerpt_features(config, config.style, weights, batch))
    found = np.asarray(hear(batch))

    cuts = [row[start : start + 6400] for row, start in zip(batch["audio"], starts, strict=True)]
    excerpts = styles.prepare(cuts, RATE, [0] * 4, config)
    expected = np.asarray(jax.jit(Hubert(config.style.features).apply)({"params": weights}, np.stack(excerpts)))
    assert found.shape == expected.shape == (4, 120, 16)
    error = np.abs(found - expected)
    assert np.std(expected) > 0.5
    assert error.max() < 2e-3, error.max()  # measured 3.9e-4
    assert np.abs(expected - np.roll(expected, 1, axis=0)).max() > 0.5

    outside = (np.arange(12_800) < starts[:, None]) | (np.arange(12_800) >= starts[:, None] + 6400)
    changed = batch | {"audio": np.where(outside[..., None], np.float32(0), batch["audio"])}
    np.testing.assert_array_equal(hear(changed), found)
    given_away = np.repeat(
        np.asarray(conditions.excerpt_mask(config, jax.tree.map(jnp.asarray, batch), 20)), HOP, axis=1
    )
    np.testing.assert_array_equal(given_away, ~outside & batch["style_mask"][:, None])


def test_the_style_learns_and_its_encoder_does_not(mert):
    start = lm.pretrained(dataclasses.replace(RUN, style_encoder=mert))
    model, batch = start.config, jax.tree.map(jnp.asarray, batch_of())
    params, extra = jax.jit(lambda key: conditions.initial(model, None, key))(jax.random.key(0))
    assert set(params) == {"style"}

    def loss(params, features):
        pieces = conditions.conditioning_inputs(
            model, {"features": features}, batch, jnp.zeros((4, 20, 4), jnp.int32), 1
        )
        told, moved = conditions.conditions(model, params, pieces, extra, jax.random.key(1))
        return jnp.sum(told["style"].tokens ** 3), (told["style"], moved)

    found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, start.variables["style"]["features"])
    gradients, (told, moved) = found
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert np.abs(leaf).max() > 1e-6, path
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[1]))
    assert np.all(moved["style"]["codebooks"]["inited"])
    assert np.abs(moved["style"]["batch_stats"]["mean"]).max() > 1e-3
    assert told.tokens.shape == (4, 3, 8)  # 120 frames, every 40th
    np.testing.assert_array_equal(told.mask, np.repeat(batch["style_mask"][:, None], 3, axis=1))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    pieces = [corpus_writing.Piece(f"tune {i}", Metadata(), [music(1.0 + 0.1 * i, i)]) for i in range(8)]
    directory = tmp_path_factory.mktemp("tunes") / "sound"
    tiny_corpora.write(directory, describe_audio(RATE, 1), {"train": pieces, "valid": pieces[:2]})
    return str(directory)


@pytest.mark.usefixtures("one_device")
def test_a_run_saves_a_whole_model_that_follows_a_style(mert, sound, tmp_path):
    config = dataclasses.replace(RUN, style_encoder=mert, data=dataclasses.replace(RUN.data, corpora=(sound,)))
    state = lm.run(config, tmp_path)
    assert set(state.params) == {"lm", "style"}
    assert np.abs(state.params["style"]["encoder"]["layer0"]["attn_norm"]["scale"] - 1).max() > 1e-3  # 1 at first
    lines = [json.loads(line)["values"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)

    model = mgjax.load(tmp_path / "model")
    saved = model._params["style"]
    assert jax.tree.all(jax.tree.map(np.array_equal, saved["features"], matching.read(match_hubert(Path(mert)))[1]))

    def logits(style):
        told = {"style": style, "style_sample_rate": RATE}
        return np.asarray(model.logits(np.zeros((1, 10, 4), np.int32), None, **told))

    assert np.abs(logits(music(0.4, 3)) - logits(music(0.4, 4))).max() > 1e-3
    made = model.generate(None, seconds=0.2, style=music(0.4, 3), style_sample_rate=RATE)
    assert made.shape == (1, 6400, 1)

    again = lm.pretrained(
        dataclasses.replace(config, init=str(tmp_path / "model"), lm=None, codec=None, style=None, style_encoder=None)
    )
    assert again.config == model.config
    assert jax.tree.all(jax.tree.map(np.array_equal, again.variables["style"]["features"], saved["features"]))
    assert set(again.variables["style"]) == {"features", "params", "batch_stats", "codebooks"}


CODES = StyleConfig(features=None, num_code_streams=2, code_size=64, dim=8, num_heads=2, seconds=SECONDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style_encoder": None}, "set style_encoder, to m-a-p/MERT-v1-95M"),
        ({"style": CODES}, "style_encoder encodes the excerpts of a style with features"),
        ({"style": dataclasses.replace(STYLE, seconds=0.001)}, "style.seconds must be longer, got 0.001"),
        ({"style": dataclasses.replace(STYLE, seconds=0.4)}, "style.seconds must be below the 0.4 s"),
        ({"optim": OptimConfig(accumulate=2)}, "set optim.accumulate to 1"),
        ({"init": "debug", "lm": None, "style": None}, "comes whole: leave style_encoder out"),
    ],
)
def test_styles_that_cannot_be_trained_are_refused(mert, changes, message):
    with pytest.raises(ConfigError, match=message):
        lm.resolve(dataclasses.replace(RUN, **{"style_encoder": mert} | changes))


def test_an_encoder_does_not_hear_codes(mert, tmp_path):
    description = Description(
        "tokens", RATE, 1, frame_rate=50.0, num_codebooks=4, codebook_size=64,
        codec_hash=Codec(*sources.read_codec("debug")).hash,
    )  # fmt: skip
    piece = corpus_writing.Piece("noise", Metadata(), np.zeros((50, 4), np.int32))
    tiny_corpora.write(tmp_path / "codes", description, {"train": [piece], "valid": [piece]})
    data = dataclasses.replace(RUN.data, corpora=(str(tmp_path / "codes"),))
    with pytest.raises(ConfigError, match="train on a corpus of sound"):
        lm.run(dataclasses.replace(RUN, style_encoder=mert, data=data), tmp_path)
