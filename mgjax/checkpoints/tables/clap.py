"""CLAP as transformers writes it: a directory that holds a ClapModel without fusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.config_json import parse_config, read_json, require_values
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.matching import Rule, Transform, linear, norm, single
from mgjax.config.conditioning import ClapAudioConfig, ClapConfig, ClapTextConfig
from mgjax.errors import CheckpointError

# Computed here, and the scales of the training's loss.
_IGNORED = (
    r"\.(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$",
    r"^logit_scale_[at]$",
)

_FIRST_ROW = Transform(lambda shape: (1, *shape))
_SQUARES = Transform(lambda shape: (1, *shape), (3, 0, 1, 2))  # (side, side, out) <-> (out, 1, side, side)

# Our field -> their field, and its default in transformers.
_TEXT_FIELDS = {
    "vocab_size": ("vocab_size", 50_265),
    "dim": ("hidden_size", 768),
    "ffn_dim": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "max_positions": ("max_position_embeddings", 514),
    "pad_token": ("pad_token_id", 1),
    "norm_eps": ("layer_norm_eps", 1e-12),
}
_AUDIO_FIELDS = {
    "num_mels": ("num_mel_bins", 64),
    "image_size": ("spec_size", 256),
    "patch_size": ("patch_size", 4),
    "window": ("window_size", 8),
    "dim": ("patch_embeds_hidden_size", 96),
    "depths": ("depths", [2, 2, 6, 2]),
    "num_heads": ("num_attention_heads", [4, 8, 16, 32]),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "norm_eps": ("layer_norm_eps", 1e-5),
}
_FEATURE_FIELDS = {
    "sample_rate": ("sampling_rate", 48_000),
    "fft_size": ("fft_window_size", 1024),
    "hop_length": ("hop_length", 480),
    "num_mels": ("feature_size", 64),
    "lowest_hz": ("frequency_min", 0),
    "highest_hz": ("frequency_max", 14_000),
    "seconds": ("max_length_s", 10),
}
# Fields of which only these values are supported.
_TEXT_FIXED = {"hidden_act": "gelu", "type_vocab_size": 1}
_AUDIO_FIXED = {
    "hidden_act": "gelu",
    "patch_embed_input_channels": 1,
    "flatten_patch_embeds": True,
    "enable_patch_layer_norm": True,
}
_FEATURE_FIXED = {"truncation": "rand_trunc", "padding": "repeatpad", "top_db": None, "padding_value": 0}


def match_clap(directory: Path) -> tuple[ClapConfig, matching.Match]:
    """The config of the ClapModel in `directory`, and the match of its towers to the files.

    The spectrogram is that of preprocessor_config.json, or of the published models if there is no such file.

    Raises:
      CheckpointError: Files are missing or damaged, do not fit together, or describe another kind of model.
    """
    config = _read_config(directory)
    tensors = safetensors.find(directory)
    return config, matching.match(clap(config), tensors, where=str(directory), ignored=_IGNORED)


def _read_config(directory: Path) -> ClapConfig:
    path = directory / "config.json"
    values = read_json(path)
    if values.get("model_type") != "clap":
        raise CheckpointError(f"{path}: describes the model type {values.get('model_type')!r:.200}; expected 'clap'")
    text, audio = (_part(path, values, part) for part in ("text_config", "audio_config"))
    if audio.get("enable_fusion"):
        raise CheckpointError(
            f"{path}: this CLAP fuses parts of long clips (enable_fusion), which is not supported. Use a model without "
            "fusion, such as laion/clap-htsat-unfused or laion/larger_clap_music"
        )
    require_values(path, text, _TEXT_FIXED)
    require_values(path, audio, _AUDIO_FIXED)
    require_values(path, values, {"projection_hidden_act": "relu"})
    patch = _pair(audio.get("patch_size", 4))
    require_values(path, {"patch_stride": _pair(audio.get("patch_stride", patch))}, {"patch_stride": patch})
    features = _features(directory, audio.get("num_mel_bins", 64))
    parts = {
        "text": parse_config(path, ClapTextConfig, text, _TEXT_FIELDS),
        "audio": parse_config(path, ClapAudioConfig, audio, _AUDIO_FIELDS, **(features | {"patch_size": patch[0]})),
        "dim": values.get("projection_dim", 512),
    }
    config = parse_config(path, ClapConfig, parts)
    require_values(path, {"hidden_size": audio.get("hidden_size", 768)}, {"hidden_size": config.audio.dims[-1]})
    return config


def _features(directory: Path, num_mels: int) -> dict[str, Any]:
    """The fields of the spectrogram in the feature extractor's file; none if there is no such file."""
    path = directory / "preprocessor_config.json"
    if path.is_file():
        values = read_json(path)
    elif (directory / "processor_config.json").is_file():  # since transformers 5
        path = directory / "processor_config.json"
        values = _part(path, read_json(path), "feature_extractor")
    else:
        return {}
    require_values(path, values, _FEATURE_FIXED | {"feature_size": num_mels})
    return {ours: values.get(theirs, default) for ours, (theirs, default) in _FEATURE_FIELDS.items()}


def _part(path: Path, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object of that name in `values`; empty if it is missing."""
    part = values.get(name) or {}
    if not isinstance(part, dict):
        raise CheckpointError(f"{path}: {name} should be an object, got {part!r:.200}")
    return part


def _pair(size: Any) -> list[Any]:
    """A length and width, of which transformers takes one number or both."""
    return size if isinstance(size, list) and size else [size, size]


def clap(config: ClapConfig) -> Iterator[Rule]:
    """The variables of both towers, under "text/" (of `ClapText`) and "audio/" (of `ClapAudio`)."""
    yield from (rule.within("text/params/roberta/", "text_model.") for rule in _text(config.text))
    yield from (rule.within("audio/", "audio_model.audio_encoder.") for rule in _audio(config.audio))
    for tower, width in (("text", config.text.dim), ("audio", config.audio.dims[-1])):
        for name, theirs, inputs in (("up", "linear1", width), ("out", "linear2", config.dim)):
            target = f"{tower}/params/projection/{name}"
            yield from linear(target, f"{tower}_projection.{theirs}", (inputs,), (config.dim,))


def _text(config: ClapTextConfig) -> Iterator[Rule]:
    d = config.dim
    yield single("embed/embedding", (config.vocab_size, d), "embeddings.word_embeddings.weight")
    yield single("positions/embedding", (config.max_positions, d), "embeddings.position_embeddings.weight")
    yield single("token_type", (d,), "embeddings.token_type_embeddings.weight", _FIRST_ROW)
    yield from norm("embed_norm", "embeddings.LayerNorm", d)
    yield from linear("pool", "pooler.dense", (d,), (d,))
    for i in range(config.num_layers):
        target, source = f"block{i}", f"encoder.layer.{i}"
        yield from _block(target, source, d, config.num_heads, config.ffn_dim, qkv_bias=True)
        yield from norm(f"{target}/attn_norm", f"{source}.attention.output.LayerNorm", d)
        yield from norm(f"{target}/ffn_norm", f"{source}.output.LayerNorm", d)


def _audio(config: ClapAudioConfig) -> Iterator[Rule]:
    params, side = "params/htsat", config.patch_size
    for name in ("mean", "var"):
        yield single(f"stats/htsat/mel_norm/{name}", (config.num_mels,), f"batch_norm.running_{name}")
    yield from norm(f"{params}/mel_norm", "batch_norm", config.num_mels)
    yield single(f"{params}/patch/kernel", (side, side, config.dim), "patch_embed.proj.weight", _SQUARES)
    yield single(f"{params}/patch/bias", (config.dim,), "patch_embed.proj.bias")
    yield from norm(f"{params}/patch_norm", "patch_embed.norm", config.dim)
    yield from norm(f"{params}/final_norm", "norm", config.dims[-1])
    for i, (d, num_heads, depth) in enumerate(zip(config.dims, config.num_heads, config.depths, strict=True)):
        if i > 0:
            target, source = f"{params}/stage{i}_merge", f"layers.{i - 1}.downsample"
            yield from linear(f"{target}/reduce", f"{source}.reduction", (2 * d,), (d,), bias=False)
            yield from norm(f"{target}/norm", f"{source}.norm", 2 * d)
        for j in range(depth):
            target, source = f"{params}/stage{i}_block{j}", f"layers.{i}.blocks.{j}"
            yield from _block(target, source, d, num_heads, int(config.mlp_ratio * d), qkv_bias=config.qkv_bias)
            shape, table = ((2 * config.window - 1) ** 2, num_heads), "attention.self.relative_position_bias_table"
            yield single(f"{target}/attn/position_bias", shape, f"{source}.{table}")
            yield from norm(f"{target}/attn_norm", f"{source}.layernorm_before", d)
            yield from norm(f"{target}/ffn_norm", f"{source}.layernorm_after", d)


def _block(target: str, source: str, d: int, num_heads: int, ffn_dim: int, *, qkv_bias: bool) -> Iterator[Rule]:
    """The rules that the layers of both towers share."""
    heads = (num_heads, d // num_heads)
    for name in ("query", "key", "value"):
        yield from linear(f"{target}/attn/{name}", f"{source}.attention.self.{name}", (d,), heads, bias=qkv_bias)
    yield from linear(f"{target}/attn/out", f"{source}.attention.output.dense", heads, (d,))
    yield from linear(f"{target}/ffn/up", f"{source}.intermediate.dense", (d,), (ffn_dim,))
    yield from linear(f"{target}/ffn/down", f"{source}.output.dense", (ffn_dim,), (d,))
