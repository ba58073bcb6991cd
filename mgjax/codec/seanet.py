"""The SEANet encoder and decoder (Tagliasacchi et al. 2020) as EnCodec has them, each in three parts.

The convolutions see a few frames to either side and the LSTM sees all that came before, so a part is what can be
computed for a stretch of a long signal: from a window around it, or from the state that the stretch before it left.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.codec.conv import Conv, ConvTranspose, Length, keep
from mgjax.codec.lstm import LSTM, State
from mgjax.config.model import CodecConfig


def elu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exponential linear unit. `expm1` would be exact near zero, where float32 audio is not, and is slower."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


class ResidualBlock(nn.Module):
    """ELU, convolution, ELU, 1x1 convolution, through a narrower middle, added to the input."""

    config: CodecConfig
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Float[Array, "b n c"]:
        config, features = self.config, x.shape[-1]
        y = Conv(
            config, features // config.compress, config.residual_kernel_size, dilation=self.dilation, name="conv1"
        )(elu(x), length)
        # What a new block adds is small: otherwise a stack of them would double the power of the sound with each.
        y = Conv(config, features, 1, gain=0.1, name="conv2")(elu(y), length)
        if config.conv_shortcut:
            x = Conv(config, features, 1, name="shortcut")(x, length)
        return x + y


class DownBlock(nn.Module):
    """Residual blocks, then one sample for every `stride` at twice the channels."""

    config: CodecConfig
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Float[Array, "b m d"]:
        for j in range(self.config.num_residual_layers):
            x = ResidualBlock(self.config, self.config.dilation_growth**j, name=f"res{j}")(x, length)
        return Conv(self.config, 2 * x.shape[-1], 2 * self.stride, self.stride, name="down")(elu(x), length)


class UpBlock(nn.Module):
    """`stride` times the samples at half the channels, then residual blocks."""

    config: CodecConfig
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Float[Array, "b m d"]:
        x = ConvTranspose(self.config, x.shape[-1] // 2, 2 * self.stride, self.stride, name="up")(elu(x), length)
        for j in range(self.config.num_residual_layers):
            x = ResidualBlock(self.config, self.config.dilation_growth**j, name=f"res{j}")(x, length * self.stride)
        return x


class Encoder(nn.Module):
    """Audio `b n c` to latents `b t d`; `n` is a whole number of frames, of which `length` samples count."""

    config: CodecConfig

    def setup(self):
        config = self.config
        self.conv_in = Conv(config, config.num_filters, config.kernel_size, name="conv_in")
        self.blocks = [DownBlock(config, ratio, name=f"block{i}") for i, ratio in enumerate(reversed(config.ratios))]
        self.lstm = LSTM(config.num_lstm_layers, name="lstm")
        self.conv_out = Conv(config, config.latent_dim, config.last_kernel_size, name="conv_out")

    def __call__(self, audio: Float[Array, "b n c"], length: Length) -> Float[Array, "b t d"]:
        frames = -(-length // self.config.hop_length)
        x, _ = self.recur(self.downsample(audio, length), frames)
        return self.project(x, frames)

    def downsample(self, audio: Float[Array, "b n c"], length: Length) -> Float[Array, "b t h"]:
        """What comes before the LSTM."""
        b, n, c = audio.shape
        phases = self.config.phases
        x = keep(audio, length).reshape(b, n // phases, phases * c)
        length = -(-length // phases)
        x = self.conv_in(x, length)
        for block in self.blocks:
            x = block(x, length)
            length = -(-length // block.stride)
        return x

    def recur(
        self, x: Float[Array, "b t h"], length: Length, state: State | None = None
    ) -> tuple[Float[Array, "b t h"], State]:
        """The LSTM, and its state after `length` frames."""
        return self.lstm(x, length, state)

    def project(self, x: Float[Array, "b t h"], length: Length) -> Float[Array, "b t d"]:
        """What comes after the LSTM."""
        return self.conv_out(elu(x), length)


class Decoder(nn.Module):
    """Latents `b t d` to audio `b n c`; of the `t` frames, `length` count."""

    config: CodecConfig

    def setup(self):
        config = self.config
        self.conv_in = Conv(config, config.num_filters * 2 ** len(config.ratios), config.kernel_size, name="conv_in")
        self.lstm = LSTM(config.num_lstm_layers, name="lstm")
        self.blocks = [UpBlock(config, ratio, name=f"block{i}") for i, ratio in enumerate(config.ratios)]
        self.conv_out = Conv(config, config.phases * config.channels, config.last_kernel_size, name="conv_out")

    def __call__(self, latents: Float[Array, "b t d"], length: Length) -> Float[Array, "b n c"]:
        x, _ = self.recur(self.project(latents, length), length)
        return self.upsample(x, length)

    def project(self, latents: Float[Array, "b t d"], length: Length) -> Float[Array, "b t h"]:
        """What comes before the LSTM."""
        return self.conv_in(latents, length)

    def recur(
        self, x: Float[Array, "b t h"], length: Length, state: State | None = None
    ) -> tuple[Float[Array, "b t h"], State]:
        """The LSTM, and its state after `length` frames."""
        return self.lstm(x, length, state)

    def upsample(self, x: Float[Array, "b t h"], length: Length) -> Float[Array, "b n c"]:
        """What comes after the LSTM."""
        for block in self.blocks:
            x = block(x, length)
            length = length * block.stride
        x = self.conv_out(elu(x), length)
        return x.reshape(x.shape[0], -1, self.config.channels)
