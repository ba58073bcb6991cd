"""The tables: what transformers and audiocraft call the arrays of a model, as rules made from its config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from mgjax.checkpoints.tables.audiocraft_conditioners import audiocraft_clap, audiocraft_style
from mgjax.checkpoints.tables.matching import (
    CONV,
    CONV_TRANSPOSED,
    GAIN,
    LINEAR,
    WEIGHT_NORM_ALIASES,
    Rule,
    codebooks,
    linear,
    norm,
    single,
    stacked,
)
from mgjax.codec import layers
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, LMConfig, ModelConfig
from mgjax.nn import Shapes

# T5's embedding has two names, of which a file holds either or both.
ALIASES = WEIGHT_NORM_ALIASES | {r"^(text_encoder\.|)encoder\.embed_tokens\.weight$": r"\1shared.weight"}

HUGGINGFACE_PROJECTIONS = {"text": "enc_to_dec_proj", "melody": "audio_enc_to_dec_proj"}
# audiocraft calls a condition by the field of the metadata that it reads.
AUDIOCRAFT_CONDITIONERS = {"text": "description", "melody": "self_wav", "style": "self_wav", "clap": "description"}

# What the language model's parts, and those of its layers, are called in transformers and in audiocraft.
_LM_NAMES = {
    "embed": ("decoder.model.decoder.embed_tokens", "emb"),
    "head": ("decoder.lm_heads", "linears"),
    "out_norm": ("decoder.model.decoder.layer_norm", "out_norm"),
    "layer": ("decoder.model.decoder.layers", "transformer.layers"),
    "self_norm": ("self_attn_layer_norm", "norm1"),
    "cross_norm": ("encoder_attn_layer_norm", "norm_cross"),
    "cross_attn": ("encoder_attn", "cross_attention"),
    "ffn_norm": ("final_layer_norm", "norm2"),
    "up": ("fc1", "linear1"),
    "down": ("fc2", "linear2"),
}


def huggingface(config: ModelConfig) -> Iterator[Rule]:
    """A MusicgenForConditionalGeneration or MusicgenMelodyForConditionalGeneration."""
    yield from (rule.within("lm/") for rule in huggingface_lm(config.lm))
    yield from (rule.within("codec/", "audio_encoder.") for rule in huggingface_codec(config.codec))
    if config.text:
        yield from (rule.within("text/", "text_encoder.") for rule in t5(config.text))


def huggingface_lm(config: LMConfig) -> Iterator[Rule]:
    """The language model in transformers, which leaves out a projection between equal widths."""
    yield from huggingface_transformer(config)
    for condition in config.conditions:
        name = HUGGINGFACE_PROJECTIONS[condition.name]
        yield from linear(f"{condition.name}_proj", name, (condition.dim,), (config.dim,))


def huggingface_transformer(config: LMConfig) -> Iterator[Rule]:
    """The language model without the projections of its conditions, of which transformers knows some only."""

    def projections(shapes: Shapes, source: str) -> Iterator[Rule]:
        for path, shape in shapes.items():
            letters = {"qkv": "qkv", "query": "q", "kv": "kv"}[path.split("/")[-2]]
            yield Rule({path: shape}, tuple(f"{source}.{letter}_proj.weight" for letter in letters), LINEAR)

    yield from _lm(config, {name: theirs for name, (theirs, _) in _LM_NAMES.items()}, projections)


def audiocraft(config: ModelConfig) -> Iterator[Rule]:
    """The language model in audiocraft, and the conditioners that are trained with it."""
    yield from (rule.within("lm/") for rule in audiocraft_lm(config.lm))
    if config.style:
        yield from (rule.within("style/") for rule in audiocraft_style(config.style))
    if config.clap:
        yield from (rule.within("clap/") for rule in audiocraft_clap(config.clap))


def audiocraft_lm(config: LMConfig) -> Iterator[Rule]:
    """The language model in audiocraft, which joins queries, keys and values."""
    names = {name: theirs for name, (_, theirs) in _LM_NAMES.items()}
    yield from _lm(config, names, lambda shapes, source: [Rule(shapes, (f"{source}.in_proj_weight",), LINEAR)])
    for condition in config.conditions:
        name = AUDIOCRAFT_CONDITIONERS.get(condition.name, condition.name)
        source = f"condition_provider.conditioners.{name}.output_proj"
        yield from linear(f"{condition.name}_proj", source, (condition.dim,), (config.dim,))


def _lm(
    config: LMConfig, names: Mapping[str, str], projections: Callable[[Shapes, str], Iterable[Rule]]
) -> Iterator[Rule]:
    """The language model but for its conditions; `projections` are the rules of queries, keys and values."""
    k, v, d, f = config.num_codebooks, config.codebook_size, config.dim, config.ffn_dim
    heads = (config.num_heads, config.head_dim)
    yield stacked("embed/embedding", (k, v + 1, d), names["embed"] + ".{k}.weight")
    yield Rule({"head/kernel": (d, k, v)}, tuple(f"{names['head']}.{n}.weight" for n in range(k)), LINEAR)
    yield from norm("out_norm", names["out_norm"], d)
    for i in range(config.num_layers):
        target, source = f"layer{i}", f"{names['layer']}.{i}"
        yield from norm(f"{target}/self_norm", f"{source}.{names['self_norm']}", d)
        yield from projections({f"{target}/self_attn/qkv/kernel": (d, 3, *heads)}, f"{source}.self_attn")
        yield from linear(f"{target}/self_attn/out", f"{source}.self_attn.out_proj", heads, (d,), bias=False)
        if config.cross_attention:
            attn, theirs = f"{target}/cross_attn", f"{source}.{names['cross_attn']}"
            yield from norm(f"{target}/cross_norm", f"{source}.{names['cross_norm']}", d)
            yield from projections({f"{attn}/query/kernel": (d, *heads), f"{attn}/kv/kernel": (d, 2, *heads)}, theirs)
            yield from linear(f"{attn}/out", f"{theirs}.out_proj", heads, (d,), bias=False)
        yield from norm(f"{target}/ffn_norm", f"{source}.{names['ffn_norm']}", d)
        yield from linear(f"{target}/ffn/up", f"{source}.{names['up']}", (d,), (f,), bias=False)
        yield from linear(f"{target}/ffn/down", f"{source}.{names['down']}", (f,), (d,), bias=False)


def t5(config: T5Config) -> Iterator[Rule]:
    """The encoder of a T5EncoderModel; one with a gate in its feed-forward layers is T5 v1.1."""
    d, f, heads = config.dim, config.ffn_dim, (config.num_heads, config.head_dim)
    yield single("embed/embedding", (config.vocab_size, d), "shared.weight")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield single("relative_bias/embedding", (config.num_buckets, config.num_heads), bias)
    ups = {"gate": "wi_0", "up": "wi_1"} if config.activation.startswith("gated-") else {"up": "wi"}
    for i in range(config.num_layers):
        target, source = f"block{i}", f"encoder.block.{i}.layer"
        yield single(f"{target}/attn_norm/scale", (d,), f"{source}.0.layer_norm.weight")
        yield from linear(f"{target}/attn/out", f"{source}.0.SelfAttention.o", heads, (d,), bias=False)
        for name in ("query", "key", "value"):
            yield from linear(f"{target}/attn/{name}", f"{source}.0.SelfAttention.{name[0]}", (d,), heads, bias=False)
        yield single(f"{target}/ffn_norm/scale", (d,), f"{source}.1.layer_norm.weight")
        for name, theirs in ups.items():
            yield from linear(f"{target}/ffn/{name}", f"{source}.1.DenseReluDense.{theirs}", (d,), (f,), bias=False)
        yield from linear(f"{target}/ffn/down", f"{source}.1.DenseReluDense.wo", (f,), (d,), bias=False)
    yield single("final_norm/scale", (d,), "encoder.final_layer_norm.weight")


def huggingface_codec(config: CodecConfig) -> Iterator[Rule]:
    """An EncodecModel."""
    yield from _codec(config, sequence="layers", conv=("", ""), codebook="quantizer.layers.{k}.codebook")


def audiocraft_codec(config: CodecConfig) -> Iterator[Rule]:
    """The codec in audiocraft, whose layers have the same numbers as in transformers."""
    codebook = "quantizer.vq.layers.{k}._codebook"
    yield from _codec(config, sequence="model", conv=("conv.", "convtr."), codebook=codebook)


def _codec(config: CodecConfig, *, sequence: str, conv: tuple[str, str], codebook: str) -> Iterator[Rule]:
    for path, index, layer in layers.with_weights(config):
        target, source = f"params/{path}", f"{path.split('/')[0]}.{sequence}.{index}"
        if isinstance(layer, layers.LSTM):
            # A hidden kernel is (out, in) here as well.
            gates, shape = (4 * layer.dim,), (4 * layer.dim, layer.dim)
            for i in range(layer.num_layers):
                yield single(f"{target}/layer{i}/input_kernel", shape[::-1], f"{source}.lstm.weight_ih_l{i}", LINEAR)
                yield single(f"{target}/layer{i}/hidden_kernel", shape, f"{source}.lstm.weight_hh_l{i}")
                for name, theirs in (("input", "ih"), ("hidden", "hh")):
                    yield single(f"{target}/layer{i}/{name}_bias", gates, f"{source}.lstm.bias_{theirs}_l{i}")
        else:
            yield from _convolution(config, layer, target, f"{source}.{conv[layer.transposed]}")
    yield from codebooks(codebook, config.num_codebooks, config.codebook_size, config.latent_dim)


def _convolution(config: CodecConfig, layer: layers.Conv, target: str, source: str) -> Iterator[Rule]:
    shape, transform = (layer.width, layer.inputs, layer.features), CONV_TRANSPOSED if layer.transposed else CONV
    # audiocraft names the transposed convolution inside of its wrapper by what it is, transformers does not.
    inner = source + ("convtr" if source.endswith("convtr.") else "conv")
    yield single(f"{target}/bias", shape[2:], f"{inner}.bias")
    if config.norm == "weight_norm":
        yield single(f"{target}/scale", (shape[layer.norm_axis],), f"{inner}.weight_g", GAIN)
    yield single(f"{target}/kernel", shape, f"{inner}.weight{'_v' * (config.norm == 'weight_norm')}", transform)
    if config.norm == "time_group_norm":
        yield single(f"{target}/norm_scale", shape[2:], f"{source}norm.weight")
        yield single(f"{target}/norm_bias", shape[2:], f"{source}norm.bias")
