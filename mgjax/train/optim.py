"""Optimisers and schedules of the published recipes, moving averages of weights, gradients of large batches.

See Copet et al. 2023 (MusicGen), section 4.1, for the recipe of the language model and Défossez et al. 2022 (EnCodec),
section 4.3, for that of the codec.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from mgjax.config.serialization import one_of, ranged
from mgjax.errors import ConfigError
from mgjax.lm.matrices import matrix

OPTIMIZERS = ("adam", "adamw", "dadapt_adamw", "muon", "prodigy")
SCHEDULES = ("constant", "cosine", "inverse_sqrt", "linear")

_ADAPTIVE_RATE = {"dadapt_adamw": optax.contrib.dadapt_adamw, "prodigy": optax.contrib.prodigy}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its schedule and the average of the weights. The defaults are those of the medium language model.

    Attributes:
      name: "adamw"; "adam", the same without decay; "dadapt_adamw" (D-Adaptation, Defazio & Mishchenko 2023) or
        "prodigy" (Mishchenko & Defazio 2023), which find the learning rate themselves; "muon" (Jordan et al. 2024) for
        the matrices in the language model's layers, and Adam with Nesterov's momentum and decay for all else.
      learning_rate: The peak. For the two optimisers that find the rate, a factor on it, which is 1 in all recipes.
      adam_learning_rate: The peak for what "muon" leaves to Adam; unused by the others.
      schedule: The schedule after the warm-up: "constant"; "cosine" or "linear", down to `min_ratio` of the peak at the
        last step; "inverse_sqrt", down with the root of the number of steps.
      warmup_steps: Training steps in which the rate rises linearly, from 0 at the first one.
      min_ratio: The last rate as a share of the peak; unused by "constant" and "inverse_sqrt".
      b1: Decay of the gradient's average.
      b2: Decay of the squared gradient's average.
      eps: Added to the root of the squared gradient's average.
      weight_decay: Decoupled weight decay (Loshchilov & Hutter 2019) of all weights, norms and biases too, as in the
        published recipe: each step takes this share of them, times the learning rate.
      max_grad_norm: The global norm that gradients are clipped to; None for no clipping.
      d0: The learning rate from which "dadapt_adamw" and "prodigy" start to search.
      accumulate: The number of parts of a batch over which gradients are accumulated, to save memory. The update is
        that of the whole batch.
      average_decay: Decay of the moving average of the weights, which is validated and saved; 0 for no average.
      average_every: Training steps between two updates of the average.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    adam_learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 4000
    min_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float | None = 1.0
    d0: float = 1e-6
    accumulate: int = 1
    average_decay: float = 0.99
    average_every: int = 10

    def __post_init__(self) -> None:
        one_of("name", self.name, OPTIMIZERS)
        one_of("schedule", self.schedule, SCHEDULES)
        ranged(self, "above 0", "learning_rate adam_learning_rate eps d0 max_grad_norm")
        ranged(self, "0 or above and below 1", "b1 b2 average_decay")
        ranged(self, "0 or more", "warmup_steps weight_decay")
        ranged(self, "1 or more", "accumulate average_every")
        ranged(self, "from 0 to 1", "min_ratio")
        if self.name == "adam" and self.weight_decay:
            raise ConfigError(f"adam has no weight decay, got {self.weight_decay}: set it to 0, or take adamw")
        if self.name in _ADAPTIVE_RATE and self.learning_rate < 0.01:
            raise ConfigError(
                f"{self.name} finds the learning rate itself, and learning_rate is a factor on it: set it to 1, got "
                f"{self.learning_rate}"
            )


def schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of the training step, from 0 to `total_steps` - 1.

    Raises ConfigError if the warm-up takes the whole run.
    """
    warmup = config.warmup_steps
    if warmup and warmup >= total_steps:
        raise ConfigError(f"warmup_steps must be below the run's {total_steps} updates, got {warmup}")

    def rate(step: Array | int) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / (total_steps - warmup), 0.0, 1.0)
        if config.schedule == "cosine":
            share = config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "linear":
            share = 1 - (1 - config.min_ratio) * progress
        elif config.schedule == "inverse_sqrt":
            share = jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))
        else:
            share = jnp.float32(1)
        rising = step / max(warmup, 1)
        return config.learning_rate * jnp.where(step < warmup, rising, share)

    return rate


def make(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `total_steps` training steps; `gradients` accumulates, not the optimiser."""
    rate = schedule(config, total_steps)
    betas, decay = (config.b1, config.b2), config.weight_decay
    if config.name in _ADAPTIVE_RATE:
        adaptive = _ADAPTIVE_RATE[config.name]
        update = _idle_until_gradients(adaptive(rate, betas, eps=config.eps, estim_lr0=config.d0, weight_decay=decay))
    elif config.name == "muon":
        share = config.adam_learning_rate / config.learning_rate
        update = optax.contrib.muon(
            rate,
            eps=config.eps,
            weight_decay=decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=decay,
            adam_learning_rate=lambda step: share * rate(step),
            muon_weight_dimension_numbers=_muon_matrices,
        )
    else:
        update = optax.adamw(rate, *betas, config.eps, weight_decay=decay)
    clip = optax.identity() if config.max_grad_norm is None else optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, update)


def _muon_matrices(params: Any) -> Any:
    """The axes of each kernel of the language model's layers as a matrix, for Muon; None for all other parameters.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the momentum, so that a matrix
    between hidden states is updated equally in all directions of its gradient. Adam trains the rest.
    """

    def axes(path: tuple[Any, ...], leaf: Float[Array, "..."]) -> optax.contrib.MuonDimensionNumbers | None:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if names[:1] != ["lm"] or names[-1] != "kernel" or not names[1].startswith("layer"):
            return None
        sides = matrix(tuple(names[1:]))
        assert sides is not None, "every kernel of a layer is a matrix"
        return optax.contrib.MuonDimensionNumbers(*(tuple(axis + leaf.ndim for axis in side) for side in sides))

    return jax.tree_util.tree_map_with_path(axes, params)


def learning_rate(config: OptimConfig, total_steps: int, state: Any, step: Array | int) -> Float[Array, ""]:
    """The learning rate of training step `step`, times the estimate in the optimiser's `state` if it has one."""
    return schedule(config, total_steps)(step) * optax.tree.get(state, "estim_lr", jnp.float32(1))


def _idle_until_gradients(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same D-Adaptation or Prodigy, for schedules that begin at 0.

    Until a gradient differs from 0, its estimate of the learning rate is 0 / 0: weights and estimate stay as they are.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, new_state = optimizer.update(updates, state, params)
        has_gradient = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(new_state.grad_sum)) != 0
        updates = jax.tree.map(lambda leaf: jnp.where(has_gradient, leaf, 0), updates)
        return updates, new_state._replace(estim_lr=jnp.where(has_gradient, new_state.estim_lr, state.estim_lr))

    return optax.GradientTransformation(optimizer.init, update)


def gradients(
    loss: Callable[[Any, Any], tuple[Float[Array, ""], Any]], weights: Any, batch: Any, parts: int
) -> tuple[Float[Array, ""], Any, Any]:
    """The loss of a batch, the auxiliary output of `loss`, and the gradient, with the memory of a part of the batch.

    `loss` is called with `weights` and one of `parts` parts of the batch, which must divide the number of rows. What it
    returns is summed over the parts, so that a mean has to be divided by the count of the whole batch.
    """
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (value, aux), gradient = differentiate(weights, batch)
        return value, aux, gradient

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(weights, part)), None

    split = _split(batch, parts)
    shapes = jax.eval_shape(differentiate, weights, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((value, aux), gradient), _ = jax.lax.scan(add, zeros, split)
    return value, aux, gradient


def in_parts(function: Callable[[Any], Any], batch: Any, parts: int) -> Any:
    """`function` of a batch, which it maps row by row, with the memory of one of `parts` parts of the batch."""
    if parts == 1:
        return function(batch)
    return jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), jax.lax.map(function, _split(batch, parts))
    )


def _split(batch: Any, parts: int) -> Any:
    """Arrays [b, ...] as [parts, b / parts, ...].

    Part i has every row whose number leaves the remainder i, so that a device finds rows of every part among its own.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)


@struct.dataclass
@typing.no_type_check  # such trees are also made of shapes and of shardings
class Average:
    """A moving average of weights, unbiased from the start: it holds nothing of the initial, random weights."""

    weights: Any
    count: Float[Array, ""]  # the sum of the decayed weights of its updates

    @classmethod
    def init(cls, weights: Any) -> Average:
        """The average before its first update: the weights themselves."""
        return cls(jax.tree.map(jnp.copy, weights), jnp.zeros((), jnp.float32))

    def update(self, config: OptimConfig, weights: Any, step: Array | int) -> Average:
        """The average after training step `step`, updated by `weights` if it is due."""

        def updated(average: Average) -> Average:
            count = config.average_decay * average.count + 1
            mixed = jax.tree.map(lambda old, new: (1 - 1 / count) * old + new / count, average.weights, weights)
            return Average(mixed, count)

        return jax.lax.cond(jnp.asarray(step) % config.average_every == 0, updated, lambda average: average, self)
