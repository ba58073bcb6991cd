"""Attention of a sequence to itself: the kernel of the TPU against attention written out, and when it is taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from mgjax.devices import sharding
from mgjax.lm import attention, transformer

STEPS = 150  # more than a block of 128, and no whole number of them


def drawn(dtype=jnp.bfloat16):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(1, STEPS, 2, 16)), dtype) for _ in range(3))
    valid = np.ones((1, STEPS), bool)
    valid[:, 2:9] = False  # a prefix with padding
    return query, jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2), jnp.asarray(valid)


def test_the_kernel_finds_and_learns_the_same(monkeypatch):
    """Interpreted: with a prefix that has gaps, in half precision, the gradient too; padding does not count."""
    interpreted = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", interpreted)
    query, key, value, valid = drawn()
    weights = np.random.default_rng(1).normal(size=query.shape) * np.asarray(valid)[:, :, None, None]

    @functools.partial(jax.jit, static_argnames="function")
    def learned(function, *arrays):
        def number(*arrays):
            found = function(*arrays, valid).astype(jnp.float32)
            return jnp.sum(found * weights), found

        return jax.value_and_grad(number, (0, 1, 2), has_aux=True)(*arrays)

    (_, found), gradients = learned(attention._splash, query, key, value)
    (_, expected), others = learned(attention.attend_causally, query, key, value)
    difference = np.abs(found - expected) * np.asarray(valid)[:, :, None, None]
    assert difference.max() < 0.02  # measured 0.0078, the rounding of bfloat16 near 1
    for one, other in zip(gradients, others, strict=True):
        assert np.abs(one - other).max() < 0.02 * np.abs(other).max()  # measured 0.0074


@pytest.mark.parametrize(
    ("platform", "dtype", "prefixed", "taken"),
    [
        ("tpu", jnp.bfloat16, True, "_splash"),
        ("tpu", jnp.float32, False, None),
        ("gpu", jnp.bfloat16, False, "_cudnn"),
        ("gpu", jnp.bfloat16, True, None),
        ("cpu", jnp.bfloat16, False, None),
        (None, jnp.bfloat16, False, None),
    ],
)
def test_kernels_are_for_half_precision_where_they_are(platform, dtype, prefixed, taken, monkeypatch):
    query, key, value, valid = drawn(dtype)
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    asked = []
    for name in ("_splash", "_cudnn"):
        monkeypatch.setattr(attention, name, lambda query, *_, name=name: (asked.append(name), query)[1])
    found = attention.attend_causally(query, key, value, valid if prefixed else None)
    assert asked == ([taken] if taken else [])
    assert found.shape == query.shape


def test_kernels_run_on_each_device_apart():
    """Each for its own rows and heads, as the mesh of the program says."""
    mesh = sharding.make_mesh(2, 2, 2)
    shapes = []

    def kernel(x, valid):
        shapes.append((x.shape, valid.shape))
        return x * valid[:, None, :, None]

    x, valid = np.random.default_rng(0).normal(size=(8, 4, 3, 5)).astype(np.float32), np.ones((8, 3), np.float32)
    valid[3] = 0
    placed = (jax.device_put(array, sharding.rows(8, mesh)) for array in (x, valid))
    found = jax.jit(sharding.on_mesh(mesh, lambda *arrays: sharding.map_rows_and_heads(kernel, *arrays)))(*placed)
    assert shapes == [((2, 2, 3, 5), (2, 3))]
    np.testing.assert_array_equal(found, x * valid[:, None, :, None])
    assert sharding.platform() is None
    assert jax.jit(sharding.on_mesh(mesh, lambda x: x * (sharding.platform() == "cpu")))(1.0) == 1.0


@pytest.mark.parametrize("num_steps", [1, 3])
def test_tpus_attend_to_what_they_write(monkeypatch, num_steps):
    """Bit for bit, though they read one step from where it came from."""

    def tpu(*operands, default, tpu=None):
        return (tpu or default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", tpu)
    monkeypatch.setattr(transformer, "with_layout_constraint", lambda x, layout: x)
    rng = np.random.default_rng(0)
    cached, new = (jnp.asarray(rng.normal(size=(2, 3, slots, 8)), jnp.bfloat16) for slots in (16, num_steps))
    written, attended = jax.jit(transformer._written)(cached, new, jnp.int32(5))
    np.testing.assert_array_equal(written[:, :, 5 : 5 + num_steps], new)
    np.testing.assert_array_equal(
        np.delete(written, np.s_[5 : 5 + num_steps], 2), np.delete(cached, np.s_[5 : 5 + num_steps], 2)
    )
    np.testing.assert_array_equal(attended, written)
