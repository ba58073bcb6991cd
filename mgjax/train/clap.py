"""CLAP in training: joint embeddings of the audio itself, made within the compiled step; of texts in validations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.codec.rvq_training import Codebooks, QuantizerConfig, quantize
from mgjax.conditioning.clap import ClapText, embed_audio, quantized
from mgjax.config.conditioning import ClapConditionConfig
from mgjax.train import optim
from mgjax.train.resample import resampled

_QUANTIZER = QuantizerConfig(kmeans_iterations=10)


def embedded(
    config: ClapConditionConfig, variables: Mapping[str, Any], batch: Mapping[str, Array], sample_rate: int, parts: int
) -> Float[Array, "b d"]:
    """Embeds each row of a batch: its text where the batch has texts, as in validations, else its audio.

    The `variables` are those of the towers, {"text": ..., "audio": ...}; the audio of the batch (see
    `data.pipeline.batches`) has `sample_rate` hertz, and is embedded in `parts` one after the other, to save memory.
    """
    if "clap_ids" in batch:
        embeddings: Any = ClapText(config.clap).apply(variables["text"], batch["clap_ids"], batch["clap_ids_mask"])
        return embeddings

    def embed(audio: Array) -> Array:
        mono = resampled(jnp.mean(audio, axis=2), sample_rate, config.clap.audio.sample_rate)
        return embed_audio(config.clap, variables["audio"], mono)

    return optim.in_parts(embed, batch["audio"], parts)


def coded(
    embeddings: Float[Array, "b d"], codebooks: Codebooks | None, key: Array | None
) -> tuple[Float[Array, "b d"], Codebooks | None]:
    """Quantizes embeddings by `codebooks`, if there are any, and returns both.

    The codebooks are updated if there is a `key`.
    """
    if codebooks is None:
        return embeddings, None
    if key is None:
        return quantized(embeddings, codebooks["embed"]), codebooks
    result = quantize(embeddings[:, None], codebooks, key, _QUANTIZER)
    return result.latents[:, 0], result.codebooks
