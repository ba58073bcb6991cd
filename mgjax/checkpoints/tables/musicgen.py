"""The tables: what transformers and audiocraft call the arrays of a model, as rules made from its config."""

from __future__ import annotations

from collections.abc import Iterator

from mgjax.checkpoints.tables.audiocraft_clap import audiocraft_clap
from mgjax.checkpoints.tables.audiocraft_style import audiocraft_style
from mgjax.checkpoints.tables.matching import (
    CONV,
    CONV_TRANSPOSED,
    GAIN,
    LINEAR,
    LINEAR_OUT,
    PLAIN,
    Rule,
    codebooks,
    linear,
    norm,
    single,
    stacked,
)
from mgjax.checkpoints.tables.shapes import gated
from mgjax.codec import layers
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, LMConfig, ModelConfig

# torch 2.1 renamed weight norm's arrays; every published file has the old names, and so has what is written here.
# T5's embedding has two names, of which a file holds either or both.
ALIASES = {
    r"\.parametrizations\.weight\.original0$": ".weight_g",
    r"\.parametrizations\.weight\.original1$": ".weight_v",
    r"^(text_encoder\.|)encoder\.embed_tokens\.weight$": r"\1shared.weight",
}

HUGGINGFACE_PROJECTIONS = {"text": "enc_to_dec_proj", "melody": "audio_enc_to_dec_proj"}
# audiocraft calls a condition by the field of the metadata that it reads.
AUDIOCRAFT_CONDITIONERS = {"text": "description", "melody": "self_wav", "style": "self_wav", "clap": "description"}


def huggingface(config: ModelConfig) -> Iterator[Rule]:
    """A MusicgenForConditionalGeneration or MusicgenMelodyForConditionalGeneration."""
    yield from (rule.within("lm/") for rule in huggingface_lm(config.lm))
    yield from (rule.within("codec/", "audio_encoder.") for rule in huggingface_codec(config.codec))
    if config.text:
        yield from (rule.within("text/", "text_encoder.") for rule in t5(config.text))


def huggingface_lm(config: LMConfig) -> Iterator[Rule]:
    """The language model in transformers, which leaves out a projection between equal widths."""
    k, body = config.num_codebooks, "decoder.model.decoder"
    yield stacked("embed/embedding", body + ".embed_tokens.{k}.weight", k)
    yield Rule(("head/kernel",), tuple(f"decoder.lm_heads.{n}.weight" for n in range(k)), LINEAR)
    yield from norm("out_norm", f"{body}.layer_norm")
    for i in range(config.num_layers):
        target, source = f"layer{i}", f"{body}.layers.{i}"
        yield from norm(f"{target}/self_norm", f"{source}.self_attn_layer_norm")
        qkv = tuple(f"{source}.self_attn.{name}_proj.weight" for name in "qkv")
        yield Rule((f"{target}/self_attn/qkv/kernel",), qkv, LINEAR)
        yield single(f"{target}/self_attn/out/kernel", f"{source}.self_attn.out_proj.weight", LINEAR_OUT)
        if config.cross_attention:
            yield from norm(f"{target}/cross_norm", f"{source}.encoder_attn_layer_norm")
            yield single(f"{target}/cross_attn/query/kernel", f"{source}.encoder_attn.q_proj.weight", LINEAR)
            kv = tuple(f"{source}.encoder_attn.{name}_proj.weight" for name in "kv")
            yield Rule((f"{target}/cross_attn/kv/kernel",), kv, LINEAR)
            yield single(f"{target}/cross_attn/out/kernel", f"{source}.encoder_attn.out_proj.weight", LINEAR_OUT)
        yield from norm(f"{target}/ffn_norm", f"{source}.final_layer_norm")
        yield single(f"{target}/ffn/up/kernel", f"{source}.fc1.weight", LINEAR)
        yield single(f"{target}/ffn/down/kernel", f"{source}.fc2.weight", LINEAR)
    for condition in config.conditions:
        yield from linear(f"{condition.name}_proj", HUGGINGFACE_PROJECTIONS[condition.name])


def audiocraft(config: ModelConfig) -> Iterator[Rule]:
    """The language model in audiocraft, and the conditioners that are trained with it."""
    yield from (rule.within("lm/") for rule in audiocraft_lm(config.lm))
    if config.style:
        yield from (rule.within("style/") for rule in audiocraft_style(config.style))
    if config.clap:
        yield from (rule.within("clap/") for rule in audiocraft_clap(config.clap))


def audiocraft_lm(config: LMConfig) -> Iterator[Rule]:
    """The language model in audiocraft."""
    k = config.num_codebooks
    yield stacked("embed/embedding", "emb.{k}.weight", k)
    yield Rule(("head/kernel",), tuple(f"linears.{n}.weight" for n in range(k)), LINEAR)
    yield from norm("out_norm", "out_norm")
    for i in range(config.num_layers):
        target, source = f"layer{i}", f"transformer.layers.{i}"
        yield from norm(f"{target}/self_norm", f"{source}.norm1")
        yield single(f"{target}/self_attn/qkv/kernel", f"{source}.self_attn.in_proj_weight", LINEAR)
        yield single(f"{target}/self_attn/out/kernel", f"{source}.self_attn.out_proj.weight", LINEAR_OUT)
        if config.cross_attention:
            yield from norm(f"{target}/cross_norm", f"{source}.norm_cross")
            joined = (f"{target}/cross_attn/query/kernel", f"{target}/cross_attn/kv/kernel")
            yield Rule(joined, (f"{source}.cross_attention.in_proj_weight",), LINEAR)
            yield single(f"{target}/cross_attn/out/kernel", f"{source}.cross_attention.out_proj.weight", LINEAR_OUT)
        yield from norm(f"{target}/ffn_norm", f"{source}.norm2")
        yield single(f"{target}/ffn/up/kernel", f"{source}.linear1.weight", LINEAR)
        yield single(f"{target}/ffn/down/kernel", f"{source}.linear2.weight", LINEAR)
    for condition in config.conditions:
        theirs = AUDIOCRAFT_CONDITIONERS.get(condition.name, condition.name)
        yield from linear(f"{condition.name}_proj", f"condition_provider.conditioners.{theirs}.output_proj")


def t5(config: T5Config) -> Iterator[Rule]:
    """The encoder of a T5EncoderModel."""
    yield single("embed/embedding", "shared.weight")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield single("relative_bias/embedding", bias)
    ffn = {"gate": "wi_0", "up": "wi_1"} if gated(config) else {"up": "wi"}
    for i in range(config.num_layers):
        target, source = f"block{i}", f"encoder.block.{i}.layer"
        yield single(f"{target}/attn_norm/scale", f"{source}.0.layer_norm.weight")
        for name in ("query", "key", "value"):
            yield single(f"{target}/attn/{name}/kernel", f"{source}.0.SelfAttention.{name[0]}.weight", LINEAR)
        yield single(f"{target}/attn/out/kernel", f"{source}.0.SelfAttention.o.weight", LINEAR_OUT)
        yield single(f"{target}/ffn_norm/scale", f"{source}.1.layer_norm.weight")
        for name, theirs in (ffn | {"down": "wo"}).items():
            yield single(f"{target}/ffn/{name}/kernel", f"{source}.1.DenseReluDense.{theirs}.weight", LINEAR)
    yield single("final_norm/scale", "encoder.final_layer_norm.weight")


def huggingface_codec(config: CodecConfig) -> Iterator[Rule]:
    """An EncodecModel."""
    yield from _codec(config, sequence="layers", conv=("", ""), codebook="quantizer.layers.{k}.codebook")


def audiocraft_codec(config: CodecConfig) -> Iterator[Rule]:
    """The codec in audiocraft, whose layers have the same numbers as in transformers."""
    codebook = "quantizer.vq.layers.{k}._codebook"
    yield from _codec(config, sequence="model", conv=("conv.", "convtr."), codebook=codebook)


def _codec(config: CodecConfig, *, sequence: str, conv: tuple[str, str], codebook: str) -> Iterator[Rule]:
    for path, index, layer in layers.weighted(config):
        target, source = f"params/{path}", f"{path.split('/')[0]}.{sequence}.{index}"
        if isinstance(layer, layers.LSTM):
            for i in range(layer.num_layers):
                for name, theirs, transform in (("input", "ih", LINEAR), ("hidden", "hh", PLAIN)):
                    yield single(f"{target}/layer{i}/{name}_kernel", f"{source}.lstm.weight_{theirs}_l{i}", transform)
                    yield single(f"{target}/layer{i}/{name}_bias", f"{source}.lstm.bias_{theirs}_l{i}")
        else:
            yield from _convolution(config, layer, target, f"{source}.{conv[layer.transposed]}")
    yield from codebooks(codebook, config.num_codebooks)


def _convolution(config: CodecConfig, layer: layers.Conv, target: str, source: str) -> Iterator[Rule]:
    transform = CONV_TRANSPOSED if layer.transposed else CONV
    # audiocraft names the transposed convolution inside of its wrapper by what it is, transformers does not.
    inner = source + ("convtr" if source.endswith("convtr.") else "conv")
    yield single(f"{target}/bias", f"{inner}.bias")
    if config.norm == "weight_norm":
        yield single(f"{target}/scale", f"{inner}.weight_g", GAIN)
        yield single(f"{target}/kernel", f"{inner}.weight_v", transform)
    else:
        yield single(f"{target}/kernel", f"{inner}.weight", transform)
    if config.norm == "time_group_norm":
        yield single(f"{target}/norm_scale", f"{source}norm.weight")
        yield single(f"{target}/norm_bias", f"{source}norm.bias")
