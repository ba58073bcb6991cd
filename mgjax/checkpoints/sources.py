"""Models from anywhere: bundled, a Hub id or a directory, in mgjax's, Hugging Face's or audiocraft's form."""

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
    """The whole model at `source`.

    Args:
      source: "mini", "debug", a directory, or the id of a repository on the Hugging Face Hub, which is downloaded once.
      dtype: The type of the weights (but see `checkpoints.tables.matching.is_exact`); None for float32.
      place: Puts each array where it belongs; see `checkpoints.tables.matching.load`.
      text_encoder: A directory or Hub id of a T5 or a CLAP, for models that come without theirs.
      style_encoder: A directory or Hub id of a MERT, for style models that come without theirs.
      adapter: A directory or Hub id of an adapter of low rank for this model, as a fine-tuning makes it; its products
        are added to the weights.

    Raises:
      CheckpointError: There is no model, or its files are damaged or do not fit together.
      ConfigError: An encoder is given to a model that has its own, or none.
    """
    if adapter is not None:
        model = read(source, dtype=dtype, place=place, text_encoder=text_encoder, style_encoder=style_encoder)
        found = peft.read(hub.fetch(adapter), model.config.lm)
        adapted = lora.merge(found.config, model.variables["lm"], found.adapter)
        return dataclasses.replace(model, variables=model.variables | {"lm": adapted})
    if source == "debug":
        _refuse_encoders(source, text_encoder, style_encoder)
        return Checkpoint(DEBUG, random_variables(DEBUG, dtype=dtype, place=place))
    directory = hub.fetch(source)
    if peft.is_adapter(directory):
        base = peft.base(directory) or "MODEL"
        raise CheckpointError(
            f"{source} is an adapter, not a model: load the model that it was made for with it, as in "
            f"mgjax.load({base!r}, adapter={str(source)!r}) or --model {base} --adapter {source}"
        )
    form = native.detect(directory)
    if form == "audiocraft":
        encoders = {"text_encoder": text_encoder, "style_encoder": style_encoder}
        model = audiocraft.read_model(directory, dtype=dtype, place=place, **encoders)
    else:
        _refuse_encoders(source, text_encoder, style_encoder)
        model = FORMATS[form].read_model(directory, dtype=dtype, place=place)
    license = _license(model.config.license, source)
    _tell(license, source)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, license=license))


def _refuse_encoders(source: str | os.PathLike, text_encoder: Any, style_encoder: Any) -> None:
    if text_encoder is not None:
        raise ConfigError(f"{source} comes with its own text encoder: leave text_encoder out")
    if style_encoder is not None:
        raise ConfigError(f"{source} is not in audiocraft's form and comes whole: leave style_encoder out")


def read_config(
    source: str | os.PathLike, *, text_encoder: str | None = None, style_encoder: str | None = None
) -> ModelConfig:
    """What the model is that `read` gives, without reading its weights where its configuration is a file of its own."""
    if source == "debug":
        _refuse_encoders(source, text_encoder, style_encoder)
        return DEBUG
    directory = hub.fetch(source, allow=["*.json"])
    if not (directory / "config.json").is_file():
        directory = hub.fetch(source)  # audiocraft keeps its configuration beside the weights
    form = native.detect(directory)
    if form == "audiocraft":
        config = audiocraft.read_config(directory, text_encoder=text_encoder, style_encoder=style_encoder)
    else:
        _refuse_encoders(source, text_encoder, style_encoder)
        config = FORMATS[form].read_config(directory)
    return dataclasses.replace(config, license=_license(config.license, source))


def read_codec(source: str | os.PathLike, *, place: Place | None = None) -> tuple[CodecConfig, dict]:
    """The codec at `source`, alone or part of a whole model."""
    if source == "debug":
        return DEBUG.codec, random_variables(DEBUG, place=place)["codec"]
    directory = hub.fetch(source)
    _tell(_license("unknown", source), source)
    return matching.read(_match_codec(directory), place=place)


def read_codec_config(source: str | os.PathLike) -> CodecConfig:
    """What the codec at `source` is, without reading its weights."""
    return DEBUG.codec if source == "debug" else _match_codec(hub.fetch(source))[0]


def _match_codec(directory: Path) -> tuple[CodecConfig, matching.Match]:
    return FORMATS[native.detect(directory)].match_codec(directory)


def write(
    directory: str | os.PathLike,
    model: Checkpoint,
    form: str = "mgjax",
    text_encoder: str | None = None,
    compact: str | None = None,
) -> None:
    """Writes a model; one that is in `directory` already is replaced only once the new one is whole.

    `text_encoder` is the name of the T5 that audiocraft's form refers to; None to tell it by its config. `compact`, for
    mgjax's form, is one of `checkpoints.files.packed.FORMS`: weights in fewer bytes.
    """
    one_of("format", form, tuple(FORMATS))
    if form == "mgjax":
        native.write_model(directory, model, compact)
    elif compact is not None:
        raise ValueError(f"compact weights are in mgjax's form only: leave compact out, or write {form} as mgjax")
    elif form == "audiocraft":
        audiocraft.write_model(directory, model, text_encoder=text_encoder)
    else:
        FORMATS[form].write_model(directory, model)


def _license(named: str, source: str | os.PathLike) -> str:
    """The licence that a model names, or that all weights in Meta's repositories have, whose files do not name it."""
    return "CC-BY-NC-4.0" if named == "unknown" and str(source).startswith("facebook/") else named


@functools.cache
def _tell(license: str, source: str | os.PathLike) -> None:
    """Says once that the weights of `source` are not for every use."""
    if license.startswith("CC-BY-NC"):
        log.warning("The weights of %s are licensed under %s: not for commercial use.", source, license)
