"""CLAP as transformers writes it: a directory that holds a ClapModel without fusion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.native import parsed, read_json, require
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.clap_shapes import clap_shapes
from mgjax.checkpoints.tables.matching import LINEAR, LINEAR_OUT, Rule, Transform, linear, norm, single
from mgjax.config.conditioning import ClapAudioConfig, ClapConfig, ClapTextConfig
from mgjax.errors import CheckpointError

# Computed here, and the scales of the training's loss.
_IGNORED = (
    r"\.(position_ids|token_type_ids|relative_position_index|num_batches_tracked)$",
    r"^logit_scale_[at]$",
)

_HEADS = Transform(lambda shape: (math.prod(shape),))
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

    The towers are {"text": variables of ClapText, "audio": variables of ClapAudio}. The spectrogram is that of
    preprocessor_config.json, or of the published models if there is no such file.

    Raises:
      CheckpointError: Files are missing or damaged, do not fit together, or describe another kind of model.
    """
    config = _read_config(directory)
    tensors, expected = safetensors.find(directory), clap_shapes(config)
    return config, matching.match(_rules(config), tensors, expected, where=str(directory), ignored=_IGNORED)


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
    require(path, text, _TEXT_FIXED)
    require(path, audio, _AUDIO_FIXED)
    require(path, values, {"projection_hidden_act": "relu"})
    patch = _pair(audio.get("patch_size", 4))
    require(path, {"patch_stride": _pair(audio.get("patch_stride", patch))}, {"patch_stride": patch})
    features = _features(directory, audio.get("num_mel_bins", 64))
    parts = {
        "text": parsed(path, ClapTextConfig, text, _TEXT_FIELDS),
        "audio": parsed(path, ClapAudioConfig, audio, _AUDIO_FIELDS, **(features | {"patch_size": patch[0]})),
        "dim": values.get("projection_dim", 512),
    }
    config = parsed(path, ClapConfig, parts)
    require(path, {"hidden_size": audio.get("hidden_size", 768)}, {"hidden_size": config.audio.dims[-1]})
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
    require(path, values, _FEATURE_FIXED | {"feature_size": num_mels})
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


def _rules(config: ClapConfig) -> Iterator[Rule]:
    yield from (rule.within("text/params/roberta/", "text_model.") for rule in _text(config.text))
    yield from (rule.within("audio/", "audio_model.audio_encoder.") for rule in _audio(config.audio))
    for tower in ("text", "audio"):
        for name, theirs in (("up", "linear1"), ("out", "linear2")):
            yield from linear(f"{tower}/params/projection/{name}", f"{tower}_projection.{theirs}")


def _text(config: ClapTextConfig) -> Iterator[Rule]:
    for name, theirs in (("embed", "word"), ("positions", "position")):
        yield single(f"{name}/embedding", f"embeddings.{theirs}_embeddings.weight")
    yield single("token_type", "embeddings.token_type_embeddings.weight", _FIRST_ROW)
    yield from norm("embed_norm", "embeddings.LayerNorm")
    yield from linear("pool", "pooler.dense")
    for i in range(config.num_layers):
        target, source = f"block{i}", f"encoder.layer.{i}"
        yield from _block(target, source, qkv_bias=True)
        yield from norm(f"{target}/attn_norm", f"{source}.attention.output.LayerNorm")
        yield from norm(f"{target}/ffn_norm", f"{source}.output.LayerNorm")


def _audio(config: ClapAudioConfig) -> Iterator[Rule]:
    for name in ("mean", "var"):
        yield single(f"stats/htsat/mel_norm/{name}", f"batch_norm.running_{name}")
    params = "params/htsat"
    yield from norm(f"{params}/mel_norm", "batch_norm")
    yield single(f"{params}/patch/kernel", "patch_embed.proj.weight", _SQUARES)
    yield single(f"{params}/patch/bias", "patch_embed.proj.bias")
    yield from norm(f"{params}/patch_norm", "patch_embed.norm")
    yield from norm(f"{params}/final_norm", "norm")
    for i, depth in enumerate(config.depths):
        if i > 0:
            target, source = f"{params}/stage{i}_merge", f"layers.{i - 1}.downsample"
            yield single(f"{target}/reduce/kernel", f"{source}.reduction.weight", LINEAR)
            yield from norm(f"{target}/norm", f"{source}.norm")
        for j in range(depth):
            target, source = f"{params}/stage{i}_block{j}", f"layers.{i}.blocks.{j}"
            yield from _block(target, source, qkv_bias=config.qkv_bias)
            yield single(f"{target}/attn/position_bias", f"{source}.attention.self.relative_position_bias_table")
            yield from norm(f"{target}/attn_norm", f"{source}.layernorm_before")
            yield from norm(f"{target}/ffn_norm", f"{source}.layernorm_after")


def _block(target: str, source: str, *, qkv_bias: bool) -> Iterator[Rule]:
    """The rules that the layers of both towers share."""
    for name in ("query", "key", "value"):
        yield single(f"{target}/attn/{name}/kernel", f"{source}.attention.self.{name}.weight", LINEAR)
        if qkv_bias:
            yield single(f"{target}/attn/{name}/bias", f"{source}.attention.self.{name}.bias", _HEADS)
    yield single(f"{target}/attn/out/kernel", f"{source}.attention.output.dense.weight", LINEAR_OUT)
    yield single(f"{target}/attn/out/bias", f"{source}.attention.output.dense.bias")
    yield from linear(f"{target}/ffn/up", f"{source}.intermediate.dense")
    yield from linear(f"{target}/ffn/down", f"{source}.output.dense")
