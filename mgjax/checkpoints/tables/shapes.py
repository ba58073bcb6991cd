"""The shape of every array of a model, from its config alone: path ("lm/layer0/ffn/up/kernel") -> shape.

Letters: k codebooks, v codes per codebook, d width, h heads, e head width, f ffn width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mgjax.checkpoints.tables.clap_shapes import clap_shapes
from mgjax.conditioning.hubert import hubert_shapes
from mgjax.conditioning.style import style_shapes
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, LMConfig, ModelConfig
from mgjax.nn import Shapes, codebook_shapes, norm_shapes, under


def model_shapes(config: ModelConfig) -> Shapes:
    """All arrays of a model, under "lm/", "codec/" and, for the encoders that it has, "text/", "style/", "clap/"."""
    shapes = under("lm", lm_shapes(config.lm)) | under("codec", codec_shapes(config.codec))
    if config.text:
        shapes |= under("text", text_shapes(config.text))
    if config.style:
        shapes |= under("style", style_shapes(config.style))
        if config.style.features:
            shapes |= under("style/features", hubert_shapes(config.style.features))
    if config.clap:
        shapes |= under("clap", clap_shapes(config.clap.clap))
        if config.clap.num_codebooks:
            k, v, d = config.clap.num_codebooks, config.clap.codebook_size, config.clap.clap.dim
            shapes |= under("clap/codebooks", codebook_shapes(k, v, d))
    return shapes


def lm_shapes(config: LMConfig) -> Shapes:
    """The language model's parameters."""
    k, v, d = config.num_codebooks, config.codebook_size, config.dim
    h, e, f = config.num_heads, config.head_dim, config.ffn_dim
    shapes = {"embed/embedding": (k, v + 1, d), "head/kernel": (d, k, v)} | norm_shapes("out_norm", d)
    for i in range(config.num_layers):
        shapes |= under(f"layer{i}", norm_shapes("self_norm", d) | norm_shapes("ffn_norm", d))
        shapes[f"layer{i}/self_attn/qkv/kernel"] = (d, 3, h, e)
        shapes[f"layer{i}/self_attn/out/kernel"] = (h, e, d)
        if config.cross_attention:
            shapes |= norm_shapes(f"layer{i}/cross_norm", d)
            shapes[f"layer{i}/cross_attn/query/kernel"] = (d, h, e)
            shapes[f"layer{i}/cross_attn/kv/kernel"] = (d, 2, h, e)
            shapes[f"layer{i}/cross_attn/out/kernel"] = (h, e, d)
        shapes[f"layer{i}/ffn/up/kernel"] = (d, f)
        shapes[f"layer{i}/ffn/down/kernel"] = (f, d)
    for condition in config.conditions:
        shapes |= {f"{condition.name}_proj/kernel": (condition.dim, d), f"{condition.name}_proj/bias": (d,)}
    return shapes


def text_shapes(config: T5Config) -> Shapes:
    """The parameters of T5's encoder."""
    d, h, e, f = config.dim, config.num_heads, config.head_dim, config.ffn_dim
    shapes = {"embed/embedding": (config.vocab_size, d), "relative_bias/embedding": (config.num_buckets, h)}
    for i in range(config.num_layers):
        block = {"attn_norm/scale": (d,), "ffn_norm/scale": (d,), "attn/out/kernel": (h, e, d)}
        block |= {f"attn/{name}/kernel": (d, h, e) for name in ("query", "key", "value")}
        block |= {f"ffn/{name}/kernel": (d, f) for name in (("gate", "up") if gated(config) else ("up",))}
        block["ffn/down/kernel"] = (f, d)
        shapes |= under(f"block{i}", block)
    return shapes | {"final_norm/scale": (d,)}


def gated(config: T5Config) -> bool:
    """Whether the feed-forward layers have a gate, as in T5 v1.1."""
    return config.activation.startswith("gated-")


@dataclasses.dataclass(frozen=True)
class Conv:
    """One convolution of the codec.

    `path` is its path here. `part` ("encoder" or "decoder"), `number` and `inside` are its place in the list of layers
    of the original, where activations count too; `inside` is its place in a residual block, or empty.
    """

    path: str
    part: str
    number: int
    inside: str
    width: int
    inputs: int
    outputs: int
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class LSTM:
    """The recurrent layers of one half of the codec; see `Conv`."""

    path: str
    part: str
    number: int
    dim: int


def codec_modules(config: CodecConfig) -> Iterator[Conv | LSTM]:
    """Every module of the codec that has parameters, in the order of the data's flow."""
    yield from _encoder_modules(config)
    yield from _decoder_modules(config)


def _encoder_modules(config: CodecConfig) -> Iterator[Conv | LSTM]:
    dim = config.num_filters
    yield Conv("encoder/conv_in", "encoder", 0, "", config.kernel_size, config.phases * config.channels, dim)
    number = 1
    for i, ratio in enumerate(reversed(config.ratios)):
        for j in range(config.num_residual_layers):
            yield from _residual_modules(config, f"encoder/block{i}/res{j}", "encoder", number, dim)
            number += 1
        yield Conv(f"encoder/block{i}/down", "encoder", number + 1, "", 2 * ratio, dim, 2 * dim)
        number, dim = number + 2, 2 * dim
    if config.num_lstm_layers:
        yield LSTM("encoder/lstm", "encoder", number, dim)
        number += 1
    yield Conv("encoder/conv_out", "encoder", number + 1, "", config.last_kernel_size, dim, config.latent_dim)


def _decoder_modules(config: CodecConfig) -> Iterator[Conv | LSTM]:
    dim = config.num_filters * 2 ** len(config.ratios)
    yield Conv("decoder/conv_in", "decoder", 0, "", config.kernel_size, config.latent_dim, dim)
    number = 1
    if config.num_lstm_layers:
        yield LSTM("decoder/lstm", "decoder", number, dim)
        number += 1
    for i, ratio in enumerate(config.ratios):
        yield Conv(f"decoder/block{i}/up", "decoder", number + 1, "", 2 * ratio, dim, dim // 2, transposed=True)
        number, dim = number + 2, dim // 2
        for j in range(config.num_residual_layers):
            yield from _residual_modules(config, f"decoder/block{i}/res{j}", "decoder", number, dim)
            number += 1
    outputs = config.phases * config.channels
    yield Conv("decoder/conv_out", "decoder", number + 1, "", config.last_kernel_size, dim, outputs)


def _residual_modules(config: CodecConfig, path: str, part: str, number: int, dim: int) -> Iterator[Conv]:
    hidden = dim // config.compress
    yield Conv(f"{path}/conv1", part, number, "block.1", config.residual_kernel_size, dim, hidden)
    yield Conv(f"{path}/conv2", part, number, "block.3", 1, hidden, dim)
    if config.conv_shortcut:
        yield Conv(f"{path}/shortcut", part, number, "shortcut", 1, dim, dim)


def codec_shapes(config: CodecConfig) -> Shapes:
    """The codec's parameters under "params/" and its quantizer's state under "codebooks/"."""
    shapes: Shapes = {}
    for module in codec_modules(config):
        if isinstance(module, LSTM):
            d = module.dim
            for layer in range(config.num_lstm_layers):
                kernels = {"input_kernel": (d, 4 * d), "hidden_kernel": (4 * d, d)}
                biases = {"input_bias": (4 * d,), "hidden_bias": (4 * d,)}
                shapes |= under(f"params/{module.path}/layer{layer}", kernels | biases)
        else:
            arrays = {"kernel": (module.width, module.inputs, module.outputs), "bias": (module.outputs,)}
            if config.norm == "weight_norm":
                arrays["scale"] = (module.inputs if module.transposed else module.outputs,)
            elif config.norm == "time_group_norm":
                arrays |= {"norm_scale": (module.outputs,), "norm_bias": (module.outputs,)}
            shapes |= under(f"params/{module.path}", arrays)
    codebooks = codebook_shapes(config.num_codebooks, config.codebook_size, config.latent_dim)
    return shapes | under("codebooks", codebooks)
