"""CLAP (Wu et al. 2023): joint embeddings of texts and audio.

A model conditioned on them is trained with embeddings of its audio, and reads text at generation (Copet et al. 2023,
section 2.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from mgjax.conditioning.clap_features import clips, log_mel
from mgjax.conditioning.htsat import HTSAT
from mgjax.conditioning.roberta import Roberta
from mgjax.config.conditioning import ClapConditionConfig, ClapConfig
from mgjax.nn import Dense, apply, codebook_shapes, quantize


class ClapText(nn.Module):
    """The joint embeddings of texts, float32 [b, d] of length 1, of token ids [b, l] and the mask of valid ones.

    The embedding of a row of padding alone is arbitrary.
    """

    config: ClapConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float32[Array, "b d"]:
        """RoBERTa's pooled output, projected and normalised."""
        pooled = Roberta(self.config.text, name="roberta")(ids, mask)
        return _Projection(self.config.dim, name="projection")(pooled)


class ClapAudio(nn.Module):
    """The joint embeddings of clips, float32 [b, d] of length 1, of their spectrograms (`log_mel`)."""

    config: ClapConfig

    @nn.compact
    def __call__(self, mels: Float[Array, "b f m"]) -> Float32[Array, "b d"]:
        """HTSAT's output, projected and normalised."""
        pooled = HTSAT(self.config.audio, name="htsat")(mels)
        return _Projection(self.config.dim, name="projection")(pooled)


class _Projection(nn.Module):
    dim: int

    @nn.compact
    def __call__(self, x: Float[Array, "b e"]) -> Float32[Array, "b d"]:
        x = jax.nn.relu(Dense(x.shape[-1:], (self.dim,), True, name="up")(x))
        return _normalized(Dense((self.dim,), (self.dim,), True, name="out")(x))


def _normalized(x: Float[Array, "b d"]) -> Float32[Array, "b d"]:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def embed_audio(config: ClapConfig, variables: Mapping[str, Any], audio: Float[Array, "b n"]) -> Float32[Array, "b d"]:
    """The joint embeddings of mono audio at `config.audio.sample_rate`, float32 [b, d] of length 1.

    Audio longer than a clip of CLAP (10 seconds) is cut into clips, which overlap by a second, the last ending with the
    audio; their mean embedding, normalised again, stands for all of it. (The original takes one clip at random.)
    Shorter audio is repeated and padded: see `clips`. The variables are those of `ClapAudio(config)`.
    """

    def embed(clip: Array) -> Array:
        return apply(ClapAudio(config), variables, log_mel(clip, config.audio))

    return _normalized(jnp.mean(jax.lax.map(embed, clips(audio, config.audio)), axis=0))


def init_codebooks(config: ClapConditionConfig) -> dict[str, Float[Array, "..."]]:
    """Codebooks for `codec.rvq_training` to initialise from the first batch, of latents [b, 1, d]."""
    shapes = codebook_shapes(config.num_codebooks, config.codebook_size, config.clap.dim)
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def quantized(x: Float[Array, "b d"], embed: Float[Array, "k v d"]) -> Float32[Array, "b d"]:
    """Quantizes joint embeddings: the sum of their nearest codewords, computed as x without the last residual."""
    _, _, residual = quantize(x[:, None], embed)
    return x.astype(jnp.float32) - residual[:, 0]
