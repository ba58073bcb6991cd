"""The model that a run trains: its config, from the configs of its sources, and then the weights that it starts from.

A plan needs the shapes of these weights only, and fetches nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from mgjax.checkpoints import hub, native, sources
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.clap import match_clap
from mgjax.checkpoints.tables.hubert import match_hubert
from mgjax.checkpoints.tables.shapes import lm_shapes, model_shapes
from mgjax.codec import weight_norm
from mgjax.codec.codec import Codec
from mgjax.conditioning import tokenizers
from mgjax.config import published
from mgjax.config.conditioning import ClapConditionConfig, ClapConfig, HubertConfig, StyleConfig, T5Config
from mgjax.config.model import CodecConfig, ModelConfig
from mgjax.config.serialization import Config
from mgjax.errors import ConfigError
from mgjax.generation import arguments
from mgjax.lm import lora
from mgjax.storage import paths
from mgjax.train import conditions
from mgjax.train import text as text_encoders
from mgjax.train.lm.config import LMRun
from mgjax.train.text import TextEncoder
from mgjax.train.trainable import partition, path_filter


def read_config(kind: type[Config], source: str, *, fetch: bool = True, **encoders: str | None) -> Config:
    """Reads the config of the model or encoder at `source`, without its weights.

    The `kind` is ModelConfig, CodecConfig, TextEncoder (without weights), HubertConfig or ClapConfig; the `source` a
    directory, a Hub id or "debug". Unless it is to `fetch` from the Hub, published names are looked up in
    `mgjax.config.published`. A model that comes without its own takes `text_encoder` and `style_encoder`.

    Raises:
      CheckpointError: There is nothing of that kind at `source`.
      ConfigError: It would have to be fetched.
    """
    if (
        not fetch
        and source != "debug"
        and source not in hub.BUNDLED
        and not (paths.is_remote(source) or os.path.isdir(source))
    ):
        return _published(kind, source)
    readers: dict[type, Callable[..., Any]] = {
        ModelConfig: sources.read_config,
        CodecConfig: sources.read_codec_config,
        TextEncoder: functools.partial(text_encoders.read, with_weights=False),
        HubertConfig: lambda source: match_hubert(hub.fetch(source))[0],
        ClapConfig: lambda source: match_clap(hub.fetch(source))[0],
    }
    return readers[kind](source, **encoders)


def _published(kind: type, source: str) -> Any:
    wanted = T5Config if kind is TextEncoder else kind
    known = {name: config for name, config in published.CONFIGS.items() if isinstance(config, wanted)}
    if source not in known:
        raise ConfigError(
            f"{source}: a plan fetches nothing, and this is neither a folder here nor one of {', '.join(sorted(known))}"
        )
    config = known[source]
    return TextEncoder(config) if isinstance(config, T5Config) else config


def resolve(run: LMRun, *, fetch: bool = True) -> ModelConfig:
    """The config of the model that `run` trains, from the configs of its sources, with all checks of the run.

    Sources are fetched from the Hub if need be, unless `fetch` is False; see `read_config`.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts do not fit together.
    """
    if run.lora and run.init is None:
        raise ConfigError("lora adapts a model that is there: set init to it")
    read = functools.partial(read_config, fetch=fetch)
    model = _new_model(run, read) if run.init is None else _continued_model(run, read)
    if run.codebook_weights and len(run.codebook_weights) != model.lm.num_codebooks:
        raise ConfigError(
            f"codebook_weights must be {model.lm.num_codebooks} numbers, one for each codebook, got "
            f"{len(run.codebook_weights)}"
        )
    if run.prompts:
        arguments.num_frames(run.prompt_seconds, model.codec.frame_rate)
    conditions.check(model, run.optim.accumulate, run.data.segment_seconds)
    if run.lora:
        if model.style is not None or (model.clap is not None and model.clap.num_codebooks):
            raise ConfigError(f"{run.init} also trains conditioners, which an adapter cannot hold: leave lora out")
        jax.eval_shape(functools.partial(lora.initial, run.lora), _shaped(lm_shapes(model.lm)), jax.random.key(0))
    if run.train_text and model.text is None:
        raise ConfigError(f"{run.init} reads no text, so there is no text encoder to train: leave train_text out")
    return model


def _new_model(run: LMRun, read: Callable[..., Any]) -> ModelConfig:
    """The config of a model with new weights, and a codec and encoders from the sources."""
    if run.lm is None or run.codec is None:
        raise ConfigError("give lm and codec, what to train and on which codes; or init, a model to go on from")
    text = TextEncoder()
    if run.new_text is not None:
        text = text_encoders.new(run.new_text, run.vocabulary)
    elif run.text_encoder is not None:
        text = read(TextEncoder, run.text_encoder)
    clap = None
    if run.clap_encoder is not None:
        clap = dataclasses.replace(run.clap or ClapConditionConfig(), clap=read(ClapConfig, run.clap_encoder))
    model = ModelConfig(
        lm=run.lm,
        codec=_folded_config(read(CodecConfig, run.codec)),
        text=text.config,
        channels=run.channels,
        window_seconds=run.window_seconds or run.data.segment_seconds,
        tokenizer=text.tokenizer,
        melody=run.melody,
        style=_style(run, read),
        clap=clap,
        labels=run.labels,
        numbers=run.numbers,
    )
    return model if run.sampling is None else dataclasses.replace(model, sampling=run.sampling)


def _style(run: LMRun, read: Callable[..., Any]) -> StyleConfig | None:
    """The style conditioner of a new model, whose features are those of `style_encoder`."""
    if run.style is None or run.style.features is None:
        if run.style_encoder is not None:
            raise ConfigError(
                "style_encoder encodes the excerpts of a style with features: set style to one, or leave it out"
            )
        return run.style
    if run.style_encoder is None:
        raise ConfigError(
            f"the features of a style need an encoder: set style_encoder, to {published.MERT} as the published model "
            "has it, or style.features to None for a style of codes"
        )
    # Whether clips are normalised is a setting of the style: the published model does not normalise them.
    features = dataclasses.replace(read(HubertConfig, run.style_encoder), normalize=run.style.features.normalize)
    return dataclasses.replace(run.style, features=features)


def _continued_model(run: LMRun, read: Callable[..., Any]) -> ModelConfig:
    """The config of the model `init`: as it is, with another codec, or from mono to stereo."""
    encoders = {"text_encoder": run.text_encoder, "style_encoder": run.style_encoder}
    base = read(ModelConfig, run.init, **encoders)
    if run.clap_encoder is not None:
        raise ConfigError(f"leave clap_encoder out: {run.init} has CLAP already, or was not made for it")
    lm = base.lm
    if run.channels == 2 * base.channels:
        lm = base.lm.stereo()
    elif run.channels != base.channels:
        raise ConfigError(f"{run.init} has {base.channels} channels and cannot become a model of {run.channels}")
    if run.lora and run.channels != base.channels:
        raise ConfigError(f"an adapter cannot make a model of {run.channels} channels of {run.init}: leave lora out")
    if run.lm not in (None, lm):
        raise ConfigError(f"lm differs from that of {run.init}, which is {lm}: leave lm out (None), or init")
    for name in ("melody", "style", "labels", "numbers"):
        if getattr(run, name) and getattr(run, name) != getattr(base, name):
            raise ConfigError(f"{name} differs from that of {run.init}, which is {getattr(base, name)}: leave it out")
    return dataclasses.replace(
        base,
        lm=lm,
        codec=_folded_config(base.codec if run.codec is None else read(CodecConfig, run.codec)),
        channels=run.channels,
        window_seconds=run.window_seconds or run.data.segment_seconds,
        sampling=run.sampling or base.sampling,
    )


def _folded_config(codec: CodecConfig) -> CodecConfig:
    """The codec's config with weight norm folded into the kernels; raises ConfigError where it codes chunks apart."""
    if codec.chunk_seconds is not None:
        raise ConfigError("this codec codes chunks of audio apart: its codes are no sequence that a model could learn")
    return dataclasses.replace(codec, norm="none") if codec.norm == "weight_norm" else codec


def pretrained(run: LMRun) -> Checkpoint:
    """The model that `run` trains with its pretrained weights, numpy arrays; new variables are missing.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts do not fit together.
    """
    model = resolve(run)
    return _new_weights(run, model) if run.init is None else _continued_weights(run, run.init, model)


def _new_weights(run: LMRun, model: ModelConfig) -> Checkpoint:
    """The weights of the codec, and of the encoders that are not new."""
    assert run.codec is not None, "resolve has checked it"
    variables, clap_tokenizer = {"codec": _folded(*sources.read_codec(run.codec))}, None
    if run.new_text is not None:
        text = text_encoders.new(run.new_text, run.vocabulary)
    else:
        text = text_encoders.read(run.text_encoder)
    if text.weights is not None:
        variables["text"] = text.weights
    if run.style_encoder is not None:
        variables["style"] = {"features": matching.read(match_hubert(hub.fetch(run.style_encoder)), place=_as_numpy)[1]}
    if run.clap_encoder is not None:
        directory = hub.fetch(run.clap_encoder)
        variables["clap"] = matching.read(match_clap(directory), place=_as_numpy)[1]
        clap_tokenizer = native.find_clap_tokenizer(directory)
    return Checkpoint(model, variables, text.tokenizer_files, clap_tokenizer)


def _continued_weights(run: LMRun, init: str, model: ModelConfig) -> Checkpoint:
    """All weights of the model `init`."""
    encoders = {"text_encoder": run.text_encoder, "style_encoder": run.style_encoder}
    base = sources.read(init, place=_as_numpy, **encoders)
    codec = (base.config.codec, base.variables["codec"]) if run.codec is None else sources.read_codec(run.codec)
    variables = base.variables | {"codec": _folded(*codec)}
    if model.channels != base.config.channels:
        variables["lm"] = to_stereo(variables["lm"])
    return Checkpoint(model, variables, base.tokenizer, base.clap_tokenizer)


def _as_numpy(path: matching.ArrayPath, array: np.ndarray) -> np.ndarray:
    return array


def _folded(config: CodecConfig, variables: dict[str, Any]) -> dict[str, Any]:
    return {"params": weight_norm.fold(config, variables["params"])[1], "codebooks": dict(variables["codebooks"])}


def to_stereo(params: dict[str, Any]) -> dict[str, Any]:
    """Initialises a stereo model from a mono model: left and right of a codebook have that codebook's weights.

    The order of the codebooks is that of the published stereo models: left 1, right 1, left 2, right 2, ...
    """
    embedding = np.repeat(params["embed"]["embedding"], 2, axis=0)
    kernel = np.repeat(params["head"]["kernel"], 2, axis=1)
    return params | {"embed": {"embedding": embedding}, "head": {"kernel": kernel}}


def pretrained_shapes(run: LMRun) -> Checkpoint:
    """`pretrained` with shapes (`jax.ShapeDtypeStruct`) instead of weights: nothing is read or fetched.

    Raises ConfigError if a source is neither local nor published, or the parts do not fit together.
    """
    model = resolve(run, fetch=False)
    parts = ["codec/", "style/features/", "clap/(text|audio)/", *([] if run.new_text else ["text/"])]
    is_pretrained = path_filter(*([""] if run.init else parts))
    variables, _ = partition(_shaped(model_shapes(model)), is_pretrained)
    return Checkpoint(model, variables)


def _shaped(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Shapes by their paths as a tree of float32 `jax.ShapeDtypeStruct`."""
    leaves = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return unflatten_dict(leaves, sep="/")


def codec_of(model: Checkpoint) -> Codec:
    """The codec of a model, for the model's channels."""
    return Codec(model.config.codec, model.variables["codec"], channels=model.config.channels)


def corpus_kind(model: ModelConfig) -> Literal["tokens", "audio"]:
    """The kind of corpus that a model is trained on: codes, unless its conditions are computed from audio."""
    needs_audio = model.clap is not None or (model.style is not None and model.style.features is not None)
    return "audio" if needs_audio else "tokens"


def hashes(start: Checkpoint) -> dict[str, str | None]:
    """The hashes of the parts that a run starts from, in hexadecimal digits; None for a new text encoder."""
    variables = start.variables
    text = variables.get("text")
    style = dict(variables.get("style", {}))
    features = style.pop("features", None)
    weights = {"lm": variables.get("lm"), "style": style, "features": features, "clap": variables.get("clap")}
    return {
        "codec": codec_of(start).hash,
        "text_encoder": None if text is None else native.hash_of(start.config.text, text),
        "vocabulary": tokenizers.vocabulary_hash((start.tokenizer, start.clap_tokenizer)),
        "init": native.hash_of(start.config.lm, weights),
    }
