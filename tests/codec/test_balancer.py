"""The balancer against its formula in numpy."""

import functools

import jax
import numpy as np

from mgjax.codec import balancer

_WEIGHTS = {"a": 4.0, "b": 1.0, "c": 0.5}
_DECAY = 0.9


@functools.partial(jax.jit, static_argnames="total_norm")
def _combine(gradients, state, total_norm=1.0):
    return balancer.combine(gradients, _WEIGHTS, state, decay=_DECAY, total_norm=total_norm)


def _gradients(step):
    rng = np.random.default_rng(step)
    return {
        name: (10.0**-i * (step + 1) * rng.standard_normal((4, 50, 2))).astype(np.float32)
        for i, name in enumerate(_WEIGHTS)
    }


def _norms(gradient):
    return np.sqrt(np.sum(np.asarray(gradient, np.float64) ** 2, axis=(1, 2)))


def test_gradients_are_divided_by_an_unbiased_average_of_their_norms():
    state = balancer.init(_WEIGHTS)
    history = {name: [] for name in _WEIGHTS}
    for step in range(4):
        gradients = _gradients(step)
        found, state = _combine(gradients, state, total_norm=3.0)
        expected = 0
        for name, weight in _WEIGHTS.items():
            history[name].append(_norms(gradients[name]).mean())
            ages = _DECAY ** np.arange(step, -1, -1)
            average = np.sum(ages * history[name]) / np.sum(ages)
            expected += gradients[name] * 3.0 * (weight / sum(_WEIGHTS.values())) / average
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 1e-5, (step, error)


def test_weights_are_shares_whatever_the_scales_of_the_losses():
    gradients = _gradients(0)
    found, _ = _combine(gradients, balancer.init(_WEIGHTS))
    scaled, _ = _combine({name: 1e3 * value for name, value in gradients.items()}, balancer.init(_WEIGHTS))
    np.testing.assert_allclose(found, scaled, rtol=1e-4, atol=1e-7)
    # Of orthogonal gradients, each row's share is its loss's.
    alone = {name: np.zeros((4, 50, 2), np.float32) for name in _WEIGHTS}
    for i, name in enumerate(_WEIGHTS):
        alone[name][:, i] = 7.0**i
    found, _ = _combine(alone, balancer.init(_WEIGHTS))
    for i, weight in enumerate(_WEIGHTS.values()):
        np.testing.assert_allclose(_norms(found[:, i : i + 1]), weight / 5.5, rtol=1e-5)


def test_a_loss_without_gradient_adds_nothing():
    gradients = _gradients(0)
    gradients["a"] = np.zeros_like(gradients["a"])
    found, _ = _combine(gradients, balancer.init(_WEIGHTS))
    assert np.all(np.isfinite(found))
    assert 0 < _norms(found).mean() < 1.5 / 5.5
