"""Initialises a language model from the codec's codebooks: codes that sound alike are embedded and predicted alike.

Otherwise the embedding of each of thousands of codes is learned from that code alone, and most codes are rare. Here
embeddings and heads begin as random projections of the codec's codewords. The sum of a frame's embeddings is then, but
for the delays, a projection of the latent that the codec would decode.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def init_from_codebooks(params: dict[str, Any], codebooks: Float[Array, "k v c"], key: Array) -> dict[str, Any]:
    """New parameters of an LM, with embeddings and heads initialised from `codebooks`, one for each of the model's.

    The projected latents have variance 1, as large as the positions that they are added to; the codebooks have the
    shares of it that they have of the latents' variance. Added to them is the random embedding that each code had; the
    special token's stays. The heads of all codebooks keep their standard deviation, `dim` ** -0.5.
    """
    embedding = params["embed"]["embedding"]
    dim = embedding.shape[-1]
    centred = codebooks - jnp.mean(codebooks, axis=1, keepdims=True)
    variances = jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)

    embed_key, head_key = jax.random.split(key)
    width = codebooks.shape[-1]
    embed_projection = jax.random.normal(embed_key, (width, dim)) * (width * jnp.sum(variances)) ** -0.5
    head_projections = jax.random.normal(head_key, (codebooks.shape[0], width, dim)) * (width * dim) ** -0.5
    heads = jnp.einsum("kvc,kcd->dkv", centred * variances**-0.5, head_projections)
    return params | {
        "embed": {"embedding": embedding.at[:, :-1].add(centred @ embed_projection)},
        "head": params["head"] | {"kernel": heads},
    }
