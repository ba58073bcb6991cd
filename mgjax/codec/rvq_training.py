"""Residual vector quantisation in training: codewords are moving averages of the frames that they code.

The codebooks are not trained by gradient (van den Oord et al. 2017, appendix A; Défossez et al. 2022, section 3.2).
All sums run over the whole batch: under `jax.jit` with rows on many devices these are sums over all devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mgjax.config.serialization import ranged
from mgjax.devices import sharding
from mgjax.nn import nearest

Codebooks = dict[str, Float[Array, "..."]]  # embed k v d, embed_avg k v d, cluster_size k v, inited k


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """How the codebooks learn.

    Attributes:
      decay: Of the moving averages.
      smoothing: Of the sizes of the clusters (Laplace), so that none is zero.
      kmeans_iterations: On the first batch, from frames drawn from it.
      dead_below: A code is dead that is used less than this share of an even use of all the codes; 0 for never. (The
        published threshold, two frames a batch, is above an even use where a batch has few frames: every code would
        be dead. There it did nothing, see `update`.)
      dropout: Each batch goes through a random number of codebooks, so that the first ones can be used alone.
    """

    decay: float = 0.99
    smoothing: float = 1e-5
    kmeans_iterations: int = 50
    dead_below: float = 0.1
    dropout: bool = False

    def __post_init__(self) -> None:
        ranged(self, "0 or above and below 1", "decay dead_below", "quantizer.")
        ranged(self, "above 0", "smoothing", "quantizer.")
        ranged(self, "0 or more", "kmeans_iterations", "quantizer.")


@struct.dataclass
class Quantized:
    """What `quantize` returns.

    The commitment loss is the mean squared distance of each codebook's input from its codeword, over those in use.
    """

    latents: Float[Array, "b t d"]  # the sum of the codewords; its gradient goes straight through, to the latents
    codes: Int[Array, "b t k"]  # of all codebooks, those too that this batch left out
    commitment: Float[Array, ""]
    codebooks: Codebooks  # for the next batch
    num_used: Int[Array, ""]  # codebooks that this batch went through


def quantize(
    latents: Float[Array, "b t d"], codebooks: Codebooks, key: PRNGKeyArray, config: QuantizerConfig
) -> Quantized:
    """Quantizes latents by the codebooks as they are, and updates the codebooks by them.

    Codebooks that are not initialised yet (`inited` is 0) are first initialised from the latents by k-means.
    """
    start_key, dropout_key, revive_key = jax.random.split(key, 3)
    latents = latents.astype(jnp.float32)
    codebooks = jax.lax.cond(
        jnp.all(codebooks["inited"] > 0),
        lambda: codebooks,
        lambda: initialize(jax.lax.stop_gradient(latents), codebooks, start_key, config),
    )
    num_codebooks = codebooks["inited"].shape[0]
    num_used = jnp.int32(num_codebooks)
    if config.dropout:
        num_used = jax.random.randint(dropout_key, (), 1, num_codebooks + 1)

    def level(
        carry: tuple[Array, Array, Array], inputs: tuple[Codebooks, Array, PRNGKeyArray]
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Codebooks]]:
        residual, total, loss = carry
        codebook, index, key = inputs
        fixed = jax.lax.stop_gradient(residual)
        embed = sharding.gathered("codebooks/embed", codebook["embed"])  # so that frames stay where they are
        codes = nearest(sharding.by_rows(fixed), embed)
        words = jnp.take(embed, codes, axis=0)
        learned = update(codebook, fixed.reshape(-1, fixed.shape[-1]), codes.reshape(-1), key, config)
        used = index < num_used
        learned = jax.tree.map(lambda new, old: jnp.where(used, new, old), learned, codebook)
        total += jnp.where(used, words, 0)
        loss += jnp.where(used, jnp.mean(jnp.square(residual - words)), 0)
        return (residual - words, total, loss), (codes, learned)

    keys = jax.random.split(revive_key, num_codebooks)
    (_, total, loss), (codes, learned) = jax.lax.scan(
        level, (latents, jnp.zeros_like(latents), jnp.float32(0)), (codebooks, jnp.arange(num_codebooks), keys)
    )
    through = latents + jax.lax.stop_gradient(total - latents)
    return Quantized(through, jnp.moveaxis(codes, 0, -1), loss / num_used, learned, num_used)


def update(
    codebook: Codebooks, x: Float[Array, "n d"], codes: Int[Array, " n"], key: PRNGKeyArray, config: QuantizerConfig
) -> Codebooks:
    """One codebook (its arrays without the leading k) after a batch in which the frames `x` got `codes`.

    A dead code takes a random frame of the batch, with the weight of an evenly used code in both moving averages: the
    next update keeps it, and it has time to be used. (In the original the averages stayed, and the next lines of the
    same update put the dead code back.)
    """
    size = codebook["embed"].shape[0]
    counts, sums = _gathered(x, codes, size)
    cluster_size = config.decay * codebook["cluster_size"] + (1 - config.decay) * counts
    embed_avg = config.decay * codebook["embed_avg"] + (1 - config.decay) * sums
    everything = jnp.sum(cluster_size)
    smoothed = (cluster_size + config.smoothing) / (everything + size * config.smoothing) * everything
    embed = embed_avg / smoothed[:, None]
    even = x.shape[0] / size
    dead = cluster_size < config.dead_below * even
    new_codewords = _draw(x, size, key)
    return {
        "embed": jnp.where(dead[:, None], new_codewords, embed),
        "embed_avg": jnp.where(dead[:, None], new_codewords * even, embed_avg),
        "cluster_size": jnp.where(dead, even, cluster_size),
        "inited": codebook["inited"],
    }


def initialize(
    latents: Float[Array, "b t d"], codebooks: Codebooks, key: PRNGKeyArray, config: QuantizerConfig
) -> Codebooks:
    """New codebooks by k-means of `latents`, each of the residual that those before it leave."""
    num_codebooks, size = codebooks["cluster_size"].shape

    def level(residual: Array, key: PRNGKeyArray) -> tuple[Array, Codebooks]:
        frames = residual.reshape(-1, residual.shape[-1])
        embed, counts = kmeans(frames, size, key, config.kmeans_iterations)
        words = jnp.take(embed, nearest(residual, embed), axis=0)
        average = embed * counts[:, None]
        codebook = {"embed": embed, "embed_avg": average, "cluster_size": counts, "inited": jnp.float32(1)}
        return residual - words, codebook

    return jax.lax.scan(level, latents, jax.random.split(key, num_codebooks))[1]


def kmeans(
    x: Float[Array, "n d"], size: int, key: PRNGKeyArray, iterations: int
) -> tuple[Float[Array, "{size} d"], Float[Array, " {size}"]]:
    """`size` centres of the points `x`, from points drawn among them, and how many points are nearest to each."""

    def assign(centres: Array) -> tuple[Array, Array]:
        return _gathered(x, nearest(x[None], centres)[0], size)

    def step(_: object, centres: Array) -> Array:
        counts, sums = assign(centres)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

    centres = jax.lax.fori_loop(0, iterations, step, _draw(x, size, key))
    return centres, assign(centres)[0]


def _gathered(
    x: Float[Array, "n d"], codes: Int[Array, " n"], size: int
) -> tuple[Float[Array, " {size}"], Float[Array, "{size} d"]]:
    """How many of the points have each code, and their sum."""
    members = jax.nn.one_hot(codes, size, dtype=jnp.float32)
    return jnp.sum(members, axis=0), jnp.einsum("nv,nd->vd", members, x, precision="highest")


def _draw(x: Float[Array, "n d"], size: int, key: PRNGKeyArray) -> Float[Array, "{size} d"]:
    """`size` points, all different where there are enough."""
    return jnp.take(x, jax.random.choice(key, x.shape[0], (size,), replace=x.shape[0] < size), axis=0)


def usage(counts: Float[Array, "k v"]) -> Float[Array, " k"]:
    """The share of each codebook's codes that occur at all."""
    return jnp.mean(counts > 0, axis=-1, dtype=jnp.float32)


def perplexity(counts: Float[Array, "k v"]) -> Float[Array, " k"]:
    """The exponential of the entropy of each codebook's codes: the number of codes if all were equally common."""
    shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=-1))


def histogram(codes: Int[Array, "b t k"], size: int) -> Float[Array, "k {size}"]:
    """How often each code of each codebook occurs."""
    return jnp.sum(jax.nn.one_hot(codes, size, dtype=jnp.float32), axis=(0, 1))
