"""Decoding as one compiled program: draw codes step by step, a chunk of steps per call, nothing else on the host.

The sampler knows patterns only as tables: which codes it is free to draw at each step. What stands elsewhere (special
tokens, the prompt) is laid down before it starts and never overwritten.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int, Key

from mgjax.config.model import Sampling
from mgjax.lm.model import LM, Cache, Context

# Lengths that caches come in. Decoding reads the whole cache at every step, so it starts short and grows; each length
# is compiled once.
CAPACITIES = (256, 512, 1024, 1536)

_NEVER = 2**31 - 1
_GREEDY = 1e-6  # a temperature at which nothing but the likeliest code has a chance


@struct.dataclass
class Draws:
    """The numbers of `Sampling` that are about drawing, for each row of a batch, and each row's random key."""

    temperature: Float[Array, "b k"]
    top_k: Int[Array, "b"]
    top_p: Float[Array, "b"]
    key: Key[Array, "b"]

    @classmethod
    def of(cls, samplings: Sequence[Sampling], seeds: Sequence[int], num_codebooks: int) -> Draws:
        """Each row's sampling, and a key from each row's own seed."""
        temperatures = [np.broadcast_to(sampling.temperature, num_codebooks) for sampling in samplings]
        return cls(
            temperature=jnp.asarray(np.stack(temperatures), jnp.float32),
            top_k=jnp.asarray([sampling.top_k for sampling in samplings], jnp.int32),
            top_p=jnp.asarray([sampling.top_p for sampling in samplings], jnp.float32),
            key=jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)),
        )


@struct.dataclass
class State:
    """A sequence while it is being made.

    Attributes:
      tokens: What is known so far, laid out in steps; its length is the capacity, not the length of the music.
      cache: Keys and values of the steps that have been read. With guidance, the rows of the first b are those of the
        full conditions, then come those of lesser ones.
      step: The last step whose tokens are known, and the next to be read.
      bad: The first step of each row that was drawn from logits that are not all finite; `_NEVER` for none.
    """

    tokens: Int[Array, "b s k"]
    cache: Cache
    step: Int[Array, ""]
    bad: Int[Array, "b"]


class Layout(NamedTuple):
    """How a state lies over many devices."""

    tokens: Sharding
    cache: Sharding


def capacity_for(num_steps: int) -> int:
    """The smallest cache that holds `num_steps` steps."""
    for capacity in CAPACITIES:
        if num_steps <= capacity:
            return capacity
    return -(-num_steps // CAPACITIES[-1]) * CAPACITIES[-1]


@functools.partial(jax.jit, static_argnames=("module", "num_read", "layout"), donate_argnames=("tokens",))
def start(
    module: LM,
    params: dict,
    context: Context,
    tokens: Int[Array, "b s k"],
    step: Int[Array, ""],
    num_read: int,
    layout: Layout | None = None,
) -> State:
    """The state before `step` is read: the prefix and the first steps of `tokens` are in the cache.

    `num_read`, at least `step` and at most the capacity, is how many steps are read in one go. What it reads beyond
    `step` does no harm, because those slots are written again before any step may look at them.
    """
    cache = module.apply({"params": params}, context, tokens.shape[1], method="prefill")
    if num_read:
        rows = _rows(tokens[:, :num_read], context)
        _, cache = module.apply({"params": params}, rows, context, cache, 0, method="decode")
    return _laid_out(State(tokens, cache, step, jnp.full(len(tokens), _NEVER, jnp.int32)), layout)


@functools.partial(jax.jit, static_argnames=("module", "layout"), donate_argnames=("state",))
def advance(
    module: LM,
    params: dict,
    context: Context,
    state: State,
    free: Bool[Array, "s k"],
    draws: Draws,
    strengths: Float[Array, "s r b"],
    until: Int[Array, ""],
    clock: Int[Array, ""],
    layout: Layout | None = None,
) -> State:
    """The state after drawing all steps up to `until`.

    Args:
      free: Which codes of each step are drawn; the others keep what `state.tokens` holds.
      strengths: Of guidance at each step; see `guide`.
      until: The last step to draw, below the capacity.
      clock: The time of step 0: random numbers are drawn by time, which goes on from window to window.
    """

    def one_step(state: State) -> State:
        tokens = jax.lax.dynamic_slice_in_dim(state.tokens, state.step, 1, axis=1)
        rows = _rows(tokens, context)
        logits, cache = module.apply({"params": params}, rows, context, state.cache, state.step, method="decode")
        step = state.step + 1
        # Seen here, before guidance and top-k can hide it.
        finite = jnp.isfinite(logits).all(axis=(1, 2, 3)).reshape(-1, len(tokens)).all(axis=0)
        bad = jnp.where(finite, state.bad, jnp.minimum(state.bad, step))
        at_step = jax.lax.dynamic_index_in_dim(strengths, step, keepdims=False)
        drawn = draw(guide(logits[:, 0], at_step), draws, step + clock)
        given = jax.lax.dynamic_slice_in_dim(state.tokens, step, 1, axis=1)
        may_draw = jax.lax.dynamic_slice_in_dim(free, step, 1, axis=0)[None]
        tokens = jnp.where(may_draw, drawn[:, None], given)
        return State(jax.lax.dynamic_update_slice_in_dim(state.tokens, tokens, step, axis=1), cache, step, bad)

    return _laid_out(jax.lax.while_loop(lambda state: state.step < until, one_step, state), layout)


@functools.partial(jax.jit, static_argnames="layout")
def grow(state: State, tokens: Int[Array, "b s k"], layout: Layout | None = None) -> State:
    """The same state with `tokens`, which are more than it had, and a cache that has room for them."""
    more = tokens.shape[1] - state.tokens.shape[1]
    return _laid_out(state.replace(tokens=tokens, cache=state.cache.grown(more)), layout)


def _laid_out(state: State, layout: Layout | None) -> State:
    """The state where it belongs: left alone, XLA may keep a whole cache on every device."""
    if layout is None:
        return state
    place = jax.lax.with_sharding_constraint
    cache = jax.tree.map(lambda memory: place(memory, layout.cache), state.cache)
    return state.replace(tokens=place(state.tokens, layout.tokens), cache=cache)


def guide(logits: Float[Array, "rows k v"], strengths: Float[Array, "r b"]) -> Float[Array, "b k v"]:
    """Logits that go from lesser conditions through fuller ones, and beyond.

    With one strength this is classifier-free guidance (Ho & Salimans 2022, equation 6), with two the double guidance of
    Rouard et al. 2024 (section 3.3).

    Args:
      logits: Of b rows with all conditions, of the same with fewer of them, and so on to those with none.
      strengths: Of the step to all conditions from those next to them, ..., to the first from the last. 1 leaves the
        fuller ones as they are.
    """
    guided, *lesser = jnp.split(logits, len(strengths) + 1)
    for base, strength in zip(lesser, strengths, strict=True):
        guided = base + strength[:, None, None] * (guided - base)
    return guided


def draw(logits: Float[Array, "b k v"], draws: Draws, time: Int[Array, ""]) -> Int[Array, "b k"]:
    """One code for each codebook of each row.

    Each row draws from its own key and the time alone, so that it does not depend on its batch. Codes that tie with
    the last one kept by top-k or top-p are kept too.
    """
    temperature = draws.temperature[:, :, None]
    random = temperature > _GREEDY
    scaled = logits / jnp.where(random, temperature, 1.0)
    lowest = _threshold(scaled, draws.top_k[:, None, None], draws.top_p[:, None, None])
    kept = jnp.where(scaled >= lowest, scaled, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, time), logits.shape[1:]))(draws.key)
    noisy = jnp.where(random, kept + noise, logits)
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def _threshold(logits: Float[Array, "b k v"], top_k: Int[Array, "b 1 1"], top_p: Float[Array, "b 1 1"]) -> Array:
    """The logit of the least likely code that may be drawn."""
    num_codes = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    by_count = jnp.where(top_k > 0, jnp.minimum(top_k, num_codes), num_codes)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A code stays while the likelier ones together hold at most top_p; the likeliest always stays.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    by_mass = jnp.maximum(jnp.sum(before <= top_p, axis=-1, keepdims=True), 1)
    last = jnp.where(top_p > 0, by_mass, by_count) - 1
    return jnp.take_along_axis(ordered, jnp.broadcast_to(last, (*logits.shape[:-1], 1)), axis=-1)


def _rows(tokens: Int[Array, "b s k"], context: Context) -> Int[Array, "rows s k"]:
    """The tokens once for each row of the context: more than once with guidance."""
    copies = context.prefix_mask.shape[0] // tokens.shape[0]
    return jnp.concatenate([tokens] * copies) if copies > 1 else tokens
