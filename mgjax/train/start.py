"""What the training of a language model starts from: codec and encoders, and weights to go on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mgjax.checkpoints import hub, native, sources
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.clap import match_clap
from mgjax.checkpoints.tables.hubert import match_hubert
from mgjax.codec.codec import Codec
from mgjax.conditioning import tokenizers
from mgjax.conditioning.clap_text import ClapTokenizer
from mgjax.conditioning.text import Tokenizer
from mgjax.config.conditioning import ClapConditionConfig, StyleConfig
from mgjax.config.model import LMConfig, ModelConfig
from mgjax.errors import ConfigError
from mgjax.train import text as text_encoders
from mgjax.train.lm_run import LMRun
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
        """The tokenizer of the model's CLAP; raises as `tokenizers.load_clap`."""
        return tokenizers.load_clap(self.config.clap.clap, self.clap_tokenizer_files)

    @property
    def text_hash(self) -> str | None:
        """Twelve hexadecimal digits that tell text encoders apart; None where `text` is."""
        return None if self.text is None else native.hash_of(self.config.text, self.text)

    def hashes(self) -> dict[str, str | None]:
        """What tells each part from others; None for what there is not."""
        weights = {"lm": self.lm, "style": self.style, "features": self.features, "clap": self.clap}
        return {
            "codec": self.codec.hash,
            "text_encoder": self.text_hash,
            "vocabulary": tokenizers.vocabulary_hash((self.tokenizer_files, self.clap_tokenizer_files)),
            "init": native.hash_of(self.config.lm, weights),
        }

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the text encoder; None where the model reads no text."""
        return None if self.config.text is None else tokenizers.load(self.config, self.tokenizer_files)


def read(run: LMRun) -> Start:
    """The parts of the model that `run` trains, from their sources, each a directory, a Hub id or "debug".

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts do not fit together.
    """
    init, lm, codec, channels = run.init, run.lm, run.codec, run.channels
    if init is None:
        if lm is None or codec is None:
            raise ConfigError("give lm and codec, what to train and on which codes; or init, a model to go on from")
        new = run.new_text
        reader = text_encoders.new(new, run.vocabulary) if new else text_encoders.read(run.text_encoder)
        made = Codec(*sources.read_codec(codec), channels=channels)
        weights, styles, towers, clap_files = None, None, None, None
        style, features = _style_encoder(run.style, run.style_encoder)
        extra = {"tokenizer": reader.tokenizer, "melody": run.melody, "style": style}
        extra |= {"labels": run.labels, "numbers": run.numbers}
        if run.clap_encoder is not None:
            directory = hub.fetch(run.clap_encoder)
            found, towers = matching.read(match_clap(directory), place=lambda path, array: array)
            clap_files = native.find_clap_tokenizer(directory)
            extra["clap"] = dataclasses.replace(run.clap or ClapConditionConfig(), clap=found)
    else:
        encoders = {"text_encoder": run.text_encoder, "style_encoder": run.style_encoder}
        given = sources.read(init, place=lambda path, array: array, **encoders)
        base, weights, styles = given.config, given.variables["lm"], dict(given.variables.get("style", {})) or None
        features = styles and styles.pop("features", None)
        if run.clap_encoder is not None:
            raise ConfigError(f"leave clap_encoder out: {init} is told by CLAP already, or was not made for it")
        towers, clap_files = given.variables.get("clap"), given.clap_tokenizer
        reader = TextEncoder(base.text, given.variables.get("text"), given.tokenizer)
        if codec is None:
            made = Codec(base.codec, given.variables["codec"], channels=channels)
        else:
            made = Codec(*sources.read_codec(codec), channels=channels)
        found, weights = base.lm, dict(weights)
        if channels == 2 * base.channels:
            found, weights = to_stereo(found, weights)
        elif channels != base.channels:
            raise ConfigError(f"{init} has {base.channels} channels and cannot become a model of {channels}")
        if lm not in (None, found):
            raise ConfigError(f"lm differs from that of {init}, which is {found}: leave lm out (None), or init")
        for name in ("melody", "style", "labels", "numbers"):
            asked = getattr(run, name)
            if asked and asked != getattr(base, name):
                raise ConfigError(f"{name} differs from that of {init}, which is {getattr(base, name)}: leave it out")
        kept = ("tokenizer", "sampling", "license", "melody", "style", "clap", "labels", "numbers")
        lm, extra = found, {name: getattr(base, name) for name in kept}
    if made.config.chunk_seconds is not None:
        raise ConfigError("this codec codes chunks of audio apart: its codes are no sequence that a model could learn")
    if run.sampling is not None:
        extra["sampling"] = run.sampling
    window = run.window_seconds or run.data.segment_seconds
    config = ModelConfig(lm, made.folded_config, reader.config, channels, window, **extra)
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
    found, weights = matching.read(match_hubert(hub.fetch(source)), place=lambda path, array: array)
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
