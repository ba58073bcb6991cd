"""The conditions of a training batch, made within the compiled step, and the training of their encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.codec.rvq_training import Codebooks, QuantizerConfig, quantize
from mgjax.conditioning import clap, hubert
from mgjax.conditioning.chroma import chromagram
from mgjax.conditioning.condition import Condition, condition
from mgjax.conditioning.hubert import Hubert
from mgjax.conditioning.style import Inputs, StyleConditioner, keep
from mgjax.conditioning.t5 import T5Encoder
from mgjax.config.conditioning import ClapConditionConfig, MelodyConfig, StyleConfig
from mgjax.config.model import ModelConfig
from mgjax.errors import ConfigError
from mgjax.train import optim
from mgjax.train.resample import resampled

Batch = Mapping[str, Array]

_CLAP_QUANTIZER = QuantizerConfig(kmeans_iterations=10)
# How the style's quantizer learns (Rouard et al. 2024): with dropout, as generation uses its first codebooks only.
_STYLE_QUANTIZER = QuantizerConfig(kmeans_iterations=10, dropout=True)


def check(model: ModelConfig, parts: int, seconds: float) -> None:
    """Raises ConfigError unless a model can be trained with its conditions on segments of `seconds`.

    Gradients are accumulated over `parts` parts of a batch.
    """
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
    model: ModelConfig, pretrained: Mapping[str, Any] | None, key: Array
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The conditioners' initial `TrainState.params` and `TrainState.extra`.

    They go on from the `pretrained` variables "style" of the style conditioner and "clap" of CLAP, if there are any.
    """
    params: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    pretrained = pretrained or {}
    if model.clap is not None and model.clap.num_codebooks:
        extra["clap"] = pretrained.get("clap", {}).get("codebooks") or clap.init_codebooks(model.clap)
    if model.style is not None:
        variables = pretrained.get("style")
        if variables is None:
            if model.style.features is None:
                inputs = jnp.zeros((1, model.style.downsample, model.style.num_code_streams), jnp.int32)
            else:
                inputs = jnp.zeros((1, model.style.downsample, model.style.features.dim))
            variables = StyleConditioner(model.style).init(key, inputs)
        params["style"] = variables["params"]
        extra["style"] = {name: variables[name] for name in ("batch_stats", "codebooks")}
    return params, extra


def conditioning_inputs(
    model: ModelConfig, weights: Mapping[str, Any], batch: Batch, codes: Int[Array, "b t k"], parts: int
) -> dict[str, Array]:
    """The conditioning inputs of a batch, by encoders that are not trained; their first axis is the batch's rows.

    They are the token ids and labels of the batch (see `data.pipeline.batches`), chromagrams, joint embeddings of CLAP,
    and the features or codes of style excerpts. The `weights` are {"clap": ..., "features": ...}, the latter of the
    excerpts' encoder. The batch is encoded in `parts` parts one after the other, to save memory.
    """
    inputs = {name: batch[name] for name in batch if name.startswith(("text_", "melody", "label_"))}
    if model.melody is not None and "melody" not in inputs:
        config = model.melody
        inputs["melody"] = optim.in_parts(lambda audio: chromagrams(audio, config), batch["audio"], parts)
    if model.clap is not None:
        embeddings = clap_embeddings(model.clap, weights["clap"], batch, model.codec.sample_rate, parts)
        inputs |= {"clap": jax.lax.stop_gradient(embeddings), "clap_mask": batch["clap_mask"]}
    if model.style is not None:
        if model.style.features is None:
            excerpts = _cut(codes, *_excerpts(model, model.style, batch))[:, :, : model.style.num_code_streams]
        else:
            excerpts = jax.lax.stop_gradient(excerpt_features(model, model.style, weights["features"], batch))
        inputs |= {"style": excerpts, "style_mask": batch["style_mask"]}
    return inputs


def excerpt_mask(model: ModelConfig, batch: Batch, num_frames: int) -> Bool[Array, "b t"] | None:
    """The frames of the style excerpts, which the loss leaves out, as they could be copied; None without styles."""
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
    """The length of an excerpt, in samples or frames of which there are `rate` in a second."""
    return round(style.seconds * rate)


def _cut(rows: Array, starts: Int[Array, " b"], length: int) -> Array:
    """`length` samples or frames of each of the rows [b, n, ...], from where it starts: [b, length, ...]."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(rows, starts)


def excerpt_features(
    model: ModelConfig, style: StyleConfig, weights: Mapping[str, Any], batch: Batch
) -> Float[Array, "b t d"]:
    """Encodes the excerpts of a batch of audio, mixed down to mono: the same seconds as in `excerpt_mask`.

    The `style` has an encoder of excerpts, whose `weights` these are.
    """
    features = style.features
    assert features is not None, "a style of codes has no encoder"
    starts, _ = _excerpts(model, style, batch)
    old, new = model.codec.sample_rate, features.sample_rate
    mono = jnp.mean(batch["audio"], axis=2)
    excerpts = resampled(_cut(mono, starts * model.codec.hop_length, _length(style, old)), old, new)
    length = _length(style, new)  # rounding may give a sample more or less
    excerpts = jnp.pad(excerpts[:, :length], ((0, 0), (0, max(0, length - excerpts.shape[1]))))
    encoded: Any = Hubert(features).apply({"params": weights}, excerpts)
    return encoded


def chromagrams(audio: Float[Array, "b n c"], config: MelodyConfig) -> Float[Array, "b f p"]:
    """The chromagrams of audio, mixed down to mono, with `config.num_frames` frames; zeros where it is shorter."""
    chroma = chromagram(jnp.mean(audio, axis=2), config)[:, : config.num_frames]
    return jnp.pad(chroma, ((0, 0), (0, config.num_frames - chroma.shape[1]), (0, 0)))


def clap_embeddings(
    config: ClapConditionConfig, variables: Mapping[str, Any], batch: Batch, sample_rate: int, parts: int
) -> Float[Array, "b d"]:
    """Embeds each row of a batch by CLAP: its text where the batch has texts, as in validations, else its audio.

    The `variables` are those of the towers, {"text": ..., "audio": ...}; the audio has `sample_rate` hertz, and is
    embedded in `parts` parts one after the other, to save memory.
    """
    if "clap_ids" in batch:
        text: Any = clap.ClapText(config.clap)
        return text.apply(variables["text"], batch["clap_ids"], batch["clap_ids_mask"])

    def embed(audio: Array) -> Array:
        mono = resampled(jnp.mean(audio, axis=2), sample_rate, config.clap.audio.sample_rate)
        return clap.embed_audio(config.clap, variables["audio"], mono)

    return optim.in_parts(embed, batch["audio"], parts)


def _quantized_clap(
    embeddings: Float[Array, "b d"], codebooks: Codebooks | None, key: Array | None
) -> tuple[Float[Array, "b d"], Codebooks | None]:
    """Quantizes embeddings by `codebooks`, if there are any, and returns both; a `key` updates the codebooks."""
    if codebooks is None or key is None:
        return embeddings if codebooks is None else clap.quantized(embeddings, codebooks["embed"]), codebooks
    result = quantize(embeddings[:, None], codebooks, key, _CLAP_QUANTIZER)
    return result.latents[:, 0], result.codebooks


def conditions(
    model: ModelConfig,
    weights: Mapping[str, Any],
    inputs: Mapping[str, Any],
    extra: Mapping[str, Any],
    key: Array | None,
) -> tuple[dict[str, Condition], dict[str, Any]]:
    """Makes the conditions of a batch by name, by the encoders that may be trained; and `extra` after it.

    The `weights` of these encoders are {"text": ..., "style": ...}. `inputs` is what `conditioning_inputs` returned, or
    a part of its rows; other names are ignored. Without a `key`, for the quantizers' dead codes and dropout, their
    codebooks in `extra` (that of the `TrainState`) stay as they are.
    """
    encoded: dict[str, tuple[Array, Array]] = {}
    extra = dict(extra)
    style_key, clap_key = (None, None) if key is None else jax.random.split(key)
    if model.text is not None:
        text_encoder: Any = T5Encoder(model.text)
        ids, mask = inputs["text_ids"], inputs["text_mask"]
        encoded["text"] = text_encoder.apply({"params": weights["text"]}, ids, mask), mask
    if model.melody is not None:
        encoded["melody"] = inputs["melody"], inputs["melody_mask"]
    if model.style is not None:
        style, extra["style"] = _style(model.style, weights["style"], inputs["style"], extra["style"], style_key)
        encoded["style"] = style, jnp.broadcast_to(inputs["style_mask"][:, None], style.shape[:2])
    if model.clap is not None:
        embeddings, codebooks = _quantized_clap(inputs["clap"], extra.get("clap"), clap_key)
        extra |= {} if codebooks is None else {"clap": codebooks}
        encoded["clap"] = embeddings[:, None], inputs["clap_mask"][:, None]
    for name in (label.name for labels in (model.labels, model.numbers) for label in labels):
        encoded[name] = inputs[f"label_{name}"], inputs[f"label_{name}_mask"]
    return {name: condition(model, name, *pair) for name, pair in encoded.items()}, extra


def _style(
    config: StyleConfig, params: Mapping[str, Any], inputs: Inputs, extra: Mapping[str, Any], key: Array | None
) -> tuple[Float[Array, "b l d"], Mapping[str, Any]]:
    """The vectors of excerpts, and `extra` after them. Their gradient passes the quantizer as if it were not there."""
    conditioner: Any = StyleConditioner(config)
    variables = {"params": params, **extra}
    if key is None:
        return conditioner.apply(variables, inputs), extra
    latents, updated = conditioner.apply(variables, inputs, training=True, method="latents", mutable=["batch_stats"])
    quantized = quantize(latents, extra["codebooks"], key, _STYLE_QUANTIZER)
    extra = {"batch_stats": updated["batch_stats"], "codebooks": quantized.codebooks}
    return keep(quantized.latents, config), jax.lax.stop_gradient(extra)
