"""The trained residual vector quantizer between a condition's encoder and the language model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def quantize(
    x: Float[Array, "b t d"], embed: Float[Array, "k v d"]
) -> tuple[Float32[Array, "b t d"], Float32[Array, "b t d"]]:
    """Quantizes vectors by the codebooks `embed`, each quantizing the residual of the last, in float32.

    Returns:
      The sum of the nearest codewords, and the residual that the last codebook leaves.
    """

    def level(carry: tuple[Array, Array], codebook: Array) -> tuple[tuple[Array, Array], None]:
        residual, total = carry
        products = jnp.einsum("btd,vd->btv", residual, codebook, precision="highest")
        distances = jnp.sum(jnp.square(codebook), axis=-1)[None, None] - 2 * products
        codewords = jnp.take(codebook, jnp.argmin(distances, axis=-1), axis=0)
        return (residual - codewords, total + codewords), None

    x = x.astype(jnp.float32)
    (residual, total), _ = jax.lax.scan(level, (x, jnp.zeros_like(x)), embed.astype(jnp.float32))
    return total, residual
