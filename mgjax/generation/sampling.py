"""Decoding as compiled programs: `prefill` fills the KV cache, `decode_steps` samples a chunk of steps per call.

The programs know patterns only as tables: which codes are sampled at each step. The other tokens (special tokens, the
audio prompt) are set before the first step and never overwritten.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Bool, Float, Int, Key

from mgjax.conditioning.condition import Condition
from mgjax.config.model import LMConfig, Sampling
from mgjax.devices import sharding
from mgjax.lm.model import LM, Cache, Context
from mgjax.nn import apply

# Cache capacities, in steps. Decoding reads the whole cache at every step, so it starts short and grows; each capacity
# is compiled once.
CAPACITIES = (256, 512, 1024, 1536)

_NEVER = 2**31 - 1
_GREEDY = 1e-6  # temperatures up to this are greedy


@struct.dataclass
class SamplingParams:
    """The sampling parameters and the random key of each row; guidance is apart, as a table over the steps."""

    temperature: Float[Array, "b k"]
    top_k: Int[Array, "b"]
    top_p: Float[Array, "b"]
    key: Key[Array, "b"]

    @classmethod
    def of(cls, samplings: Sequence[Sampling], seeds: Sequence[int], num_codebooks: int) -> SamplingParams:
        """Stacks the settings of the rows, with a key from each row's own seed."""
        temperatures = [np.broadcast_to(sampling.temperature, num_codebooks) for sampling in samplings]
        # Put by device_put: jnp.asarray compiles a program for each shape.
        return cls(
            temperature=jax.device_put(np.array(temperatures, np.float32)),
            top_k=jax.device_put(np.array([sampling.top_k for sampling in samplings], np.int32)),
            top_p=jax.device_put(np.array([sampling.top_p for sampling in samplings], np.float32)),
            key=jax.vmap(jax.random.key)(np.array(seeds, np.uint32)),
        )


@struct.dataclass
class DecodeState:
    """The state of decoding between two calls of the compiled programs."""

    tokens: Int[Array, "b s k"]  # the interleaved sequence so far; s is the cache capacity, not the length of the music
    cache: Cache  # of the steps that have been read; with guidance, of the rows of `guide` in their order
    step: Int[Array, ""]  # the last one whose tokens are known, and the next to be read
    non_finite_step: Int[Array, "b"]  # the first that was sampled from logits not all finite; `_NEVER` for none


class StateShardings(NamedTuple):
    """The shardings of a `DecodeState` over a device mesh."""

    tokens: Sharding
    cache: Sharding


def state_shardings(config: LMConfig, batch: int, num_sets: int, mesh: Mesh) -> StateShardings:
    """The shardings of the decode state of `batch` pieces, each with `num_sets` rows: more than one with guidance."""
    return StateShardings(sharding.rows(batch, mesh), sharding.cache(num_sets * batch, config.num_heads, mesh))


def capacity_for(num_steps: int) -> int:
    """The smallest cache capacity that holds `num_steps` steps."""
    for capacity in CAPACITIES:
        if num_steps <= capacity:
            return capacity
    return -(-num_steps // CAPACITIES[-1]) * CAPACITIES[-1]


@functools.partial(jax.jit, static_argnames=("module", "batch"))
def make_context(module: LM, params: dict[str, Any], conditions: dict[str, Condition], batch: int) -> Context:
    """The conditions of `batch` rows, guidance's included, projected to the language model's width."""
    return apply(module, {"params": params}, conditions, batch=batch, method="context")


def placed_context(
    module: LM, params: dict[str, Any], conditions: dict[str, Condition], batch: int, mesh: Mesh | None
) -> Context:
    """`make_context` of conditions that are first put on the devices, spread by rows over the mesh if there is one."""

    def place(x: Any) -> Any:
        if mesh is None:
            return jax.device_put(x)
        return jax.device_put(x, sharding.rows(x.shape[0], mesh)) if np.ndim(x) else x

    return make_context(module, params, jax.tree.map(place, conditions), batch)


@functools.partial(jax.jit, static_argnames=("module", "num_read", "shardings"), donate_argnames=("tokens",))
def prefill(
    module: LM,
    params: dict[str, Any],
    context: Context,
    tokens: Int[Array, "b s k"],
    step: Int[Array, ""],
    num_read: int,
    shardings: StateShardings | None = None,
) -> DecodeState:
    """The state before `step` is read: the prefix and the first steps of `tokens` are in the cache.

    `num_read`, at least `step` and at most the capacity, is how many steps are read at once. Those from `step` on do no
    harm, because their slots are written again before any step may attend to them.
    """
    variables = {"params": params}
    cache = apply(module, variables, context, tokens.shape[1], method="prefill")
    if num_read:
        _, cache = apply(module, variables, _rows(tokens[:, :num_read], context), context, cache, 0, method="decode")
    return _constrained(DecodeState(tokens, cache, step, jnp.full(len(tokens), _NEVER, jnp.int32)), shardings)


@functools.partial(jax.jit, static_argnames=("module", "shardings"), donate_argnames=("state",))
def decode_steps(
    module: LM,
    params: dict[str, Any],
    context: Context,
    state: DecodeState,
    sampled: Bool[Array, "s k"],
    sampling: SamplingParams,
    guidance_scales: Float[Array, "s r b"],
    last_step: Int[Array, ""],
    clock: Int[Array, ""],
    shardings: StateShardings | None = None,
) -> DecodeState:
    """The state of b pieces after all steps up to `last_step`, which is below the capacity.

    `sampled` is which codes of each step are sampled, the others stay as in `state.tokens`. The guidance scales of a
    step are those of `guide`. `clock` is the time of step 0: random numbers are drawn by time, which continues from
    window to window.
    """

    def decode_step(state: DecodeState) -> DecodeState:
        tokens = jax.lax.dynamic_slice_in_dim(state.tokens, state.step, 1, axis=1)
        rows = _rows(tokens, context)
        logits, cache = apply(module, {"params": params}, rows, context, state.cache, state.step, method="decode")
        step = state.step + 1
        # Checked here, before guidance and top-k can hide it.
        finite = jnp.isfinite(logits).all(axis=(1, 2, 3)).reshape(-1, len(tokens)).all(axis=0)
        non_finite_step = jnp.where(finite, state.non_finite_step, jnp.minimum(state.non_finite_step, step))
        scales = jax.lax.dynamic_index_in_dim(guidance_scales, step, keepdims=False)
        codes = sample(guide(logits[:, 0], scales), sampling, step + clock)
        known = jax.lax.dynamic_slice_in_dim(state.tokens, step, 1, axis=1)
        is_sampled = jax.lax.dynamic_slice_in_dim(sampled, step, 1, axis=0)[None]
        tokens = jnp.where(is_sampled, codes[:, None], known)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, tokens, step, axis=1)
        return DecodeState(tokens, cache, step, non_finite_step)

    return _constrained(jax.lax.while_loop(lambda state: state.step < last_step, decode_step, state), shardings)


@functools.partial(jax.jit, static_argnames="shardings")
def grow(state: DecodeState, tokens: Int[Array, "b s k"], shardings: StateShardings | None = None) -> DecodeState:
    """The same state with `tokens`, longer than its own, and a cache of their capacity."""
    more = tokens.shape[1] - state.tokens.shape[1]
    return _constrained(dataclasses.replace(state, tokens=tokens, cache=state.cache.grown(more)), shardings)


def _constrained(state: DecodeState, shardings: StateShardings | None) -> DecodeState:
    """The state with its shardings: without them, XLA may keep a whole cache on every device."""
    if shardings is None:
        return state
    constrain = jax.lax.with_sharding_constraint
    cache = jax.tree.map(lambda slots: constrain(slots, shardings.cache), state.cache)
    return dataclasses.replace(state, tokens=constrain(state.tokens, shardings.tokens), cache=cache)


def guide(logits: Float[Array, "rows k v"], scales: Float[Array, "r b"]) -> Float[Array, "b k v"]:
    """Guided logits, from those of the conditional and the unconditional rows.

    With one scale this is classifier-free guidance (Ho & Salimans 2022, equation 6),
    `unconditional + scale * (conditional - unconditional)`; with two the double guidance of Rouard et al. 2024
    (section 3.3).

    The logits are of b rows with all conditions, of the same rows with fewer, and so on to the unconditional ones; the
    scales of the first b rows over the second ones, ..., last over the unconditional rows. 1 leaves the logits of the
    rows with more conditions as they are.
    """
    guided, *bases = jnp.split(logits, len(scales) + 1)
    for base, scale in zip(bases, scales, strict=True):
        guided = base + scale[:, None, None] * (guided - base)
    return guided


def sample(logits: Float[Array, "b k v"], sampling: SamplingParams, time: Int[Array, ""]) -> Int[Array, "b k"]:
    """Samples one code for each codebook of each row.

    The random numbers depend on the row's own key and the time alone, so that a row does not depend on its batch. Codes
    that tie with the last one kept by top-k or top-p are kept too.
    """
    temperature = sampling.temperature[:, :, None]
    random = temperature > _GREEDY
    scaled = logits / jnp.where(random, temperature, 1.0)
    kept = jnp.where(_kept(scaled, sampling.top_k[:, None, None], sampling.top_p[:, None, None]), scaled, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, time), logits.shape[1:]))(sampling.key)
    noisy = jnp.where(random, kept + noise, logits)
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def _kept(
    logits: Float[Array, "b k v"], top_k: Int[Array, "b 1 1"], top_p: Float[Array, "b 1 1"]
) -> Bool[Array, "b k v"]:
    """Which codes may be sampled: the `top_k` likeliest, or by `top_p`.

    With `top_p` a code stays while the likelier ones together hold at most that; the likeliest always stays. The least
    logit that is kept is found bit by bit, without sorting; on accelerators, which launch each, four bits at once and
    without a loop.
    """
    find = functools.partial(_kept_by_bits, logits, top_k, top_p)
    return jax.lax.platform_dependent(cpu=functools.partial(find, 1), default=functools.partial(find, 4))


def _kept_by_bits(
    logits: Float[Array, "b k v"], top_k: Int[Array, "b 1 1"], top_p: Float[Array, "b 1 1"], num_bits: int
) -> Bool[Array, "b k v"]:
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)  # -0.0 is 0.0
    ordered = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # as whole numbers in the logits' order
    probabilities = jax.nn.softmax(logits, axis=-1)
    count = jnp.where(top_k > 0, jnp.minimum(top_k, logits.shape[-1]), logits.shape[-1])
    digits = jnp.arange(1, 2**num_bits, dtype=jnp.uint32)[None, None]

    def add_digit(i: Array, lowest: Array) -> Array:
        shift = jnp.uint32(32 - num_bits) - jnp.uint32(num_bits) * i.astype(jnp.uint32)
        candidates = lowest | (digits << shift)
        above = ordered[:, :, None] >= candidates[..., None]
        enough = jnp.where(
            top_p > 0,
            jnp.sum(jnp.where(above, probabilities[:, :, None], 0), axis=-1) > top_p,
            jnp.sum(above, axis=-1) >= count,
        )
        digit = jnp.sum(enough, axis=-1, keepdims=True, dtype=jnp.uint32)  # smaller candidates are enough, too
        return lowest | (digit << shift)

    first = jnp.zeros((*logits.shape[:-1], 1), jnp.uint32)
    return ordered >= jax.lax.fori_loop(0, 32 // num_bits, add_digit, first, unroll=num_bits > 1)


def _rows(tokens: Int[Array, "b s k"], context: Context) -> Int[Array, "rows s k"]:
    """The tokens once for each row of the context: more than once with guidance."""
    copies = context.prefix_mask.shape[0] // tokens.shape[0]
    return jnp.concatenate([tokens] * copies) if copies > 1 else tokens
