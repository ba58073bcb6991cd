"""The condition through CLAP in audiocraft: its arrays inside the language model's file, and its part of xp.cfg."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mgjax.checkpoints.tables.matching import Rule, codebooks
from mgjax.config.conditioning import ClapAudioConfig, ClapConditionConfig, ClapConfig
from mgjax.config.serialization import from_dict
from mgjax.errors import CheckpointError, ConfigError

# The CLAPs that audiocraft knows, by their audio tower.
CLAP = {
    "HTSAT-tiny": ClapConfig(),
    "HTSAT-base": ClapConfig(audio=ClapAudioConfig(dim=128, depths=(2, 2, 12, 2))),
}


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
    """The part of xp.cfg that describes the condition through CLAP.

    Raises:
      CheckpointError: audiocraft has no such CLAP.
    """
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
