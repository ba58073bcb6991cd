"""The module: its parameter tree at the real size, folding of the weight norm, and its parts on their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from random_codec import random_variables

from mgjax import nn
from mgjax.codec import weight_norm
from mgjax.codec.encodec import EncodecModel
from mgjax.config.model import CodecConfig

_SMALL = CodecConfig(num_filters=2, latent_dim=4, codebook_size=8, ratios=(4, 5))


def test_parameters_at_the_size_of_musicgen():
    model = EncodecModel(CodecConfig())
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 640, 1))), jax.random.key(0))
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes["params"].items()}
    assert counts == {"encoder": 28_441_984, "decoder": 28_442_690}
    assert shapes["params"]["decoder"]["block0"]["up"]["scale"].shape == (1024,)  # of the input channels
    assert shapes["params"]["decoder"]["block0"]["up"]["kernel"].shape == (16, 1024, 512)
    assert shapes["params"]["encoder"]["block3"]["down"]["scale"].shape == (1024,)
    assert shapes["params"]["encoder"]["lstm"]["layer1"]["hidden_kernel"].shape == (4096, 1024)
    assert {name: leaf.shape for name, leaf in shapes["codebooks"].items()} == {
        "embed": (4, 2048, 128),
        "embed_avg": (4, 2048, 128),
        "cluster_size": (4, 2048),
        "inited": (4,),
    }


def test_folding_changes_the_form_but_not_the_sound():
    model = EncodecModel(_SMALL)
    variables = random_variables(model.config)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 1.5 if path[-1].key == "scale" else leaf, variables["params"]
    )
    latents = jax.random.normal(jax.random.key(1), (1, 6, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def sound(config, params):
        decoder = EncodecModel(config)
        return decoder.apply({**variables, "params": params}, latents, 6, method=lambda m, x, n: m.decoder(x, n))

    expected = sound(_SMALL, scaled)
    folded_config, folded = weight_norm.fold(_SMALL, scaled)
    assert folded_config.norm == "none"
    np.testing.assert_allclose(sound(folded_config, folded), expected, atol=1e-5)  # measured: 2e-8
    config, unfolded = weight_norm.unfold(folded_config, {"params": folded})
    assert config == _SMALL
    assert jax.tree.map(jnp.shape, unfolded["params"]) == jax.tree.map(jnp.shape, scaled)
    np.testing.assert_allclose(sound(config, unfolded["params"]), expected, atol=1e-5)  # measured: 2e-8
    assert not np.allclose(sound(_SMALL, variables["params"]), expected, atol=1e-3)


def test_the_codebooks_are_state_and_the_rest_is_trained():
    # A kernel of one number has no direction to learn: with two filters, the residual blocks would have such.
    model = EncodecModel(dataclasses.replace(_SMALL, num_filters=4))
    variables = random_variables(model.config)
    assert set(variables) == {"params", "codebooks"}
    audio = jax.random.normal(jax.random.key(1), (1, 40, 1))

    def loss(params):
        latents = model.apply({**variables, "params": params}, audio, 40, method=lambda m, x, n: m.encoder(x, n))
        restored = model.apply({**variables, "params": params}, latents, 2, method=lambda m, x, n: m.decoder(x, n))
        return jnp.mean(jnp.square(restored - audio))

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_many_residual_blocks_do_not_make_a_new_codec_loud():
    config = CodecConfig(num_filters=8, latent_dim=8, ratios=(4, 4, 2), num_residual_layers=3, num_lstm_layers=0)

    model = EncodecModel(config)

    @jax.jit
    def power(key):
        latents = jax.random.normal(key, (1, 40, 8))
        variables = model.init(key, latents, 40, method=lambda m, x, n: m.decoder(x, n))
        return jnp.var(model.apply(variables, latents, 40, method=lambda m, x, n: m.decoder(x, n)))

    assert power(jax.random.key(0)) < 0.1  # measured: 0.03; 0.34 if blocks began as loud as what they are added to


def test_each_codebook_codes_the_rest_of_the_ones_before():
    embed = jnp.array([[[0.0, 0.0], [4.0, 3.0]], [[0.0, 1.0], [1.0, 0.0]]])
    latents = jnp.array([[[4.1, 3.9], [0.1, 0.8]]])
    codes, _, _ = nn.quantize(latents, embed)
    np.testing.assert_array_equal(codes, [[[1, 0], [0, 0]]])
    np.testing.assert_array_equal(nn.dequantize(codes, embed), [[[4.0, 4.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(nn.dequantize(codes[..., :1], embed), [[[4.0, 3.0], [0.0, 0.0]]])


def test_what_lies_beyond_the_length_has_no_effect():
    config = CodecConfig(num_filters=2, latent_dim=4, codebook_size=8, ratios=(4, 5), norm="time_group_norm")
    model = EncodecModel(config)
    variables = random_variables(model.config)
    audio = jax.random.normal(jax.random.key(1), (1, 40, 1))
    encode = jax.jit(lambda x, n: model.apply(variables, x, n, method=lambda m, x, n: m.encoder(x, n)))
    for length in (1, 17, 20, 33):
        frames = -(-length // 20)
        silent_after = encode(audio.at[:, length:].set(0.0), length)
        np.testing.assert_array_equal(encode(audio, length)[:, :frames], silent_after[:, :frames])
