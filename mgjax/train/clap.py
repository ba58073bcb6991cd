"""CLAP in training: segments of music as points of its space, heard within the step; texts take their place later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.codec.rvq_training import QuantizerConfig, quantize
from mgjax.conditioning.clap import ClapText, embed_audio, quantized
from mgjax.config.conditioning import ClapConditionConfig
from mgjax.train import optim
from mgjax.train.resample import resampled

_QUANTIZER = QuantizerConfig(kmeans_iterations=10)


def embedded(
    config: ClapConditionConfig, variables: Mapping[str, Any], batch: Mapping[str, Array], sample_rate: int, parts: int
) -> Float[Array, "b d"]:
    """The joint embedding of each row: of its text where the batch brings texts, as validations do, else of its music.

    Args:
      config: Of the condition.
      variables: Of the towers: {"text": ..., "audio": ...}.
      batch: See `data.pipeline.batches`.
      sample_rate: Of its audio.
      parts: How many parts of the batch are worked on one after the other, to save memory.
    """
    if "clap_ids" in batch:
        return ClapText(config.clap).apply(variables["text"], batch["clap_ids"], batch["clap_ids_mask"])

    def heard(audio: Array) -> Array:
        mono = resampled(jnp.mean(audio, axis=2), sample_rate, config.clap.audio.sample_rate)
        return embed_audio(config.clap, variables["audio"], mono)

    return optim.in_parts(heard, batch["audio"], parts)


def coded(
    embedding: Float[Array, "b d"], codebooks: Mapping[str, Array] | None, key: Array | None
) -> tuple[Float[Array, "b d"], Any]:
    """Embeddings through the quantizer, and its codebooks, which have learned from them where there is a `key`."""
    if codebooks is None:
        return embedding, None
    if key is None:
        return quantized(embedding, codebooks["embed"]), codebooks
    found = quantize(embedding[:, None], codebooks, key, _QUANTIZER)
    return found.latents[:, 0], found.codebooks
