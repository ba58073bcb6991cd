"""How the KV cache stores keys and values: as arrays of a float type, or in fewer bits than they are computed in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int8, Shaped, UInt16


@struct.dataclass
class Int8Slots:
    """Keys or values in int8: each slot of each head is `numbers * scale`. It stands in the place of their array."""

    numbers: Int8[Array, "b h m e"]
    scale: Float[Array, "b h m 1"]  # float32

    @property
    def shape(self) -> tuple[int, ...]:
        """[b, h, m, e]."""
        return self.numbers.shape

    @property
    def dtype(self) -> jnp.dtype:
        """int8."""
        return self.numbers.dtype


# uint16 is the bits of bfloat16, of which XLA, on CPU, would convert the whole cache to write one slot.
Slots = Float[Array, "b h m e"] | UInt16[Array, "b h m e"] | Int8Slots


def empty(shape: tuple[int, int, int, int], dtype: Any) -> Slots:
    """Slots of zeros; `stored` would have XLA compute their scales while it compiles."""
    numbers = jnp.zeros(shape, dtype)
    return Int8Slots(numbers, jnp.zeros((*shape[:3], 1), jnp.float32)) if dtype == jnp.int8 else numbers


def stored(x: Float[Array, "b h m e"], dtype: Any) -> Slots:
    """Keys or values as the cache holds them, by the `dtype` of `Slots`.

    Int8 rounds to 127 steps of the largest number of each slot of each head.
    """
    if dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    if dtype != jnp.int8:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    # A number that is not finite makes the scale so, and with it the whole slot.
    return Int8Slots(jnp.rint(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)).astype(jnp.int8), scale)


def numbers_and_scale(slots: Slots) -> tuple[Shaped[Array, "b h m e"], Float[Array, "b h m 1"] | None]:
    """What is stored: the numbers, and the scale of each slot where they are int8."""
    return (slots.numbers, slots.scale) if isinstance(slots, Int8Slots) else (slots, None)


def widened(slots: Slots, dtype: Any) -> Float[Array, "b h m e"]:
    """The inverse of `stored`, in `dtype`."""
    if isinstance(slots, Int8Slots):
        slots = slots.numbers.astype(jnp.float32) * slots.scale
    elif slots.dtype == jnp.uint16:
        slots = jax.lax.bitcast_convert_type(slots, jnp.bfloat16)
    return slots.astype(dtype)
