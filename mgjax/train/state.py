"""The training state, as one tree of arrays."""

from __future__ import annotations

import typing
from typing import Any

import flax.struct
from jaxtyping import Array, Int


@flax.struct.dataclass
@typing.no_type_check  # such trees are also made of shapes, of shardings and of flags
class TrainState:
    """What a training step reads and replaces, what a checkpoint holds, and what the table of `sharding.py` places.

    It has no random key: that of step `i` is `jax.random.fold_in(jax.random.key(seed), i)`, so that a run is a function
    of its config.

    Attributes:
      step: The training steps that are done.
      params: The float32 parameters that are trained by gradient, below names such as "lm", "codec", "discriminator".
      optimizer: The state of the optimiser.
      average: The moving average of the parameters, or None.
      extra: What changes without a gradient, such as {"codebooks": ..., "balancer": ...}.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    optimizer: Any
    average: Any
    extra: dict[str, Any]
