"""The shape of every array of a model, from its config alone: path ("lm/layer0/ffn/up/kernel") -> shape.

From the tables, and compared with the modules by tests: `jax.eval_shape` of the modules would add 2 s to every load of
musicgen-small (0.9 s with one layer traced for all), and trace whatever a damaged config says.
"""

from __future__ import annotations

from collections.abc import Iterable

from mgjax.checkpoints.tables import clap, hubert, musicgen
from mgjax.checkpoints.tables.audiocraft_conditioners import audiocraft_clap, audiocraft_style
from mgjax.checkpoints.tables.matching import Rule, target_shapes
from mgjax.config.model import CodecConfig, LMConfig, ModelConfig
from mgjax.nn import Shapes


def model_shapes(config: ModelConfig) -> Shapes:
    """All arrays of a model, under "lm/", "codec/" and, for the encoders that it has, "text/", "style/", "clap/"."""
    tables: dict[str, Iterable[Rule]] = {
        "lm": musicgen.audiocraft_lm(config.lm),
        "codec": musicgen.audiocraft_codec(config.codec),
    }
    if config.text:
        tables["text"] = musicgen.t5(config.text)
    if config.style:
        tables["style"] = audiocraft_style(config.style)
        if config.style.features:
            tables["style/features"] = hubert.hubert(config.style.features)
    if config.clap:
        tables["clap"] = [*clap.clap(config.clap.clap), *audiocraft_clap(config.clap)]
    return {f"{part}/{path}": shape for part, rules in tables.items() for path, shape in target_shapes(rules).items()}


def lm_shapes(config: LMConfig) -> Shapes:
    """The language model's parameters."""
    return target_shapes(musicgen.audiocraft_lm(config))


def codec_shapes(config: CodecConfig) -> Shapes:
    """The codec's parameters under "params/" and its quantizer's state under "codebooks/"."""
    return target_shapes(musicgen.audiocraft_codec(config))
