"""The shape of every array of a model, from its config alone: path ("lm/layer0/ffn/up/kernel") -> shape.

Written out, and compared with the modules by tests: `jax.eval_shape` of the modules would add 2 s to every load of
musicgen-small (0.9 s with one layer traced for all), and trace whatever a damaged config says.

Letters: k codebooks, v codes per codebook, d width, h heads, e head width, f ffn width.
"""

from __future__ import annotations

from mgjax.checkpoints.tables.clap_shapes import clap_shapes
from mgjax.codec import layers
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
    shapes: Shapes = {"embed/embedding": (k, v + 1, d), "head/kernel": (d, k, v)} | norm_shapes("out_norm", d)
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
    shapes: Shapes = {"embed/embedding": (config.vocab_size, d), "relative_bias/embedding": (config.num_buckets, h)}
    for i in range(config.num_layers):
        block: Shapes = {"attn_norm/scale": (d,), "ffn_norm/scale": (d,), "attn/out/kernel": (h, e, d)}
        block |= {f"attn/{name}/kernel": (d, h, e) for name in ("query", "key", "value")}
        block |= {f"ffn/{name}/kernel": (d, f) for name in (("gate", "up") if gated(config) else ("up",))}
        block["ffn/down/kernel"] = (f, d)
        shapes |= under(f"block{i}", block)
    return shapes | {"final_norm/scale": (d,)}


def gated(config: T5Config) -> bool:
    """Whether the feed-forward layers have a gate, as in T5 v1.1."""
    return config.activation.startswith("gated-")


def codec_shapes(config: CodecConfig) -> Shapes:
    """The codec's parameters under "params/" and its quantizer's state under "codebooks/"."""
    shapes: Shapes = {}
    for path, _, layer in layers.weighted(config):
        if isinstance(layer, layers.LSTM):
            d = layer.dim
            for i in range(layer.num_layers):
                lstm: Shapes = {"input_kernel": (d, 4 * d), "hidden_kernel": (4 * d, d)}
                lstm |= {"input_bias": (4 * d,), "hidden_bias": (4 * d,)}
                shapes |= under(f"params/{path}/layer{i}", lstm)
        else:
            kernel = (layer.width, layer.inputs, layer.features)
            arrays: Shapes = {"kernel": kernel, "bias": (layer.features,)}
            if config.norm == "weight_norm":
                arrays["scale"] = (kernel[layer.norm_axis],)
            elif config.norm == "time_group_norm":
                arrays |= {"norm_scale": (layer.features,), "norm_bias": (layer.features,)}
            shapes |= under(f"params/{path}", arrays)
    codebooks = codebook_shapes(config.num_codebooks, config.codebook_size, config.latent_dim)
    return shapes | under("codebooks", codebooks)
