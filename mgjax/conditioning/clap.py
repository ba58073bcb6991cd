"""CLAP (Wu et al. 2023): texts and audio as vectors of one space, and the condition that is made of them.

A model conditioned on this space learns from audio alone and is given text at generation (Copet et al. 2023, section
2.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from mgjax.audio.waveform import check, resample, to_channels
from mgjax.conditioning.clap_features import clips, log_mel
from mgjax.conditioning.clap_text import ClapTokenizer
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.htsat import HTSAT
from mgjax.conditioning.roberta import Roberta
from mgjax.config.conditioning import ClapConditionConfig, ClapConfig
from mgjax.nn import Dense, applied, codebook_shapes


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


def embed_audio(
    config: ClapConfig, variables: Mapping[str, Any], audio: Float[Array, "b n"], dtype: Any = jnp.float32
) -> Float32[Array, "b d"]:
    """The joint embeddings of mono audio at `config.audio.sample_rate`, float32 [b, d] of length 1.

    Audio longer than the clip of 10 seconds that CLAP hears is cut into such clips, each beginning a second before the
    one before ends and the last ending with the audio; the mean of their embeddings, brought to length 1 again, stands
    for all of it. (The original hears one clip at random.) Shorter audio is repeated and filled up: see `clips`.

    Args:
      config: The towers.
      variables: Of `ClapAudio(config)`.
      audio: Rows of one length.
      dtype: Of the matrix products.
    """

    def embed(clip: Array) -> Array:
        return ClapAudio(config, dtype).apply(variables, log_mel(clip, config.audio))

    return _normalized(jnp.mean(jax.lax.map(embed, clips(audio, config.audio)), axis=0))


def similarity(text_embedding: Float[Array, "b d"], audio_embedding: Float[Array, "b d"]) -> Float32[Array, " b"]:
    """The cosine of each text and the audio of the same row, from -1 to 1: the CLAP score."""
    text, audio = _normalized(jnp.asarray(text_embedding)), _normalized(jnp.asarray(audio_embedding))
    return jnp.sum(text * audio, axis=-1)


class Clap:
    """The two towers of a CLAP model as functions of texts and sounds; nothing changes when they are used.

    Attributes:
      config: The towers.
      variables: Theirs: {"text": of `ClapText(config)`, "audio": of `ClapAudio(config)`}.
      tokenizer: The model's own.
    """

    def __init__(self, config: ClapConfig, variables: Mapping[str, Any], tokenizer: ClapTokenizer):
        if tokenizer.vocab_size > config.text.vocab_size or tokenizer.pad != config.text.pad_token:
            raise ValueError(
                f"the tokenizer ({tokenizer.vocab_size} tokens, padding {tokenizer.pad}) does not belong to the text "
                f"tower ({config.text.vocab_size} tokens, padding {config.text.pad_token}): use the model's own"
            )
        self.config, self.variables, self.tokenizer = config, variables, tokenizer

    def embed_text(self, texts: str | Sequence[str | None]) -> Float32[np.ndarray, "b d"]:
        """The joint embeddings of the texts, of length 1.

        Raises:
          ValueError: A text is None or empty: nothing is not a point of the space.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids, mask = self.tokenizer.encode(texts)
        if not texts or not mask.any(axis=1).all():
            raise ValueError(f"texts must be one or more, none of them empty, got {texts!r}")
        return np.asarray(applied(ClapText(self.config), self.variables["text"], ids, mask))

    def embed_audio(self, audio: Any, sample_rate: int) -> Float32[np.ndarray, "b d"]:
        """The joint embeddings of sounds of any length, of length 1; see the function `embed_audio`.

        Args:
          audio: `[n]`, `[n, c]` or `[b, n, c]`; channels are averaged.
          sample_rate: Its own, in hertz; it is resampled where CLAP's is another.
        """
        audio = np.asarray(audio)
        rate = self.config.audio.sample_rate
        rows = [
            resample(to_channels(check(row), 1), sample_rate, rate)[:, 0]
            for row in (audio if audio.ndim == 3 else [audio])
        ]
        return np.asarray(_embed_audio(self.config, self.variables["audio"], np.stack(rows)))


_embed_audio = jax.jit(embed_audio, static_argnums=0)


def init_codebooks(config: ClapConditionConfig) -> dict[str, Float[Array, "..."]]:
    """Codebooks that hold nothing yet, in the layout of the codec's, so that its training makes and moves them.

    There an embedding [b, d] is a latent [b, 1, d].
    """
    shapes = codebook_shapes(config.num_codebooks, config.codebook_size, config.clap.dim)
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def condition(embedding: Float[Array, "b d"], given: Bool[Array, " b"]) -> Condition:
    """The condition of one vector for each row, tokens [b, 1, d].

    Args:
      embedding: Joint embeddings, of texts or of audio, or what their quantizer makes of them.
      given: Which of them count; the other rows are null. Of texts: `mask.any(axis=1)`.
    """
    return Condition(tokens=embedding[:, None].astype(jnp.float32), mask=given[:, None])


def quantized(x: Float[Array, "b d"], embed: Float[Array, "k v d"]) -> Float32[Array, "b d"]:
    """The sum of the nearest codeword of each codebook, each coding what the ones before it leave; in float32."""

    def level(rest: Array, codebook: Array) -> tuple[Array, None]:
        products = jnp.einsum("bd,vd->bv", rest, codebook, precision="highest")
        codes = jnp.argmin(jnp.sum(jnp.square(codebook), axis=-1)[None] - 2 * products, axis=-1)
        return rest - jnp.take(codebook, codes, axis=0), None

    x = x.astype(jnp.float32)
    return x - jax.lax.scan(level, x, embed.astype(jnp.float32))[0]
