import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgjax.nn import Dense, attention


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def test_attention_is_that_of_torch():
    query, key, value = random(2, 5, 3, 4), random(2, 7, 3, 4), random(2, 7, 3, 4) + 1
    mask = jnp.asarray(np.random.default_rng(0).random((2, 1, 5, 7)) < 0.6).at[..., 0].set(True)
    ours = attention(query, key, value, mask=mask, scale=0.5)
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in (query, key, value))
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.tensor(np.asarray(mask)), scale=0.5
    )
    assert np.abs(np.asarray(ours) - theirs.transpose(1, 2).numpy()).max() < 1e-6  # measured 2.4e-7


def test_who_may_look_nowhere_sees_nothing():
    """Zeros, neither NaN nor the mean of what is hidden."""
    mask = jnp.zeros((1, 1, 2, 4), bool).at[0, 0, 1].set(True)
    seen = attention(random(1, 2, 3, 5), random(1, 4, 3, 5), random(1, 4, 3, 5) + 1, mask=mask)
    assert np.all(seen[0, 0] == 0)
    assert np.all(seen[0, 1] != 0)


@pytest.mark.parametrize("rows", [1, 2, 8, 9])
def test_a_product_is_the_same_in_either_form(rows):
    """Few rows are multiplied as a convolution on CPU."""
    dense = Dense((3, 4), (2, 5), use_bias=True)
    x = random(rows, 3, 4)
    params = jax.tree.map(lambda leaf: random(*leaf.shape), jax.eval_shape(dense.init, jax.random.key(0), x)["params"])
    ours = dense.apply({"params": params}, x)
    theirs = np.tensordot(np.asarray(x), np.asarray(params["kernel"]), 2) + np.asarray(params["bias"])
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-5  # measured 1.9e-6
