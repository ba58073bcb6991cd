"""audiocraft's style and CLAP conditioners: their arrays in the language model's file, their parts of xp.cfg."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mgjax.checkpoints.tables.matching import LINEAR, Rule, codebooks, linear, norm, single, stacked
from mgjax.config.conditioning import ClapAudioConfig, ClapConditionConfig, ClapConfig, HubertConfig, StyleConfig
from mgjax.config.published import MERT
from mgjax.config.serialization import from_dict
from mgjax.errors import CheckpointError, ConfigError

PREFIX = "condition_provider.conditioners.self_wav."

# A count of batches, which is unused with a constant momentum.
IGNORED = (r"^condition_provider\.conditioners\.self_wav\.batch_norm\.num_batches_tracked$",)


_TRANSFORMERS = {
    "xsmall": {"dim": 256, "num_heads": 8, "num_layers": 4},
    "default": {"dim": 512, "num_heads": 8, "num_layers": 8},
    "large": {"dim": 1024, "num_heads": 16, "num_layers": 24},
}

# Our field -> theirs, and its default in audiocraft.
_FIELDS = {
    "num_code_streams": ("encodec_n_q", 4),
    "num_codebooks": ("n_q_out", 6),
    "codebook_size": ("bins", 1024),
    "eval_codebooks": ("eval_q", 3),
    "downsample": ("ds_factor", 15),
    "seconds": ("length", 3.0),
}

# The CLAPs that audiocraft knows, by their audio tower.
CLAP = {
    "HTSAT-tiny": ClapConfig(),
    "HTSAT-base": ClapConfig(audio=ClapAudioConfig(dim=128, depths=(2, 2, 12, 2))),
}


def audiocraft_style(config: StyleConfig) -> Iterator[Rule]:
    """The variables of `StyleConditioner` in audiocraft's language model.

    Its `output_proj` belongs to the language model here, and its feature extractor is not in the file.
    """
    yield from (rule.within("", PREFIX) for rule in _rules(config))


def _rules(config: StyleConfig) -> Iterator[Rule]:
    encoder, d, f = "params/encoder", config.dim, config.ffn_dim
    heads = (config.num_heads, d // config.num_heads)
    if config.features is not None:
        yield from linear(f"{encoder}/embed", "embed", (config.features.dim,), (d,))
    else:
        shape = (config.num_code_streams, config.code_size, d)
        yield stacked(f"{encoder}/embed/embedding", shape, "embed.{k}.weight")
    for i in range(config.num_layers):
        target, source = f"{encoder}/layer{i}", f"transformer.layers.{i}"
        yield single(f"{target}/qkv/kernel", (d, 3, *heads), f"{source}.self_attn.in_proj_weight", LINEAR)
        yield from linear(f"{target}/out", f"{source}.self_attn.out_proj", heads, (d,), bias=False)
        yield from linear(f"{target}/up", f"{source}.linear1", (d,), (f,), bias=False)
        yield from linear(f"{target}/down", f"{source}.linear2", (f,), (d,), bias=False)
        yield from norm(f"{target}/attn_norm", f"{source}.norm1", d)
        yield from norm(f"{target}/ffn_norm", f"{source}.norm2", d)
    for name in ("mean", "var"):
        yield single(f"batch_stats/{name}", (d,), f"batch_norm.running_{name}")
    yield from codebooks("rvq.vq.layers.{k}._codebook", config.num_codebooks, config.codebook_size, d)


def style_config(run: Mapping[str, Any]) -> StyleConfig:
    """The style conditioner that xp.cfg describes, references resolved; raises CheckpointError if it has none."""
    conditioner = run.get("conditioners", {}).get("self_wav", {})
    if not isinstance(conditioner, Mapping) or conditioner.get("model") != "style":
        raise CheckpointError(
            "xp.cfg describes no style conditioner: expected conditioners.self_wav.model to be 'style'"
        )
    style = conditioner.get("style") or {}
    choices = {"model_name": ("mert", "encodec"), "batch_norm": (True,), "transformer_scale": tuple(_TRANSFORMERS)}
    for name, known in choices.items():
        if style.get(name, known[0]) not in known:
            raise CheckpointError(
                f"conditioners.self_wav.style.{name} is {style[name]!r} in xp.cfg; supported: "
                f"{', '.join(map(repr, known))}"
            )
    fields = {ours: style.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()}
    fields |= _TRANSFORMERS[style.get("transformer_scale", "default")]
    fields["ffn_dim"] = 4 * fields["dim"]
    # It was trained on features of MERT-v1-95M, of unnormalised audio.
    from_codes = style.get("model_name") == "encodec"
    fields["features"] = None if from_codes else HubertConfig(normalize=False)
    fields["code_size"] = (run.get("transformer_lm") or {}).get("card", 2048)  # of the model's codec
    try:
        return from_dict(StyleConfig, fields)
    except ConfigError as error:
        raise CheckpointError(f"xp.cfg does not describe a style conditioner: {error}") from None


def style_run(config: StyleConfig, run: Mapping[str, Any]) -> dict[str, Any]:
    """A style conditioner's part of the xp.cfg `run`; raises CheckpointError if audiocraft has no such conditioner."""
    sizes = {"dim": config.dim, "num_heads": config.num_heads, "num_layers": config.num_layers}
    scale = next((name for name, known in _TRANSFORMERS.items() if known == sizes), None)
    style: dict[str, Any] = {"model_name": "encodec" if config.features is None else "mert", "transformer_scale": scale}
    style |= {theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()}
    # Fields that only its training reads, and those that all published models share.
    style |= {"sample_rate": run["sample_rate"], "encodec_checkpoint": "//pretrained/facebook/encodec_32khz"}
    style |= {"q_dropout": True, "varying_lengths": [config.seconds / 2, config.seconds * 1.5], "batch_norm": True}
    style |= {"compute_mask": True, "num_codebooks_lm": run["transformer_lm"]["n_q"], "ds_rate_compression": 640}
    style |= {"use_middle_of_segment": False, "rvq_threshold_ema_dead_code": 0.1}
    part = {"model": "style", "style": style}
    if scale is None or style_config(dict(run) | {"conditioners": {"self_wav": part}}) != config:
        known = ", ".join(f"{name} {sizes}" for name, sizes in _TRANSFORMERS.items())
        raise CheckpointError(
            f"audiocraft has no such style conditioner ({config}): it reads the features of {MERT} or the model's own "
            f"codes, by a transformer of one of the sizes {known}. Save the model in mgjax form instead"
        )
    return part


def audiocraft_clap(config: ClapConditionConfig) -> Iterator[Rule]:
    """The quantizer of joint embeddings, under "codebooks/"; the towers are not in the file."""
    if config.num_codebooks:
        name = "condition_provider.conditioners.description.quantizer.vq.layers.{k}._codebook"
        yield from codebooks(name, config.num_codebooks, config.codebook_size, config.clap.dim)


def clap_config(run: Mapping[str, Any], clap: ClapConfig | None = None) -> ClapConditionConfig:
    """The condition through CLAP; `clap` is None for the one that audiocraft names.

    Raises:
      CheckpointError: It is none that audiocraft knows, or its quantizer is invalid.
    """
    values = run.get("conditioners", {}).get("description", {}).get("clap") or {}
    arch = values.get("model_arch", "HTSAT-base")
    if clap is None and arch not in CLAP:
        raise CheckpointError(f"conditioners.description.clap.model_arch is {arch!r}; supported: {', '.join(CLAP)}")
    count = values.get("n_q", 12) if values.get("quantize", True) else 0
    try:
        numbers = from_dict(ClapConditionConfig, {"num_codebooks": count, "codebook_size": values.get("bins", 1024)})
    except ConfigError as error:
        raise CheckpointError(f"xp.cfg does not describe a quantizer: {error}") from None
    return dataclasses.replace(numbers, clap=clap or CLAP[arch])


def clap_run(config: ClapConditionConfig) -> dict[str, Any]:
    """The part of xp.cfg that describes the CLAP condition; raises CheckpointError if audiocraft has no such CLAP."""
    arch = next((name for name, known in CLAP.items() if known == config.clap), None)
    if arch is None:
        raise CheckpointError(
            f"audiocraft's files name the CLAP and do not hold it, and this one ({config.clap}) is none of "
            f"{', '.join(CLAP)}. Save the model in mgjax form instead"
        )
    checkpoint = "//reference/clap/music_audioset_epoch_15_esc_90.14.pt"
    clap: dict[str, Any] = {"checkpoint": checkpoint, "model_arch": arch}
    clap |= {"enable_fusion": False, "sample_rate": config.clap.audio.sample_rate, "max_audio_length": 10}
    clap |= {"audio_stride": 1, "dim": config.clap.dim, "attribute": "description", "normalize": True}
    clap |= {"quantize": config.num_codebooks > 0, "n_q": config.num_codebooks, "bins": config.codebook_size}
    return {"model": "clap", "clap": clap | {"kmeans_iters": 50, "text_p": 0.0, "cache_path": None}}
