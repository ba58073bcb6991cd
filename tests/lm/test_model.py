import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import chroma, context, make, text

from mgjax.checkpoints.tables.shapes import lm_shapes
from mgjax.conditioning.condition import Condition
from mgjax.config.model import Fused, LMConfig
from mgjax.kernels import cpu
from mgjax.lm.model import LM
from mgjax.nn import sinusoidal_positions


@pytest.fixture(scope="module")
def cross():
    return make()


@pytest.fixture(scope="module")
def prefixed():
    return make(conditions=(Fused("melody", 3, "prefix"), Fused("text", 8, "prefix")))


def tokens(b, s, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 21, (b, s, 4)), jnp.int32)


@functools.partial(jax.jit, static_argnames=("module", "method", "capacity"))
def apply(module, params, *inputs, **options):
    return module.apply({"params": params}, *inputs, **options)


def logits(model, tokens, context):
    return np.asarray(apply(*model, tokens, context))


def test_positions_are_those_of_the_published_models():
    """Cosines before sines, and the last frequency is 1 / 10000 exactly: the divisor is dim / 2 - 1."""
    table = np.asarray(sinusoidal_positions(jnp.arange(1504), 64))
    assert table.dtype == np.float32
    assert np.array_equal(table[0], [1] * 32 + [0] * 32)
    angles = np.arange(1504)[:, None] / 10_000 ** (np.arange(32) / 31)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert np.abs(table - expected).max() < 2e-4  # measured 6.1e-5: float32 angles near 1500


@pytest.mark.parametrize("form", ["cross", "prefixed"])
def test_step_by_step_equals_all_at_once(form, request):
    """With a prompt read in one go, then single steps, with padding in the text and, where there is one, the prefix."""
    model = request.getfixturevalue(form)
    module, params = model
    told = context(model, text=text([3, 6], 8), **({"melody": chroma(2)} if form == "prefixed" else {}))
    music = tokens(2, 12)
    whole = logits(model, music, told)

    cache = apply(module, params, told, capacity=16, method="prefill")
    parts, step = [], 0
    for size in (5, 1, 1, 3, 1, 1):
        piece = music[:, step : step + size]
        part, cache = apply(module, params, piece, told, cache, step, method="decode")
        parts.append(part)
        step += size
    assert np.abs(np.concatenate(parts, axis=1) - whole).max() < 1e-4  # measured 1.5e-5
    assert whole.std() > 1


@pytest.mark.parametrize("form", ["cross", "prefixed"])
def test_a_row_does_not_see_its_padding(form, request):
    """Alone and unpadded, or beside a longer text: positions, too, count only what is there."""
    model = request.getfixturevalue(form)
    more = {"melody": chroma(2)} if form == "prefixed" else {}
    one = {name: Condition(part.tokens[:1], part.mask[:1]) for name, part in more.items()}
    music = tokens(2, 6)
    together = logits(model, music, context(model, text=text([3, 7], 16), **more))
    alone = logits(model, music[:1], context(model, text=text([3], 3), **one))
    assert np.abs(together[:1] - alone).max() < 1e-4  # measured 1.3e-5


def test_null_text_is_no_text_at_all(cross):
    """A row without text gets exactly zero from cross-attention, bias of the projection included."""
    music = tokens(2, 6)
    null = text([0, 4], 5)
    params = {**cross[1], "text_proj": {**cross[1]["text_proj"], "bias": jnp.ones(32)}}
    biased = (cross[0], params)
    with_null = logits(biased, music, context(biased, text=null))
    without = logits(biased, music, context(biased, batch=2))
    assert np.array_equal(with_null[0], without[0])
    assert np.abs(with_null[1] - without[1]).max() > 0.1


def test_text_comes_between_melody_and_music(prefixed):
    told = context(prefixed, text=text([4], 4), melody=chroma(1))
    melody = context(prefixed, melody=chroma(1)).prefix
    assert told.prefix.shape == (1, 9, 32)
    assert np.array_equal(told.prefix[:, :5], melody)
    assert told.cross.shape[1] == 0


@pytest.mark.parametrize("form", ["cross", "prefixed"])
def test_bfloat16_stays_close(form, request):
    """Weights, activations and cache in bfloat16; logits are float32."""
    module, params = request.getfixturevalue(form)
    params = jax.tree.map(lambda x: x / 3 if x.ndim > 1 else x, params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    conditions = {"text": text([4], 4)} | ({"melody": chroma(1)} if form == "prefixed" else {})
    exact = logits((module, params), tokens(1, 12), context((module, params), **conditions))
    told = context((module, half), **conditions)
    close = logits((module, half), tokens(1, 12), told)
    assert close.dtype == np.float32
    assert np.abs(close - exact).max() < 0.1  # measured 0.03 at a standard deviation of 1
    assert apply(module, half, told, capacity=4, method="prefill").layers[0].key.dtype == jnp.bfloat16


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("form", ["cross", "prefixed"])
def test_a_cache_in_int8_stays_close(form, kernel, request, monkeypatch):
    """Prefix or cross-attention, a prompt, single steps, and growth between them; by the CPU's kernel and without."""
    if not kernel:
        monkeypatch.setattr(cpu, "available", lambda: False)
    module, params = request.getfixturevalue(form)
    params = jax.tree.map(lambda x: x / 3 if x.ndim > 1 else x, params)
    told = context((module, params), text=text([3, 6], 8), **({"melody": chroma(2)} if form == "prefixed" else {}))
    music = tokens(2, 12)
    exact = logits((module, params), music, told)

    @functools.partial(jax.jit, static_argnames=("method", "capacity"))  # `apply` keeps what was traced with the kernel
    def run(params, *inputs, **options):
        return LM(module.config, cache_dtype="int8").apply({"params": params}, *inputs, **options)

    cache = run(params, told, capacity=7, method="prefill")
    parts, step = [], 0
    for size in (5, 1, 1, 3, 1, 1):
        if step == 7:
            before, cache = cache, cache.grown(9)
            for old, new in zip(jax.tree.leaves(before.layers), jax.tree.leaves(cache.layers), strict=True):
                assert new.shape[2] == old.shape[2] + 9
                assert np.array_equal(new[:, :, : old.shape[2]], old)
                assert np.any(old)
        part, cache = run(params, music[:, step : step + size], told, cache, step, method="decode")
        parts.append(part)
        step += size
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cache)} == {"int8", "float32"}
    error = np.abs(np.concatenate(parts, axis=1) - exact).max()
    assert 1e-4 < error < 0.05, error  # measured 0.0097 and 0.0048, at a standard deviation of 1


@pytest.mark.parametrize("cache_dtype", [None, "bfloat16", "int8"])
def test_a_step_reads_and_writes_its_cache_alone(cross, cache_dtype):
    """By the CPU's kernel nothing as large as the cache is computed: XLA would convert all of it to write bfloat16."""
    if not cpu.available():
        return  # without a compiler, it is widened
    module, params = LM(cross[0].config, cache_dtype=cache_dtype), cross[1]
    told = context(cross, text=text([3], 3))
    cache = apply(module, params, told, capacity=300, method="prefill")
    leaves, tree = jax.tree.flatten(cache)

    @functools.partial(jax.jit, donate_argnums=0)
    def decode(leaves, step):
        inputs = (tokens(1, 1), told, jax.tree.unflatten(tree, leaves), step)
        return module.apply({"params": params}, *inputs, method="decode")

    compiled = decode.lower(leaves, jnp.int32(7)).compile().as_text()
    whole = [line.split("=")[1].split() for line in compiled.splitlines() if re.search(r"= \w+\[1,4,300,\d+\]", line)]
    operations = {words[1].split("(")[0] for words in whole}
    assert "dynamic-update-slice" in operations
    assert operations <= {"parameter", "get-tuple-element", "fusion", "bitcast", "dynamic-update-slice"}, operations


MELODY = (Fused("melody", 12, "prefix"), Fused("text", 768, "prefix"))
SIZES = {"small": (1024, 24, 16, 4096), "medium": (1536, 48, 24, 6144), "large": (2048, 48, 32, 8192)}
# The decoder's parameters in millions, from reference/musicgen.md section 1: by size, codebooks and cross-attention.
COUNTS = {
    ("small", 4, True): 419.58,
    ("medium", 4, True): 1837.56,
    ("large", 4, True): 3255.38,
    ("small", 8, True): 436.37,
    ("medium", 8, True): 1862.73,
    ("large", 8, True): 3288.94,
    ("medium", 4, False): 1384.42,
    ("large", 4, False): 2449.88,
    ("medium", 8, False): 1409.60,
    ("large", 8, False): 2483.44,
}


@pytest.mark.parametrize(("size", "codebooks", "cross_attention"), COUNTS)
def test_published_sizes(size, codebooks, cross_attention):
    """The module's own shapes are those that the checkpoint readers fill, and count what was published."""
    dim, layers, heads, wide = SIZES[size]
    config = LMConfig(
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        ffn_dim=wide,
        num_codebooks=codebooks,
        delays=tuple(range(codebooks)),
        conditions=(Fused("text", 768),) if cross_attention else MELODY,
    )

    count = sum(math.prod(shape) for path, shape in lm_shapes(config).items() if "_proj/" not in path)
    assert count / 1e6 == pytest.approx(COUNTS[size, codebooks, cross_attention], abs=0.006)

    config = dataclasses.replace(config, num_layers=2)  # all layers are alike, and tracing 48 takes its time

    def initialise(module):
        there = jnp.ones((1, 1), bool)
        told = module.context({one.name: Condition(jnp.zeros((1, 1, one.dim)), there) for one in config.conditions})
        return module(jnp.zeros((1, 1, codebooks), jnp.int32), told)

    params = jax.eval_shape(lambda: LM(config).init(jax.random.key(0), method=initialise))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves} == lm_shapes(config)


def test_initialisation_is_the_published_one():
    """Narrower with depth where a matrix is a linear layer, uniform in the packed projections."""
    module, _ = make(dim=128, num_layers=3, ffn_dim=512)

    def initialise(module):
        told = module.context({"text": Condition(jnp.zeros((1, 1, 8)), jnp.ones((1, 1), bool))})
        return module(jnp.zeros((1, 1, 4), jnp.int32), told)

    params = jax.jit(lambda key: module.init(key, method=initialise))(jax.random.key(0))["params"]
    for i in range(3):
        layer, depth = params[f"layer{i}"], (2 * (i + 1)) ** -0.5
        for kernel, fan_in in (
            (layer["self_attn"]["out"], 128),
            (layer["ffn"]["up"], 128),
            (layer["ffn"]["down"], 512),
        ):
            spread = float(np.std(kernel["kernel"])) * fan_in**0.5
            assert spread == pytest.approx(0.986 * depth, rel=0.03)
        for kernel in (layer["self_attn"]["qkv"], layer["cross_attn"]["query"], layer["cross_attn"]["kv"]):
            assert float(np.std(kernel["kernel"])) * 128**0.5 == pytest.approx(3**-0.5, rel=0.03)
            assert np.abs(kernel["kernel"]).max() <= 128**-0.5
    for parameter in params["text_proj"].values():
        assert 0.5 * 8**-0.5 < np.abs(parameter).max() <= 8**-0.5
    for table in (params["embed"]["embedding"], params["head"]["kernel"]):
        assert float(np.std(table)) * 128**0.5 == pytest.approx(0.986, rel=0.03)
