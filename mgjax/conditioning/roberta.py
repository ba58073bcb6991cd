"""RoBERTa (Liu et al. 2019), the text tower of CLAP."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.config.conditioning import ClapTextConfig
from mgjax.nn import Dense, LayerNorm, attention

_normal = nn.initializers.normal(0.02)


class Roberta(nn.Module):
    """The pooled hidden state of the first token, float32 [b, d], of token ids [b, l] and the mask of valid ones.

    Positions count valid tokens from `pad_token + 1` on, and padding is never attended to, so a row does not depend on
    its length or on the other rows. All is float32.
    """

    config: ClapTextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b d"]:
        """The pooled hidden state of each row."""
        config = self.config
        longest = config.max_positions - config.pad_token - 1
        if ids.shape[1] > longest:
            raise ValueError(f"the text encoder reads at most {longest} tokens, got {ids.shape[1]}: cut the texts")
        words = nn.Embed(config.vocab_size, config.dim, embedding_init=_normal, name="embed")
        positions = nn.Embed(config.max_positions, config.dim, embedding_init=_normal, name="positions")
        token_type = self.param("token_type", _normal, (config.dim,))
        place = jnp.where(mask, jnp.cumsum(mask, axis=1), 0) + config.pad_token
        x = words(ids).astype(jnp.float32) + positions(place).astype(jnp.float32) + token_type[None, None]
        x = LayerNorm(config.norm_eps, name="embed_norm")(x)
        for i in range(config.num_layers):
            x = _Block(config, name=f"block{i}")(x, mask)
        pool = Dense((config.dim,), (config.dim,), True, name="pool")
        return jnp.tanh(pool(x[:, 0]))


class _Block(nn.Module):
    config: ClapTextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        eps = self.config.norm_eps
        x = LayerNorm(eps, name="attn_norm")(x + _SelfAttention(self.config, name="attn")(x, mask))
        return LayerNorm(eps, name="ffn_norm")(x + FeedForward(self.config.ffn_dim, name="ffn")(x))


class _SelfAttention(nn.Module):
    config: ClapTextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        d, h = self.config.dim, self.config.num_heads
        heads = (h, d // h)
        query, key, value = (Dense((d,), heads, True, name=name)(x) for name in ("query", "key", "value"))
        y = attention(query, key, value, mask=mask[:, None, None, :], scale=heads[1] ** -0.5)
        return Dense(heads, (d,), True, name="out")(y)


class FeedForward(nn.Module):
    """Two linear maps with an exact GELU between, as in both towers of CLAP and in HuBERT."""

    dim: int  # between the two

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """From x's width to `dim` and back."""
        y = Dense(x.shape[-1:], (self.dim,), True, name="up")(x)
        y = jax.nn.gelu(y, approximate=False)
        return Dense((self.dim,), x.shape[-1:], True, name="down")(y)
