"""The style conditioner's own properties; that it equals torch is in tests/checkpoints/test_style_weights.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.checkpoints.tables.audiocraft_conditioners import audiocraft_style
from mgjax.checkpoints.tables.matching import target_shapes
from mgjax.conditioning.hubert import Hubert
from mgjax.conditioning.style import StyleConditioner, excerpt
from mgjax.config.conditioning import HubertConfig, StyleConfig
from mgjax.config.serialization import ConfigError, from_dict
from mgjax.nn import quantize

ENCODER = HubertConfig(
    conv_dims=(6, 6), conv_kernels=(8, 4), conv_strides=(4, 2), dim=8, ffn_dim=8, num_layers=1, num_heads=2,
    position_kernel=4, position_groups=2, normalize=False,
)  # fmt: skip
TINY = StyleConfig(
    ENCODER, dim=8, ffn_dim=12, num_layers=1, num_heads=2, num_codebooks=3, codebook_size=16, eval_codebooks=2,
    downsample=3, num_code_streams=2, code_size=9,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "inputs"),
    [
        (StyleConfig(), jnp.zeros((2, 224, 768))),
        (dataclasses.replace(StyleConfig(), features=None), jnp.zeros((2, 150, 4), jnp.int32)),
        (TINY, jnp.zeros((1, 5, 8))),
    ],
    ids=["published", "codes", "tiny"],
)
def test_shapes_are_those_of_the_module(config, inputs):
    style, made = jax.eval_shape(StyleConditioner(config).init_with_output, jax.random.key(0), inputs)
    leaves = jax.tree_util.tree_flatten_with_path(made)[0]
    assert target_shapes(audiocraft_style(config)) == {
        "/".join(key.key for key in path): leaf.shape for path, leaf in leaves
    }
    assert style.shape == (len(inputs), -(-inputs.shape[1] // config.downsample), config.dim)


def test_three_seconds_are_fifteen_vectors():
    made = jax.eval_shape(StyleConditioner(StyleConfig()).init_with_output, jax.random.key(0), jnp.zeros((1, 224, 768)))
    assert made[0].shape == (1, 15, 512)
    count = sum(leaf.size for leaf in jax.tree.leaves(made[1]["params"]))
    assert count == 768 * 512 + 512 + 8 * (4 * 512**2 + 2 * 512 * 2048 + 4 * 512)


def test_configs_survive_their_file():
    assert from_dict(StyleConfig, dataclasses.asdict(StyleConfig())) == StyleConfig()
    with pytest.raises(ConfigError, match="above num_codebooks"):
        dataclasses.replace(StyleConfig(), eval_codebooks=7)


@pytest.fixture(scope="module")
def variables():
    """New weights, as training makes them, and random codebooks."""
    rng = np.random.default_rng(0)
    module = StyleConditioner(TINY)
    made = jax.jit(lambda key: module.init(key, jnp.ones((1, 5, 8)), training=True, method="latents"))(
        jax.random.key(0)
    )
    codebooks = made["codebooks"] | {"embed": jnp.asarray(rng.standard_normal((3, 16, 8)), jnp.float32)}
    return made | {"codebooks": codebooks}


def test_the_style_follows_the_audio(variables):
    """From samples to vectors: another piece is another style, the same is the same, whatever stands beside it."""
    audio = jnp.asarray(np.random.default_rng(1).standard_normal((2, 400)), jnp.float32)
    hubert, style = Hubert(ENCODER), StyleConditioner(TINY)
    encoder = jax.jit(hubert.init)(jax.random.key(1), audio)
    run = jax.jit(lambda audio: style.apply(variables, hubert.apply(encoder, audio)))
    both = run(audio)
    assert np.abs(both[0] - both[1]).max() > 0.1
    assert np.array_equal(run(audio[::-1])[::-1], both)


def test_initialisation_leaves_the_statistics_alone(variables):
    assert np.array_equal(variables["batch_stats"]["mean"], np.zeros(8))
    assert np.array_equal(variables["batch_stats"]["var"], np.ones(8))


def test_training_normalises_by_the_batch(variables):
    module = StyleConditioner(TINY)
    features = jnp.asarray(np.random.default_rng(2).standard_normal((3, 7, 8)), jnp.float32)
    run = jax.jit(lambda x: module.apply(variables, x, training=True, method="latents", mutable=["batch_stats"]))
    latents, updated = run(features)
    assert np.abs(np.mean(latents, axis=(0, 1))).max() < 1e-5
    assert np.abs(np.std(latents, axis=(0, 1)) - 1).max() < 1e-2
    assert not np.array_equal(updated["batch_stats"]["mean"], variables["batch_stats"]["mean"])


def test_fewer_codebooks_say_less(variables):
    latents = jnp.asarray(np.random.default_rng(3).standard_normal((2, 6, 8)), jnp.float32)
    embed = variables["codebooks"]["embed"]
    first = np.asarray(quantize(latents, embed[:1])[1])
    distances = np.linalg.norm(np.asarray(latents)[:, :, None] - np.asarray(embed[0])[None, None], axis=-1)
    assert np.array_equal(first, np.asarray(embed[0])[distances.argmin(axis=-1)])
    second = np.asarray(quantize(latents, embed[:2])[1]) - first
    assert all(np.abs(word - np.asarray(embed[1])).max(axis=-1).min() < 1e-6 for word in second.reshape(-1, 8))
    features = jnp.asarray(np.random.default_rng(4).standard_normal((1, 7, 8)), jnp.float32)
    one, two = (StyleConditioner(dataclasses.replace(TINY, eval_codebooks=count)) for count in (1, 2))
    made = jax.jit(lambda: (one.apply(variables, features), two.apply(variables, features)))()
    assert not np.array_equal(*made)


def test_the_seed_chooses_the_excerpt():
    audio = np.arange(1.0, 1001.0)
    made = [excerpt(audio, 100, 3.0, seed) for seed in range(20)]
    assert all(len(piece) == 300 and np.array_equal(np.diff(piece), np.ones(299)) for piece in made)
    assert len({piece[0] for piece in made}) > 10
    assert np.array_equal(made[7], excerpt(audio, 100, 3.0, 7))
    stereo = excerpt(np.stack([audio, -audio], axis=1), 100, 3.0, 7)
    assert np.array_equal(stereo, np.stack([made[7], -made[7]], axis=1))


def test_an_excerpt_of_the_whole():
    audio = np.arange(1.0, 301.0)
    assert np.array_equal(excerpt(audio, 100, 3.0, 5), audio)
    assert excerpt(np.append(audio, 301.0), 100, 3.0, 5)[0] in (1.0, 2.0)


def test_short_audio_is_repeated():
    assert np.array_equal(excerpt(np.array([1.0, 2.0, 3.0]), 8, 1.0, 0), [1, 2, 3, 1, 2, 3, 1, 2])
    assert excerpt(np.ones((3, 2)), 8, 1.0, 0).shape == (8, 2)


def test_silent_pieces_are_not_chosen():
    audio = np.zeros(100_000)
    audio[60_000] = 0.5
    places = [np.flatnonzero(excerpt(audio, 100, 3.0, seed)) for seed in range(20)]
    assert all(len(place) == 1 for place in places)
    assert len({place[0] for place in places}) > 1  # some were drawn, some are around the only sound
