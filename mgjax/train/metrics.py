"""What a run reports: numbers that are averaged over batches, and sounds to listen to."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@flax.struct.dataclass
class Mean:
    """A mean in two parts that can be summed over batches, so that rows count alike whatever batch they are in."""

    total: Float[Array, ""]
    count: Float[Array, ""]

    @classmethod
    def of(cls, values: Float[Array, "..."], where: Bool[Array, "..."] | None = None) -> Mean:
        """The mean of `values`, of those alone where `where` (of the same shape) is True."""
        if where is None:
            where = jnp.ones(values.shape, bool)
        total = jnp.sum(jnp.where(where, values.astype(jnp.float32), 0.0))
        return cls(total, jnp.sum(where, dtype=jnp.float32))

    def value(self) -> float | None:
        """The mean; None of nothing."""
        return float(self.total / self.count) if self.count > 0 else None


@flax.struct.dataclass
class CrossEntropy:
    """Cross-entropies in nats, summed over batches. The value is the mean over the codebooks of their means."""

    sums: Float[Array, " k"]
    counts: Float[Array, " k"]

    def value(self) -> float:
        return float(np.mean(self.sums / np.maximum(self.counts, 1.0)))


@flax.struct.dataclass
class Perplexity:
    """The exponential of a mean cross-entropy in nats, whose total and count are summed over batches."""

    total: Float[Array, ""]
    count: Float[Array, ""]

    def value(self) -> float | None:
        return float(np.exp(self.total / self.count)) if self.count > 0 else None


class Sound(NamedTuple):
    """Audio float32 [n, c] from -1 to 1, and its samples per second."""

    audio: Float[np.ndarray, "n c"]
    sample_rate: int
