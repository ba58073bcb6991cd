"""Reads and writes models: bundled, by Hub id or directory, in the format of mgjax, Hugging Face or audiocraft."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

from mgjax.checkpoints import audiocraft, hub, huggingface, native, peft
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.matching import Place
from mgjax.config.model import CodecConfig, ModelConfig
from mgjax.config.serialization import one_of
from mgjax.errors import CheckpointError, ConfigError
from mgjax.lm import lora

log = logging.getLogger("mgjax")

FORMATS = {"mgjax": native, "huggingface": huggingface, "audiocraft": audiocraft}


def read(
    source: str | os.PathLike,
    *,
    dtype: Any = None,
    place: Place | None = None,
    text_encoder: str | None = None,
    style_encoder: str | None = None,
    adapter: str | os.PathLike | None = None,
) -> Checkpoint:
    """Reads the whole model at `source`: "mini", "debug", a directory, or the id of a repository on the Hub.

    `dtype` and `place` are those of `checkpoints.tables.matching.load`. The others are directories or Hub ids: of a T5
    or a CLAP, for models that are stored without it; of a MERT, for style models that are stored without it; of a LoRA
    adapter for this model, which is merged into the weights.

    Raises:
      CheckpointError: There is no model, or its files are damaged or do not fit together.
      ConfigError: An encoder is passed for a model that has its own, or none.
    """
    if adapter is not None:
        model = read(source, dtype=dtype, place=place, text_encoder=text_encoder, style_encoder=style_encoder)
        lora_config, matrices = peft.read(hub.fetch(adapter), model.config.lm)
        merged = lora.merge(lora_config, model.variables["lm"], matrices)
        return dataclasses.replace(model, variables=model.variables | {"lm": merged})
    if source == "debug":
        _refuse_encoders(source, text_encoder, style_encoder)
        return Checkpoint(DEBUG, random_variables(DEBUG, dtype=dtype, place=place))
    directory = hub.fetch(source)
    if (directory / peft.CONFIG).is_file():
        base = peft.base(directory) or "MODEL"
        raise CheckpointError(
            f"{source} is an adapter, not a model: load the model that it was made for with it, as in "
            f"mgjax.load({base!r}, adapter={str(source)!r}) or --model {base} --adapter {source}"
        )
    format_name = native.detect(directory)
    if format_name == "audiocraft":
        model = audiocraft.read_model(
            directory, dtype=dtype, place=place, text_encoder=text_encoder, style_encoder=style_encoder
        )
    else:
        _refuse_encoders(source, text_encoder, style_encoder)
        model = FORMATS[format_name].read_model(directory, dtype=dtype, place=place)
    license = _license(model.config.license, source)
    _warn(license, str(source))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, license=license))


def _refuse_encoders(source: str | os.PathLike, text_encoder: Any, style_encoder: Any) -> None:
    if text_encoder is not None:
        raise ConfigError(f"{source} comes with its own text encoder: leave text_encoder out")
    if style_encoder is not None:
        raise ConfigError(f"{source} is not in audiocraft's form and comes whole: leave style_encoder out")


def read_config(
    source: str | os.PathLike, *, text_encoder: str | None = None, style_encoder: str | None = None
) -> ModelConfig:
    """Reads the config of the model at `source`, without its weights if the config is a file of its own."""
    if source == "debug":
        _refuse_encoders(source, text_encoder, style_encoder)
        return DEBUG
    directory = hub.fetch(source, allow=["*.json"])
    if not (directory / "config.json").is_file():
        directory = hub.fetch(source)  # audiocraft stores the config in the file of the weights
    format_name = native.detect(directory)
    if format_name == "audiocraft":
        config = audiocraft.read_config(directory, text_encoder=text_encoder, style_encoder=style_encoder)
    else:
        _refuse_encoders(source, text_encoder, style_encoder)
        config = FORMATS[format_name].read_config(directory)
    return dataclasses.replace(config, license=_license(config.license, source))


def read_codec(source: str | os.PathLike, *, place: Place | None = None) -> tuple[CodecConfig, dict[str, Any]]:
    """Reads the config and the variables of the codec at `source`, on its own or part of a model."""
    if source == "debug":
        return DEBUG.codec, random_variables(DEBUG, place=place)["codec"]
    directory = hub.fetch(source)
    _warn(_license("unknown", source), str(source))
    return matching.read(_match_codec(directory), place=place)


def read_codec_config(source: str | os.PathLike) -> CodecConfig:
    """Reads the config of the codec at `source`, without its weights."""
    return DEBUG.codec if source == "debug" else _match_codec(hub.fetch(source))[0]


def _match_codec(directory: Path) -> tuple[CodecConfig, matching.Match]:
    return FORMATS[native.detect(directory)].match_codec(directory)


def write(
    directory: str | os.PathLike,
    model: Checkpoint,
    format_name: str = "mgjax",
    text_encoder: str | None = None,
    compact: str | None = None,
) -> None:
    """Writes a model in a format of `FORMATS`; an existing one is replaced once the new one is complete.

    `text_encoder` is the name of the T5 that audiocraft's format refers to; None to infer it from the config. `compact`
    is one of `checkpoints.files.packed.DTYPES` to store the weights of mgjax's format in fewer bytes.

    Raises:
      ConfigError: There is no such format.
      ValueError: `compact` is set for another format.
    """
    one_of("format", format_name, tuple(FORMATS))
    if format_name == "mgjax":
        native.write_model(directory, model, compact)
    elif compact is not None:
        raise ValueError(f"compact weights are in mgjax's format only, not {format_name}: leave compact out")
    elif format_name == "audiocraft":
        audiocraft.write_model(directory, model, text_encoder=text_encoder)
    else:
        FORMATS[format_name].write_model(directory, model)


def _license(named: str, source: str | os.PathLike) -> str:
    """The licence in a model's files, or that of all weights in Meta's repositories, whose files lack it."""
    return "CC-BY-NC-4.0" if named == "unknown" and str(source).startswith("facebook/") else named


@functools.cache
def _warn(license: str, source: str) -> None:
    """Warns once where the licence of the weights excludes commercial use."""
    if license.startswith("CC-BY-NC"):
        log.warning("The weights of %s are licensed under %s: not for commercial use.", source, license)
