"""CLAP (Wu et al. 2023): texts and audio as vectors of one space, and the condition that is made of them.

A model conditioned on this space learns from audio alone and is given text at generation (Copet et al. 2023, section
2.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from mgjax.conditioning import quantizer
from mgjax.conditioning.clap_features import clips, log_mel
from mgjax.conditioning.htsat import HTSAT
from mgjax.conditioning.roberta import Roberta
from mgjax.config.conditioning import ClapConditionConfig, ClapConfig
from mgjax.nn import Dense, codebook_shapes


class ClapText(nn.Module):
    """The joint embeddings of texts, float32 [b, d] of length 1, of token ids [b, l] and a mask of which are there.

    A row where none is there gets a vector that means nothing.
    """

    config: ClapConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float32[Array, "b d"]:
        pooled = Roberta(self.config.text, self.dtype, name="roberta")(ids, mask)
        return _Projection(self.config.dim, self.dtype, name="projection")(pooled)


class ClapAudio(nn.Module):
    """The joint embeddings of clips, float32 [b, d] of length 1, of their spectrograms (`log_mel`)."""

    config: ClapConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mels: Float[Array, "b f m"]) -> Float32[Array, "b d"]:
        pooled = HTSAT(self.config.audio, self.dtype, name="htsat")(mels)
        return _Projection(self.config.dim, self.dtype, name="projection")(pooled)


class _Projection(nn.Module):
    dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b e"]) -> Float32[Array, "b d"]:
        x = jax.nn.relu(Dense(x.shape[-1:], (self.dim,), True, self.dtype, name="up")(x))
        return _normalized(Dense((self.dim,), (self.dim,), True, self.dtype, jnp.float32, name="out")(x))


def _normalized(x: Float[Array, "b d"]) -> Float32[Array, "b d"]:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def embed_audio(config: ClapConfig, variables: Mapping[str, Any], audio: Float[Array, "b n"]) -> Float32[Array, "b d"]:
    """The joint embeddings of mono audio at `config.audio.sample_rate`, float32 [b, d] of length 1.

    Audio longer than the clip of 10 seconds that CLAP hears is cut into such clips, each beginning a second before the
    one before ends and the last ending with the audio; the mean of their embeddings, brought to length 1 again, stands
    for all of it. (The original hears one clip at random.) Shorter audio is repeated and filled up: see `clips`.

    Args:
      config: The towers.
      variables: Of `ClapAudio(config)`.
      audio: Rows of one length.
    """

    def embed(clip: Array) -> Array:
        return ClapAudio(config).apply(variables, log_mel(clip, config.audio))

    return _normalized(jnp.mean(jax.lax.map(embed, clips(audio, config.audio)), axis=0))


def init_codebooks(config: ClapConditionConfig) -> dict[str, Float[Array, "..."]]:
    """Codebooks that hold nothing yet, in the layout of the codec's, so that its training makes and moves them.

    There an embedding [b, d] is a latent [b, 1, d].
    """
    shapes = codebook_shapes(config.num_codebooks, config.codebook_size, config.clap.dim)
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def quantized(x: Float[Array, "b d"], embed: Float[Array, "k v d"]) -> Float32[Array, "b d"]:
    """Joint embeddings as the sum of their nearest codewords: as themselves less what the last codebook leaves."""
    _, residual = quantizer.quantize(x[:, None], embed)
    return x.astype(jnp.float32) - residual[:, 0]
