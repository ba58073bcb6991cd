"""The LSTM in the middle of EnCodec's encoder and decoder, with its state in the caller's hands."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

State = tuple[Float[Array, "l b d"], Float[Array, "l b d"]]  # of each layer: its last output, and its cell

_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(width), as torch does
_init_transposed = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=1, out_axis=0)


class LSTM(nn.Module):
    """A stack of LSTM layers of the input's width, with the input added to their output; no layers: the input."""

    num_layers: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], length: int | Int[Array, ""], state: State | None = None
    ) -> tuple[Float[Array, "b t d"], State]:
        """The output and the state after `length` frames; `state` is that before the first frame, zeros where None."""
        if state is None:
            state = zero_state(self.num_layers, x.shape[0], x.shape[2])
        if not self.num_layers:
            return x, state
        y, states = x, []
        for i in range(self.num_layers):
            layer = Layer(name=f"layer{i}")
            y, last = layer(y, length, (state[0][i], state[1][i]))
            states.append(last)
        hidden, cell = zip(*states, strict=True)
        return x + y, (jnp.stack(hidden), jnp.stack(cell))


def zero_state(num_layers: int, batch: int, width: int) -> State:
    """The state before the first frame."""
    return jnp.zeros((num_layers, batch, width)), jnp.zeros((num_layers, batch, width))


class Layer(nn.Module):
    """One LSTM layer; the gates stand in the order input, forget, cell, output."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], length: int | Int[Array, ""], state: tuple[Array, Array]
    ) -> tuple[Float[Array, "b t d"], tuple[Array, Array]]:
        """The output, and the hidden state and cell `b d` after `length` frames."""
        width = x.shape[-1]
        input_kernel = self.param("input_kernel", _init, (width, 4 * width))
        # (out, in), unlike all other kernels: a step is bound by reading it, and reads it faster this way on CPU.
        hidden_kernel = self.param("hidden_kernel", _init_transposed, (4 * width, width))
        input_bias = self.param("input_bias", nn.initializers.zeros_init(), (4 * width,))
        hidden_bias = self.param("hidden_bias", nn.initializers.zeros_init(), (4 * width,))
        # A convolution of width 1 is the same as a matrix product, and XLA's is half again as fast on CPU.
        gates = jax.lax.conv_general_dilated(
            x, input_kernel[None], (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")
        )
        gates = jnp.swapaxes(gates + (input_bias + hidden_bias)[None, None], 0, 1)

        def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            index, gate = inputs
            hidden, cell = carry
            i, f, g, o = jnp.split(gate + hidden @ hidden_kernel.T, 4, axis=-1)
            new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_hidden = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
            valid = index < length
            return (jnp.where(valid, new_hidden, hidden), jnp.where(valid, new_cell, cell)), new_hidden

        state, y = jax.lax.scan(step, state, (jnp.arange(x.shape[1]), gates))
        return jnp.swapaxes(y, 0, 1), state
