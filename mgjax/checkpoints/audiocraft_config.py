"""The fields of `xp.cfg`, the configuration of an audiocraft run, and the configs here: each from the other.

Fields that are missing have the published values. What a field says that is not supported here is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict

from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.files.xp_cfg import at
from mgjax.checkpoints.tables import musicgen
from mgjax.checkpoints.tables.audiocraft_conditioners import clap_run, style_run
from mgjax.config.conditioning import MelodyConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig, Sampling
from mgjax.config.published import T5
from mgjax.config.serialization import from_dict
from mgjax.errors import CheckpointError, ConfigError
from mgjax.lm import pattern as patterns

# Fields of which only the published models' values are supported.
_FIXED = {
    "lm_model": "transformer_lm",
    "transformer_lm.activation": "gelu",
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.norm_first": True,
    "transformer_lm.causal": True,
    "transformer_lm.bias_proj": False,
    "transformer_lm.bias_ff": False,
    "transformer_lm.bias_attn": False,
    "transformer_lm.layer_scale": None,
    "transformer_lm.positional_embedding": "sin",
    "transformer_lm.past_context": None,
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.qk_layer_norm_cross": False,
    "transformer_lm.kv_repeat": 1,
    "conditioners.self_wav.chroma_stem.radix2_exp": 14,
    "conditioners.self_wav.chroma_stem.argmax": True,
    "conditioners.self_wav.chroma_stem.eval_wavs": None,
    "conditioners.self_wav.style.use_middle_of_segment": False,
    "conditioners.description.t5.finetune": False,
    "conditioners.description.t5.normalize_text": False,
    "conditioners.description.clap.enable_fusion": False,
    "conditioners.description.clap.normalize": True,
    "fuser.sum": [],
    "fuser.input_interpolate": [],
    "fuser.cross_attention_pos_emb": False,
    "attribute_dropout.args.active_on_eval": False,
    "interleave_stereo_codebooks.per_timestep": False,
}
# The parts that audiocraft builds modules from, and their fields that are read here or used in training alone.
_PARTS = """
    transformer_lm fuser conditioners conditioners.self_wav conditioners.self_wav.chroma_stem
    conditioners.self_wav.style conditioners.description conditioners.description.t5 conditioners.description.clap
    interleave_stereo_codebooks encodec seanet seanet.decoder rvq
"""
_KNOWN_SETTINGS = """
    dim num_heads num_layers hidden_scale n_q card q_modeling cross_attention xpos dropout attention_dropout emb_lr lr
    weight_decay weight_init depthwise_init zero_bias_init checkpointing two_step_cfg custom memory_efficient
    attention_as_float32 cross prepend cross_attention_pos_emb_scale use args self_wav description model chroma_stem
    style t5 clap sample_rate channels n_chroma match_len_on_eval n_eval_wavs cache_path model_name transformer_scale
    encodec_checkpoint encodec_n_q length ds_factor n_q_out eval_q q_dropout bins varying_lengths batch_norm
    compute_mask num_codebooks_lm ds_rate_compression rvq_threshold_ema_dead_code name word_dropout autocast_dtype
    checkpoint model_arch max_audio_length audio_stride attribute quantize text_p batch_size kmeans_iters causal
    renorm true_skip decoder final_activation_params decay kmeans_init threshold_ema_dead_code orthogonal_reg_weight
    orthogonal_reg_active_codes_only orthogonal_reg_max_codes
"""
# Fields that must equal those of the whole run.
_SAME = """
    conditioners.self_wav.chroma_stem.sample_rate conditioners.self_wav.style.sample_rate encodec.sample_rate
    encodec.channels seanet.channels
"""
# The supported models of each conditioner, and the condition that each gives.
_CONDITIONERS = {
    "self_wav": {"chroma_stem": "melody", "style": "style"},
    "description": {"t5": "text", "clap": "clap"},
}
_FIXED_OF_CODEC = {
    "compression_model": "encodec",
    "encodec.autoencoder": "seanet",
    "encodec.quantizer": "rvq",
    "seanet.activation": "ELU",
    "seanet.activation_params": {"alpha": 1.0},
    "seanet.norm_params": {},
    "seanet.disable_norm_outer_blocks": 0,
    "seanet.encoder": {},
    "seanet.decoder.final_activation": None,
}
_CODEC_FIELDS = {
    "sample_rate": "sample_rate",
    "channels": "channels",
    "num_filters": "seanet.n_filters",
    "ratios": "seanet.ratios",
    "kernel_size": "seanet.kernel_size",
    "last_kernel_size": "seanet.last_kernel_size",
    "residual_kernel_size": "seanet.residual_kernel_size",
    "num_residual_layers": "seanet.n_residual_layers",
    "dilation_growth": "seanet.dilation_base",
    "compress": "seanet.compress",
    "num_lstm_layers": "seanet.lstm",
    "latent_dim": "seanet.dimension",
    "num_codebooks": "rvq.n_q",
    "codebook_size": "rvq.bins",
    "causal": "seanet.causal",
    "norm": "seanet.norm",
    "pad_mode": "seanet.pad_mode",
    "trim_right_ratio": "seanet.decoder.trim_right_ratio",
    "normalize": "encodec.renormalize",
}


def _check_fields(path: Path, run: dict[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a field of a module is unknown, or not as in `fixed`."""
    same = {name: at(run, name.split(".")[-1], at(run, name)) for name in _SAME.split()}
    for name, expected in {**fixed, **same}.items():
        value = at(run, name, expected)
        if value != expected:
            raise CheckpointError(f"{path}: {name} is {value!r} in its xp.cfg; only {expected!r} is supported")
    others, known = _KNOWN_SETTINGS.split(), {*_FIXED, *_FIXED_OF_CODEC, *_CODEC_FIELDS.values()}
    for part in _PARTS.split():
        fields = at(run, part) or {}
        unknown = [str(fields)]
        if isinstance(fields, Mapping):
            unknown = [str(name) for name in fields if name not in others and f"{part}.{name}" not in known]
        if unknown:
            raise CheckpointError(f"{path}: {part} has {', '.join(unknown)} in its xp.cfg, which is not supported")


def lm_config(path: Path, state: Mapping[str, Tensor], run: dict[str, Any]) -> LMConfig:
    """The language model's config, from xp.cfg, or from the shapes of the arrays for fields that it lacks.

    Raises:
      CheckpointError: It is none, or not of the supported kind.
    """
    _check_fields(path, run, _FIXED)
    for name, kinds in _CONDITIONERS.items():
        kind = at(run, f"conditioners.{name}.model")
        if kind is not None and kind not in list(kinds):
            raise CheckpointError(
                f"{path}: conditioners.{name}.model is {kind!r} in its xp.cfg; only {' and '.join(map(repr, kinds))} "
                "are supported"
            )
    embed, up = state.get("emb.0.weight"), state.get("transformer.layers.0.linear1.weight")
    if embed is None or up is None or len(embed.shape) != 2 or len(up.shape) != 2 or 0 in embed.shape:
        raise CheckpointError(f"{path}: holds no language model (no emb.0.weight, no transformer.layers.0)")
    crossed = "transformer.layers.0.cross_attention.in_proj_weight" in state
    try:
        dim = at(run, "transformer_lm.dim", embed.shape[1])
        count = _count(state, r"emb\.(\d+)\.")
        fields = {
            "dim": dim,
            "num_layers": at(run, "transformer_lm.num_layers", _count(state, r"transformer\.layers\.(\d+)\.")),
            "num_heads": at(run, "transformer_lm.num_heads", max(1, embed.shape[1] // 64)),
            "ffn_dim": int(dim * float(at(run, "transformer_lm.hidden_scale", up.shape[0] / embed.shape[1]))),
            "num_codebooks": at(run, "transformer_lm.n_q", count),
            "codebook_size": at(run, "transformer_lm.card", embed.shape[0] - 1),
            "conditions": _conditions(state, run, "cross" if crossed else "prefix"),
        }
        config = from_dict(LMConfig, _pattern(run, count) | fields)
        patterns.from_config(config)  # whose numbers have to fit each other
        return config
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{path}: its xp.cfg does not describe a language model: {error}") from None


def _conditions(state: Mapping[str, Tensor], run: dict[str, Any], text_fuse: str) -> tuple[Fused, ...]:
    """The conditions of the language model. A melody or a style is always a prefix, before that of the text."""
    fused = []
    for theirs, fuse in (("self_wav", "prefix"), ("description", text_fuse)):
        weight = state.get(f"condition_provider.conditioners.{theirs}.output_proj.weight")
        if weight is not None:
            names = at(run, f"fuser.{'prepend' if fuse == 'prefix' else fuse}")
            if names is not None and theirs not in names:
                raise ConfigError(f"its fuser and its arrays do not agree on where {theirs} enters")
            kinds = _CONDITIONERS[theirs]
            kind = kinds[at(run, f"conditioners.{theirs}.model") or next(iter(kinds))]
            fused.append(Fused(kind, weight.shape[-1], fuse))
    return tuple(fused)


def _pattern(run: dict[str, Any], num_codebooks: int) -> dict[str, Any]:
    """The fields of `LMConfig` for the pattern of the codebooks."""
    if not isinstance(run.get("codebooks_pattern") or {}, Mapping):
        raise ConfigError(f"codebooks_pattern is {run['codebooks_pattern']!r}")
    named = at(run, "codebooks_pattern.modeling")
    theirs = named or at(run, "transformer_lm.q_modeling") or "delay"
    # audiocraft reads the numbers of a pattern only beside its name.
    numbers = dict((named and at(run, f"codebooks_pattern.{theirs}")) or {})
    fields = {name: value for name, value in numbers.items() if value is not None}
    if theirs == "delay":
        fields.setdefault("delays", list(range(num_codebooks)))
    elif "delays" in fields:
        fields["frame_delays"] = fields.pop("delays")
    return fields | {"pattern": "flattened" if theirs == "unroll" else theirs}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """The count of different numbers in the names of arrays, matched by the group in `pattern`."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def codec_config(path: Path, run: dict[str, Any]) -> CodecConfig:
    """The codec's config; raises CheckpointError unless it is of the supported kind."""
    _check_fields(path, run, _FIXED_OF_CODEC)
    default = CodecConfig()
    fields = {ours: at(run, theirs, getattr(default, ours)) for ours, theirs in _CODEC_FIELDS.items()}
    fields["conv_shortcut"] = not at(run, "seanet.true_skip", True)
    try:
        config = from_dict(CodecConfig, fields)
        bits = config.num_codebooks * math.log2(config.codebook_size)
        return from_dict(CodecConfig, fields | {"bandwidths": [config.frame_rate * bits / 1000]})
    except ConfigError as error:
        raise CheckpointError(f"{path}: its xp.cfg does not describe a codec: {error}") from None


def model_config(path: Path, run: dict[str, Any], lm: LMConfig, codec: CodecConfig, **encoders: Any) -> ModelConfig:
    """The whole model's config, from those of its parts; `encoders` are the configs of its text, style and CLAP."""
    text_guidance = at(run, "generate.lm.cfg_coef_beta")
    try:
        guidance = float(at(run, "classifier_free_guidance.inference_coef", 3.0))
        sampling = Sampling(guidance=guidance, text_guidance=None if text_guidance is None else float(text_guidance))
        streams = 1 + bool(at(run, "interleave_stereo_codebooks.use", lm.num_codebooks > codec.num_codebooks))
        if at(run, "compression_model_n_q") not in (None, lm.num_codebooks / streams):
            raise ConfigError(f"compression_model_n_q is not {lm.num_codebooks / streams:g}, as its arrays have it")
        seconds = float(at(run, "dataset.segment_duration") or 30.0)
        melody = None
        if fused := lm.condition("melody"):
            num_frames = int(seconds * codec.sample_rate / MelodyConfig.hop_length) + 1
            melody = MelodyConfig(fused.dim, codec.sample_rate, num_frames=num_frames)
        parts = {"text": None, "melody": melody, "sampling": sampling} | encoders
        return ModelConfig(lm, codec, channels=codec.channels * streams, window_seconds=seconds, **parts)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def t5_name(config: T5Config) -> str:
    """The name in audiocraft of the T5 of this config; raises CheckpointError if there is none."""
    for name, known in T5.items():
        if known == config:
            return name
    raise CheckpointError(
        f"audiocraft's files name the text encoder and do not hold it, and this one ({config}) is none of {list(T5)}; "
        "give text_encoder= its name"
    )


def check_writable(config: ModelConfig) -> None:
    """Raises CheckpointError unless audiocraft has a model of this kind."""
    lm, melody = config.lm, config.melody
    if list(lm.delays) != sorted(lm.delays) or list(lm.frame_delays) != sorted(lm.frame_delays):
        raise CheckpointError("audiocraft has no pattern whose delays do not ascend. Save it in mgjax form instead")
    if melody and melody != MelodyConfig(melody.num_bins, config.codec.sample_rate, num_frames=melody.num_frames):
        raise CheckpointError(f"audiocraft has no such melody ({melody}). Save the model in mgjax form instead")
    prefixes, crossed = (
        [musicgen.AUDIOCRAFT_CONDITIONERS.get(fused.name) for fused in lm.conditions if fused.fuse == fuse]
        for fuse in ("prefix", "cross")
    )
    known = [["self_wav", "description"], ["self_wav"], ["description"], []]
    if prefixes + crossed not in known or "self_wav" in crossed or len(prefixes + crossed) != len(lm.conditions):
        raise CheckpointError(
            f"audiocraft has no model with the conditions {', '.join(f'{c.name} ({c.fuse})' for c in lm.conditions)}: "
            "it has a melody or a style as a prefix, and then text or CLAP. Save it in mgjax form instead"
        )


def lm_run(config: ModelConfig, text_encoder: str | None) -> dict[str, Any]:
    """The xp.cfg from which audiocraft builds the language model; raises CheckpointError if it has no such one."""
    lm = config.lm
    conditioners: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    if config.melody:
        chroma = {"sample_rate": config.codec.sample_rate, "n_chroma": config.melody.num_bins, "radix2_exp": 14}
        chroma |= {"argmax": True}
        conditioners["self_wav"] = {"model": "chroma_stem", "chroma_stem": chroma | {"match_len_on_eval": True}}
        dropped = {"args": {"active_on_eval": False}, "text": {}, "wav": {"self_wav": 0.5}}
    if config.style:
        conditioners["self_wav"] = {"model": "style"}  # see below
        dropped = {"args": {"active_on_eval": False}, "text": {"description": 0.4}, "wav": {"self_wav": 0.4}}
    if config.clap:
        conditioners["description"] = clap_run(config.clap)
    if config.text:
        t5 = {"name": text_encoder, "finetune": False, "word_dropout": 0.0, "normalize_text": False}
        conditioners["description"] = {"model": "t5", "t5": t5}
    pattern = "unroll" if lm.pattern == "flattened" else lm.pattern
    part = "transformer_lm."
    crossed = ["description"] if lm.cross_attention else []
    fuser = {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "input_interpolate": []}
    run: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "solver": "musicgen",
        "sample_rate": config.codec.sample_rate,
        "channels": config.channels,
        "interleave_stereo_codebooks": {"use": config.channels > config.codec.channels},
        "lm_model": "transformer_lm",
        "transformer_lm": {
            "dim": lm.dim,
            "num_heads": lm.num_heads,
            "num_layers": lm.num_layers,
            "hidden_scale": lm.ffn_dim // lm.dim if lm.ffn_dim % lm.dim == 0 else (lm.ffn_dim + 0.5) / lm.dim,  # is cut
            "n_q": lm.num_codebooks,
            "card": lm.codebook_size,
            "dropout": 0.0,
            "memory_efficient": True,
        }
        | {name.removeprefix(part): value for name, value in _FIXED.items() if name.startswith(part)},
        "codebooks_pattern": {"modeling": pattern, pattern: patterns.numbers(lm)},
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": config.sampling.guidance_points[0][1]},
        "attribute_dropout": dropped,
        "fuser": fuser | {"cross": crossed, "prepend": [name for name in conditioners if name not in crossed]},
        "conditioners": conditioners,
        "dataset": {"segment_duration": config.window_seconds},
    }
    if config.style:
        conditioners["self_wav"] = style_run(config.style, run)
    if config.clap:
        run["dataset"]["joint_embed_attributes"] = ["description"]
    streams = config.channels // config.codec.channels
    if lm.num_codebooks < streams * config.codec.num_codebooks:
        run["compression_model_n_q"] = lm.num_codebooks // streams
    if config.sampling.text_guidance is not None:
        run["generate"] = {"lm": {"cfg_coef_beta": config.sampling.text_guidance}}
    return run


def codec_run(config: CodecConfig) -> dict[str, Any]:
    """The xp.cfg from which audiocraft builds the codec; raises CheckpointError if it has no such codec."""
    if config.phases != 1 or config.chunk_seconds is not None:
        what = f"phases {config.phases} and chunk_seconds {config.chunk_seconds}"
        raise CheckpointError(f"audiocraft has no codec with {what}. Save it in mgjax form instead")
    values = _FIXED_OF_CODEC | {theirs: getattr(config, ours) for ours, theirs in _CODEC_FIELDS.items()}
    values |= {"device": "cpu", "encodec.sample_rate": config.sample_rate, "encodec.channels": config.channels}
    values |= {"encodec.causal": config.causal, "seanet.channels": config.channels}
    values |= {"seanet.true_skip": not config.conv_shortcut, "seanet.decoder.final_activation_params": None}
    values |= {"rvq.q_dropout": False, "rvq.decay": 0.99, "rvq.kmeans_init": True, "rvq.kmeans_iters": 50}
    values |= {"rvq.threshold_ema_dead_code": 2}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return unflatten_dict(lists, sep=".")
