"""The loss balancer (Défossez et al. 2022, section 3.4): weights that say which share of the gradient a loss gets.

Each loss has a gradient with respect to the generated audio. Divided by a moving average of its own norm, it no longer
depends on the scale of the loss, so that the weights mean the same whatever the losses are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

_TINY = 1e-12

State = dict[str, dict[str, Float[Array, ""]]]


def init(names: Iterable[str]) -> State:
    """The state before the first batch: for each loss the decayed sum of its norms, and the weight of that sum."""
    return {name: {"total": jnp.float32(0), "weight": jnp.float32(0)} for name in names}


def combine(
    gradients: Mapping[str, Float[Array, "b n c"]],
    weights: Mapping[str, float],
    state: State,
    *,
    decay: float,
    total_norm: float = 1.0,
) -> tuple[Float[Array, "b n c"], State]:
    """The gradient that goes back into the generator, and the next state.

    It is the sum over losses i of `g_i * total_norm * (w_i / sum of w) / n_i`, where n_i is the moving average, free
    of the bias of its start, of the norm of a row of g_i, the gradient of a loss with respect to the generated audio.
    Rows are those of the whole batch, on all devices. If the gradients were parallel, a row of the result would have
    the norm `total_norm` on average. `decay` is that of the moving average.
    """
    total_weight = sum(weights[name] for name in gradients)
    combined, new_state = jnp.float32(0), {}
    for name, gradient in gradients.items():
        norm = jnp.mean(jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(1, 2))))
        total, weight = decay * state[name]["total"] + norm, decay * state[name]["weight"] + 1
        new_state[name] = {"total": total, "weight": weight}
        combined += gradient * (total_norm * weights[name] / total_weight / (_TINY + total / weight))
    return combined, new_state
