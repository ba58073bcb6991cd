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
    """

    step: Int[Array, ""]  # the training steps that are done
    params: dict[str, Any]  # float32, trained by gradient, below names such as "lm", "codec", "discriminator"
    optimizer: Any
    average: Any  # the moving average of the parameters, or None
    extra: dict[str, Any]  # what changes without a gradient, such as {"codebooks": ..., "balancer": ...}
