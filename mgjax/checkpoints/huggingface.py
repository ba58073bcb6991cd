"""Directories as transformers writes them: MusicGen, MusicGen Melody, EnCodec and T5, read and written.

The arrays' names are in tables/musicgen.py; here are the configs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.native import Checkpoint, copy_tokenizer, find_tokenizer, parsed, read_json, replacing, require
from mgjax.checkpoints.tables import matching, musicgen, shapes
from mgjax.checkpoints.tables.matching import Place
from mgjax.codec import weight_norm
from mgjax.config.conditioning import MelodyConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig, Sampling
from mgjax.errors import CheckpointError

# Positions are computed, and some old files hold them; a whole T5 has a decoder too, which music does not need.
_IGNORED = (r"\.embed_positions\.weights?$",)
_IGNORED_OF_T5 = (r"^decoder\.", r"^lm_head\.")

# Our field -> their field and the value that transformers takes where a config.json does not say.
_CODEC_FIELDS = {
    "sample_rate": ("sampling_rate", 24_000),
    "channels": ("audio_channels", 1),
    "num_filters": ("num_filters", 32),
    "ratios": ("upsampling_ratios", [8, 5, 4, 2]),
    "kernel_size": ("kernel_size", 7),
    "last_kernel_size": ("last_kernel_size", 7),
    "residual_kernel_size": ("residual_kernel_size", 3),
    "num_residual_layers": ("num_residual_layers", 1),
    "dilation_growth": ("dilation_growth_rate", 2),
    "compress": ("compress", 2),
    "num_lstm_layers": ("num_lstm_layers", 2),
    "latent_dim": ("hidden_size", 128),
    "codebook_size": ("codebook_size", 1024),
    "causal": ("use_causal_conv", True),
    "norm": ("norm_type", "weight_norm"),
    "pad_mode": ("pad_mode", "reflect"),
    "trim_right_ratio": ("trim_right_ratio", 1.0),
    "conv_shortcut": ("use_conv_shortcut", True),
    "normalize": ("normalize", False),
    "chunk_seconds": ("chunk_length_s", None),
    "bandwidths": ("target_bandwidths", [1.5, 3.0, 6.0, 12.0, 24.0]),
}
_T5_FIELDS = {
    "vocab_size": ("vocab_size", 32_128),
    "dim": ("d_model", 512),
    "head_dim": ("d_kv", 64),
    "ffn_dim": ("d_ff", 2048),
    "num_layers": ("num_layers", 6),
    "num_heads": ("num_heads", 8),
    "num_buckets": ("relative_attention_num_buckets", 32),
    "max_distance": ("relative_attention_max_distance", 128),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "activation": ("feed_forward_proj", "relu"),
}
_LM_FIELDS = {
    "dim": ("hidden_size", 1024),
    "num_layers": ("num_hidden_layers", 24),
    "num_heads": ("num_attention_heads", 16),
    "ffn_dim": ("ffn_dim", 4096),
    "num_codebooks": ("num_codebooks", 4),
    "codebook_size": ("vocab_size", 2048),
}
_LM_FIXED = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "tie_word_embeddings": False,
    "cross_attention_hidden_size": None,
}
_MELODY_FIELDS = {"num_bins": ("num_chroma", 12), "num_frames": ("chroma_length", 235)}


@dataclasses.dataclass(frozen=True)
class _Generation:
    """What is read of generation_config.json. What it leaves out is as in the published models; null is off."""

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance_scale: float = 3.0


# Settings of transformers that would give other codes, and what leaves them out.
_NOT_DONE = {
    **{"num_beams": 1, "penalty_alpha": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
}


def read_model(directory: str | os.PathLike, *, dtype: Any = None, place: Place | None = None) -> Checkpoint:
    """The MusicGen model in `directory`; `dtype` and `place` are those of `matching.load`.

    Raises:
      CheckpointError: Files are missing or damaged, do not fit together, or describe another kind of model.
    """
    directory = Path(directory)
    config = read_config(directory)
    tensors = safetensors.find(directory) | _identities(config.lm)
    match = matching.match(
        musicgen.huggingface(config),
        tensors,
        shapes.model_shapes(config),
        where=str(directory),
        aliases=musicgen.ALIASES,
        ignored=_IGNORED,
    )
    return Checkpoint(config, matching.load(match, dtype=dtype, place=place), find_tokenizer(directory))


def match_codec(directory: str | os.PathLike) -> tuple[CodecConfig, matching.Match]:
    """The codec of a directory that holds an EncodecModel or a whole MusicGen model: its config, and what
    `matching.read` needs."""
    directory = Path(directory)
    values, prefix = _part_of_model(directory, "encodec", "audio_encoder")
    config = _codec_config(values, directory / "config.json")
    return config, matching.match(
        musicgen.huggingface_codec(config),
        _with_prefix(safetensors.find(directory), prefix),
        shapes.codec_shapes(config),
        where=str(directory),
        aliases=musicgen.ALIASES,
    )


def match_text_encoder(directory: Path) -> tuple[T5Config, matching.Match]:
    """The text encoder of a directory that holds a T5 (the encoder or all of it) or a whole MusicGen model: its config,
    and what `matching.read` needs."""
    values, prefix = _part_of_model(directory, "t5", "text_encoder")
    config = parsed(directory / "config.json", T5Config, values, _T5_FIELDS)
    return config, matching.match(
        musicgen.t5(config),
        _with_prefix(safetensors.find(directory), prefix),
        shapes.text_shapes(config),
        where=str(directory),
        aliases=musicgen.ALIASES,
        ignored=() if prefix else _IGNORED_OF_T5,
    )


def _part_of_model(directory: Path, model_type: str, part: str) -> tuple[dict[str, Any], str]:
    """The config of a model of its own, or of the part of a MusicGen model and the prefix of its names."""
    path = directory / "config.json"
    values = read_json(path)
    if values.get("model_type") == model_type:
        return values, ""
    if isinstance(values.get(part), dict) and values[part].get("model_type") == model_type:
        return values[part], f"{part}."
    raise CheckpointError(
        f"{path}: describes the model type {values.get('model_type')!r:.200}; expected {model_type!r}, or a MusicGen "
        "model that contains one"
    )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_config(directory: Path) -> ModelConfig:
    """The config of the MusicGen model in `directory`.

    Raises:
      CheckpointError: It is another kind of model, or one whose details are not supported.
    """
    path = directory / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in ("musicgen", "musicgen_melody"):
        raise CheckpointError(f"{path}: has the model type {kind!r:.200}; expected 'musicgen' or 'musicgen_melody'")
    for part, expected in (("text_encoder", "t5"), ("audio_encoder", "encodec"), ("decoder", f"{kind}_decoder")):
        found = values[part].get("model_type") if isinstance(values.get(part), dict) else None
        if found != expected:
            raise CheckpointError(f"{path}: the {part} is of the type {found!r:.200}; only {expected!r} is supported")
    decoder = values["decoder"]
    require(path, decoder, _LM_FIXED, "decoder.")

    codec = _codec_config(values["audio_encoder"], path)
    text = parsed(path, T5Config, values["text_encoder"], _T5_FIELDS)
    channels = decoder.get("audio_channels", 1)
    if channels not in (1, 2):
        raise CheckpointError(f"{path}: decoder.audio_channels is {channels!r:.200}; only 1 and 2 are supported")
    melody, conditions = None, (Fused("text", text.dim),)
    if kind == "musicgen_melody":
        melody = parsed(path, MelodyConfig, values, _MELODY_FIELDS, sample_rate=codec.sample_rate)
        conditions = (Fused("melody", melody.num_bins, "prefix"), Fused("text", text.dim, "prefix"))
    lm = parsed(path, LMConfig, decoder, _LM_FIELDS, pattern="parallel", conditions=conditions)
    lm = dataclasses.replace(lm, pattern="delay", delays=_delays(channels, lm.num_codebooks))
    parts = {"lm": lm, "codec": codec, "text": text, "channels": channels, "melody": melody}
    return parsed(path, ModelConfig, parts | {"sampling": _sampling(directory)})


def _delays(channels: int, num_codebooks: int) -> tuple[int, ...]:
    """The delay of each codebook; in stereo, the left and the right codebook of a pair have the same."""
    return tuple(k // channels for k in range(num_codebooks))


def _sampling(directory: Path) -> Sampling:
    path = directory / "generation_config.json"
    if not path.is_file():
        return Sampling()
    names = {field.name for field in dataclasses.fields(_Generation)}
    values = read_json(path)
    ignored = {name: values[name] for name, off in _NOT_DONE.items() if values.get(name, off) not in (off, None)}
    if ignored:
        warnings.warn(f"{path}: {ignored!s:.300} is not done here, and ignored", stacklevel=2)
    said = {name: value for name, value in values.items() if name in names}
    off = {"do_sample": False, "guidance_scale": 1.0}
    said = {name: off.get(name) if value is None else value for name, value in said.items()}
    said = {name: value for name, value in said.items() if value is not None}
    theirs = parsed(path, _Generation, said)
    sampling = {
        "temperature": theirs.temperature if theirs.do_sample else 0.0,
        "top_k": theirs.top_k,
        "top_p": theirs.top_p if theirs.top_p != 1 else 0.0,  # theirs is off at 1, ours at 0
        "guidance": theirs.guidance_scale,
    }
    return parsed(path, Sampling, sampling)


def _codec_config(values: dict[str, Any], path: Path) -> CodecConfig:
    overlap = values.get("overlap") or 0.0
    config = parsed(path, CodecConfig, values, _CODEC_FIELDS, chunk_overlap=overlap)
    if values.get("codebook_dim") not in (None, config.latent_dim):
        raise CheckpointError(
            f"{path}: codebook_dim {values['codebook_dim']!r:.200} is not hidden_size {config.latent_dim}"
        )
    count = _num_codebooks(config, config.bandwidths[-1])
    return parsed(path, CodecConfig, values, _CODEC_FIELDS, chunk_overlap=overlap, num_codebooks=count)


def _num_codebooks(config: CodecConfig, bandwidth: float) -> int:
    """The number of codebooks that transformers builds for a bandwidth in kb/s."""
    return int(1000 * bandwidth // (math.ceil(config.frame_rate) * math.ceil(math.log2(config.codebook_size))))


def _to_theirs(fields: Mapping[str, tuple[str, Any]], config: Any) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, (theirs, _) in fields.items()}


def write_model(
    directory: str | os.PathLike, checkpoint: Checkpoint, *, largest_shard: int = safetensors.LARGEST_SHARD
) -> None:
    """Writes a model that `from_pretrained` of transformers loads; one that is in `directory` already is replaced.

    Raises:
      CheckpointError: transformers has no such model (another pattern, no text, a projection that it leaves out).
    """
    codec_config, codec = weight_norm.unfold(checkpoint.config.codec, checkpoint.variables["codec"])
    config = dataclasses.replace(checkpoint.config, codec=codec_config)
    variables = checkpoint.variables | {"codec": codec}
    values = _model_values(config) | {"dtype": str(variables["lm"]["head"]["kernel"].dtype)}
    _check_identities(config.lm, variables["lm"])
    tensors = matching.export(musicgen.huggingface(config), variables)
    for name in _identities(config.lm):
        del tensors[name]
    with replacing(directory) as temporary:
        _write_json(temporary / "config.json", values)
        _write_json(temporary / "generation_config.json", _generation_values(config))
        _write_json(temporary / "preprocessor_config.json", _preprocessor_values(config))
        safetensors.write(temporary, tensors, largest_shard)
        copy_tokenizer(checkpoint.tokenizer, temporary)


def write_codec(directory: str | os.PathLike, config: CodecConfig, variables: dict[str, Any]) -> None:
    """Writes a codec alone, as an EncodecModel of transformers."""
    config, variables = weight_norm.unfold(config, variables)
    values = {"architectures": ["EncodecModel"]} | _codec_values(config)
    with replacing(directory) as temporary:
        _write_json(temporary / "config.json", values)
        _write_json(temporary / "preprocessor_config.json", _feature_extractor_values(config, config.channels))
        safetensors.write(temporary, matching.export(musicgen.huggingface_codec(config), variables))


def _model_values(config: ModelConfig) -> dict[str, Any]:
    lm = config.lm
    melody = config.melody
    _require(config.text is not None, "a text encoder")
    fused = [(condition.name, condition.fuse) for condition in lm.conditions]
    if melody:
        _require(fused == [("melody", "prefix"), ("text", "prefix")], "a melody and then text as a prefix")
        usual = MelodyConfig(melody.num_bins, config.codec.sample_rate, num_frames=melody.num_frames)
        _require(melody == usual, f"the melody {usual}")
    else:
        _require(fused == [("text", "cross")], "text by cross-attention, and no other condition but a melody")
    _require(
        config.channels in (1, 2) and config.codec.channels == 1, "one channel, or two that a mono codec codes apart"
    )
    delays = _delays(config.channels, lm.num_codebooks)
    usual = dataclasses.replace(lm, pattern="delay", delays=delays, flatten_first=0, empty_initial=0)
    _require(lm == usual, f"the delay pattern {delays}")
    counts = (config.codec.num_codebooks, _num_codebooks(config.codec, config.codec.bandwidths[0]))
    _require(lm.num_codebooks // config.channels in counts, "the codebooks of the codec's first bandwidth, or all")
    kind = "musicgen_melody" if melody else "musicgen"
    decoder = _to_theirs(_LM_FIELDS, lm) | {
        "model_type": f"{kind}_decoder",
        "activation_function": "gelu",
        "audio_channels": config.channels,
        "max_position_embeddings": 2048,
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "bos_token_id": lm.special_token,
        "pad_token_id": lm.special_token,
    }
    text = _to_theirs(_T5_FIELDS, config.text) | {"model_type": "t5", "is_encoder_decoder": False, "use_cache": False}
    values = {
        "architectures": ["MusicgenMelodyForConditionalGeneration" if melody else "MusicgenForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        "text_encoder": text,
        "audio_encoder": _codec_values(config.codec),
        "decoder": decoder,
    }
    return values | ({"num_chroma": melody.num_bins, "chroma_length": melody.num_frames} if melody else {})


def _codec_values(config: CodecConfig) -> dict[str, Any]:
    _require(math.log2(config.codebook_size).is_integer(), "a codebook size that is a power of 2")
    _require(config.num_lstm_layers > 0, "recurrent layers in the codec")
    _require(config.phases == 1, "a codec of phases = 1")
    values = _to_theirs(_CODEC_FIELDS, config) | {"model_type": "encodec", "codebook_dim": config.latent_dim}
    values["overlap"] = config.chunk_overlap if config.chunk_seconds is not None else None
    if _num_codebooks(config, config.bandwidths[-1]) != config.num_codebooks:
        # transformers counts the codebooks by the last bandwidth; half a codebook more is safe to round down.
        bits = math.ceil(config.frame_rate) * math.log2(config.codebook_size)
        values["target_bandwidths"] = [(config.num_codebooks + 0.5) * bits / 1000]
    return values


def _require(condition: bool, expected: str) -> None:
    if not condition:
        raise CheckpointError(
            f"transformers has no model of this kind: it needs {expected}. Save it in mgjax form instead"
        )


def _generation_values(config: ModelConfig) -> dict[str, Any]:
    special = config.lm.special_token
    values = {"bos_token_id": special, "decoder_start_token_id": special, "pad_token_id": special}
    guidance, temperature = config.sampling.guidance, config.sampling.temperature
    plain = not isinstance(guidance, tuple) and not isinstance(temperature, tuple)
    _require(plain and config.sampling.text_guidance is None, "one guidance and one temperature")
    values["do_sample"] = temperature > 0
    values["max_length"] = int(config.window_seconds * config.codec.frame_rate)
    values |= {"top_k": config.sampling.top_k, "guidance_scale": guidance}
    if values["do_sample"]:
        values["temperature"] = temperature
    if config.sampling.top_p:
        values["top_p"] = config.sampling.top_p
    return values


def _preprocessor_values(config: ModelConfig) -> dict[str, Any]:
    if not config.melody:
        return _feature_extractor_values(config.codec, config.channels) | {"processor_class": "MusicgenProcessor"}
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "processor_class": "MusicgenMelodyProcessor",
        "feature_size": config.melody.num_bins,
        "num_chroma": config.melody.num_bins,
        "sampling_rate": config.codec.sample_rate,
        "hop_length": config.melody.hop_length,
        "n_fft": config.melody.fft_size,
        "chunk_length": int(config.window_seconds),
        "stem_indices": [3, 2],
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _feature_extractor_values(codec: CodecConfig, channels: int) -> dict[str, Any]:
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": channels,
        "sampling_rate": codec.sample_rate,
        "chunk_length_s": codec.chunk_seconds,
        "overlap": codec.chunk_overlap if codec.chunk_seconds is not None else None,
        "padding_side": "left",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _absent_projections(config: LMConfig) -> list[str]:
    """The conditions whose projections transformers leaves out because their input is as wide as the model."""
    return [condition.name for condition in config.conditions if condition.dim == config.dim]


def _identities(config: LMConfig) -> dict[str, Tensor]:
    """Tensors for the projections that transformers leaves out: they change nothing."""
    dim, tensors = config.dim, {}
    for name in _absent_projections(config):
        for part, shape, make in (("weight", (dim, dim), np.eye), ("bias", (dim,), np.zeros)):
            key, read = (
                f"{musicgen.HUGGINGFACE_PROJECTIONS[name]}.{part}",
                functools.partial(make, dim, dtype=np.float32),
            )
            tensors[key] = Tensor(shape, np.dtype(np.float32), "none", read)
    return tensors


def _check_identities(config: LMConfig, lm: dict[str, Any]) -> None:
    for name in _absent_projections(config):
        kernel, bias = (np.asarray(lm[f"{name}_proj"][part]) for part in ("kernel", "bias"))
        if not np.array_equal(kernel, np.eye(len(kernel))) or bias.any():
            raise CheckpointError(
                f"transformers has no projection of the {name} between equal widths ({config.dim}), and this model's "
                "changes its input. Save it in mgjax form instead"
            )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
