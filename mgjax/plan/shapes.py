"""What the training of a language model starts from, as shapes: no weight is read or made, and nothing is fetched."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from mgjax.checkpoints import hub, sources
from mgjax.checkpoints.huggingface import match_text_encoder
from mgjax.checkpoints.tables.clap import match_clap
from mgjax.checkpoints.tables.hubert import match_hubert
from mgjax.checkpoints.tables.shapes import codec_shapes, model_shapes
from mgjax.config.conditioning import ClapConditionConfig, ClapConfig, HubertConfig, MelodyConfig, StyleConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig
from mgjax.errors import ConfigError
from mgjax.train.lm_run import LMRun
from mgjax.train.start import Start, stereo_config

_MELODY = (Fused("melody", 12, "prefix"), Fused("text", 768, "prefix"))
_STYLE = (Fused("style", 512, "prefix"), Fused("text", 768, "prefix"))


def _published() -> dict[str, Any]:
    """The configs of what is on the Hugging Face Hub under these names."""
    sizes = {
        "small": LMConfig(),
        "medium": LMConfig(dim=1536, num_layers=48, num_heads=24, ffn_dim=6144),
        "large": LMConfig(dim=2048, num_layers=48, num_heads=32, ffn_dim=8192),
    }
    models = {f"facebook/musicgen-{size}": ModelConfig(lm) for size, lm in sizes.items()}
    for size in ("medium", "large"):
        lm = dataclasses.replace(sizes[size], conditions=_MELODY)
        models["facebook/musicgen-melody" + ("-large" if size == "large" else "")] = ModelConfig(
            lm, melody=MelodyConfig()
        )
    models["facebook/musicgen-style"] = ModelConfig(
        dataclasses.replace(sizes["medium"], conditions=_STYLE), style=StyleConfig()
    )
    for name, model in list(models.items()):
        if "style" not in name:
            models[name.replace("musicgen-", "musicgen-stereo-")] = dataclasses.replace(
                model, lm=stereo_config(model.lm), channels=2
            )
    encoders = {
        "facebook/encodec_32khz": CodecConfig(),
        "t5-base": T5Config(),
        "google-t5/t5-base": T5Config(),
        "google/flan-t5-base": T5Config(ffn_dim=2048, activation="gated-gelu"),
        "m-a-p/MERT-v1-95M": HubertConfig(),
        "laion/clap-htsat-unfused": ClapConfig(),
    }
    return models | encoders


def begin(run: LMRun) -> Start:
    """What `lm.begin(run)` gives, with shapes (`jax.ShapeDtypeStruct`) in the place of all weights.

    Raises:
      ConfigError: A source is neither a folder nor known, or the parts do not fit together.
    """
    model = _model(run)
    shapes = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in model_shapes(model).items()}
    tree = unflatten_dict(shapes, sep="/")
    style = tree.get("style", {})
    return Start(
        config=model,
        codec=_Codec(model.codec, model.channels),
        lm=tree["lm"] if run.init else None,
        text=None if run.new_text else tree.get("text"),
        tokenizer_files=None,
        style={name: style[name] for name in ("params", "batch_stats", "codebooks")} if run.init and style else None,
        features=style.get("features"),
        clap=tree.get("clap"),
    )


def kind_of(model: ModelConfig) -> str:
    """Of what the corpora of such a model have to be: "audio" where its conditions hear the music, else "tokens"."""
    hears = model.clap is not None or (model.style is not None and model.style.features is not None)
    return "audio" if hears else "tokens"


def batch(run: LMRun, model: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the run's global batches, as `data.pipeline.batches` gives them."""
    rows, kind = run.data.batch_size, kind_of(model)
    rate = model.codec.sample_rate if kind == "audio" else model.codec.frame_rate
    length = math.floor(round(run.data.segment_seconds * rate, 6))
    made: dict[str, tuple[tuple[int, ...], Any]] = {}
    if kind == "audio":
        made |= {"audio": ((length, model.channels), np.float32), "num_samples": ((), np.int32)}
    else:
        made |= {"codes": ((length, model.lm.num_codebooks), np.int32), "num_frames": ((), np.int32)}
    if model.text is not None:
        texts = (run.text.max_tokens,)
        made |= {"text_ids": (texts, np.int32), "text_mask": (texts, np.bool_)}
    if model.melody is not None:
        frames = (model.melody.num_frames,)
        made["melody_mask"] = (frames, np.bool_)
        if kind == "tokens":
            made["melody"] = ((*frames, model.melody.num_bins), np.float32)
    if model.style is not None:
        made |= {"style_start": ((), np.int32), "style_mask": ((), np.bool_)}
    if model.clap is not None:
        made["clap_mask"] = ((), np.bool_)
    for label in (*model.labels, *model.numbers):
        made |= {
            f"label_{label.name}": ((1, label.dim), np.float32),
            f"label_{label.name}_mask": ((1,), np.bool_),
        }
    return {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in made.items()}


def model_config(source: str) -> ModelConfig:
    """What the model at `source` is: "debug", one that comes with mgjax, a folder, or a published one.

    Raises:
      ConfigError: It would have to be fetched.
    """
    return _known(source, ModelConfig) or sources.read_config(source)


@dataclasses.dataclass(frozen=True)
class _Codec:
    """A codec of which there are shapes only, with what training asks of `codec.codec.Codec`."""

    config: CodecConfig
    channels: int

    @property
    def folded_config(self) -> CodecConfig:
        return self.config

    @property
    def hop_length(self) -> int:
        return self.config.hop_length

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        shapes = codec_shapes(self.config).items()
        return unflatten_dict({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes}, sep="/")


def _model(run: LMRun) -> ModelConfig:
    """What the run trains."""
    window = run.window_seconds or run.data.segment_seconds
    if run.init is not None:
        base = model_config(run.init)
        codec = base.codec if run.codec is None else _codec(run.codec)
        lm = stereo_config(base.lm) if run.channels == 2 * base.channels else base.lm
        return dataclasses.replace(base, lm=lm, codec=_folded(codec), channels=run.channels, window_seconds=window)
    if run.lm is None or run.codec is None:
        raise ConfigError("give lm and codec, what to train and on which codes; or init, a model to go on from")
    text = run.new_text if run.new_text else run.text_encoder and _text(run.text_encoder)
    style = run.style
    if style is not None and style.features is not None and run.style_encoder is not None:
        found = _known(run.style_encoder, HubertConfig) or match_hubert(Path(run.style_encoder))[0]
        style = dataclasses.replace(style, features=dataclasses.replace(found, normalize=style.features.normalize))
    clap = None
    if run.clap_encoder is not None:
        towers = _known(run.clap_encoder, ClapConfig) or match_clap(Path(run.clap_encoder))[0]
        clap = dataclasses.replace(run.clap or ClapConditionConfig(), clap=towers)
    return ModelConfig(
        lm=run.lm,
        codec=_folded(_codec(run.codec)),
        text=text,
        channels=run.channels,
        window_seconds=window,
        melody=run.melody,
        style=style,
        clap=clap,
        labels=run.labels,
        numbers=run.numbers,
    )


def _folded(config: CodecConfig) -> CodecConfig:
    """The codec as it runs: weight norm is folded into its kernels."""
    return dataclasses.replace(config, norm="none") if config.norm == "weight_norm" else config


def _codec(source: str) -> CodecConfig:
    if source == "debug":
        return sources.read_config(source).codec
    return _known(source, CodecConfig) or sources.read_codec(source, place=lambda path, array: None)[0]


def _text(source: str) -> T5Config | None:
    if source == "debug":
        return sources.read_config(source).text
    return _known(source, T5Config) or match_text_encoder(Path(source))[0]


def _known(source: str, kind: type) -> Any:
    """The config of that `kind` that is published as `source`; None for a folder.

    Raises:
      ConfigError: It is neither.
    """
    if source == "debug" or source in hub.BUNDLED or os.path.isdir(source):
        return None
    published = {name: config for name, config in _published().items() if isinstance(config, kind)}
    if source not in published:
        raise ConfigError(
            f"{source}: a plan fetches nothing, and this is neither a folder here nor one of "
            f"{', '.join(sorted(published))}"
        )
    return published[source]
