"""CLAP directories of transformers: read with the numbers of ClapModel, or refused with one clear error."""

import functools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_clap import clap, clap_config, extractor, save
from tiny_transformers import as_numpy, assert_same, edit_json, rename_keys

from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.tables import clap as clap_table
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.clap import match_clap
from mgjax.conditioning.clap import ClapAudio, ClapText, embed_audio
from mgjax.conditioning.clap_features import log_mel
from mgjax.config.conditioning import ClapAudioConfig, ClapConfig


@pytest.fixture(scope="module")
def model():
    return clap()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The directory of `model`; a test that changes it writes it anew (`again`)."""
    return save(model, tmp_path_factory.mktemp("clap"))


@pytest.fixture
def again(model, tmp_path):
    return save(model, tmp_path)


def sizes(tree):
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


@functools.partial(jax.jit, static_argnums=0)
def embed_texts(config, variables, ids, mask):
    return ClapText(config).apply(variables["text"], ids, mask)


@functools.partial(jax.jit, static_argnums=0)
def embed_mels(config, variables, mels):
    return ClapAudio(config).apply(variables["audio"], mels)


def text_batch():
    ids = np.random.default_rng(0).integers(3, 400, (3, 77)).astype(np.int32)
    mask = np.arange(77)[None] < np.array([77, 5, 30])[:, None]
    return np.where(mask, ids, 1), mask


def spectrograms(frames, num_mels=24):
    """Smooth and rough ones, so that the clips of a batch differ."""
    time, band = np.arange(frames)[:, None] / frames, np.arange(num_mels)[None] / num_mels
    noise = np.random.default_rng(0).standard_normal((3, frames, num_mels))
    rows = zip(((1, 2, 6), (5, 0.3, 20), (20, 6, 2)), noise, strict=True)
    return np.float32([20 * np.sin(2 * np.pi * (a * time + b * band)) - 30 + c * rough for (a, b, c), rough in rows])


def test_text_tower_equals_transformers(model, saved):
    config, variables = matching.read(match_clap(saved))
    ids, mask = text_batch()
    with torch.no_grad():
        output = model.get_text_features(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    expected = output.pooler_output.numpy()
    got = np.asarray(embed_texts(config, variables, ids, mask))
    assert expected.std(axis=0).mean() > 0.01
    assert np.abs(got - expected).max() < 2e-6  # measured 1.2e-7


# The stages have 16 x 16, 8 x 8 and 4 x 4 vectors. Windows of 4 fit, are shifted in the second stage, and in the third
# there is one, not shifted; windows of 5 need filling up. 384 frames fill the image.
@pytest.mark.parametrize(
    ("audio", "frames"),
    [
        ({}, 321),
        ({"window_size": 5, "depths": [2, 2]}, 384),
        ({"qkv_bias": False, "depths": [1, 1, 2], "num_attention_heads": [1, 2, 2], "hidden_size": 32}, 100),
    ],
)
def test_audio_tower_equals_transformers(tmp_path, audio, frames):
    model = clap(clap_config(audio=audio))
    config, variables = matching.read(match_clap(save(model, tmp_path)))
    mels = spectrograms(frames)
    with torch.no_grad():
        pooled = model.audio_model(torch.tensor(mels)[:, None]).pooler_output.numpy()
        expected = model.get_audio_features(torch.tensor(mels)[:, None]).pooler_output.numpy()
    got = np.asarray(embed_mels(config, variables, mels))
    assert np.abs(pooled - pooled[:1])[1:].mean() > 0.01
    assert np.abs(got - expected).max() < 2e-6  # measured 1.2e-7, 9e-8, 2.1e-7


def test_similarity_equals_transformers(model, saved):
    config, variables = matching.read(match_clap(saved))
    ids, mask = text_batch()
    mels = spectrograms(321)
    with torch.no_grad():
        output = model(torch.tensor(ids).long(), torch.tensor(mels)[:, None], attention_mask=torch.tensor(mask).long())
        expected = (output.logits_per_text / model.logit_scale_t.exp()).numpy()

    texts, sounds = embed_texts(config, variables, ids, mask), embed_mels(config, variables, mels)
    for turn in range(3):
        got = np.sum(np.asarray(texts) * np.roll(sounds, -turn, axis=0), axis=1)
        assert np.abs(got - expected[np.arange(3), (np.arange(3) + turn) % 3]).max() < 2e-6  # measured 1.8e-7


def test_long_audio_is_the_mean_of_clips(model, saved):
    """Of what transformers makes of each, brought to length 1 again."""
    config, variables = matching.read(match_clap(saved))
    audio = np.random.default_rng(1).standard_normal((2, 4000)).astype(np.float32) * np.float32([[0.3], [0.01]])
    starts = (0, 1440, 2400)
    pieces = [row[start : start + 1600] for start in starts for row in audio]
    features = extractor()(pieces, sampling_rate=16_000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        embeddings = model.get_audio_features(features).pooler_output.numpy().reshape(len(starts), 2, -1)
    expected = embeddings.mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = np.asarray(jax.jit(embed_audio, static_argnums=0)(config, variables["audio"], audio))
    assert np.abs(got - expected).max() < 2e-6  # measured 9e-8


def test_config_and_spectrogram_are_read(saved):
    config, _ = matching.read(match_clap(saved))
    audio = ClapAudioConfig(
        sample_rate=16_000, fft_size=256, hop_length=5, num_mels=24, lowest_hz=50, highest_hz=7000, seconds=0.1,
        image_size=96, patch_size=6, window=4, dim=8, depths=(1, 2), num_heads=(2, 4), mlp_ratio=2.0,
    )  # fmt: skip
    assert config.audio == audio
    assert config.dim == 12
    sound = jnp.zeros((1, 1600))
    assert jax.eval_shape(lambda: log_mel(sound, config.audio)).shape == (1, 321, 24)


def test_extractor_inside_the_processor(again):
    """Where transformers writes it since version 5."""
    values = json.loads((again / "preprocessor_config.json").read_text())
    expected, _ = matching.read(match_clap(again))
    (again / "preprocessor_config.json").unlink()
    (again / "processor_config.json").write_text(json.dumps({"feature_extractor": values}))
    assert matching.read(match_clap(again))[0] == expected


def test_torch_files_are_read(saved, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    torch.save(load_file(saved / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert_same(matching.read(match_clap(tmp_path))[1], matching.read(match_clap(saved))[1])


def test_narrow_weights(saved):
    """What is computed with them is float32, so that their rounding is all that moves the embeddings."""
    config, variables = matching.read(match_clap(saved), dtype=jnp.bfloat16, place=as_numpy)
    for tower in variables.values():
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tower["params"])} == {"bfloat16"}
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    got, expected = (np.asarray(embed_mels(config, given, spectrograms(321))) for given in (variables, wide))
    assert np.array_equal(got, expected)


def refused(directory, *parts):
    with pytest.raises(CheckpointError) as error:
        matching.read(match_clap(directory))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("audio_config", {"enable_fusion": True}, "without fusion"),
        ("audio_config", {"window_size": 12}, "window of 12"),
        ("audio_config", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("audio_config", {"patch_stride": [3, 3]}, "patch_stride is [3, 3]"),
        ("audio_config", {"hidden_size": 99}, "hidden_size is 99"),
        ("audio_config", {"num_mel_bins": 32}, "feature_size is 24"),
        ("audio_config", {"patch_embeds_hidden_size": 16, "hidden_size": 32}, "of another shape"),
        ("audio_config", {"depths": [1, 1]}, "unexpected"),
        ("text_config", {"num_hidden_layers": 3}, "missing"),
        ("text_config", {"type_vocab_size": 2}, "type_vocab_size is 2"),
        (None, {"model_type": "clip"}, "'clip'"),
        (None, {"projection_hidden_act": "gelu"}, "projection_hidden_act"),
    ],
)
def test_other_models_are_refused(again, part, changes, message):
    values = json.loads((again / "config.json").read_text())
    edit_json(again / "config.json", **({part: values[part] | changes} if part else changes))
    refused(again, str(again), message)


def test_another_spectrogram_is_refused(again):
    edit_json(again / "preprocessor_config.json", truncation="fusion")
    refused(again, "preprocessor_config.json", "'fusion'", "'rand_trunc'")


def test_every_tensor_counts(again):
    lost, found = "audio_model.audio_encoder.norm.bias", "audio_model.audio_encoder.patch_embed.mel_conv2d.bias"
    rename_keys(again, lambda name: found if name == lost else name)
    refused(again, f"missing (1): {lost}", f"unexpected (1): {found}")


def test_shapes_are_those_of_the_modules():
    config = ClapConfig()
    ids, mask = jnp.zeros((1, 77), jnp.int32), jnp.ones((1, 77), bool)
    made = {
        "text": jax.eval_shape(ClapText(config).init, jax.random.key(0), ids, mask),
        "audio": jax.eval_shape(ClapAudio(config).init, jax.random.key(0), jnp.zeros((1, 1001, 64))),
    }
    assert sizes(made) == matching.target_shapes(clap_table.clap(config))


@pytest.mark.parametrize(
    ("theirs", "ours", "count"),
    [
        ({}, ClapAudioConfig(), 153_492_890),  # laion/clap-htsat-unfused
        (
            {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]},
            ClapAudioConfig(dim=128, depths=(2, 2, 12, 2)),
            None,
        ),
    ],
)
def test_real_sizes(theirs, ours, count):
    """All parameters of the published models: ours, and the two scales of the logits, which are left out here."""
    with torch.device("meta"):
        model = transformers.ClapModel(transformers.ClapConfig(audio_config=theirs))
    expected = sum(parameter.numel() for parameter in model.parameters())
    shapes = matching.target_shapes(clap_table.clap(ClapConfig(audio=ours)))
    assert 2 + sum(int(np.prod(shape)) for path, shape in shapes.items() if "/params/" in path) == expected
    assert count in (None, expected)
    assert sum(int(np.prod(shape)) for path, shape in shapes.items() if "/stats/" in path) == 2 * 64
