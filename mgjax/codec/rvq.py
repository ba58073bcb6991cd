"""Residual vector quantisation (Défossez et al. 2022, section 3.2): each codebook quantizes the last one's residual."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def nearest(x: Float[Array, "b t d"], embed: Float[Array, "v d"]) -> Int[Array, "b t"]:
    """The index of the codeword nearest to each frame, in float32; the first of equals."""
    products = jnp.einsum("btd,vd->btv", x, embed, precision="highest", preferred_element_type=jnp.float32)
    return jnp.argmin(jnp.sum(jnp.square(embed), axis=-1)[None, None] - 2 * products, axis=-1).astype(jnp.int32)


def quantize(latents: Float[Array, "b t d"], embed: Float[Array, "k v d"]) -> Int[Array, "b t k"]:
    """The codes of `latents` by the codebooks in `embed`, the first ones of the codec or all; -1 where not finite."""

    def level(residual: Array, codebook: Array) -> tuple[Array, Array]:
        codes = nearest(residual, codebook)
        return residual - jnp.take(codebook, codes, axis=0), codes

    # NaN has a nearest codeword too; the last residual is then not finite.
    residual, codes = jax.lax.scan(level, latents.astype(jnp.float32), embed.astype(jnp.float32))
    return jnp.where(jnp.isfinite(residual).all(axis=-1, keepdims=True), jnp.moveaxis(codes, 0, -1), -1)


def dequantize(codes: Int[Array, "b t k"], embed: Float[Array, "n v d"]) -> Float[Array, "b t d"]:
    """The latents that `codes` stand for: the sum of a codeword of each of the first k codebooks."""
    _, v, d = embed.shape
    rows = codes + (jnp.arange(codes.shape[-1]) * v)[None, None]
    return jnp.sum(jnp.take(embed.reshape(-1, d), rows, axis=0), axis=2)
