"""What the training of a language model starts from: codec and encoders, and weights to go on from."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mgjax import checkpoint, formats
from mgjax.codec.codec import Codec
from mgjax.conditioner_config import ClapConditionConfig, LabelConfig, MelodyConfig, NumberConfig, StyleConfig, T5Config
from mgjax.conditioning.clap_text import ClapTokenizer
from mgjax.conditioning.text import Tokenizer
from mgjax.config import LMConfig, ModelConfig, Sampling
from mgjax.errors import CheckpointError, ConfigError
from mgjax.interop import hub
from mgjax.interop.clap import read_clap
from mgjax.interop.hubert import read_hubert
from mgjax.train import text as text_encoders
from mgjax.train.text import TextEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The parts of a model that is about to be trained.

    Attributes:
      config: What the model will be.
      codec: For as many channels as the model has.
      lm: The language model's weights to go on from (numpy, layer by layer), or None.
      text: The text encoder's weights (numpy), or None where the model reads no text or will learn to by a new one.
      tokenizer_files: The folder that holds the tokenizer's files, or None.
      style: The style conditioner's variables to go on from (numpy), or None.
      features: The weights of the encoder of styles' excerpts (numpy), or None.
      clap: The variables of CLAP (numpy), with the codebooks to go on from if there are any; or None.
      clap_tokenizer_files: The folder that holds the files of CLAP's tokenizer, or None.
    """

    config: ModelConfig
    codec: Codec
    lm: dict[str, Any] | None
    text: dict[str, Any] | None
    tokenizer_files: Path | None
    style: dict[str, Any] | None = None
    features: dict[str, Any] | None = None
    clap: dict[str, Any] | None = None
    clap_tokenizer_files: Path | None = None

    def clap_tokenizer(self) -> ClapTokenizer:
        """What cuts texts for CLAP.

        Raises:
          CheckpointError: It came without one.
        """
        if self.clap_tokenizer_files is None:
            raise CheckpointError(
                "the CLAP came without a tokenizer: put tokenizer.json, or vocab.json and merges.txt, into its folder"
            )
        return ClapTokenizer.from_directory(self.clap_tokenizer_files)

    @property
    def text_hash(self) -> str | None:
        """Twelve hexadecimal digits that tell text encoders apart; None where `text` is."""
        return None if self.text is None else text_encoders.hash_of(self.config.text, self.text)

    def hashes(self) -> dict[str, str | None]:
        """What tells each part from others; None for what there is not."""
        weights = {"lm": self.lm, "style": self.style, "features": self.features, "clap": self.clap}
        digest = hashlib.sha256()
        for folder in filter(None, (self.tokenizer_files, self.clap_tokenizer_files)):
            paths = [folder / name for name in ("spiece.model", "tokenizer.json", "merges.txt")]
            digest.update(next(path for path in paths if path.is_file()).read_bytes())
        return {
            "codec": self.codec.hash,
            "text_encoder": self.text_hash,
            "vocabulary": digest.hexdigest()[:12],
            "init": text_encoders.hash_of(self.config.lm, weights),
        }

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
    melody: MelodyConfig | None = None,
    style: StyleConfig | None = None,
    style_encoder: str | None = None,
    clap: ClapConditionConfig | None = None,
    clap_encoder: str | None = None,
    labels: tuple[LabelConfig, ...] = (),
    numbers: tuple[NumberConfig, ...] = (),
    new_text: T5Config | None = None,
    vocabulary: str | None = None,
    sampling: Sampling | None = None,
) -> Start:
    """The parts from their sources, each a directory, a Hub id or "debug".

    Args:
      init: A whole model to go on from; None to begin with new weights.
      lm: What the language model is; None for that of `init`.
      codec: A codec or a model that has one; None for that of `init`.
      text_encoder: A T5 or a model that has one; None for that of `init`, and for none where there is no `init`.
      new_text: What a new text encoder is, in a model that is new too; None for none.
      vocabulary: That of the new text encoder; see `text.new`.
      channels: Of the audio. A mono model to go on from becomes a stereo model for 2.
      window_seconds: The longest stretch of music that the model is trained on.
      style_encoder: What hears the excerpts of styles that are not made of codes: a HuBERT or MERT of transformers,
        for a new model or for an `init` that comes without; None for that of `init`.
      clap: The condition by CLAP, but for its towers.
      clap_encoder: A CLAP of transformers, for a new model; None for none, or for that of `init`.
      sampling: How the model draws codes; None for how `init` does, or the published models.
      melody, style, labels, numbers: What the language model reads besides text; None and () for what `init` has.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts do not fit together.
    """
    if init is None:
        if lm is None or codec is None:
            raise ConfigError("give lm and codec, what to train and on which codes; or init, a model to go on from")
        reader = text_encoders.new(new_text, vocabulary) if new_text else text_encoders.read(text_encoder)
        made = Codec(*formats.read_codec(codec), channels=channels)
        weights, styles, towers, clap_files = None, None, None, None
        style, features = _style_encoder(style, style_encoder)
        if clap_encoder is not None:
            directory = hub.fetch(clap_encoder)
            found, towers = read_clap(directory, place=lambda path, array: array)
            clap_files = checkpoint.find_clap_tokenizer(directory)
            clap = dataclasses.replace(clap or ClapConditionConfig(), clap=found)
        extra = {"tokenizer": reader.tokenizer, "melody": melody, "style": style, "labels": labels, "numbers": numbers}
        extra["clap"] = clap if clap_encoder else None
    else:
        encoders = {"text_encoder": text_encoder, "style_encoder": style_encoder}
        given = formats.read(init, place=lambda path, array: array, **encoders)
        base, weights, styles = given.config, given.variables["lm"], dict(given.variables.get("style", {})) or None
        features = styles and styles.pop("features", None)
        if clap_encoder is not None:
            raise ConfigError(f"leave clap_encoder out: {init} is told by CLAP already, or was not made for it")
        towers, clap_files = given.variables.get("clap"), given.clap_tokenizer
        reader = TextEncoder(base.text, given.variables.get("text"), given.tokenizer)
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
        for name, asked in {"melody": melody, "style": style, "labels": labels, "numbers": numbers}.items():
            if asked and asked != getattr(base, name):
                raise ConfigError(f"{name} differs from that of {init}, which is {getattr(base, name)}: leave it out")
        kept = ("tokenizer", "sampling", "license", "melody", "style", "clap", "labels", "numbers")
        lm, extra = found, {name: getattr(base, name) for name in kept}
    if made.config.chunk_seconds is not None:
        raise ConfigError("this codec codes chunks of audio apart: its codes are no sequence that a model could learn")
    if sampling is not None:
        extra["sampling"] = sampling
    config = ModelConfig(
        lm=lm, codec=made.folded_config, text=reader.config, channels=channels, window_seconds=window_seconds, **extra
    )
    return Start(config, made, weights, reader.weights, reader.tokenizer_files, styles, features, towers, clap_files)


def _style_encoder(style: StyleConfig | None, source: str | None) -> tuple[StyleConfig | None, dict[str, Any] | None]:
    """A new model's `style` with the encoder at `source`, and the weights of that."""
    if style is None or style.features is None:
        if source is not None:
            raise ConfigError(
                "style_encoder hears the excerpts of a style with features: set style to one, or leave it out"
            )
        return style, None
    if source is None:
        raise ConfigError(
            "the features of a style need an encoder: set style_encoder, to m-a-p/MERT-v1-95M as the published model "
            "has it, or style.features to None for a style of codes"
        )
    found, weights = read_hubert(hub.fetch(source), place=lambda path, array: array)
    # Whether clips are normalised is the style's to say: the published model hears them as they are.
    found = dataclasses.replace(found, normalize=style.features.normalize)
    return dataclasses.replace(style, features=found), weights


def stereo_config(config: LMConfig) -> LMConfig:
    """A mono model's, with every codebook once for the left and once for the right."""
    delays = tuple(delay for delay in config.delays for _ in range(2))
    return dataclasses.replace(config, num_codebooks=2 * config.num_codebooks, delays=delays)


def to_stereo(config: LMConfig, params: dict[str, Any]) -> tuple[LMConfig, dict[str, Any]]:
    """The stereo model that a mono model becomes: left and right of a codebook begin with the weights of that codebook.

    The order of the codebooks is that of the published stereo models: left 1, right 1, left 2, right 2, ...
    """
    embedding = np.repeat(params["embed"]["embedding"], 2, axis=0)
    kernel = np.repeat(params["head"]["kernel"], 2, axis=1)
    return stereo_config(config), params | {"embed": {"embedding": embedding}, "head": {"kernel": kernel}}
