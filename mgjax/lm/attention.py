"""Attention of the language model: to cached keys and values, and of a whole sequence by the kernels of each platform.

Written out, the scores of a sequence of 1500 steps are the largest thing that a layer moves through memory; a kernel
never writes them down. Which kernel is used depends on the devices it is compiled for (`sharding.on_mesh`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mgjax.devices import sharding
from mgjax.kernels import cpu
from mgjax.lm.slots import Slots, numbers_and_scale, widened
from mgjax.nn import attention

Queries = Float[Array, "b s h e"]
Keys = Float[Array, "b h s e"]  # and values, head-major

ATTENDED = "attended"  # what `jax.checkpoint` calls the results of the TPU's kernel, which its gradient needs too

_BLOCK = 512  # steps that the TPU's kernel works on at once


def attend(query: Queries, key: Slots, value: Slots, mask: Bool[Array, "#b #h #s m"]) -> Queries:
    """Attention to keys and values, head-major, where `mask` is True."""
    keys, values = (jnp.swapaxes(widened(slots, query.dtype), 1, 2) for slots in (key, value))
    return attention(query, keys, values, mask=mask, scale=query.shape[-1] ** -0.5)


def attend_to_cache(
    query: Queries,
    key: Slots,
    value: Slots,
    first_slot: Int[Array, ""] | int,
    valid: Bool[Array, "b m"] | None,
) -> Queries:
    """Causal attention of the steps from `first_slot` on, which are in the cache, to it; `valid` is not padding."""

    def by_mask(query: Array, key: Slots, value: Slots) -> Array:
        return attend(query, key, value, causal_mask(first_slot, query.shape[1], key.shape[2], valid))

    return _one_step(query, key, value, valid, first_slot + 1, by_mask)


def attend_to_condition(query: Queries, key: Slots, value: Slots, mask: Bool[Array, "b m"]) -> Queries:
    """Attention to the vectors of a condition that are not padding; a row with none gets zeros."""

    def by_mask(query: Array, key: Slots, value: Slots) -> Array:
        return attend(query, key, value, mask[:, None, None, :])

    return _one_step(query, key, value, mask, key.shape[2], by_mask)


def _one_step(
    query: Queries,
    key: Slots,
    value: Slots,
    valid: Bool[Array, "b m"] | None,
    filled: Int[Array, ""] | int,
    by_mask: Callable[[Array, Slots, Slots], Array],
) -> Queries:
    """Attention of one step by the CPU's kernel, which reads the `filled` slots alone; `by_mask` where it cannot."""
    if query.shape[1] > 1 or key.dtype == jnp.float16 or not cpu.available():
        return by_mask(query, key, value)

    def by_kernel(query: Array, key: Slots, value: Slots) -> Array:
        (keys, key_scale), (values, value_scale) = numbers_and_scale(key), numbers_and_scale(value)
        y = cpu.attend(query[:, 0], keys, values, key_scale, value_scale, valid, filled)
        return y[:, None].astype(query.dtype)

    return jax.lax.platform_dependent(query, key, value, cpu=by_kernel, default=by_mask)


def causal_mask(
    first_slot: Int[Array, ""] | int, num_steps: int, num_slots: int, valid: Bool[Array, "b m"] | None
) -> Bool[Array, "#b 1 s m"]:
    """The mask of `num_steps` steps from `first_slot` on: each attends to its own slot and the valid ones before.

    `valid` is False for padding; None without padding.
    """
    mask = ((first_slot + jnp.arange(num_steps))[:, None] >= jnp.arange(num_slots)[None, :])[None, None]
    return mask if valid is None else mask & valid[:, None, None, :]


def attend_causally(query: Queries, key: Keys, value: Keys, valid: Bool[Array, "b s"] | None) -> Queries:
    """Causal self-attention of a whole sequence, in which `valid` is False for padding (None: no padding).

    In half precision by a kernel, where the platform has one; in float32 always written out. The results at padding are
    arbitrary.
    """
    by_kernel = query.dtype in (jnp.bfloat16, jnp.float16)
    if by_kernel and sharding.platform() == "tpu":
        return _splash(query, key, value, valid)
    if by_kernel and sharding.platform() == "gpu" and valid is None:  # a mask would be a table in memory to cuDNN
        return _cudnn(query, key, value)
    num_steps = query.shape[1]
    return attend(query, key, value, causal_mask(0, num_steps, num_steps, valid))


def _cudnn(query: Queries, key: Keys, value: Keys) -> Queries:
    key, value = (jnp.swapaxes(x, 1, 2) for x in (key, value))
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def _splash(query: Queries, key: Keys, value: Keys, valid: Bool[Array, "b s"] | None) -> Queries:
    """By the kernel of jax.experimental.pallas, which is for one row and wants whole blocks of steps.

    The steps that fill the last block come after all others, so that none attends to them. Padding is a segment of its
    own.
    """
    query = jnp.swapaxes(query, 1, 2) * query.shape[-1] ** -0.5
    num_steps = query.shape[2]
    block = min(_BLOCK, -(-num_steps // 128) * 128)
    missing = -num_steps % block

    def whole(x: Array) -> Array:
        return jnp.pad(x, [(0, missing if axis == 2 else 0) for axis in range(x.ndim)])

    operands = [whole(x) for x in (query, key, value)]
    if valid is not None:
        operands.append(jnp.pad(valid, ((0, 0), (0, missing)), constant_values=True))
    attended = sharding.map_rows_and_heads(_splash_rows(num_steps + missing, block), *operands)
    return jnp.swapaxes(attended[:, :, :num_steps], 1, 2)


def _splash_rows(num_steps: int, block: int) -> Callable[..., Array]:
    """The kernel of rows [b, h, s, e] that are on one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, use_fused_bwd_kernel=True
    )

    def rows(query: Array, key: Array, value: Array, valid: Array | None = None) -> Array:
        causal = masks.MultiHeadMask([masks.CausalMask((num_steps, num_steps))] * query.shape[1])
        kernel = splash.make_splash_mha(
            causal, block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=ATTENDED
        )
        if valid is None:
            return jax.vmap(kernel)(query, key, value)
        segments = valid.astype(jnp.int32)
        return jax.vmap(kernel)(query, key, value, splash.SegmentIds(segments, segments))

    return rows
