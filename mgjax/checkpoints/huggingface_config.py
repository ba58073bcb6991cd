"""The configs of MusicGen, MusicGen Melody, EnCodec and T5: from those of transformers, and to them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgjax.checkpoints.files.config_json import parse_config, read_json, require_values
from mgjax.config.conditioning import MelodyConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig, Sampling
from mgjax.errors import CheckpointError

# Our field -> their field, and its default in transformers.
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
    """The fields of generation_config.json that are read. The defaults are the published models'; null is off."""

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    guidance_scale: float = 3.0


# Settings of transformers that are not supported and would give other codes, and the value that turns them off.
_UNSUPPORTED = {
    **{"num_beams": 1, "penalty_alpha": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
}


def read_config(directory: Path) -> ModelConfig:
    """The config of the MusicGen model in `directory`; raises CheckpointError if it is another kind of model."""
    path = directory / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in ("musicgen", "musicgen_melody"):
        raise CheckpointError(f"{path}: has the model type {kind!r:.200}; expected 'musicgen' or 'musicgen_melody'")
    for part, expected in (("text_encoder", "t5"), ("audio_encoder", "encodec"), ("decoder", f"{kind}_decoder")):
        actual = values[part].get("model_type") if isinstance(values.get(part), dict) else None
        if actual != expected:
            raise CheckpointError(f"{path}: the {part} is of the type {actual!r:.200}; only {expected!r} is supported")
    decoder = values["decoder"]
    require_values(path, decoder, _LM_FIXED, "decoder.")

    codec = codec_config(values["audio_encoder"], path)
    text = t5_config(values["text_encoder"], path)
    channels = decoder.get("audio_channels", 1)
    if channels not in (1, 2):
        raise CheckpointError(f"{path}: decoder.audio_channels is {channels!r:.200}; only 1 and 2 are supported")
    melody: MelodyConfig | None = None
    conditions: tuple[Fused, ...] = (Fused("text", text.dim),)
    if kind == "musicgen_melody":
        melody = parse_config(path, MelodyConfig, values, _MELODY_FIELDS, sample_rate=codec.sample_rate)
        conditions = (Fused("melody", melody.num_bins, "prefix"), Fused("text", text.dim, "prefix"))
    lm = parse_config(path, LMConfig, decoder, _LM_FIELDS, pattern="parallel", conditions=conditions)
    lm = dataclasses.replace(lm, pattern="delay", delays=_delays(channels, lm.num_codebooks))
    parts = {"lm": lm, "codec": codec, "text": text, "channels": channels, "melody": melody}
    return parse_config(path, ModelConfig, parts | {"sampling": _sampling(directory)})


def part_of_model(directory: Path, model_type: str, part: str) -> tuple[dict[str, Any], str]:
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


def codec_config(values: dict[str, Any], path: Path) -> CodecConfig:
    """The codec's config, from the `values` of transformers in the file `path`."""
    overlap = values.get("overlap") or 0.0
    config = parse_config(path, CodecConfig, values, _CODEC_FIELDS, chunk_overlap=overlap)
    if values.get("codebook_dim") not in (None, config.latent_dim):
        raise CheckpointError(
            f"{path}: codebook_dim {values['codebook_dim']!r:.200} is not hidden_size {config.latent_dim}"
        )
    count = _num_codebooks(config, config.bandwidths[-1])
    return parse_config(path, CodecConfig, values, _CODEC_FIELDS, chunk_overlap=overlap, num_codebooks=count)


def t5_config(values: dict[str, Any], path: Path) -> T5Config:
    """The text encoder's config, from the `values` of transformers in the file `path`."""
    return parse_config(path, T5Config, values, _T5_FIELDS)


def _delays(channels: int, num_codebooks: int) -> tuple[int, ...]:
    """The delay of each codebook; in stereo, the left and the right codebook of a pair have the same."""
    return tuple(k // channels for k in range(num_codebooks))


def _sampling(directory: Path) -> Sampling:
    path = directory / "generation_config.json"
    if not path.is_file():
        return Sampling()
    names = {field.name for field in dataclasses.fields(_Generation)}
    values = read_json(path)
    ignored = {name: values[name] for name, off in _UNSUPPORTED.items() if values.get(name, off) not in (off, None)}
    if ignored:
        warnings.warn(f"{path}: {ignored!s:.300} is not done here, and ignored", stacklevel=2)
    off = {"do_sample": False, "guidance_scale": 1.0}
    fields = {name: off.get(name) if value is None else value for name, value in values.items() if name in names}
    theirs = parse_config(path, _Generation, {name: value for name, value in fields.items() if value is not None})
    sampling = {
        "temperature": theirs.temperature if theirs.do_sample else 0.0,
        "top_k": theirs.top_k,
        "top_p": theirs.top_p if theirs.top_p != 1 else 0.0,  # theirs is off at 1, ours at 0
        "guidance": theirs.guidance_scale,
    }
    return parse_config(path, Sampling, sampling)


def _num_codebooks(config: CodecConfig, bandwidth: float) -> int:
    """The number of codebooks that transformers builds for a bandwidth in kb/s."""
    return int(1000 * bandwidth // (math.ceil(config.frame_rate) * math.ceil(math.log2(config.codebook_size))))


def _to_theirs(fields: Mapping[str, tuple[str, Any]], config: Any) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, (theirs, _) in fields.items()}


def model_values(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a MusicGen model; raises CheckpointError if transformers has no such model."""
    lm, melody, text = config.lm, config.melody, config.text
    if text is None:
        raise _unsupported("a text encoder")
    fused = [(condition.name, condition.fuse) for condition in lm.conditions]
    if melody:
        _require(fused == [("melody", "prefix"), ("text", "prefix")], "a melody and then text as a prefix")
        published = MelodyConfig(melody.num_bins, config.codec.sample_rate, num_frames=melody.num_frames)
        _require(melody == published, f"the melody {published}")
    else:
        _require(fused == [("text", "cross")], "text by cross-attention, and no other condition but a melody")
    is_mono = config.codec.channels == 1
    _require(config.channels in (1, 2) and is_mono, "one channel, or two that a mono codec codes apart")
    delays = _delays(config.channels, lm.num_codebooks)
    delayed = dataclasses.replace(lm, pattern="delay", delays=delays, flatten_first=0, empty_initial=0)
    _require(lm == delayed, f"the delay pattern {delays}")
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
    encoder = _to_theirs(_T5_FIELDS, text) | {"model_type": "t5", "is_encoder_decoder": False, "use_cache": False}
    values = {
        "architectures": ["MusicgenMelodyForConditionalGeneration" if melody else "MusicgenForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        "text_encoder": encoder,
        "audio_encoder": codec_values(config.codec),
        "decoder": decoder,
    }
    return values | ({"num_chroma": melody.num_bins, "chroma_length": melody.num_frames} if melody else {})


def codec_values(config: CodecConfig) -> dict[str, Any]:
    """The config.json of an EncodecModel, but for its architecture; raises CheckpointError if there is none."""
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
        raise _unsupported(expected)


def _unsupported(expected: str) -> CheckpointError:
    return CheckpointError(
        f"transformers has no model of this kind: it needs {expected}. Save it in mgjax form instead"
    )


def generation_values(config: ModelConfig) -> dict[str, Any]:
    """The generation_config.json of a MusicGen model; raises CheckpointError if transformers has no such sampling."""
    special = config.lm.special_token
    values: dict[str, Any] = dict.fromkeys(("bos_token_id", "decoder_start_token_id", "pad_token_id"), special)
    guidance, temperature = config.sampling.guidance, config.sampling.temperature
    if isinstance(guidance, tuple) or isinstance(temperature, tuple) or config.sampling.text_guidance is not None:
        raise _unsupported("one guidance and one temperature")
    values["do_sample"] = temperature > 0
    values["max_length"] = int(config.window_seconds * config.codec.frame_rate)
    values |= {"top_k": config.sampling.top_k, "guidance_scale": guidance}
    if values["do_sample"]:
        values["temperature"] = temperature
    if config.sampling.top_p:
        values["top_p"] = config.sampling.top_p
    return values


def preprocessor_values(config: ModelConfig) -> dict[str, Any]:
    """The preprocessor_config.json of a MusicGen model."""
    if not config.melody:
        return feature_extractor_values(config.codec, config.channels) | {"processor_class": "MusicgenProcessor"}
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


def feature_extractor_values(codec: CodecConfig, channels: int) -> dict[str, Any]:
    """The preprocessor_config.json of an EncodecModel, for audio of so many channels."""
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
