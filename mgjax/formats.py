"""Models from anywhere: a Hub id or a directory, in mgjax's, Hugging Face's or audiocraft's form."""

from __future__ import annotations

import os
from typing import Any

from mgjax import checkpoint
from mgjax.checkpoint import Checkpoint
from mgjax.config import CodecConfig
from mgjax.interop import audiocraft, hub, huggingface
from mgjax.interop.table import Place

FORMATS = {"mgjax": checkpoint, "huggingface": huggingface, "audiocraft": audiocraft}


def read(
    source: str | os.PathLike, *, dtype: Any = None, place: Place | None = None, text_encoder: str | None = None
) -> Checkpoint:
    """The whole model at `source`.

    Args:
      source: A directory, or the id of a repository on the Hugging Face Hub, which is downloaded once.
      dtype: The type of the weights (the codebooks are float32 always); None for float32.
      place: Puts each array where it belongs; see `interop.table.load`.
      text_encoder: A directory or Hub id of a T5, for models that come without theirs.

    Raises:
      CheckpointError: There is no model, or its files are damaged or do not fit together.
    """
    directory = hub.fetch(os.fspath(source))
    form = checkpoint.detect(directory)
    if form == "audiocraft":
        return audiocraft.read_model(directory, text_encoder=text_encoder, dtype=dtype, place=place)
    if text_encoder is not None:
        raise ValueError(f"{source} comes with its own text encoder: leave text_encoder out")
    return FORMATS[form].read_model(directory, dtype=dtype, place=place)


def read_codec(source: str | os.PathLike, *, place: Place | None = None) -> tuple[CodecConfig, dict]:
    """The codec at `source`, alone or part of a whole model."""
    directory = hub.fetch(os.fspath(source))
    return FORMATS[checkpoint.detect(directory)].read_codec(directory, place=place)


def write(
    directory: str | os.PathLike, model: Checkpoint, form: str = "mgjax", text_encoder: str | None = None
) -> None:
    """Writes a model; one that is in `directory` already is replaced only once the new one is whole.

    `text_encoder` is the name of the T5 that audiocraft's form refers to; None to tell it by its config.
    """
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    if form == "audiocraft":
        audiocraft.write_model(directory, model, text_encoder=text_encoder)
    else:
        FORMATS[form].write_model(directory, model)
