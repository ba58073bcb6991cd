"""Metrics that are summed over batches, and sounds to listen to."""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@flax.struct.dataclass
class Mean:
    """A mean as a total and a count, which can be summed over batches so that all rows have equal weight."""

    total: Float[Array, ""]
    count: Float[Array, ""]

    @classmethod
    def of(cls, values: Float[Array, "..."], where: Bool[Array, "..."] | None = None) -> Mean:
        """The mean of `values`, or of those where the mask `where` (of the same shape) is True."""
        if where is None:
            where = jnp.ones(values.shape, bool)
        total = jnp.sum(jnp.where(where, values.astype(jnp.float32), 0.0))
        return cls(total, jnp.sum(where, dtype=jnp.float32))

    def value(self) -> float | None:
        """The mean; None if the count is 0."""
        return float(self.total / self.count) if self.count > 0 else None


@flax.struct.dataclass
class CrossEntropy:
    """Cross-entropies of the codebooks in nats, summed over batches."""

    sums: Float[Array, " k"]
    counts: Float[Array, " k"]

    def value(self) -> float:
        """The mean over the codebooks of their mean cross-entropies."""
        return float(np.mean(self.sums / np.maximum(self.counts, 1.0)))


@flax.struct.dataclass
class Perplexity(Mean):
    """The exponential of a mean cross-entropy in nats."""

    def value(self) -> float | None:
        """The perplexity; None if the count is 0."""
        mean = super().value()
        return None if mean is None else float(np.exp(mean))


class Sound(NamedTuple):
    """Audio float32 [n, c] from -1 to 1, and its sample rate in hertz."""

    audio: Float[np.ndarray, "n c"]
    sample_rate: int
