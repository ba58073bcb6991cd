"""The shape of every array of a CLAP model, from its config alone: path ("audio/params/htsat/...") -> shape."""

from __future__ import annotations

from mgjax.config.conditioning import ClapAudioConfig, ClapConfig, ClapTextConfig
from mgjax.nn import Shapes, dense_shapes, norm_shapes, under


def clap_shapes(config: ClapConfig) -> Shapes:
    """All arrays of the two towers, under "text/" and "audio/"; each tower's are the variables of its module."""
    text, audio = _text(config.text), _audio(config.audio)
    shapes = under("text/params/roberta", text) | under("audio/params/htsat", audio)
    shapes |= under("audio/stats/htsat/mel_norm", {"mean": (config.audio.num_mels,), "var": (config.audio.num_mels,)})
    for tower, width in (("text", config.text.dim), ("audio", config.audio.dims[-1])):
        projection = dense_shapes("up", (width,), (config.dim,)) | dense_shapes("out", (config.dim,), (config.dim,))
        shapes |= under(f"{tower}/params/projection", projection)
    return shapes


def _text(config: ClapTextConfig) -> Shapes:
    d = config.dim
    shapes: Shapes = {"embed/embedding": (config.vocab_size, d), "positions/embedding": (config.max_positions, d)}
    shapes |= {"token_type": (d,)} | norm_shapes("embed_norm", d) | dense_shapes("pool", (d,), (d,))
    for i in range(config.num_layers):
        shapes |= under(f"block{i}", _block(d, config.num_heads, config.ffn_dim, qkv_bias=True))
    return shapes


def _audio(config: ClapAudioConfig) -> Shapes:
    side, last = config.patch_size, config.dims[-1]
    shapes = norm_shapes("mel_norm", config.num_mels) | dense_shapes("patch", (side, side), (config.dim,))
    shapes |= norm_shapes("patch_norm", config.dim) | norm_shapes("final_norm", last)
    for i, (d, num_heads, depth) in enumerate(zip(config.dims, config.num_heads, config.depths, strict=True)):
        if i > 0:
            shapes |= {f"stage{i}_merge/reduce/kernel": (2 * d, d)} | norm_shapes(f"stage{i}_merge/norm", 2 * d)
        for j in range(depth):
            block = _block(d, num_heads, int(config.mlp_ratio * d), qkv_bias=config.qkv_bias)
            block["attn/position_bias"] = ((2 * config.window - 1) ** 2, num_heads)
            shapes |= under(f"stage{i}_block{j}", block)
    return shapes


def _block(d: int, num_heads: int, ffn_dim: int, *, qkv_bias: bool) -> Shapes:
    heads = (num_heads, d // num_heads)
    shapes = norm_shapes("attn_norm", d) | norm_shapes("ffn_norm", d)
    for name in ("query", "key", "value"):
        shapes |= dense_shapes(f"attn/{name}", (d,), heads, bias=qkv_bias)
    return (
        shapes
        | dense_shapes("attn/out", heads, (d,))
        | dense_shapes("ffn/up", (d,), (ffn_dim,))
        | dense_shapes("ffn/down", (ffn_dim,), (d,))
    )
