"""What the language model is told while it learns: the conditions of a batch, made within the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.codec.rvq_training import QuantizerConfig, quantize
from mgjax.conditioning import clap as joint
from mgjax.conditioning import hubert
from mgjax.conditioning import style as styles
from mgjax.conditioning.chroma import chromagram
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.hubert import Hubert
from mgjax.conditioning.style import Inputs, StyleConditioner
from mgjax.conditioning.t5 import T5Encoder
from mgjax.config.conditioning import MelodyConfig, StyleConfig
from mgjax.config.model import LMConfig, ModelConfig
from mgjax.errors import ConfigError
from mgjax.train import clap, optim
from mgjax.train.resample import resampled

Batch = Mapping[str, Array]


# How the style's quantizer learns (Rouard et al. 2024): what is kept of it may be a part of its codebooks.
_STYLE_QUANTIZER = QuantizerConfig(kmeans_iterations=10, dropout=True)


def check(model: ModelConfig, parts: int, seconds: float) -> None:
    """Raises ConfigError unless `model` can be trained with its conditions, on segments of `seconds`, in `parts`."""
    if model.melody is not None and model.melody.sample_rate != model.codec.sample_rate:
        raise ConfigError(
            f"melody.sample_rate is {model.melody.sample_rate}, but the codec's music has {model.codec.sample_rate} "
            "Hz: set it to that"
        )
    if model.clap is not None and model.clap.num_codebooks and parts > 1:
        raise ConfigError("CLAP's quantizer learns from the whole batch: set optim.accumulate to 1")
    if model.style is not None:
        _check_style(model, model.style, parts, seconds)


def _check_style(model: ModelConfig, style: StyleConfig, parts: int, seconds: float) -> None:
    if style.features is None and model.channels != model.codec.channels:
        raise ConfigError(
            "a style is of the codes of one channel: it cannot be trained on stereo codes of a mono codec"
        )
    if style.features is not None and hubert.num_frames(style.features, _length(style, style.features.sample_rate)) < 1:
        raise ConfigError(f"style.seconds must be longer, got {style.seconds:g}: its encoder makes no frame of that")
    if style.seconds >= seconds:
        raise ConfigError(f"style.seconds must be below the {seconds:g} s of a segment, got {style.seconds:g}")
    if parts > 1:
        raise ConfigError("a style is normalised over the whole batch: set optim.accumulate to 1")


def initial(
    model: ModelConfig, given: Mapping[str, Any] | None, key: Array | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of the conditions is trained by gradient, and what moves along besides (`TrainState.params`, `extra`).

    Args:
      model: Whose conditions they are.
      given: Variables to go on from: "style" of the style conditioner, "clap" of CLAP; None for new ones.
      key: What new ones are drawn from; None without styles.
    """
    params, extra, given = {}, {}, dict(given or {})
    if model.clap is not None and model.clap.num_codebooks:
        extra["clap"] = given.get("clap", {}).get("codebooks") or joint.init_codebooks(model.clap)
    if model.style is None:
        return params, extra
    style = given.get("style")
    if style is None:
        if model.style.features is None:
            inputs = jnp.zeros((1, model.style.downsample, model.style.num_code_streams), jnp.int32)
        else:
            inputs = jnp.zeros((1, model.style.downsample, model.style.features.dim))
        style = StyleConditioner(model.style).init(key, inputs)
    extra["style"] = {name: style[name] for name in ("batch_stats", "codebooks")}
    return params | {"style": style["params"]}, extra


def heard(
    model: ModelConfig, weights: Mapping[str, Any], batch: Batch, codes: Int[Array, "b t k"], parts: int
) -> dict[str, Array]:
    """What the conditions of a batch are made of, rows first: its texts and labels as they are, its chromagrams, its
    places in CLAP's space, and the features or codes of excerpts of it.

    Args:
      model: Whose conditions they are.
      weights: Of the encoders that do not learn: {"clap": ..., "features": ...}, the latter of the excerpts' encoder.
      batch: See `data.pipeline.batches`.
      codes: Of the batch.
      parts: How many parts of the batch are worked on one after the other, to save memory.
    """
    found = {name: batch[name] for name in batch if name.startswith(("text_", "melody", "label_"))}
    if model.melody is not None and "melody" not in found:
        config = model.melody
        found["melody"] = optim.in_parts(lambda audio: melodies(audio, config), batch["audio"], parts)
    if model.clap is not None:
        places = clap.embedded(model.clap, weights["clap"], batch, model.codec.sample_rate, parts)
        found |= {"clap": jax.lax.stop_gradient(places), "clap_mask": batch["clap_mask"]}
    if model.style is not None:
        if model.style.features is None:
            excerpts = _cut(codes, *_excerpts(model, model.style, batch))[:, :, : model.style.num_code_streams]
        else:
            excerpts = jax.lax.stop_gradient(features(model, model.style, weights["features"], batch))
        found |= {"style": excerpts, "style_mask": batch["style_mask"]}
    return found


def excerpted(model: ModelConfig, batch: Batch, num_frames: int) -> Bool[Array, "b t"] | None:
    """Which frames of the codes a style is made of, so that to predict them would be to copy; None without styles."""
    if model.style is None:
        return None
    starts, length = _excerpts(model, model.style, batch)
    after = jnp.arange(num_frames)[None] - starts[:, None]
    return batch["style_mask"][:, None] & (after >= 0) & (after < length)


def _excerpts(model: ModelConfig, style: StyleConfig, batch: Batch) -> tuple[Int[Array, " b"], int]:
    """First frame of each row's excerpt, and their length in frames."""
    starts = batch["style_start"] if "codes" in batch else batch["style_start"] // model.codec.hop_length
    return starts, _length(style, model.codec.frame_rate)


def _length(style: StyleConfig, rate: float) -> int:
    """Of an excerpt, in steps of which there are `rate` in a second."""
    return round(style.seconds * rate)


def _cut(rows: Array, starts: Int[Array, " b"], length: int) -> Array:
    """`length` steps of each of the rows [b, n, ...], from where it starts: [b, length, ...]."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(rows, starts)


def features(model: ModelConfig, style: StyleConfig, weights: Any, batch: Batch) -> Float[Array, "b t d"]:
    """What the encoder of excerpts hears in those of a batch of sound, mixed down: the same seconds that `excerpted`
    leaves out, at the rate of the encoder.

    Args:
      model: Whose style it is.
      style: With an encoder of excerpts.
      weights: Of that encoder.
      batch: Of sound; see `data.pipeline.batches`.
    """
    starts, _ = _excerpts(model, style, batch)
    old, new = model.codec.sample_rate, style.features.sample_rate
    mono = jnp.mean(batch["audio"], axis=2)
    excerpts = resampled(_cut(mono, starts * model.codec.hop_length, _length(style, old)), old, new)
    length = _length(style, new)  # rounding may give a sample more or less
    excerpts = jnp.pad(excerpts[:, :length], ((0, 0), (0, max(0, length - excerpts.shape[1]))))
    return Hubert(style.features).apply({"params": weights}, excerpts)


def melodies(audio: Float[Array, "b n c"], config: MelodyConfig) -> Float[Array, "b f p"]:
    """The chromagrams of the music itself, mixed down, with `config.num_frames` frames; zeros where it is shorter."""
    found = chromagram(jnp.mean(audio, axis=2), config)[:, : config.num_frames]
    return jnp.pad(found, ((0, 0), (0, config.num_frames - found.shape[1]), (0, 0)))


def conditions(
    model: ModelConfig, weights: Mapping[str, Any], pieces: Batch, extra: Mapping[str, Any], key: Array | None
) -> tuple[dict[str, Condition], dict[str, Any]]:
    """The conditions of a batch by name, and `extra` after it.

    Args:
      model: Whose conditions they are.
      weights: Of the encoders: {"text": ..., "style": ...}.
      pieces: What `heard` gave, or a part of its rows.
      extra: What `initial` gave, or what came of it.
      key: For what the style's quantizer draws as it learns; None where nothing learns.
    """
    found, extra = {}, dict(extra)
    style_key, clap_key = (None, None) if key is None else jax.random.split(key)
    if model.text is not None:
        found["text"] = _text(model, weights["text"], pieces["text_ids"], pieces["text_mask"])
    if model.melody is not None:
        found["melody"] = _melody(model, model.melody, pieces["melody"], pieces["melody_mask"])
    if model.style is not None:
        vectors, extra["style"] = _style(model.style, weights["style"], pieces["style"], extra["style"], style_key)
        found["style"] = styles.condition(vectors, pieces["style_mask"])
    if model.clap is not None:
        places, codebooks = clap.coded(pieces["clap"], extra.get("clap"), clap_key)
        extra |= {} if codebooks is None else {"clap": codebooks}
        found["clap"] = joint.condition(places, pieces["clap_mask"])
    for label in (*model.labels, *model.numbers):
        name = f"label_{label.name}"
        found[label.name] = Condition(pieces[name], pieces[f"{name}_mask"])
    return found, extra


def _style(
    config: StyleConfig, params: Any, inputs: Inputs, extra: Mapping[str, Any], key: Array | None
) -> tuple[Float[Array, "b l d"], Mapping[str, Any]]:
    """The vectors of excerpts, and what moves along with them. They learn through the quantizer as if it were not."""
    module, variables = StyleConditioner(config), {"params": params, **extra}
    if key is None:
        return module.apply(variables, inputs), extra
    latents, moved = module.apply(variables, inputs, training=True, method="latents", mutable=["batch_stats"])
    coded = quantize(latents, extra["codebooks"], key, _STYLE_QUANTIZER)
    moved = jax.lax.stop_gradient({"batch_stats": moved["batch_stats"], "codebooks": coded.codebooks})
    return styles.keep(coded.latents, config), moved


def _text(model: ModelConfig, params: Any, ids: Array, mask: Bool[Array, "b l"]) -> Condition:
    tokens, attended = T5Encoder(model.text).apply({"params": params}, ids, mask), None
    if is_prefix(model.lm, "text"):
        # A null text before the music is one zero vector, as the published models saw it.
        lengths = jnp.maximum(jnp.sum(mask, axis=1), 1)
        attended = jnp.arange(mask.shape[1])[None] < lengths[:, None]
    return Condition(tokens, mask, attended)


def _melody(
    model: ModelConfig, config: MelodyConfig, chroma: Float[Array, "b f p"], mask: Bool[Array, "b f"]
) -> Condition:
    """Where silence stands for no melody, frames that are not there are zero vectors before the music, as the published
    models saw them in training; where nothing does, there are none."""
    is_silence = is_prefix(model.lm, "melody") and config.null == "silence"
    attended = jnp.ones_like(mask) if is_silence else None
    return Condition(chroma, mask, attended, rate=config.frame_rate / model.codec.frame_rate)


def is_prefix(config: LMConfig, name: str) -> bool:
    """Whether the condition stands before the music."""
    return config.condition(name).fuse == "prefix"
