"""Conditions, the inputs of the language model, built by one function for generation and training."""

from __future__ import annotations

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mgjax.config.model import ModelConfig


@struct.dataclass
class Condition:
    """One condition of a batch (text, melody, style, ...): a sequence of vectors for each row, padded to one length.

    Attributes:
      tokens: The vectors, in the width of the condition's encoder. They are arbitrary where `mask` is False: the
        language model projects all of them to its width, then zeroes these.
      mask: The valid mask, False at padding. A row that is False throughout is the null condition, as in the
        unconditional row of classifier-free guidance.
      attention_mask: The vectors that the language model attends to, where these include zero vectors in the place of
        padding or of a null condition. None for `mask`.
      rate: Vectors per frame of codes, of a condition that runs along with the music; None for one about all of it.
    """

    tokens: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]
    attention_mask: Bool[Array, "b l"] | None = None
    rate: Float[Array, ""] | float | None = None


def attends_to_null(model: ModelConfig, name: str) -> bool:
    """Whether a null condition of that name is attended to, as zero vectors, as in the published models.

    It is before the music (`fuse="prefix"`), where every vector moves the positions that follow; and so is that of
    styles. Elsewhere a null condition has no effect, and one that is null in every row can be left out.
    """
    fused, melody = model.lm.condition(name), model.melody
    is_prefix = fused is not None and fused.fuse == "prefix"
    is_silence = name == "melody" and melody is not None and melody.null == "silence"
    return name == "style" or (is_prefix and (name == "text" or is_silence))


def condition(
    model: ModelConfig,
    name: str,
    vectors: Float[Array, "b l d"] | Float[np.ndarray, "b l d"],
    mask: Bool[Array, "b l"] | Bool[np.ndarray, "b l"],
    *,
    null_length: Int[np.ndarray, " b"] | None = None,
    pad_to_longest: bool = False,
) -> Condition:
    """Builds a condition from its encoder's vectors and their mask, eagerly from numpy or within a compiled step.

    The valid vectors of texts come first in each row. `null_length` zero vectors, 1 or more, replace the condition in a
    row without one, where `attends_to_null`; None for those that the published models were trained with: one in the
    place of a text, and as many as fit in the place of a style or a melody, whose padding was attended to as well. With
    `pad_to_longest`, padding of texts and styles is attended to up to the longest row, as audiocraft does wherever the
    condition enters.
    """
    attention_mask = None
    if attends_to_null(model, name) or (pad_to_longest and name == "text"):
        lengths = mask.sum(axis=1)
        lengths = lengths + (1 if null_length is None else null_length) * (lengths == 0)
        if null_length is None and name != "text":
            lengths = 0 * lengths + mask.shape[1]
        if pad_to_longest:
            lengths = lengths.max(keepdims=True)
        attention_mask = mask | (np.arange(mask.shape[1])[None] < lengths[:, None])
    rate = None
    if name == "melody" and model.melody is not None:
        rate = model.melody.frame_rate / model.codec.frame_rate
    # Not by jnp.asarray, which compiles a program for each shape.
    return Condition(jax.device_put(vectors), jax.device_put(mask), jax.device_put(attention_mask), rate)
