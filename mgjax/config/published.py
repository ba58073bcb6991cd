"""The sizes of what is published: configs by the names that models and encoders have on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mgjax.config.conditioning import ClapConfig, HubertConfig, MelodyConfig, StyleConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig

# The language models of MusicGen (Copet et al. 2023).
SMALL = LMConfig()
MEDIUM = dataclasses.replace(SMALL, dim=1536, num_layers=48, num_heads=24, ffn_dim=6144)
LARGE = dataclasses.replace(SMALL, dim=2048, num_layers=48, num_heads=32, ffn_dim=8192)

# The prefixes of the melody models and of the style model (Rouard et al. 2024).
MELODY_CONDITIONS = (Fused("melody", 12, "prefix"), Fused("text", 768, "prefix"))
STYLE_CONDITIONS = (Fused("style", 512, "prefix"), Fused("text", 768, "prefix"))

# The text encoders that audiocraft supports in a MusicGen model; the published ones have t5-base.
T5 = {
    "t5-small": T5Config(dim=512, ffn_dim=2048, num_layers=6, num_heads=8),
    "t5-base": T5Config(),
    "t5-large": T5Config(dim=1024, ffn_dim=4096, num_layers=24, num_heads=16),
    "google/flan-t5-small": T5Config(dim=512, ffn_dim=1024, num_layers=8, num_heads=6, activation="gated-gelu"),
    "google/flan-t5-base": T5Config(ffn_dim=2048, activation="gated-gelu"),
    "google/flan-t5-large": T5Config(dim=1024, ffn_dim=2816, num_layers=24, num_heads=16, activation="gated-gelu"),
}
ENCODEC, MERT, CLAP = "facebook/encodec_32khz", "m-a-p/MERT-v1-95M", "laion/clap-htsat-unfused"


def _musicgen() -> dict[str, ModelConfig]:
    melody = {
        name: ModelConfig(dataclasses.replace(lm, conditions=MELODY_CONDITIONS), melody=MelodyConfig())
        for name, lm in (("melody", MEDIUM), ("melody-large", LARGE))
    }
    mono = {"small": ModelConfig(SMALL), "medium": ModelConfig(MEDIUM), "large": ModelConfig(LARGE)} | melody
    stereo = {
        f"stereo-{name}": dataclasses.replace(model, lm=model.lm.stereo(), channels=2) for name, model in mono.items()
    }
    style = ModelConfig(dataclasses.replace(MEDIUM, conditions=STYLE_CONDITIONS), style=StyleConfig())
    models = mono | stereo | {"style": style}
    return {f"facebook/musicgen-{name}": model for name, model in models.items()}


MUSICGEN = _musicgen()

CONFIGS: Mapping[str, ModelConfig | CodecConfig | T5Config | HubertConfig | ClapConfig] = {
    **MUSICGEN,
    **T5,
    "google-t5/t5-base": T5["t5-base"],
    ENCODEC: CodecConfig(),
    MERT: HubertConfig(),
    CLAP: ClapConfig(),
}
