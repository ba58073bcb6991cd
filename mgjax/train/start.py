"""What the training of a language model starts from: codec and text encoder, and weights to go on from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mgjax import checkpoint, formats, initialize
from mgjax.codec.codec import Codec
from mgjax.conditioner_config import T5Config
from mgjax.conditioning.text import Tokenizer
from mgjax.config import LMConfig, ModelConfig
from mgjax.interop import hub, huggingface
from mgjax.interop.torch_file import CheckpointError
from mgjax.strict_json import ConfigError, to_json


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The parts of a model that is about to be trained.

    Attributes:
      config: What the model will be.
      codec: For as many channels as the model has.
      lm: The language model's weights to go on from (numpy, layer by layer), or None.
      text: The text encoder's weights (numpy), or None where the model reads no text.
      tokenizer_files: The folder that holds the tokenizer's files, or None.
    """

    config: ModelConfig
    codec: Codec
    lm: dict[str, Any] | None
    text: dict[str, Any] | None
    tokenizer_files: Path | None

    @property
    def text_hash(self) -> str | None:
        """Twelve hexadecimal digits that tell text encoders apart, made of the config and the weights."""
        if self.text is None:
            return None
        digest = hashlib.sha256(to_json(self.config.text).encode())
        for path, array in jax.tree_util.tree_leaves_with_path(self.text):
            digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    def tokenizer(self) -> Tokenizer | None:
        """What cuts texts for the text encoder; None where the model reads no text."""
        if self.config.text is None:
            return None
        if self.config.tokenizer == "bytes":
            return Tokenizer.bytes()
        if self.tokenizer_files is None:
            raise CheckpointError(
                "the text encoder came without a tokenizer: put spiece.model or tokenizer.json (those of t5-base for "
                "the published models) into its folder"
            )
        tokenizer = Tokenizer.from_directory(self.tokenizer_files)
        if tokenizer.vocab_size > self.config.text.vocab_size:
            raise CheckpointError(
                f"the tokenizer in {self.tokenizer_files} has {tokenizer.vocab_size} tokens, and the text encoder "
                f"knows {self.config.text.vocab_size}: they do not belong together"
            )
        return tokenizer


def read(
    *,
    init: str | None,
    lm: LMConfig | None,
    codec: str | None,
    text_encoder: str | None,
    channels: int,
    window_seconds: float,
) -> Start:
    """The parts from their sources, each a directory, a Hub id or "debug".

    Args:
      init: A whole model to go on from; None to begin with new weights.
      lm: What the language model is; None for that of `init`.
      codec: A codec or a model that has one; None for that of `init`.
      text_encoder: A T5 or a model that has one; None for that of `init`, and for none where there is no `init`.
      channels: Of the audio. A mono model to go on from becomes a stereo model for 2.
      window_seconds: The longest stretch of music that the model is trained on.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts do not fit together.
    """
    if init is None:
        if lm is None or codec is None:
            raise ConfigError("give lm and codec, what to train and on which codes; or init, a model to go on from")
        text_config, text, files, kind = _text_encoder(text_encoder)
        made = Codec(*formats.read_codec(codec), channels=channels)
        weights, extra = None, {"tokenizer": kind}
    else:
        given = formats.read(init, place=lambda path, array: array, text_encoder=text_encoder)
        base, weights = given.config, given.variables["lm"]
        text_config, text, files = base.text, given.variables.get("text"), given.tokenizer
        if codec is None:
            made = Codec(base.codec, given.variables["codec"], channels=channels)
        else:
            made = Codec(*formats.read_codec(codec), channels=channels)
        found, weights = base.lm, dict(weights)
        if channels == 2 * base.channels:
            found, weights = to_stereo(found, weights)
        elif channels != base.channels:
            raise ConfigError(f"{init} has {base.channels} channels and cannot become a model of {channels}")
        if lm not in (None, found):
            raise ConfigError(f"lm differs from that of {init}, which is {found}: leave lm out (None), or init")
        lm, extra = found, {"tokenizer": base.tokenizer, "sampling": base.sampling, "license": base.license}
    if made.config.chunk_seconds is not None:
        raise ConfigError("this codec codes chunks of audio apart: its codes are no sequence that a model could learn")
    config = ModelConfig(
        lm=lm, codec=made.folded_config, text=text_config, channels=channels, window_seconds=window_seconds, **extra
    )
    return Start(config, made, weights, text, files)


def to_stereo(config: LMConfig, params: dict[str, Any]) -> tuple[LMConfig, dict[str, Any]]:
    """The stereo model that a mono model becomes: left and right of a codebook begin with the weights of that codebook.

    The order of the codebooks is that of the published stereo models: left 1, right 1, left 2, right 2, ...
    """
    delays = tuple(delay for delay in config.delays for _ in range(2))
    stereo = dataclasses.replace(config, num_codebooks=2 * config.num_codebooks, delays=delays)
    embedding = np.repeat(params["embed"]["embedding"], 2, axis=0)
    kernel = np.repeat(params["head"]["kernel"], 2, axis=1)
    return stereo, params | {"embed": {"embedding": embedding}, "head": {"kernel": kernel}}


def _text_encoder(source: str | None) -> tuple[T5Config | None, dict[str, Any] | None, Path | None, str]:
    """Config, weights, the folder of the tokenizer's files, and the kind of tokenizer."""
    if source is None:
        return None, None, None, "sentencepiece"

    def place(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
        return array

    if source == "debug":
        config = initialize.DEBUG
        return config.text, initialize.random_variables(config, place=place)["text"], None, config.tokenizer
    directory = hub.fetch(source)
    if checkpoint.read_json(directory / "config.json").get("format") != "mgjax":
        config, weights = huggingface.read_text_encoder(directory, place=place)
        return config, weights, checkpoint.find_tokenizer(directory), "sentencepiece"
    model = checkpoint.read_model(directory, place=place)
    if model.config.text is None:
        raise ConfigError(f"{source} reads no text: give a model that does, or a T5, as text_encoder")
    return model.config.text, model.variables["text"], model.tokenizer, model.config.tokenizer
