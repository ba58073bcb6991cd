"""The training form of the language model against the one that generates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import make, text

from mgjax.config.model import Fused
from mgjax.lm.model import LM
from mgjax.lm.stack import stack_layers, unstack_layers

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 21, (2, 9, 4)), jnp.int32)


@functools.partial(jax.jit, static_argnames="module")
def value_and_gradient(module, params, tokens, condition):
    """Of a number that depends on all logits; the gradient reaches the condition's projections too."""

    def number(params):
        told = module.apply({"params": params}, condition, batch=2, method="context")
        logits = module.apply({"params": params}, tokens, told)
        return jnp.mean(jnp.square(jax.nn.log_softmax(logits))), logits

    return jax.value_and_grad(number, has_aux=True)(params)


def largest_difference(a, b):
    """Between two trees of gradients, as a share of each array's largest number."""
    shares = jax.tree.map(lambda x, y: float(np.abs(x - y).max() / np.abs(y).max()), a, b)
    return max(jax.tree.leaves(shares))


@pytest.fixture(scope="module")
def unrolled(request):
    """The parameters, the condition, and what the plain model makes of them."""
    condition = {"text": text([3, 6], 8)} if request.param == "cross" else {}
    changes = {} if condition else {"conditions": (Fused("text", 8, "prefix"),)}
    module, params = make(**changes)
    if not condition:
        params = {name: tree for name, tree in params.items() if name != "text_proj"}
    return module.config, params, condition, value_and_gradient(module, params, TOKENS, condition)


FORMS = [("cross", True, "none"), ("cross", True, "dots"), ("cross", False, "full"), ("none", True, "full")]


@pytest.mark.parametrize(("unrolled", "scan", "remat"), FORMS, indirect=["unrolled"])
def test_other_forms_predict_and_learn_the_same(unrolled, scan, remat):
    config, params, condition, ((value, logits), gradient) = unrolled
    given = stack_layers(params) if scan else params
    (same_value, same_logits), same_gradient = value_and_gradient(
        LM(config, scan_layers=scan, remat=remat), given, TOKENS, condition
    )
    assert np.abs(same_logits - logits).max() < 1e-4  # measured 6.3e-6 at a standard deviation of 2.9
    assert same_value == pytest.approx(float(value), rel=1e-5)
    same_gradient = unstack_layers(same_gradient) if scan else same_gradient
    assert largest_difference(same_gradient, gradient) < 1e-4  # measured 9.2e-6


@pytest.mark.parametrize("unrolled", ["cross"], indirect=True)
def test_recomputing_stores_less(unrolled):
    """What the backward pass finds stored: everything, products with weights, or the layers' inputs alone."""
    config, params, condition, _ = unrolled
    given = stack_layers(params)

    def stored(remat):
        module = LM(config, scan_layers=True, remat=remat)
        one = lambda params: value_of(module, params, condition)  # noqa: E731
        _, backward = jax.eval_shape(lambda params: jax.vjp(one, params), given)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert stored("full") < stored("dots") < stored("none")


def value_of(module, params, condition):
    told = module.apply({"params": params}, condition, batch=2, method="context")
    return jnp.sum(module.apply({"params": params}, TOKENS, told))


def test_stacking_and_back():
    _, params = make()
    stacked = stack_layers(params)
    assert "layer0" not in stacked
    assert stacked["layers"]["ffn"]["up"]["kernel"].shape == (2, 32, 64)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)


@pytest.mark.parametrize("unrolled", ["cross"], indirect=True)
def test_half_precision_compute_learns_in_float32(unrolled):
    """Activations in bfloat16, over float32 weights: logits and gradients are float32, and the logits are close."""
    config, params, condition, ((_, exact), _) = unrolled
    half = LM(config, jnp.dtype("bfloat16"), scan_layers=True)
    given = stack_layers(params)
    shapes = jax.eval_shape(functools.partial(value_and_gradient, half), given, TOKENS, condition)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    @jax.jit
    def logits(params):
        told = half.apply({"params": params}, condition, batch=2, method="context")
        return half.apply({"params": params}, TOKENS, told)

    difference = np.abs(logits(given) - exact).mean() / np.std(exact)
    assert 1e-3 < difference < 0.1  # measured 0.016


def test_new_weights_are_those_of_single_layers():
    """Of the same shapes, narrower with depth where a matrix is a linear layer, and of each layer its own."""
    module, params = make(dim=128, num_layers=3, ffn_dim=512)

    def initialise(module):
        return module(TOKENS, module.context({"text": text([3, 6], 8)}))

    made = jax.jit(lambda key: LM(module.config, scan_layers=True).init(key, method=initialise))(jax.random.key(0))
    layers = made["params"]["layers"]
    assert jax.tree.map(jnp.shape, unstack_layers(made["params"])) == jax.tree.map(jnp.shape, params)
    for i in range(3):
        spread = 128**0.5 * float(np.std(layers["self_attn"]["out"]["kernel"][i]))
        assert spread == pytest.approx(0.986 * (2 * (i + 1)) ** -0.5, rel=0.03)
        spread = 128**0.5 * float(np.std(layers["cross_attn"]["kv"]["kernel"][i]))
        assert spread == pytest.approx(3**-0.5, rel=0.03)
    first, second = layers["self_attn"]["qkv"]["kernel"][:2]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
