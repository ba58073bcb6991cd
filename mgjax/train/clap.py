"""CLAP in training: segments of music as points of its space, heard within the step; texts take their place later."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from jaxtyping import Array, Float, Float32

from mgjax.codec.rvq_training import QuantizerConfig, quantize
from mgjax.conditioner_config import ClapConditionConfig
from mgjax.conditioning.clap import ClapText, embed_audio, quantized
from mgjax.train import optim

_ZERO_CROSSINGS = 32  # of the resampling filter, on either side
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


def resampled(audio: Float[Array, "b n"], old: int, new: int) -> Float[Array, "b m"]:
    """`audio` of `old` samples a second with `new` of them; what neither can hold is filtered out."""
    if old == new:
        return audio
    up, down = new // math.gcd(old, new), old // math.gcd(old, new)
    kernel = jnp.asarray(_kernel(up, down))
    half, n = len(kernel) // 2, audio.shape[1]
    m = -(-n * up // down)
    after = (m - 1) * down + half - (n - 1) * up
    found = jax.lax.conv_general_dilated(
        audio.astype(jnp.float32)[:, None],
        kernel[None, None],
        window_strides=(down,),
        padding=[(half, after)],
        lhs_dilation=(up,),
        precision=jax.lax.Precision.HIGHEST,
    )
    return found[:, 0]


@functools.cache
def _kernel(up: int, down: int) -> Float32[np.ndarray, " k"]:
    """A low pass at 0.95 of the lower of the two Nyquist frequencies, a sinc in a Kaiser window of 80 dB."""
    wide = max(up, down)
    taps = scipy.signal.firwin(2 * _ZERO_CROSSINGS * wide + 1, 0.95 / wide, window=("kaiser", 8.0))
    return (up * taps).astype(np.float32)
