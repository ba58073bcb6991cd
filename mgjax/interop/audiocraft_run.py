"""`xp.cfg`, the configuration of an audiocraft run, and the configs here: each from the other.

Fields that are missing have the published values. What a field says that is not supported here is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgjax.conditioner_config import ClapConditionConfig, MelodyConfig, StyleConfig, T5Config
from mgjax.config import CodecConfig, Fused, LMConfig, ModelConfig, Sampling
from mgjax.interop import names
from mgjax.interop.joint import clap_run
from mgjax.interop.style import style_run
from mgjax.interop.torch_file import CheckpointError, Tensor
from mgjax.strict_json import ConfigError, from_dict

# What the published models have, and the only thing that is supported.
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
    "conditioners.description.clap.enable_fusion": False,
    "fuser.sum": [],
    "fuser.input_interpolate": [],
}
# What is a choice, and which condition it makes.
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
# The text encoders that audiocraft knows and fits beside a MusicGen model.
T5 = {
    "t5-small": T5Config(dim=512, ffn_dim=2048, num_layers=6, num_heads=8),
    "t5-base": T5Config(),
    "t5-large": T5Config(dim=1024, ffn_dim=4096, num_layers=24, num_heads=16),
    "google/flan-t5-small": T5Config(dim=512, ffn_dim=1024, num_layers=8, num_heads=6, activation="gated-gelu"),
    "google/flan-t5-base": T5Config(ffn_dim=2048, activation="gated-gelu"),
    "google/flan-t5-large": T5Config(dim=1024, ffn_dim=2816, num_layers=24, num_heads=16, activation="gated-gelu"),
}


def resolved(value: Any, root: Any, depth: int = 0) -> Any:
    """`value` with references such as "${sample_rate}" replaced; those of other kinds ("${oc.env:USER}") stay."""
    if isinstance(value, dict):
        return {key: resolved(item, root, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, root, depth) for item in value]
    reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    if reference and depth < 10:
        return resolved(_at(root, reference[1], value), root, depth + 1)
    return value


def _at(values: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path, or the default where there is none."""
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return default
        values = values[key]
    return values


def check_lm(path: Path, run: dict[str, Any]) -> None:
    """Raises CheckpointError unless the language model is of the one kind that is supported."""
    _check_fixed(path, run, _FIXED)
    for name, kinds in _CONDITIONERS.items():
        found = _at(run, f"conditioners.{name}.model")
        if found is not None and found not in kinds:
            raise CheckpointError(
                f"{path}: conditioners.{name}.model is {found!r} in its xp.cfg; only {' and '.join(map(repr, kinds))} "
                "are supported"
            )
    pattern = _at(run, "codebooks_pattern.modeling") or _at(run, "transformer_lm.q_modeling") or "delay"
    if pattern != "delay":
        raise CheckpointError(f"{path}: the codebook pattern is {pattern!r} in its xp.cfg; only 'delay' is supported")


def check_codec(path: Path, run: dict[str, Any]) -> None:
    """Raises CheckpointError unless the codec is of the one kind that is supported."""
    _check_fixed(path, run, _FIXED_OF_CODEC)


def _check_fixed(path: Path, run: dict[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, expected in fixed.items():
        found = _at(run, name, expected)
        if found != expected:
            raise CheckpointError(f"{path}: {name} is {found!r} in its xp.cfg; only {expected!r} is supported")


def lm_config(path: Path, state: Mapping[str, Tensor], run: dict[str, Any]) -> LMConfig:
    """The language model's config: what xp.cfg says, and the shapes of the arrays where it says nothing."""
    embed, up = state.get("emb.0.weight"), state.get("transformer.layers.0.linear1.weight")
    if embed is None or up is None or len(embed.shape) != 2 or len(up.shape) != 2:
        raise CheckpointError(f"{path}: holds no language model (no emb.0.weight, no transformer.layers.0)")
    crossed = "transformer.layers.0.cross_attention.in_proj_weight" in state
    try:
        dim = _at(run, "transformer_lm.dim", embed.shape[1])
        count = _at(run, "transformer_lm.n_q", _count(state, r"emb\.(\d+)\."))
        fields = {
            "dim": dim,
            "num_layers": _at(run, "transformer_lm.num_layers", _count(state, r"transformer\.layers\.(\d+)\.")),
            "num_heads": _at(run, "transformer_lm.num_heads", max(1, embed.shape[1] // 64)),
            "ffn_dim": int(dim * float(_at(run, "transformer_lm.hidden_scale", up.shape[0] / embed.shape[1]))),
            "num_codebooks": count,
            "codebook_size": _at(run, "transformer_lm.card", embed.shape[0] - 1),
            "delays": _at(run, "codebooks_pattern.delay.delays") or list(range(count)),
            "conditions": _conditions(state, run, "cross" if crossed else "prefix"),
        }
        return from_dict(LMConfig, fields)
    except (ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: its xp.cfg does not describe a language model: {error}") from None


def _conditions(state: Mapping[str, Tensor], run: dict[str, Any], text_fuse: str) -> tuple[Fused, ...]:
    """What the language model reads. A melody or a style always stands before the music, and before the text."""
    fused = []
    for theirs, fuse in (("self_wav", "prefix"), ("description", text_fuse)):
        weight = state.get(f"condition_provider.conditioners.{theirs}.output_proj.weight")
        if weight is not None:
            kinds = _CONDITIONERS[theirs]
            kind = kinds[_at(run, f"conditioners.{theirs}.model", next(iter(kinds)))]
            fused.append(Fused(kind, weight.shape[-1], fuse))
    return tuple(fused)


def melody_config(run: dict[str, Any], lm: LMConfig, codec: CodecConfig) -> MelodyConfig | None:
    """The chromagram that the model reads, if it does."""
    fused = lm.condition("melody")
    if fused is None:
        return None
    samples = (_at(run, "dataset.segment_duration") or 30) * codec.sample_rate
    return MelodyConfig(fused.dim, codec.sample_rate, num_frames=int(samples / MelodyConfig.hop_length) + 1)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def codec_config(path: Path, run: dict[str, Any]) -> CodecConfig:
    """The codec's config."""
    default = CodecConfig()
    fields = {ours: _at(run, theirs, getattr(default, ours)) for ours, theirs in _CODEC_FIELDS.items()}
    fields["conv_shortcut"] = not _at(run, "seanet.true_skip", True)
    try:
        config = from_dict(CodecConfig, fields)
        bits = config.num_codebooks * math.log2(config.codebook_size)
        return from_dict(CodecConfig, fields | {"bandwidths": [config.frame_rate * bits / 1000]})
    except ConfigError as error:
        raise CheckpointError(f"{path}: its xp.cfg does not describe a codec: {error}") from None


def named_text_encoder(run: dict[str, Any]) -> str:
    """The name of the T5 that the model was trained with."""
    return _at(run, "conditioners.description.t5.name", "t5-base")


def model_config(
    path: Path,
    run: dict[str, Any],
    lm: LMConfig,
    codec: CodecConfig,
    *,
    text: T5Config | None = None,
    style: StyleConfig | None = None,
    clap: ClapConditionConfig | None = None,
) -> ModelConfig:
    """The whole model's config, from those of its parts."""
    text_guidance = _at(run, "generate.lm.cfg_coef_beta")
    try:
        guidance = float(_at(run, "classifier_free_guidance.inference_coef", 3.0))
        sampling = Sampling(guidance=guidance, text_guidance=None if text_guidance is None else float(text_guidance))
        return ModelConfig(
            lm,
            codec,
            text,
            channels=codec.channels * max(1, lm.num_codebooks // codec.num_codebooks),
            window_seconds=float(_at(run, "dataset.segment_duration") or 30.0),
            sampling=sampling,
            melody=melody_config(run, lm, codec),
            style=style,
            clap=clap,
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def t5_name(config: T5Config) -> str:
    """The name under which audiocraft knows a T5 of this config."""
    for name, known in T5.items():
        if known == config:
            return name
    raise CheckpointError(
        f"audiocraft's files name the text encoder and do not hold it, and this one ({config}) is none of {list(T5)}; "
        "give text_encoder= its name"
    )


def check_writable(config: ModelConfig) -> None:
    """Raises CheckpointError unless audiocraft has a model of this kind."""
    lm = config.lm
    if lm.pattern != "delay":
        raise CheckpointError(f"the pattern {lm.pattern!r} is not written for audiocraft; only 'delay' is")
    prefixes, crossed = (
        [names.AUDIOCRAFT_CONDITIONERS.get(one.name) for one in lm.conditions if one.fuse == fuse]
        for fuse in ("prefix", "cross")
    )
    known = [["self_wav", "description"], ["self_wav"], ["description"], []]
    if prefixes + crossed not in known or "self_wav" in crossed or len(prefixes + crossed) != len(lm.conditions):
        raise CheckpointError(
            f"audiocraft has no model with the conditions {', '.join(f'{c.name} ({c.fuse})' for c in lm.conditions)}: "
            "it has a melody or a style as a prefix, and then text or CLAP. Save it in mgjax form instead"
        )


def lm_run(config: ModelConfig, text_encoder: str | None) -> dict[str, Any]:
    """The xp.cfg from which audiocraft builds the language model.

    Raises:
      CheckpointError: audiocraft has no such style conditioner, or no such CLAP.
    """
    lm = config.lm
    conditioners, dropped = {}, {}
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
    crossed = ["description"] if lm.cross_attention else []
    fuser = {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [], "input_interpolate": []}
    run = {
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
            "hidden_scale": lm.ffn_dim // lm.dim if lm.ffn_dim % lm.dim == 0 else lm.ffn_dim / lm.dim,
            "n_q": lm.num_codebooks,
            "card": lm.codebook_size,
            "dropout": 0.0,
            "activation": "gelu",
            "norm": "layer_norm",
            "norm_first": True,
            "bias_ff": False,
            "bias_attn": False,
            "bias_proj": False,
            "causal": True,
            "custom": False,
            "memory_efficient": True,
            "attention_as_float32": False,
            "layer_scale": None,
            "positional_embedding": "sin",
            "checkpointing": "none",
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": list(lm.delays), "flatten_first": 0, "empty_initial": 0},
        },
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": config.sampling.guidance},
        "attribute_dropout": dropped,
        "fuser": fuser | {"cross": crossed, "prepend": [name for name in conditioners if name not in crossed]},
        "conditioners": conditioners,
        "dataset": {"segment_duration": config.window_seconds},
    }
    if config.style:
        conditioners["self_wav"] = style_run(config.style, run)
    if config.clap:
        run["dataset"]["joint_embed_attributes"] = ["description"]
    if config.sampling.text_guidance is not None:
        run["generate"] = {"lm": {"cfg_coef_beta": config.sampling.text_guidance}}
    return run


def codec_run(config: CodecConfig) -> dict[str, Any]:
    """The xp.cfg from which audiocraft builds the codec.

    Raises:
      CheckpointError: audiocraft has no such codec.
    """
    if config.phases != 1:
        raise CheckpointError(f"audiocraft has no codec of {config.phases} phases. Save it in mgjax form instead")
    run: dict[str, Any] = {"device": "cpu", "compression_model": "encodec"}
    run["encodec"] = {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": config.sample_rate}
    run["encodec"] |= {"channels": config.channels, "causal": config.causal}
    run["seanet"] = {"channels": config.channels, "activation": "ELU", "activation_params": {"alpha": 1.0}}
    run["seanet"] |= {"true_skip": not config.conv_shortcut, "norm_params": {}, "disable_norm_outer_blocks": 0}
    run["seanet"] |= {"encoder": {}, "decoder": {"final_activation": None, "final_activation_params": None}}
    run["rvq"] = {"q_dropout": False, "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50}
    run["rvq"] |= {"threshold_ema_dead_code": 2}
    for ours, theirs in _CODEC_FIELDS.items():
        *parents, name = theirs.split(".")
        inner = run
        for parent in parents:
            inner = inner[parent]
        value = getattr(config, ours)
        inner[name] = list(value) if isinstance(value, tuple) else value
    return run
