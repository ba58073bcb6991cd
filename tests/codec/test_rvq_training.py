"""Codebooks while they learn, against numpy; k-means, dead codes, dropout, and eight devices against one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mgjax import nn
from mgjax.codec import rvq_training
from mgjax.codec.rvq_training import QuantizerConfig
from mgjax.config.serialization import ConfigError

_CONFIG = QuantizerConfig()
_K, _V, _D = 3, 8, 4


_QUICKLY = {"xla_backend_optimization_level": 0}  # compiled in half the time, into what takes a little longer


@functools.partial(jax.jit, static_argnums=3, compiler_options=_QUICKLY)
def _quantize(latents, codebooks, key, config):
    return rvq_training.quantize(latents, codebooks, key, config)


@functools.partial(jax.jit, static_argnums=4, compiler_options=_QUICKLY)
def _update(codebook, x, codes, key, config):
    return rvq_training.update(codebook, x, codes, key, config)


def _latents(seed=0, rows=8):
    return np.random.default_rng(seed).standard_normal((rows, 20, _D)).astype(np.float32)


def _codebooks(inited=1.0):
    rng = np.random.default_rng(7)
    embed = rng.standard_normal((_K, _V, _D)).astype(np.float32)
    sizes = rng.uniform(10, 30, (_K, _V)).astype(np.float32)
    return {
        "embed": embed,
        "embed_avg": embed * sizes[..., None],
        "cluster_size": sizes,
        "inited": np.full(_K, inited, np.float32),
    }


def test_an_update_is_that_of_numpy():
    latents, codebooks = _latents(), _codebooks()
    found = _quantize(latents, codebooks, jax.random.key(0), _CONFIG)

    residual, total, losses = latents.astype(np.float64), 0, []
    for level in range(_K):
        embed = codebooks["embed"][level].astype(np.float64)
        codes = np.argmin(((residual[:, :, None] - embed) ** 2).sum(-1), axis=-1)
        np.testing.assert_array_equal(found.codes[..., level], codes)
        flat, members = residual.reshape(-1, _D), np.eye(_V)[codes.reshape(-1)]
        sizes = 0.99 * codebooks["cluster_size"][level] + 0.01 * members.sum(0)
        sums = 0.99 * codebooks["embed_avg"][level] + 0.01 * members.T @ flat
        smoothed = (sizes + 1e-5) / (sizes.sum() + _V * 1e-5) * sizes.sum()
        for name, expected in {"cluster_size": sizes, "embed_avg": sums, "embed": sums / smoothed[:, None]}.items():
            np.testing.assert_allclose(found.codebooks[name][level], expected, rtol=1e-5, atol=1e-6)
        words = embed[codes]
        losses.append(((residual - words) ** 2).mean())
        residual, total = residual - words, total + words
    assert float(found.commitment) == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_allclose(found.latents, total, atol=1e-5)


def test_the_gradient_goes_through_and_commits():
    latents, codebooks, weight = _latents(), _codebooks(), _latents(1)

    @jax.jit
    def gradients(latents):
        def value(latents, share):
            made = rvq_training.quantize(latents, jax.tree.map(jnp.asarray, codebooks), jax.random.key(0), _CONFIG)
            return jnp.sum(weight * made.latents) + share * made.commitment

        return jax.grad(value)(latents, 0.0), jax.grad(value)(latents, 1.0)

    through, both = gradients(latents)
    np.testing.assert_allclose(through, weight, rtol=1e-6)
    residual, expected = latents.astype(np.float64), 0
    for embed in codebooks["embed"]:
        residual = residual - embed[np.argmin(((residual[:, :, None] - embed) ** 2).sum(-1), axis=-1)]
        expected += 2 * residual / residual.size / _K
    np.testing.assert_allclose(both - through, expected, atol=1e-6)


def test_the_first_batch_makes_the_codebooks():
    """Points around a few centres, and around them again: k-means finds the first, then what they leave."""
    rng = np.random.default_rng(0)
    coarse = 10 * rng.standard_normal((_V, _D))
    points = coarse[rng.integers(0, _V, 400)] + 0.1 * rng.standard_normal((400, _D))
    latents = points.reshape(4, 100, _D).astype(np.float32)
    empty = jax.tree.map(np.zeros_like, _codebooks())
    config = dataclasses.replace(_CONFIG, decay=0.0, dead_below=0.0)
    found = _quantize(latents, empty, jax.random.key(3), config)
    assert np.all(np.asarray(found.codebooks["inited"]) == 1)
    norms = np.linalg.norm(found.codebooks["embed"], axis=-1).mean(axis=-1)
    assert norms[0] > 5
    before = np.mean(latents**2)
    after = np.mean((latents - nn.dequantize(found.codes, found.codebooks["embed"])) ** 2)
    assert after < 0.15 * before  # the random start leaves a few clusters undivided

    # What one iteration does, and that sums, not means, go into the average.
    one = dataclasses.replace(config, kmeans_iterations=1)
    made = jax.jit(rvq_training.initialize, static_argnums=3)(latents, empty, jax.random.key(0), one)
    np.testing.assert_allclose(made["embed_avg"], made["embed"] * made["cluster_size"][..., None], rtol=1e-6)
    np.testing.assert_array_equal(made["cluster_size"].sum(axis=1), [400] * _K)
    start = jax.jit(rvq_training.kmeans, static_argnums=(1, 3))
    flat = latents.reshape(-1, _D)
    drawn, _ = start(flat, _V, jax.random.key(5), 0)
    assert all(np.any(np.all(flat == row, axis=1)) for row in np.asarray(drawn))
    assert len(np.unique(drawn, axis=0)) == _V
    moved, _ = start(flat, _V, jax.random.key(5), 1)
    nearest = np.argmin(((flat[:, None] - np.asarray(drawn)) ** 2).sum(-1), axis=-1)
    expected = [flat[nearest == code].mean(axis=0) for code in range(_V)]
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_codebooks_that_are_made_are_not_made_again():
    codebooks = _codebooks()
    found = _quantize(_latents(), codebooks, jax.random.key(0), _CONFIG)
    error = np.abs(found.codebooks["embed"] - codebooks["embed"]).max()
    assert error < 0.2


def test_dead_codes_come_to_life_and_stay():
    """In the original a dead code had its old direction after 200 updates."""
    config = dataclasses.replace(_CONFIG, dead_below=0.1)
    codebook = {name: value[0] for name, value in _codebooks().items()}
    far = np.full(_D, 1_000.0, np.float32)
    for name, value in (("embed", far), ("embed_avg", far * 0.01), ("cluster_size", 0.01)):
        codebook[name][3] = value
    x = _latents().reshape(-1, _D)
    nearest = jax.jit(lambda x, embed: nn.nearest(x[None], embed)[0])
    revived = _update(codebook, x, nearest(x, codebook["embed"]), jax.random.key(0), config)
    word = np.asarray(revived["embed"][3])
    assert np.any(np.all(x == word, axis=1))  # it is a frame of the batch
    even = len(x) / _V
    assert float(revived["cluster_size"][3]) == even
    np.testing.assert_allclose(revived["embed_avg"][3], word * even, rtol=1e-6)
    others = [code for code in range(_V) if code != 3]
    kept = _update(codebook, x, nearest(x, codebook["embed"]), jax.random.key(1), config)
    np.testing.assert_array_equal(revived["embed"][np.array(others)], kept["embed"][np.array(others)])

    elsewhere = np.zeros(len(x), np.int32)  # batches in which the code is not used
    later = revived
    for step in range(20):
        later = _update(later, x, elsewhere, jax.random.key(step), config)
    np.testing.assert_allclose(later["embed"][3], word, rtol=1e-3)
    used = revived
    for step in range(20):
        used = _update(used, x, nearest(x, used["embed"]), jax.random.key(step), config)
    assert np.sum(np.asarray(nearest(x, used["embed"])) == 3) > 1

    never = _update(codebook, x, nearest(x, codebook["embed"]), jax.random.key(0), QuantizerConfig(dead_below=0.0))
    assert float(never["embed"][3, 0]) > 100


def test_dropout_leaves_the_last_codebooks_out():
    config = dataclasses.replace(_CONFIG, dropout=True)
    latents, codebooks = _latents(), _codebooks()
    counts = np.zeros(_K + 1, int)
    for seed in range(60):
        found = _quantize(latents, codebooks, jax.random.key(seed), config)
        used = int(found.num_used)
        counts[used] += 1
        expected = nn.dequantize(found.codes[..., :used], jnp.asarray(codebooks["embed"]))
        np.testing.assert_allclose(found.latents, expected, atol=1e-5)
        changed = np.any(np.asarray(found.codebooks["embed"]) != codebooks["embed"], axis=(1, 2))
        np.testing.assert_array_equal(changed, np.arange(_K) < used)
        if used == 1:
            error = np.mean((latents - np.asarray(found.latents)) ** 2)
            assert float(found.commitment) == pytest.approx(error, rel=1e-5)
    assert counts[0] == 0
    assert counts[1:].min() >= 10


@pytest.mark.parametrize("inited", [0.0, 1.0])
def test_eight_devices_learn_what_one_does(inited):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    latents, codebooks = _latents(), _codebooks(inited)
    codebooks["cluster_size"][1, 2] = 0.01  # one to revive
    one = _quantize(latents, codebooks, jax.random.key(0), _CONFIG)
    eight = _quantize(jax.device_put(latents, rows), jax.device_put(codebooks, everywhere), jax.random.key(0), _CONFIG)
    assert len(eight.codes.sharding.device_set) == 8
    np.testing.assert_array_equal(one.codes, eight.codes)
    for name in codebooks:
        np.testing.assert_allclose(eight.codebooks[name], one.codebooks[name], rtol=1e-5, atol=1e-5)
    # A device's own rows alone would give other sums.
    own = _quantize(latents[:1], codebooks, jax.random.key(0), _CONFIG)
    assert not np.allclose(own.codebooks["cluster_size"], one.codebooks["cluster_size"], rtol=1e-3)


def test_usage_and_perplexity():
    codes = np.array([[[0, 1], [0, 2], [1, 3], [1, 1]]])
    counts = rvq_training.histogram(jnp.asarray(codes), 4)
    np.testing.assert_array_equal(counts, [[2, 2, 0, 0], [0, 2, 1, 1]])
    np.testing.assert_allclose(rvq_training.usage(counts), [0.5, 0.75])
    np.testing.assert_allclose(rvq_training.perplexity(counts), [2, 2 * 2**0.5], rtol=1e-6)


@pytest.mark.parametrize("values", [{"decay": 1.0}, {"dead_below": 1.0}, {"smoothing": 0.0}, {"kmeans_iterations": -1}])
def test_settings_without_meaning(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        QuantizerConfig(**values)
