"""EnCodec (Défossez et al. 2022): audio to codes and back, as a Flax module whose parts can be applied alone."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.codec import rvq
from mgjax.codec.conv import Length
from mgjax.codec.lstm import State
from mgjax.codec.seanet import Decoder, Encoder
from mgjax.config.model import CodecConfig
from mgjax.nn import codebook_shapes


class EncodecModel(nn.Module):
    """The codec over buffers of whole frames; `length` says how much of a buffer counts (None: all of it).

    The codebooks are not trained by gradient: they are the collection "codebooks", as `embed`, and beside it
    `embed_avg`, `cluster_size` and `inited` for the moving averages of training.
    """

    config: CodecConfig

    def setup(self):
        config = self.config
        self.encoder = Encoder(config, name="encoder")
        self.decoder = Decoder(config, name="decoder")
        shapes = codebook_shapes(config.num_codebooks, config.codebook_size, config.latent_dim)
        self.embed = self.variable("codebooks", "embed", jnp.zeros, shapes.pop("embed"))
        for name, shape in shapes.items():
            self.variable("codebooks", name, jnp.zeros, shape)

    def __call__(self, audio: Float[Array, "b n c"], length: Length | None = None) -> Float[Array, "b n c"]:
        """The audio after coding and decoding, by all the codebooks."""
        codes = self.encode(audio, length)
        frames = None if length is None else -(-length // self.config.hop_length)
        return self.decode(codes, frames)

    def encode(
        self, audio: Float[Array, "b n c"], length: Length | None = None, num_codebooks: int | None = None
    ) -> Int[Array, "b t k"]:
        """The codes of `audio`, of the first `num_codebooks` codebooks (None: all)."""
        return self.quantize(self.encoder(audio, audio.shape[1] if length is None else length), num_codebooks)

    def decode(self, codes: Int[Array, "b t k"], length: Length | None = None) -> Float[Array, "b n c"]:
        """The audio of `codes`, whose k may be fewer than the codec's codebooks; `length` counts frames."""
        return self.decoder(self.dequantize(codes), codes.shape[1] if length is None else length)

    def quantize(self, latents: Float[Array, "b t d"], num_codebooks: int | None = None) -> Int[Array, "b t k"]:
        return rvq.quantize(latents, self.embed.value[:num_codebooks])

    def dequantize(self, codes: Int[Array, "b t k"]) -> Float[Array, "b t d"]:
        return rvq.dequantize(codes, self.embed.value)

    # The parts between which a long signal is cut; see codec/codec.py.

    def encoder_downsample(self, audio: Float[Array, "b n c"], length: Length) -> Float[Array, "b t h"]:
        return self.encoder.downsample(audio, length)

    def encoder_recur(
        self, x: Float[Array, "b t h"], length: Length, state: State
    ) -> tuple[Float[Array, "b t h"], State]:
        return self.encoder.recur(x, length, state)

    def encoder_codes(
        self, x: Float[Array, "b t h"], length: Length, num_codebooks: int | None = None
    ) -> Int[Array, "b t k"]:
        return self.quantize(self.encoder.project(x, length), num_codebooks)

    def decoder_project(self, codes: Int[Array, "b t k"], length: Length) -> Float[Array, "b t h"]:
        return self.decoder.project(self.dequantize(codes), length)

    def decoder_recur(
        self, x: Float[Array, "b t h"], length: Length, state: State
    ) -> tuple[Float[Array, "b t h"], State]:
        return self.decoder.recur(x, length, state)

    def decoder_upsample(self, x: Float[Array, "b t h"], length: Length) -> Float[Array, "b n c"]:
        return self.decoder.upsample(x, length)
