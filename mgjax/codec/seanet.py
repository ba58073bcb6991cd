"""The modules of SEANet, built from the description of its layers (layers.py).

Every module takes and returns a buffer and its `length`: how many samples of it are valid; the rest is padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.codec import layers
from mgjax.codec.conv import Conv, Length, masked
from mgjax.codec.lstm import LSTM
from mgjax.config.model import CodecConfig

Signal = tuple[Float[Array, "b m d"], Length]


def elu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exponential linear unit. `expm1` would be exact near zero, where float32 audio is not, and is slower."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


class Half(nn.Module):
    """The encoder or the decoder, in three stages that can be computed for a part of a long signal.

    The convolutions `before` and `after` need a window around the part, the `lstm` between them the state that the part
    before left.
    """

    config: CodecConfig
    half: layers.Half

    def setup(self) -> None:
        """The layers before the LSTM, the LSTM, and the layers after it."""
        self.first = [_module(self.config, layer) for layer in self.half.before]
        self.lstm = LSTM(self.half.lstm.num_layers, name=self.half.lstm.name)
        self.last = [_module(self.config, layer) for layer in self.half.after]

    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Float[Array, "b m d"]:
        """All three stages: audio to latents, or latents to audio."""
        x, length = self.before(x, length)
        x, _ = self.lstm(x, length)
        return self.after(x, length)[0]

    def before(self, x: Float[Array, "b n c"], length: Length) -> Signal:
        """The layers before the LSTM; of the encoder's audio `n` is a whole number of frames."""
        return _through(self.first, x, length)

    def after(self, x: Float[Array, "b t h"], length: Length) -> Signal:
        """The layers after the LSTM."""
        return _through(self.last, x, length)


class Block(nn.Module):
    """Layers one after the other; those of a residual block are added to their input, or to a convolution of it."""

    config: CodecConfig
    layer: layers.Block | layers.Residual

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], length: Length) -> Signal:
        """The layers' output, and how many samples of it are valid."""
        y, valid = _through([_module(self.config, layer) for layer in self.layer.layers], x, length)
        if isinstance(self.layer, layers.Block):
            return y, valid
        if self.layer.shortcut:
            x, _ = _module(self.config, self.layer.shortcut)(x, length)
        return x + y, valid


def _module(config: CodecConfig, layer: layers.Layer) -> Callable[[Array, Length], Signal]:
    """The function that a layer stands for, a module where it has weights."""
    match layer:
        case layers.ELU():
            return lambda x, length: (elu(x), length)
        case layers.Fold():
            return functools.partial(_unfolded if layer.transposed else _folded, stride=layer.stride)
        case layers.Conv():
            return Conv(config, layer, name=layer.name)
        case layers.Block() | layers.Residual():
            return Block(config, layer, name=layer.name)


def _through(functions: Sequence[Callable[[Array, Length], Signal]], x: Array, length: Length) -> Signal:
    for function in functions:
        x, length = function(x, length)
    return x, length


def _folded(x: Float[Array, "b n c"], length: Length, stride: int) -> Signal:
    b, n, c = x.shape
    return masked(x, length).reshape(b, n // stride, stride * c), -(-length // stride)


def _unfolded(x: Float[Array, "b n c"], length: Length, stride: int) -> Signal:
    b, n, c = x.shape
    return x.reshape(b, n * stride, c // stride), length * stride
