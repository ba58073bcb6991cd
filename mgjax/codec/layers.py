"""The layers of EnCodec's SEANet encoder and decoder (Tagliasacchi et al. 2020), described once, from a config alone.

The modules (seanet.py), the receptive fields (stream.py), the shapes of the weights and their names in other libraries
(checkpoints/tables) follow from this description. Each half of the codec is the list of layers that the original puts
into its `nn.Sequential`, activations included, so that a layer's index here is its number there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from mgjax.config.model import CodecConfig


@dataclasses.dataclass(frozen=True)
class ELU:
    """The activation before every convolution but the first of each half."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """`stride` neighbouring samples become the channels of one; `transposed`, the inverse. The original has none."""

    stride: int
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution, or a transposed one, from `inputs` to `features` channels with a kernel of `width` taps.

    New kernels let about `gain` of the input's power through.
    """

    name: str
    inputs: int
    features: int
    width: int
    stride: int = 1
    dilation: int = 1
    transposed: bool = False
    gain: float = 1.0

    @property
    def norm_axis(self) -> int:
        """The axis of the kernel [width, inputs, features] along which weight norm has a scale: torch's first one."""
        return 1 if self.transposed else 2


@dataclasses.dataclass(frozen=True)
class LSTM:
    """Recurrent layers of `dim` channels, with their input added to their output; `num_layers` may be 0."""

    name: str
    dim: int
    num_layers: int


@dataclasses.dataclass(frozen=True)
class Residual:
    """Layers added to their input, or to the `shortcut` of it where there is one."""

    name: str
    layers: tuple[ELU | Conv, ...]
    shortcut: Conv | None


@dataclasses.dataclass(frozen=True)
class Block:
    """The layers around one change of the rate. Blocks group the parameters; the original's list has none."""

    name: str
    layers: tuple[ELU | Conv | Residual, ...]


Layer: TypeAlias = ELU | Fold | Conv | Residual | Block


class Half(NamedTuple):
    """The encoder or the decoder: convolutions that see a few frames, an LSTM that sees the past, more convolutions."""

    before: tuple[Layer, ...]
    lstm: LSTM
    after: tuple[Layer, ...]


def encoder(config: CodecConfig) -> Half:
    """Audio [b, n, c] to latents [b, t, d]."""
    dim = config.num_filters
    layers: list[Layer] = [Fold(config.phases)]
    layers.append(Conv("conv_in", config.phases * config.channels, dim, config.kernel_size))
    for i, ratio in enumerate(reversed(config.ratios)):
        down = Conv("down", dim, 2 * dim, 2 * ratio, ratio)
        layers.append(Block(f"block{i}", (*_residuals(config, dim), ELU(), down)))
        dim = 2 * dim
    out = Conv("conv_out", dim, config.latent_dim, config.last_kernel_size)
    return Half(tuple(layers), LSTM("lstm", dim, config.num_lstm_layers), (ELU(), out))


def decoder(config: CodecConfig) -> Half:
    """Latents [b, t, d] to audio [b, n, c]."""
    dim = config.num_filters * 2 ** len(config.ratios)
    first, lstm = Conv("conv_in", config.latent_dim, dim, config.kernel_size), LSTM("lstm", dim, config.num_lstm_layers)
    layers: list[Layer] = []
    for i, ratio in enumerate(config.ratios):
        up = Conv("up", dim, dim // 2, 2 * ratio, ratio, transposed=True)
        dim = dim // 2
        layers.append(Block(f"block{i}", (ELU(), up, *_residuals(config, dim))))
    out = Conv("conv_out", dim, config.phases * config.channels, config.last_kernel_size)
    return Half((first,), lstm, (*layers, ELU(), out, Fold(config.phases, transposed=True)))


def _residuals(config: CodecConfig, dim: int) -> list[Residual]:
    """The residual blocks of one rate, each dilated more than the one before, through a narrower middle."""
    hidden = dim // config.compress
    shortcut = Conv("shortcut", dim, dim, 1) if config.conv_shortcut else None
    # What a new block adds is small: otherwise a stack of them would double the power of the sound with each.
    narrow = Conv("conv2", hidden, dim, 1, gain=0.1)
    blocks = []
    for j in range(config.num_residual_layers):
        wide = Conv("conv1", dim, hidden, config.residual_kernel_size, dilation=config.dilation_growth**j)
        blocks.append(Residual(f"res{j}", (ELU(), wide, ELU(), narrow), shortcut))
    return blocks


def flat(layers: Iterable[Layer]) -> Iterator[ELU | Fold | Conv]:
    """The layers that the signal passes, one after the other, those in blocks too; without shortcuts."""
    for layer in layers:
        if isinstance(layer, Block | Residual):
            yield from flat(layer.layers)
        else:
            yield layer


def with_weights(config: CodecConfig) -> Iterator[tuple[str, str, Conv | LSTM]]:
    """The codec's layers with weights, in the order of the signal's flow.

    Yields:
      The path of a layer's parameters ("encoder/block0/res0/conv1"), its place in the original's list of layers of the
      encoder or decoder ("1.block.1"), and the layer.
    """
    for part, half in (("encoder", encoder(config)), ("decoder", decoder(config))):
        number = 0
        for path, layer in _without_blocks((*half.before, half.lstm, *half.after), part):
            if isinstance(layer, Fold) or (isinstance(layer, LSTM) and not layer.num_layers):
                continue
            if isinstance(layer, Residual):
                for i, inner in enumerate(layer.layers):
                    if isinstance(inner, Conv):
                        yield f"{path}/{layer.name}/{inner.name}", f"{number}.block.{i}", inner
                if layer.shortcut:
                    yield f"{path}/{layer.name}/{layer.shortcut.name}", f"{number}.shortcut", layer.shortcut
            elif isinstance(layer, Conv | LSTM):
                yield f"{path}/{layer.name}", str(number), layer
            number += 1


def _without_blocks(layers: Iterable[Layer | LSTM], path: str) -> Iterator[tuple[str, Layer | LSTM]]:
    for layer in layers:
        if isinstance(layer, Block):
            yield from _without_blocks(layer.layers, f"{path}/{layer.name}")
        else:
            yield path, layer
