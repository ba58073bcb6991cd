"""The encoder of T5 (Raffel et al. 2020), which encodes prompts."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from mgjax.config.conditioning import T5Config
from mgjax.devices import sharding
from mgjax.nn import Dense, Initializer, RMSNorm, attention


class T5Encoder(nn.Module):
    """The encoder's last hidden states, float32 [b, l, d], of token ids [b, l] and the mask of valid ones.

    Padding (mask False) is never attended to, so a row does not depend on its length or on the other rows; the vectors
    at padding are finite but arbitrary. All is float32, because the published weights drive the residual stream
    beyond what float16 holds.

    New weights are drawn as in the code of the paper: smaller queries compensate for the missing division of the scores
    by sqrt(e).
    """

    config: T5Config

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """The last hidden states of l tokens."""
        config = self.config
        embed = nn.Embed(config.vocab_size, config.dim, embedding_init=nn.initializers.normal(1.0), name="embed")
        relative_bias = nn.Embed(
            config.num_buckets, config.num_heads, embedding_init=_normal(config.dim), name="relative_bias"
        )
        table = sharding.gathered("text/embed/embedding", embed.embedding)
        x = sharding.by_rows(jnp.take(table, ids, axis=0).astype(jnp.float32))
        # The bias of each head for each query (third axis) and key (fourth axis).
        position = jnp.arange(ids.shape[1])
        distance = position[None, :] - position[:, None] + ids.shape[1] - 1
        values = relative_bias(_buckets(ids.shape[1], config)).astype(jnp.float32)
        bias = jnp.transpose(values[distance], (2, 0, 1))[None]
        for i in range(config.num_layers):
            x = _Block(config, name=f"block{i}")(x, mask, bias)
        return RMSNorm(config.norm_eps, name="final_norm")(x)


class _Block(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"], bias: Float[Array, "1 h l l"]
    ) -> Float[Array, "b l d"]:
        eps = self.config.norm_eps
        x = sharding.by_rows(x)
        x = x + _SelfAttention(self.config, name="attn")(RMSNorm(eps, name="attn_norm")(x), mask, bias)
        return x + _FeedForward(self.config, name="ffn")(RMSNorm(eps, name="ffn_norm")(x))


class _SelfAttention(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"], bias: Float[Array, "1 h l l"]
    ) -> Float[Array, "b l d"]:
        d, h, e = self.config.dim, self.config.num_heads, self.config.head_dim
        query, key, value = (
            Dense((d,), (h, e), kernel_init=_normal(fan_in), name=name)(x)
            for name, fan_in in {"query": d * e, "key": d, "value": d}.items()
        )
        y = attention(query, key, value, mask=mask[:, None, None, :], bias=bias)  # T5 does not divide by sqrt(e)
        out_init = _normal(h * e)
        return Dense((h, e), (d,), kernel_init=out_init, name="out")(y)


class _FeedForward(nn.Module):
    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        d, f = self.config.dim, self.config.ffn_dim
        y = Dense((d,), (f,), kernel_init=_normal(d), name="up")(x)
        if self.config.activation == "gated-gelu":
            gate = Dense((d,), (f,), kernel_init=_normal(d), name="gate")
            y = y * jax.nn.gelu(gate(x), approximate=True)
        else:
            y = jax.nn.relu(y)
        return Dense((f,), (d,), kernel_init=_normal(f), name="down")(y)


def _normal(fan_in: int) -> Initializer:
    return nn.initializers.normal(fan_in**-0.5)


def _buckets(length: int, config: T5Config) -> Int32[np.ndarray, " distances"]:
    """The bucket of each distance from a query to a key, from `1 - length` to `length - 1`.

    Half of the buckets are for keys that come later. In each half the first half holds one distance each, the rest
    grow by a constant factor up to `max_distance`. Computed on the host in float32, as in training: another
    rounding of the logarithm would move distances at a boundary to another bucket.
    """
    distances = np.arange(1 - length, length)
    half = config.num_buckets // 2
    exact = half // 2
    far = np.maximum(np.abs(distances), exact).astype(np.float32)
    octaves = np.log(far / np.float32(exact)) / np.float32(math.log(config.max_distance / exact))
    far_bucket = np.minimum(exact + (octaves * np.float32(half - exact)).astype(np.int32), half - 1)
    bucket = np.where(np.abs(distances) < exact, np.abs(distances), far_bucket)
    return (bucket + np.where(distances > 0, half, 0)).astype(np.int32)
