"""The shape of every array of a CLAP model, from its config alone: path ("audio/params/htsat/...") -> shape."""

from __future__ import annotations

from mgjax.conditioner_config import ClapAudioConfig, ClapConfig, ClapTextConfig
from mgjax.interop.torch_file import Shape

Shapes = dict[str, Shape]


def clap_shapes(config: ClapConfig) -> Shapes:
    """All arrays of the two towers, under "text/" and "audio/"; each tower's are the variables of its module."""
    text, audio = _text(config.text), _audio(config.audio)
    shapes = _under("text/params/roberta", text) | _under("audio/params/htsat", audio)
    shapes |= _under("audio/stats/htsat/mel_norm", {"mean": (config.audio.num_mels,), "var": (config.audio.num_mels,)})
    for tower, width in (("text", config.text.dim), ("audio", config.audio.dims[-1])):
        projection = _linear("up", (width,), (config.dim,)) | _linear("out", (config.dim,), (config.dim,))
        shapes |= _under(f"{tower}/params/projection", projection)
    return shapes


def _text(config: ClapTextConfig) -> Shapes:
    d = config.dim
    shapes = {"embed/embedding": (config.vocab_size, d), "positions/embedding": (config.max_positions, d)}
    shapes |= {"token_type": (d,)} | _norm("embed_norm", d) | _linear("pool", (d,), (d,))
    for i in range(config.num_layers):
        shapes |= _under(f"block{i}", _block(d, config.num_heads, config.ffn_dim, qkv_bias=True))
    return shapes


def _audio(config: ClapAudioConfig) -> Shapes:
    side, last = config.patch_size, config.dims[-1]
    shapes = _norm("mel_norm", config.num_mels) | _linear("patch", (side, side), (config.dim,))
    shapes |= _norm("patch_norm", config.dim) | _norm("final_norm", last)
    for i, (d, num_heads, depth) in enumerate(zip(config.dims, config.num_heads, config.depths, strict=True)):
        if i > 0:
            shapes |= {f"stage{i}_merge/reduce/kernel": (2 * d, d)} | _norm(f"stage{i}_merge/norm", 2 * d)
        for j in range(depth):
            block = _block(d, num_heads, int(config.mlp_ratio * d), qkv_bias=config.qkv_bias)
            block["attn/position_bias"] = ((2 * config.window - 1) ** 2, num_heads)
            shapes |= _under(f"stage{i}_block{j}", block)
    return shapes


def _block(d: int, num_heads: int, ffn_dim: int, *, qkv_bias: bool) -> Shapes:
    heads = (num_heads, d // num_heads)
    shapes = _norm("attn_norm", d) | _norm("ffn_norm", d)
    for name in ("query", "key", "value"):
        shapes |= _linear(f"attn/{name}", (d,), heads, bias=qkv_bias)
    return (
        shapes
        | _linear("attn/out", heads, (d,))
        | _linear("ffn/up", (d,), (ffn_dim,))
        | _linear("ffn/down", (ffn_dim,), (d,))
    )


def _linear(path: str, inputs: Shape, outputs: Shape, *, bias: bool = True) -> Shapes:
    return {f"{path}/kernel": inputs + outputs} | ({f"{path}/bias": outputs} if bias else {})


def _norm(path: str, dim: int) -> Shapes:
    return {f"{path}/scale": (dim,), f"{path}/bias": (dim,)}


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}/{path}": shape for path, shape in shapes.items()}
