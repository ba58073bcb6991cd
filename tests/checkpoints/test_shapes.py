"""The published sizes: shape trees by config alone, counted, and the names of every table."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from mgjax.checkpoints.tables import musicgen, shapes
from mgjax.checkpoints.tables.matching import target_shapes
from mgjax.codec.encodec import EncodecModel
from mgjax.conditioning.t5 import T5Encoder
from mgjax.config.conditioning import ClapConditionConfig, StyleConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig
from mgjax.config.published import MUSICGEN

# Name -> parameters in millions of the whole and of its decoder, tensors of a file of transformers 5.23.
PUBLISHED = {
    "small": (586.9, 419.6, 612),
    "medium": (2005.3, 1837.6, 996),
    "large": (3423.5, 3255.4, 996),
    "stereo-small": (603.7, 436.4, 620),
    "stereo-medium": (2030.4, 1862.7, 1004),
    "stereo-large": (3457.0, 3288.9, 1004),
    "melody": (1552.1, 1384.4, 710),
    "melody-large": (2618.0, 2449.9, 710),
    "stereo-melody": (1577.3, 1409.6, 718),
    "stereo-melody-large": (2651.6, 2483.4, 718),
}


def count(tree, *, skip=()):
    return sum(math.prod(shape) for path, shape in tree.items() if not path.startswith(skip))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    whole, decoder, tensors = PUBLISHED[name]
    config = MUSICGEN[f"facebook/musicgen-{name}"]
    tree = shapes.model_shapes(config)
    # The codebooks are state, not parameters; the projections stand outside of the decoder.
    assert round(count(tree, skip=("codec/codebooks",)) / 1e6, 1) == whole
    assert round(count(shapes.lm_shapes(config.lm), skip=("text_proj", "melody_proj")) / 1e6, 1) == decoder
    # T5's embedding has two names.
    assert sum(len(rule.sources) for rule in musicgen.huggingface(config)) + 1 == tensors


def test_exact_counts():
    small = shapes.model_shapes(ModelConfig())
    assert count(small, skip=("codec/codebooks",)) == 586_884_674
    assert count(small) + 32_128 * 768 == 613_664_326  # with the second name of T5's embedding
    melody = shapes.model_shapes(MUSICGEN["facebook/musicgen-melody"])
    assert count(melody, skip=("codec/codebooks",)) == 1_552_138_818
    codec = shapes.codec_shapes(CodecConfig())
    assert count({path: shape for path, shape in codec.items() if path.startswith("params/encoder")}) == 28_441_984
    assert count({path: shape for path, shape in codec.items() if path.startswith("params/decoder")}) == 28_442_690
    assert round(count(target_shapes(musicgen.t5(T5Config()))) / 1e6, 2) == 109.63


def test_counts_of_encoders():
    style = shapes.model_shapes(with_encoders(**ENCODERS["style"]))
    # MERT-v1-95M has 94.37 million, with the mask that only its training needs (768).
    mert = {path: shape for path, shape in style.items() if path.startswith("style/features")}
    assert round(count(mert) / 1e6, 1) == 94.4
    assert round(count({path: s for path, s in style.items() if path.startswith("style/params")}) / 1e6, 1) == 25.6
    clap = shapes.model_shapes(with_encoders(**ENCODERS["clap"]))
    towers = {path: shape for path, shape in clap.items() if path.startswith(("clap/text", "clap/audio"))}
    # laion/clap-htsat-unfused has 153.5 million.
    assert round(count(towers, skip=("clap/audio/stats",)) / 1e6, 1) == 153.5


CODECS = {
    "32khz": CodecConfig(),
    "48khz": CodecConfig(norm="time_group_norm", conv_shortcut=True, channels=2, ratios=(8, 5, 4, 2)),
    "folded": CodecConfig(norm="none", num_residual_layers=3),
    "no-lstm": CodecConfig(num_lstm_layers=0),
    "phases": CodecConfig(phases=8, channels=2, ratios=(5, 6, 4)),
}


@pytest.mark.parametrize("name", CODECS)
def test_shapes_of_the_codec_are_those_of_its_module(name):
    module = EncodecModel(CODECS[name])
    audio = jnp.zeros((1, module.config.hop_length, module.config.channels))
    variables = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), audio), sep="/")
    assert {path: leaf.shape for path, leaf in variables.items()} == shapes.codec_shapes(module.config)


def t5_shapes(config):
    """Those of the module."""
    tokens = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    params = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), *tokens)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}


TABLES = {
    f"{table.__name__}-{name}": (table, shapes.codec_shapes, codec)
    for name, codec in CODECS.items()
    for table in (musicgen.huggingface_codec, musicgen.audiocraft_codec)
}
TABLES |= {
    f"{table.__name__}-{name}": (table, shapes.lm_shapes, MUSICGEN[f"facebook/musicgen-{name}"].lm)
    for name in PUBLISHED
    for table in (musicgen.huggingface_lm, musicgen.audiocraft_lm)
}
TABLES["t5"] = musicgen.t5, t5_shapes, T5Config()
TABLES["t5-gated"] = musicgen.t5, t5_shapes, T5Config(activation="gated-gelu")
ENCODERS = {
    "style": dict(style=StyleConfig(), conditions=(Fused("style", 512, "prefix"), Fused("text", 768, "prefix"))),
    "style-of-codes": dict(style=StyleConfig(None), conditions=(Fused("style", 512, "prefix"),)),
    "clap": dict(clap=ClapConditionConfig(), conditions=(Fused("clap", 512),)),
    "clap-whole": dict(clap=ClapConditionConfig(num_codebooks=0), conditions=(Fused("clap", 512),)),
}


def with_encoders(conditions, **encoders):
    text = T5Config() if any(one.name == "text" for one in conditions) else None
    return ModelConfig(LMConfig(conditions=conditions), text=text, **encoders)


def in_state_dict(config):
    """What audiocraft keeps in the file of the language model: all but the codec and the encoders that are given."""
    elsewhere = ("codec/", "text/", "style/features/", "clap/text/", "clap/audio/")
    return {path: shape for path, shape in shapes.model_shapes(config).items() if not path.startswith(elsewhere)}


TABLES |= {
    f"audiocraft-{name}": (musicgen.audiocraft, in_state_dict, with_encoders(**fields))
    for name, fields in ENCODERS.items()
}
TABLES["no-text"] = musicgen.audiocraft_lm, shapes.lm_shapes, LMConfig(conditions=())


@pytest.mark.parametrize("case", TABLES)
def test_tables_fill_every_array_once(case):
    table, tree, config = TABLES[case]
    wanted, rules = tree(config), list(table(config))
    targets = [target for rule in rules for target in rule.shapes]
    assert sorted(targets) == sorted(wanted)
    sources = [source for rule in rules for source in rule.sources]
    assert len(set(sources)) == len(sources)
    numbers = sum(math.prod(shape) for rule in rules for shape in rule.source_shapes)
    assert numbers == count(wanted)


def test_published_shapes_of_the_files():
    """Some of appendix A, as transformers 5.23 lists them."""
    config = ModelConfig()
    files = {
        s: shape
        for rule in musicgen.huggingface(config)
        for s, shape in zip(rule.sources, rule.source_shapes, strict=True)
    }
    expected = {
        "text_encoder.encoder.block.11.layer.1.DenseReluDense.wi.weight": (3072, 768),
        "audio_encoder.encoder.layers.12.conv.weight_v": (1024, 512, 16),
        "audio_encoder.encoder.layers.13.lstm.weight_ih_l1": (4096, 1024),
        "audio_encoder.encoder.layers.15.conv.weight_g": (128, 1, 1),
        "audio_encoder.decoder.layers.3.conv.weight_g": (1024, 1, 1),
        "audio_encoder.decoder.layers.3.conv.weight_v": (1024, 512, 16),
        "audio_encoder.decoder.layers.13.block.1.conv.weight_v": (32, 64, 3),
        "audio_encoder.decoder.layers.15.conv.weight_v": (1, 64, 7),
        "audio_encoder.quantizer.layers.3.codebook.inited": (1,),
        "audio_encoder.quantizer.layers.3.codebook.embed_avg": (2048, 128),
        "decoder.model.decoder.embed_tokens.3.weight": (2049, 1024),
        "decoder.lm_heads.3.weight": (2048, 1024),
        "decoder.model.decoder.layers.23.fc2.weight": (1024, 4096),
        "enc_to_dec_proj.weight": (1024, 768),
    }  # fmt: skip
    assert {name: files[name] for name in expected} == expected


def test_audiocraft_joins_q_k_and_v():
    config = dataclasses.replace(LMConfig(), num_layers=1)
    files = {rule.sources[0]: rule.source_shapes[0] for rule in musicgen.audiocraft_lm(config)}
    assert files["transformer.layers.0.self_attn.in_proj_weight"] == (3072, 1024)
    assert files["transformer.layers.0.cross_attention.in_proj_weight"] == (3072, 1024)
