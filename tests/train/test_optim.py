"""Optimisers, schedules and averages against torch and numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from mgjax.config.serialization import ConfigError
from mgjax.lm.stack import stack_layers, unstack_layers
from mgjax.train import optim
from mgjax.train.optim import Average, OptimConfig

STEPS, WARMUP = 40, 8


def rate(name, step, min_ratio=0.1):
    """The share of the highest learning rate, as reference/musicgen.md section 12 and the config's words define it."""
    if step < WARMUP:
        return step / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return {
        "constant": 1,
        "cosine": min_ratio + 0.5 * (1 - min_ratio) * (1 + np.cos(np.pi * progress)),
        "linear": 1 + (min_ratio - 1) * progress,
        "inverse_sqrt": (WARMUP / step) ** 0.5,
    }[name]


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedules(name):
    config = OptimConfig(learning_rate=0.3, schedule=name, warmup_steps=WARMUP, min_ratio=0.1)
    rates = jax.jit(jax.vmap(optim.schedule(config, STEPS)))(jnp.arange(STEPS))
    np.testing.assert_allclose(rates, [0.3 * rate(name, step) for step in range(STEPS)], rtol=2e-6)  # measured 2.8e-7
    assert rates[0] == 0


def test_a_schedule_without_warm_up_starts_at_the_highest_rate():
    config = OptimConfig(name="adam", learning_rate=3e-4, schedule="constant", warmup_steps=0, weight_decay=0.0)
    assert optim.schedule(config, 10)(0) == np.float32(3e-4)


@pytest.mark.parametrize(("name", "schedule"), [("adamw", "cosine"), ("adamw", "inverse_sqrt"), ("adam", "constant")])
def test_updates_are_those_of_torch(name, schedule):
    """With gradients that are clipped at first and not later, and the learning rate of each update from its number."""
    decay = 0.1 if name == "adamw" else 0.0
    config = OptimConfig(
        name=name, learning_rate=0.02, schedule=schedule, warmup_steps=WARMUP, min_ratio=0.1, weight_decay=decay
    )
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
    gradients = [
        {key: (rng.normal(size=value.shape) / (1 + step)).astype(np.float32) for key, value in weights.items()}
        for step in range(STEPS)
    ]
    optimizer = optim.make(config, STEPS)

    @jax.jit
    def ours(params):
        def one(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
        return jax.lax.scan(one, (params, optimizer.init(params)), stacked)[1]

    trail = ours(jax.tree.map(jnp.asarray, weights))
    theirs = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in weights.items()}
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    reference = kind(theirs.values(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    clipped = 0
    for step, gradient in enumerate(gradients):
        for key, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[key])
        clipped += torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0) > 1
        reference.param_groups[0]["lr"] = 0.02 * rate(schedule, step)
        reference.step()
        for key, parameter in theirs.items():
            moved = np.abs(parameter.detach().numpy() - weights[key]).max()
            difference = np.abs(trail[key][step] - parameter.detach().numpy()).max()
            assert difference <= 1e-5 * moved + 3e-7  # measured 4.8e-7 after 40 updates, for weights near 1
    assert 0 < clipped < STEPS
    assert np.array_equal(trail["a"][0], weights["a"])  # the first update changes nothing


@pytest.mark.parametrize("name", ["dadapt_adamw", "prodigy"])
def test_optimisers_that_find_their_rate(name):
    """From a millionth to what the problem needs, over a schedule that begins at 0, where their estimate is 0 / 0."""
    config = OptimConfig(name=name, learning_rate=1.0, warmup_steps=5, weight_decay=0.0)
    optimizer = optim.make(config, 300)
    target = jnp.arange(4.0)

    @jax.jit
    def solve(x):
        def one(carry, _):
            x, state = carry
            updates, state = optimizer.update(2 * (x - target), state, x)
            return (optax.apply_updates(x, updates), state), x + updates

        return jax.lax.scan(one, (x, optimizer.init(x)), None, 300)

    start = jnp.full(4, 3.0)
    (x, state), trail = solve(start)
    assert np.array_equal(trail[0], start)
    assert np.abs(x - target).max() < 0.01  # measured 7e-4 and 6e-6
    assert state[1].estim_lr > 0.1
    assert optim.learning_rate(config, 300, state, 5) == state[1].estim_lr  # the highest, right after the warm-up


def layers(count, rng):
    """Kernels as a language model of `count` layers has them, beside what is not Muon's."""

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def one():
        return {
            "self_attn": {"qkv": {"kernel": draw(8, 3, 2, 4)}, "out": {"kernel": draw(2, 4, 8)}},
            "cross_attn": {
                "query": {"kernel": draw(8, 2, 4)},
                "kv": {"kernel": draw(8, 2, 2, 4)},
                "out": {"kernel": draw(2, 4, 8)},
            },
            "ffn": {"up": {"kernel": draw(8, 16)}, "down": {"kernel": draw(16, 8)}},
            "ffn_norm": {"scale": draw(8)},
        }

    rest = {"embed": {"embedding": draw(4, 5, 8)}, "head": {"kernel": draw(8, 4, 5)}}
    text = {"layer0": {"ffn": {"up": {"kernel": draw(8, 16)}}}}
    return {"lm": {f"layer{i}": one() for i in range(count)} | rest, "text": text}


def as_matrices(name, kernel):
    """A kernel as the matrices [n, in, out] that its layer multiplies by, written down once more."""
    if name == "qkv":
        return np.moveaxis(kernel, 1, 0).reshape(3, 8, 8)
    if name == "kv":
        return np.moveaxis(kernel, 1, 0).reshape(2, 8, 8)
    return kernel.reshape(1, *{"out": (8, 8), "query": (8, 8), "up": (8, 16), "down": (16, 8)}[name])


def test_muon_moves_matrices_in_all_directions_alike_and_adam_moves_the_rest():
    config = OptimConfig(
        name="muon", learning_rate=0.02, adam_learning_rate=0.003, schedule="constant", warmup_steps=0,
        weight_decay=0.1, max_grad_norm=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    weights, gradient = layers(2, rng), layers(2, rng)
    stacked = [tree | {"lm": stack_layers(tree["lm"])} for tree in (weights, gradient)]

    @jax.jit
    def updated(gradient, weights):
        optimizer = optim.make(config, 10)
        return optimizer.update(gradient, optimizer.init(weights), weights)[0]

    updates = jax.device_get(updated(gradient, weights))
    again = jax.device_get(updated(stacked[1], stacked[0]))
    for one, other in zip(jax.tree.leaves(updates["lm"]), jax.tree.leaves(unstack_layers(again["lm"])), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)  # measured 7.5e-9

    for layer in ("layer0", "layer1"):
        for part in ("self_attn", "cross_attn", "ffn"):
            for name, tree in weights["lm"][layer][part].items():
                moved = updates["lm"][layer][part][name]["kernel"] + 0.02 * 0.1 * tree["kernel"]
                slope = gradient["lm"][layer][part][name]["kernel"]
                for step, matrix in zip(as_matrices(name, moved), as_matrices(name, slope), strict=True):
                    left, _, right = np.linalg.svd(matrix, full_matrices=False)
                    scale = 0.02 * max(1, step.shape[1] / step.shape[0]) ** 0.5
                    inside = left.T @ step @ right.T / -scale  # the identity, were the iteration exact
                    along = np.diag(inside)
                    assert along.min() > 0.6, name  # measured 0.68
                    assert along.max() < 1.25, name  # measured 1.20
                    assert np.abs(inside - np.diag(along)).max() < 1e-4, name  # measured 5.5e-7

    def of_adam(tree):
        return {
            "embed": tree["lm"]["embed"],
            "head": tree["lm"]["head"],
            "norm": tree["lm"]["layer0"]["ffn_norm"],
            "text": tree["text"],
        }

    plain = optax.nadamw(0.003, config.b1, config.b2, config.eps, weight_decay=0.1)
    expected = plain.update(of_adam(gradient), plain.init(of_adam(weights)), of_adam(weights))[0]
    for one, other in zip(jax.tree.leaves(of_adam(updates)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_the_average_is_that_of_the_published_recipe():
    """Decay 0.99 every 10 updates, the new weights with 1 / count, count = 0.99 count + 1 (reference, section 12)."""
    config = OptimConfig(average_decay=0.9, average_every=3)
    weights = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

    @jax.jit
    def ours(weights):
        def one(average, numbered):
            average = average.update(config, {"w": numbered[1]}, numbered[0] + 1)
            return average, average.weights["w"]

        return jax.lax.scan(one, Average.init({"w": weights[0]}), (jnp.arange(20), weights))[1]

    values = ours(weights)
    taken = weights[2::3].astype(np.float64)
    for step in range(20):
        done = (step + 1) // 3
        factors = 0.9 ** np.arange(done)[::-1]
        expected = factors @ taken[:done] / factors.sum() if done else weights[0]
        np.testing.assert_allclose(values[step], expected, atol=1e-6)  # measured 6e-8


def test_parts_of_a_batch_make_the_same_update():
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32), "y": jnp.arange(12)}

    def loss(weights, part):
        each = jnp.square(jnp.tanh(part["x"] @ weights["w"]) - 0.1 * part["y"])
        return jnp.sum(each) / 12, {"sum": jnp.sum(part["y"])}

    weights = {"w": jnp.array([0.3, -0.2, 0.5])}
    run = jax.jit(functools.partial(optim.gradients, loss), static_argnames="parts")
    whole, parts = run(weights, batch, parts=1), run(weights, batch, parts=3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=5e-6), parts, whole)  # measured 4.8e-7
    assert parts[1]["sum"] == 66


def test_in_parts_keeps_the_order_of_the_rows():
    rows = jnp.arange(12.0).reshape(6, 2)
    mapped = jax.jit(lambda rows: optim.in_parts(lambda part: part * 2, rows, 3))(rows)
    assert np.array_equal(mapped, rows * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgd"}, "name must be one of"),
        ({"schedule": "steps"}, "schedule must be one of"),
        ({"name": "adam"}, "take adamw"),
        ({"name": "prodigy"}, "set it to 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be above 0"),
        ({"b2": 1.0}, "b2 must be 0 or above and below 1"),
        ({"accumulate": 0}, "accumulate must be 1 or more"),
        ({"min_ratio": 1.5}, "min_ratio must be from 0 to 1"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**changes)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps must be below the run's 100 updates, got 4000"):
        optim.make(OptimConfig(), 100)
