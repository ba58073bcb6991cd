"""CLAP's own properties; that it equals transformers is in tests/checkpoints/test_clap_weights.py."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from mgjax import nn
from mgjax.codec import rvq_training
from mgjax.conditioning import tokenizers
from mgjax.conditioning.clap import ClapAudio, ClapText, embed_audio, init_codebooks, quantized
from mgjax.conditioning.htsat import _bicubic
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.config.conditioning import ClapAudioConfig, ClapConditionConfig, ClapConfig, ClapTextConfig
from mgjax.errors import CheckpointError
from mgjax.nn import jit_apply

TINY = ClapConfig(
    text=ClapTextConfig(vocab_size=300, dim=16, ffn_dim=24, num_layers=2, num_heads=2, max_positions=90),
    audio=ClapAudioConfig(
        sample_rate=16_000, fft_size=256, hop_length=160, num_mels=16, lowest_hz=0.0, highest_hz=8000.0, seconds=0.2,
        image_size=32, patch_size=2, window=4, dim=8, depths=(1, 2), num_heads=(2, 2),
    ),
    dim=12,
)  # fmt: skip
BYTES = Tokenizer(lambda text: [3 + byte for byte in text.encode()], 3 + 256, (77,), start=0, end=2, pad=1)


@pytest.fixture(scope="module")
def variables():
    """Random, and large enough for the inputs to matter."""
    ids, mask = jnp.zeros((1, 77), jnp.int32), jnp.ones((1, 77), bool)
    shapes = {
        "text": jax.eval_shape(ClapText(TINY).init, jax.random.key(0), ids, mask),
        "audio": jax.eval_shape(ClapAudio(TINY).init, jax.random.key(1), jnp.zeros((1, 21, 16))),
    }
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return (rng.standard_normal(leaf.shape) * 0.4 + (path[-1].key == "scale")).astype(np.float32)

    made = jax.tree_util.tree_map_with_path(draw, shapes)
    made["audio"]["stats"]["htsat"]["mel_norm"] = {"mean": np.full(16, -30.0), "var": np.full(16, 200.0)}
    return made


@pytest.fixture(scope="module")
def read(variables):
    """The joint embeddings of texts."""
    return lambda texts: np.asarray(jit_apply(ClapText(TINY), variables["text"], *BYTES.encode(texts)))


@pytest.fixture(scope="module")
def hear(variables):
    """The joint embeddings of mono audio."""
    embed = jax.jit(embed_audio, static_argnums=0)
    return lambda audio: np.asarray(embed(TINY, variables["audio"], audio))


def sounds(length):
    time = np.arange(length) / 16_000
    noise = np.random.default_rng(0).standard_normal(length)
    return np.float32([0.1 * noise, np.sin(2 * np.pi * 440 * time), 1e-3 * np.sin(2 * np.pi * 3000 * time)])


def test_texts(read, variables):
    """Their embeddings differ, have length 1, and depend neither on the other texts nor on how wide the padding is."""
    texts = ["slow waltz", "slow walts", "drums"]
    together = read(texts)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    assert min(np.abs(together[i] - together[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2
    assert np.array_equal(read(["a long text about anything", "x", "slow walts"])[2], together[1])
    ids, mask = BYTES.encode(["drums"])
    alone = jit_apply(ClapText(TINY), variables["text"], ids[:, :7], mask[:, :7])
    assert np.abs(np.asarray(alone)[0] - together[2]).max() < 2e-6  # measured 1.8e-7


def test_what_stands_at_padding_does_not_matter(variables):
    ids, mask = BYTES.encode(["drums", None, "b"])
    other = np.where(mask, ids, 77).astype(np.int32)
    first, second = (jit_apply(ClapText(TINY), variables["text"], tokens, mask) for tokens in (ids, other))
    assert np.array_equal(first[0], second[0])
    assert np.isfinite(first).all()


def test_sounds(hear):
    """Rows stand for themselves, and different sounds have different embeddings."""
    audio = sounds(3200)
    together = hear(audio)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    for row, sound in enumerate(audio):
        assert np.abs(hear(sound[None]) - together[row]).max() < 2e-6  # measured 1.2e-7
    assert min(np.abs(together[i] - together[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2


def test_wrong_use_of_the_towers(variables):
    with pytest.raises(ValueError, match="the audio is empty"):
        embed_audio(TINY, variables["audio"], jnp.zeros((1, 0)))
    with pytest.raises(ValueError, match="at most 88 tokens, got 89"):
        jax.eval_shape(ClapText(TINY).apply, variables["text"], jnp.zeros((1, 89), jnp.int32), jnp.ones((1, 89), bool))
    with pytest.raises(ValueError, match="up to 64 frames of 16 mel bands, got 65 of 16"):
        jax.eval_shape(ClapAudio(TINY).apply, variables["audio"], jnp.zeros((1, 65, 16)))


@pytest.mark.parametrize("changes", [{"vocab_size": 259}, {"pad_token": 2}])
def test_a_tokenizer_of_another_model_is_refused(tmp_path, changes):
    """Of 261 tokens, with padding 1."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert tokenizers.load_clap(TINY, tmp_path).vocab_size == 261
    other = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, **changes))
    with pytest.raises(CheckpointError, match="does not belong to the text tower"):
        tokenizers.load_clap(other, tmp_path)
    with pytest.raises(CheckpointError, match="came without the tokenizer of its CLAP"):
        tokenizers.load_clap(TINY, None)


CONFIG = ClapConditionConfig(TINY, num_codebooks=3, codebook_size=8)


def embeddings(rows):
    x = np.random.default_rng(0).standard_normal((rows, 12)).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_quantized_is_what_the_codec_would_decode():
    embed = 0.5 * jax.random.normal(jax.random.key(0), (3, 8, 12))
    x = embeddings(20)
    expected = jax.jit(lambda x, embed: nn.dequantize(nn.quantize(x[:, None], embed)[0], embed)[:, 0])(x, embed)
    made = jax.jit(quantized)(x, embed)
    assert np.abs(np.asarray(made) - np.asarray(expected)).max() < 1e-6


def test_codebooks_learn_as_those_of_the_codec():
    """Ten steps of the codec's own training bring what is decoded near what came in."""
    codebooks, x = init_codebooks(CONFIG), embeddings(16)
    assert codebooks["embed"].shape == (3, 8, 12)
    learn = jax.jit(lambda codebooks, key: rvq_training.quantize(x[:, None], codebooks, key, quantizer))
    quantizer = rvq_training.QuantizerConfig(kmeans_iterations=5)
    for i in range(10):
        result = learn(codebooks, jax.random.key(i))
        assert jax.tree.map(jnp.shape, result.codebooks) == jax.tree.map(jnp.shape, codebooks)
        codebooks = result.codebooks
    assert np.mean(np.square(quantized(x, codebooks["embed"]) - x)) < 0.3 * np.mean(np.square(x))


def test_embeds_in_a_compiled_step_on_many_devices(hear, variables):
    expected = np.tile(hear(sounds(3200)), (3, 1))[:8]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    audio = jax.device_put(np.tile(sounds(3200), (3, 1))[:8], rows)
    got = jax.jit(embed_audio, static_argnums=0)(TINY, variables["audio"], audio)
    assert len(got.sharding.device_set) == 8
    assert np.abs(np.asarray(got) - expected).max() < 2e-6  # measured 1.2e-7


@pytest.mark.parametrize(("size", "target"), [(1, 8), (2, 7), (100, 384), (1001, 1024)])
def test_stretching_equals_torch(size, target):
    rows = np.random.default_rng(0).standard_normal((size, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(rows)[None, None], (target, 3), mode="bicubic", align_corners=True
    )
    indices, weights = _bicubic(size, target)
    assert (
        np.abs(np.einsum("tpm,tp->tm", rows[indices], weights) - expected[0, 0].numpy()).max() < 5e-6
    )  # measured 1.2e-6
