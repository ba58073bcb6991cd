"""What the language model learns from: the codes of a piece laid out in steps, and how badly they were predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.devices import sharding
from mgjax.lm.pattern import Pattern

_AT_ONCE = 2**26  # float32 logits in the memory of a device: 5 clips of 30 s, and three times that with gradients


class Steps(NamedTuple):
    """A batch of pieces as the model reads them, teacher-forced.

    Attributes:
      inputs: What it is told at each step.
      targets: What it should predict there: the codes of the step after.
      counted: Where that is a code of the piece, and not a special token.
    """

    inputs: Int[Array, "b s k"]
    targets: Int[Array, "b s k"]
    counted: Bool[Array, "b s k"]


def layout(pattern: Pattern, codes: Int[Array, "b t k"], num_frames: Int[Array, "b"], special: int) -> Steps:
    """The steps in which `codes` are learned; there are as many of them as frames.

    The layout is cut where the fastest codebook runs out of frames (Pattern.valid_steps), so the last frames of a
    delayed codebook are not learned: the music goes on after a cutting, and the model must not learn that it ends.
    Frames from `num_frames` on are padding. The model is told the special token there, and nothing of them counts.
    """
    t = codes.shape[1]
    there = jnp.arange(t)[None, :, None] < num_frames[:, None, None]
    tokens = pattern.build(jnp.where(there, codes, special), special, num_steps=pattern.valid_steps(t))
    targets = tokens[:, 1:]
    return Steps(tokens[:, :-1], targets, targets != special)


def cross_entropy(logits: Float[Array, "b s k v"], steps: Steps) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
    """The cross-entropy in nats of each codebook, summed over what counts, and how many codes count; float32."""
    logits = logits.astype(jnp.float32)
    targets = jnp.where(steps.counted, steps.targets, 0)  # the special token has no logit
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    lost = jnp.where(steps.counted, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)
    return jnp.sum(lost, axis=(0, 1)), jnp.sum(steps.counted, axis=(0, 1), dtype=jnp.float32)


def cross_entropy_of(
    predict: Callable[[Float[Array, "b c d"]], Float[Array, "b c k v"]], hidden: Float[Array, "b s d"], steps: Steps
) -> Float[Array, "k"]:
    """The sums of `cross_entropy` of what `predict` makes of `hidden`; where the logits are many, of some of the steps
    at a time, and once more for the gradient."""
    b, s, k = steps.targets.shape
    codes = jax.eval_shape(predict, hidden).shape[-1]
    num_parts = min(s, -(-sharding.rows_each(b) * s * k * codes // _AT_ONCE))
    if num_parts == 1:
        return cross_entropy(predict(hidden), steps)[0]
    length = -(-s // num_parts)

    def cut(x: Array) -> Array:
        """Parts first; what is added at the end does not count."""
        whole = jnp.pad(x, [(0, num_parts * length - s if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(whole.reshape(b, num_parts, length, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(part: tuple[Array, Steps]) -> Array:
        return cross_entropy(predict(part[0]), part[1])[0]

    return jnp.sum(jax.lax.map(one, (cut(hidden), jax.tree.map(cut, steps))), axis=0)


def mean(
    sums: Float[Array, "k"], counts: Float[Array, "k"], weights: Sequence[float] | None = None
) -> Float[Array, ""]:
    """The mean over the codebooks of their mean cross-entropies; a codebook of which nothing counts adds nothing.

    Args:
      sums: The cross-entropies of each codebook, added up.
      counts: How many there are.
      weights: How much each codebook weighs in the mean; None for all alike.
    """
    return jnp.average(sums / jnp.maximum(counts, 1.0), weights=None if weights is None else jnp.array(weights))
