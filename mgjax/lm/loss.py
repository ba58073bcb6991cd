"""The language model's loss: codes interleaved into teacher-forced steps, and the cross-entropy of their prediction."""

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
    """A batch of teacher-forced sequences."""

    inputs: Int[Array, "b s k"]  # the codes that the model reads at each step
    targets: Int[Array, "b s k"]  # the codes of the step after, which it should predict
    counted: Bool[Array, "b s k"]  # the loss mask: False where the target is a special token


def teacher_forced(pattern: Pattern, codes: Int[Array, "b t k"], num_frames: Int[Array, "b"], special: int) -> Steps:
    """Interleaves `codes` into the steps of training, as many as there are frames.

    The sequence is cut where the fastest codebook runs out of frames (Pattern.valid_steps), so the last frames of a
    delayed codebook do not count: music continues after an excerpt, and the model must not learn that it ends.
    Frames from `num_frames` on are padding: the model reads the special token there, and they do not count.
    """
    t = codes.shape[1]
    valid = jnp.arange(t)[None, :, None] < num_frames[:, None, None]
    tokens = pattern.build(jnp.where(valid, codes, special), special, num_steps=pattern.valid_steps(t))
    targets = tokens[:, 1:]
    return Steps(tokens[:, :-1], targets, targets != special)


def cross_entropy(logits: Float[Array, "b s k v"], steps: Steps) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
    """The cross-entropy in nats of each codebook, summed over the codes that count, and their number; float32."""
    logits = logits.astype(jnp.float32)
    targets = jnp.where(steps.counted, steps.targets, 0)  # the special token has no logit
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jnp.where(steps.counted, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)
    return jnp.sum(losses, axis=(0, 1)), jnp.sum(steps.counted, axis=(0, 1), dtype=jnp.float32)


def cross_entropy_in_parts(
    predict: Callable[[Float[Array, "b c d"]], Float[Array, "b c k v"]], hidden: Float[Array, "b s d"], steps: Steps
) -> Float[Array, "k"]:
    """The sums of `cross_entropy` of the logits `predict(hidden)`.

    Where these are many, they are computed for some of the steps at a time, and once more for the gradient.
    """
    b, s, k = steps.targets.shape
    codes = jax.eval_shape(predict, hidden).shape[-1]
    num_parts = min(s, -(-sharding.rows_per_device(b) * s * k * codes // _AT_ONCE))
    if num_parts == 1:
        return cross_entropy(predict(hidden), steps)[0]
    length = -(-s // num_parts)

    def cut(x: Array) -> Array:
        """Parts first; the padding at the end does not count."""
        whole = jnp.pad(x, [(0, num_parts * length - s if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(whole.reshape(b, num_parts, length, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def sums(part: tuple[Array, Steps]) -> Array:
        return cross_entropy(predict(part[0]), part[1])[0]

    return jnp.sum(jax.lax.map(sums, (cut(hidden), jax.tree.map(cut, steps))), axis=0)


def mean(
    sums: Float[Array, "k"], counts: Float[Array, "k"], weights: Sequence[float] | None = None
) -> Float[Array, ""]:
    """The mean over the codebooks, by `weights`, of `sums` of cross-entropies over `counts`.

    A codebook without a counted code adds nothing. All weigh alike where `weights` is None.
    """
    return jnp.average(sums / jnp.maximum(counts, 1.0), weights=None if weights is None else jnp.array(weights))
