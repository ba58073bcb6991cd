import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mgjax.conditioning.t5 import T5Encoder, _buckets
from mgjax.config.conditioning import T5Config

LENGTHS = (23, 1, 14)  # of the rows, beyond and below half of max_distance


def make_config(activation: str) -> T5Config:
    return T5Config(
        vocab_size=40, dim=16, head_dim=6, ffn_dim=24, num_layers=3, num_heads=2, num_buckets=8, max_distance=20,
        activation=activation,
    )  # fmt: skip


def make_transformers(config: T5Config) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_kv=config.head_dim,
            d_ff=config.ffn_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.norm_eps,
            feed_forward_proj=config.activation,
        )
    ).eval()


def make_reference(config: T5Config) -> transformers.T5EncoderModel:
    torch.manual_seed(0)
    reference = make_transformers(config)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return reference


def to_params(reference: transformers.T5EncoderModel, config: T5Config) -> dict:
    """The parameter tree of `reference`, spelled out by name."""
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    into_heads = (config.dim, config.num_heads, config.head_dim)
    flat = {
        "embed/embedding": state["shared.weight"],
        "final_norm/scale": state["encoder.final_layer_norm.weight"],
        "relative_bias/embedding": state["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
    }
    gated = config.activation == "gated-gelu"
    ffn = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    for i in range(config.num_layers):
        attention, dense = (f"encoder.block.{i}.layer.{part}" for part in (0, 1))
        flat[f"block{i}/attn_norm/scale"] = state[f"{attention}.layer_norm.weight"]
        flat[f"block{i}/ffn_norm/scale"] = state[f"{dense}.layer_norm.weight"]
        for ours, theirs in {"query": "q", "key": "k", "value": "v"}.items():
            kernel = state[f"{attention}.SelfAttention.{theirs}.weight"].T
            flat[f"block{i}/attn/{ours}/kernel"] = kernel.reshape(into_heads)
        kernel = state[f"{attention}.SelfAttention.o.weight"].T
        flat[f"block{i}/attn/out/kernel"] = kernel.reshape(into_heads[1:] + into_heads[:1])
        for ours, theirs in ffn.items():
            flat[f"block{i}/ffn/{ours}/kernel"] = state[f"{dense}.DenseReluDense.{theirs}.weight"].T
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def make_batch(config: T5Config, width: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (len(LENGTHS), width)).astype(np.int32)
    mask = np.arange(width)[None] < np.array(LENGTHS)[:, None]
    return np.where(mask, ids, 0), mask


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def case(request):
    config = make_config(request.param)
    reference = make_reference(config)
    return config, reference, to_params(reference, config)


def apply(config, params, ids, mask):
    return np.asarray(jax.jit(T5Encoder(config).apply)({"params": params}, jnp.asarray(ids), jnp.asarray(mask)))


def test_equals_transformers(case):
    config, reference, params = case
    ids, mask = make_batch(config, max(LENGTHS))
    with torch.no_grad():
        expected = reference(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
    got = apply(config, params, ids, mask)
    assert np.std(expected[mask]) > 0.1
    assert np.abs(got - expected)[mask].max() < 1e-5  # measured 9e-7 (relu) and 1.3e-6 (gated-gelu)


def test_parameter_tree(case):
    config, _, params = case
    ids, mask = make_batch(config, 4)
    made = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), jnp.asarray(ids), jnp.asarray(mask))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, made)


def test_padding_changes_nothing(case):
    """Each row alone, in a batch, and in a wider batch."""
    config, _, params = case
    ids, mask = make_batch(config, max(LENGTHS))
    together = apply(config, params, ids, mask)
    wider = apply(config, params, np.pad(ids, ((0, 0), (0, 9))), np.pad(mask, ((0, 0), (0, 9))))
    for row, length in enumerate(LENGTHS):
        alone = apply(config, params, ids[row : row + 1, :length], mask[row : row + 1, :length])[0]
        assert np.abs(together[row, :length] - alone).max() < 1e-5  # measured 7e-7
        assert np.abs(wider[row, :length] - alone).max() < 1e-5


def test_null_rows_are_finite(case):
    config, _, params = case
    ids, mask = make_batch(config, 6)
    assert np.isfinite(apply(config, params, ids, np.zeros_like(mask))).all()


def test_t5_base_distances_fall_into_the_buckets_of_transformers():
    layer = transformers.models.t5.modeling_t5.T5Attention(transformers.T5Config(), has_relative_attention_bias=True)
    expected = layer._relative_position_bucket(torch.arange(-511, 512))
    assert np.array_equal(_buckets(512, T5Config()), expected.numpy())


def test_t5_base_has_its_published_size():
    shapes = jax.eval_shape(
        T5Encoder(T5Config()).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    )
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 2) == 109.63


def test_new_weights_are_spread_as_in_transformers():
    """Each array's standard deviation, and a mean of zero, within what so many draws leave to chance."""
    config = T5Config(
        vocab_size=500, dim=64, head_dim=24, ffn_dim=160, num_layers=1, num_heads=3, num_buckets=500,
        activation="gated-gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = to_params(make_transformers(config), config)
    batch = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    ours = jax.jit(T5Encoder(config).init)(jax.random.key(0), *batch)["params"]
    theirs, ours = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (theirs, ours))
    assert theirs.keys() == ours.keys()
    for path, expected in theirs.items():
        if path.endswith("scale"):
            assert np.array_equal(ours[path], expected)
            continue
        found, spread = np.asarray(ours[path]), np.std(expected)
        assert np.std(found) == pytest.approx(spread, rel=8 / expected.size**0.5), path  # 5.7 standard deviations
        assert abs(np.mean(found)) < 5.7 * spread / expected.size**0.5, path
        assert np.abs(found).max() > 2.5 * spread, path  # a normal distribution, not cut off
