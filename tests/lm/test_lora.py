"""Adapters of low rank: nothing at first, the same beside the kernels as added to them, told where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import make, text

from mgjax.config.serialization import ConfigError
from mgjax.lm import lora
from mgjax.lm.lora import LoraConfig
from mgjax.lm.model import LM
from mgjax.lm.stack import stack_layers, unstack_layers

CONFIG = LoraConfig(rank=3, alpha=6.0, targets=("attn", "ffn", "head"))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 21, (2, 9, 4)), jnp.int32)
CONDITION = {"text": text([3, 6], 8)}


def logits(module, params):
    told = module.apply({"params": params}, CONDITION, batch=2, method="context")
    return module.apply({"params": params}, TOKENS, told)


def some(config, params, size=0.1):
    """An adapter that changes something."""
    adapter = lora.initial(config, params, jax.random.key(0))
    leaves, tree = jax.tree.flatten(adapter)
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(size * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


def difference(a, b):
    return float(jnp.abs(a - b).max())


def test_a_new_adapter_changes_nothing_and_learns():
    module, params = make()
    adapter = lora.initial(CONFIG, params, jax.random.key(0))

    @jax.jit
    def learn(adapter):
        def loss(adapter):
            found = logits(module, lora.insert(CONFIG, params, adapter))
            return jnp.mean(jnp.square(jax.nn.log_softmax(found))), found

        return jax.value_and_grad(loss, has_aux=True)(adapter)

    (_, found), gradient = learn(adapter)
    plain = jax.jit(logits, static_argnums=0)(module, params)
    assert difference(found, plain) < 1e-5 * float(jnp.abs(plain).max())  # measured 3e-6
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert (np.abs(leaf).max() > 0) == (path[-1].key == "up"), path  # what is brought down is still lost


def test_beside_the_kernels_or_added_to_them_it_is_the_same_model():
    module, params = make()
    adapter = some(CONFIG, params)
    run = jax.jit(logits, static_argnums=0)
    beside, merged = run(module, lora.insert(CONFIG, params, adapter)), run(module, lora.merge(CONFIG, params, adapter))
    assert difference(beside, merged) < 1e-5 * float(jnp.abs(merged).max())
    assert difference(run(module, params), merged) > 0.1
    stacked = LM(module.config, scan_layers=True)
    both = stack_layers(params), stack_layers(adapter)
    assert difference(run(stacked, lora.insert(CONFIG, *both)), beside) < 1e-5 * float(jnp.abs(merged).max())
    again = unstack_layers(lora.merge(CONFIG, *both))
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(lora.merge(CONFIG, params, adapter)), strict=True)
    assert max(difference(a, b) for a, b in pairs) < 1e-5


def test_queries_keys_and_values_have_matrices_of_their_own():
    _, params = make()
    config = LoraConfig(rank=2, alpha=2.0, targets=("layer1/self_attn/qkv",))
    adapter = lora.initial(config, params, jax.random.key(0))
    pair = adapter["layer1"]["self_attn"]["qkv"]
    assert (pair["down"].shape, pair["up"].shape) == ((3, 32, 2), (3, 2, 32))
    assert jax.tree.structure(adapter).num_leaves == 2
    pair["up"] = pair["up"].at[2].set(1.0)
    merged = lora.merge(config, params, adapter)
    changed = merged["layer1"]["self_attn"]["qkv"]["kernel"] - params["layer1"]["self_attn"]["qkv"]["kernel"]
    assert np.abs(changed[:, :2]).max() == 0
    np.testing.assert_allclose(changed[:, 2].reshape(32, 32), pair["down"][2] @ pair["up"][2], atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_what_goes_in_is_dropped_at_random(scan):
    """Differently in each layer, and as much on average as nothing dropped."""
    module, params = make()
    config = LoraConfig(rank=3, dropout=0.5, targets=("ffn/up",))
    adapter = some(config, params, 0.05)
    if scan:
        module, params, adapter = LM(module.config, scan_layers=True), stack_layers(params), stack_layers(adapter)
    run = jax.jit(lambda key: logits(module, lora.insert(config, params, adapter, key)))
    plain = logits(module, lora.insert(config, params, adapter))
    found = jnp.stack([run(jax.random.key(seed)) for seed in range(64)])
    assert np.array_equal(found[0], run(jax.random.key(0)))
    spread = float(found.std(axis=0).mean())
    assert spread > 0.01
    assert float(jnp.abs(found.mean(axis=0) - plain).mean()) < 0.5 * spread


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be 1 or more"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"dropout": 1.0}, "dropout must be 0 or above and below 1"),
        ({"targets": ()}, "names nothing to adapt"),
        ({"targets": ("(",)}, "no regular expression"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**changes)


def test_what_does_not_fit_is_told():
    _, params = make()
    with pytest.raises(ConfigError, match=r"'decoder' is found in none of head, layer0/cross_attn/kv"):
        lora.initial(LoraConfig(targets=("ffn", "decoder")), params, jax.random.key(0))
    adapter = some(CONFIG, params)
    _, wider = make(dim=64)
    with pytest.raises(ConfigError, match="does not fit"):
        lora.merge(CONFIG, wider, adapter)
    _, shorter = make(num_layers=1)
    with pytest.raises(ConfigError, match="'layer1', which the model does not have"):
        lora.merge(CONFIG, shorter, adapter)
