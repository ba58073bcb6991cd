"""EnCodec (Défossez et al. 2022): audio to codes and back, as a Flax module whose parts can be applied alone."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mgjax.codec import chunks, layers, rvq_training
from mgjax.codec.conv import Length
from mgjax.codec.lstm import State
from mgjax.codec.rvq_training import Codebooks, QuantizerConfig
from mgjax.codec.seanet import Half
from mgjax.config.model import CodecConfig
from mgjax.nn import codebook_shapes, dequantize, quantize


@struct.dataclass
class Reconstruction:
    """A batch of audio through the codec."""

    audio: Float[Array, "b n c"]  # the decoder's output
    latents: Float[Array, "b t d"]  # the encoder's output, before quantization
    codes: Int[Array, "b t k"]  # of all codebooks
    commitment: Float[Array, ""]  # the commitment loss; see `rvq_training.Quantized`
    codebooks: Codebooks  # the collection "codebooks" after this batch


class EncodecModel(nn.Module):
    """The codec over buffers of whole frames, of which the first `length` samples or frames are valid (None: all).

    The codebooks are not trained by gradient: they are the collection "codebooks", as `embed`, and beside it
    `embed_avg`, `cluster_size` and `inited` for the moving averages of training.
    """

    config: CodecConfig

    def setup(self) -> None:
        """Encoder, decoder and codebooks."""
        config = self.config
        self.encoder = Half(config, layers.encoder(config), name="encoder")
        self.decoder = Half(config, layers.decoder(config), name="decoder")
        shapes = codebook_shapes(config.num_codebooks, config.codebook_size, config.latent_dim)
        self.codebooks = {name: self.variable("codebooks", name, jnp.zeros, shape) for name, shape in shapes.items()}

    def __call__(
        self,
        audio: Float[Array, "b n c"],
        key: PRNGKeyArray | None = None,
        quantizer: QuantizerConfig | None = None,
    ) -> Reconstruction:
        """Codes and decodes audio of any length.

        In training, `quantizer` says how the codebooks learn, and `key` is that of their updates. The gradient then
        goes straight through the quantizer, from the decoder to the encoder (van den Oord et al. 2017). None: they
        stay, the gradient ends at the decoder, and the commitment loss is 0.
        """
        config, n = self.config, audio.shape[1]
        scale = jnp.ones((audio.shape[0], 1, 1))
        if config.normalize:
            scale = chunks.volume(audio)[:, None, None]
        num_frames = -(-n // config.hop_length)
        latents = self.encoder(jnp.pad(audio / scale, ((0, 0), (0, num_frames * config.hop_length - n), (0, 0))), n)
        codebooks = {name: variable.value for name, variable in self.codebooks.items()}
        if quantizer is None:
            codes, commitment = self.quantize(latents), jnp.float32(0)
            words = self.dequantize(codes)
        else:
            if key is None:
                raise ValueError("codebooks that learn need a random key")
            quantized = rvq_training.quantize(latents, codebooks, key, quantizer)
            words, codes, commitment = quantized.latents, quantized.codes, quantized.commitment
            codebooks = quantized.codebooks
        generated = self.decoder(words, num_frames)[:, :n] * scale
        return Reconstruction(generated, latents, codes, commitment, codebooks)

    def encode(
        self, audio: Float[Array, "b n c"], length: Length | None = None, num_codebooks: int | None = None
    ) -> Int[Array, "b t k"]:
        """The codes of `audio`, of the first `num_codebooks` codebooks (None: all)."""
        return self.quantize(self.encoder(audio, audio.shape[1] if length is None else length), num_codebooks)

    def decode(self, codes: Int[Array, "b t k"], length: Length | None = None) -> Float[Array, "b n c"]:
        """The audio of `codes`, whose k may be fewer than the codec's codebooks; `length` counts frames."""
        return self.decoder(self.dequantize(codes), codes.shape[1] if length is None else length)

    def quantize(self, latents: Float[Array, "b t d"], num_codebooks: int | None = None) -> Int[Array, "b t k"]:
        """The codes of latents, of the first `num_codebooks` codebooks (None: all)."""
        return quantize(latents, self.codebooks["embed"].value[:num_codebooks])[0]

    def dequantize(self, codes: Int[Array, "b t k"]) -> Float[Array, "b t d"]:
        """The latents of codes."""
        return dequantize(codes, self.codebooks["embed"].value)

    # The stages between which a long signal is cut, of either `half`, "encoder" or "decoder"; see codec/codec.py. The
    # `length` counts samples before the encoder, frames elsewhere.

    def before(
        self, x: Float[Array, "b n c"] | Int[Array, "b t k"], length: Length, half: str
    ) -> Float[Array, "b t h"]:
        """The half up to its LSTM, from audio or, with the quantizer's codewords, from codes."""
        part = self.encoder if half == "encoder" else self.decoder
        return part.before(x if half == "encoder" else self.dequantize(x), length)[0]

    def recur(
        self, x: Float[Array, "b t h"], length: Length, state: State, half: str
    ) -> tuple[Float[Array, "b t h"], State]:
        """The half's LSTM from `state` on, and the state after `length` frames."""
        return (self.encoder if half == "encoder" else self.decoder).lstm(x, length, state)

    def after(
        self, x: Float[Array, "b t h"], length: Length, half: str, num_codebooks: int | None = None
    ) -> Int[Array, "b t k"] | Float[Array, "b n c"]:
        """The half after its LSTM: codes, through the quantizer, or audio."""
        if half == "encoder":
            return self.quantize(self.encoder.after(x, length)[0], num_codebooks)
        return self.decoder.after(x, length)[0]
