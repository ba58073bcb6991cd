"""What steers the music, whatever its kind: a sequence of vectors, and which of them are there."""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Bool, Float


@struct.dataclass
class Condition:
    """A batch of conditions, each a sequence of vectors, padded to one length.

    Attributes:
      tokens: What an encoder made of the text, the melody, ...
      mask: Where there is something. A row that is False everywhere is the null condition: the music is then free.
      attended: Where there is something to look at, if that is more than `mask`: the rest are zero vectors, as the
        published models see padding. None for `mask`.
      rate: Vectors per frame of codes, where the condition goes along with the music; None where it is about all.
    """

    tokens: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]
    attended: Bool[Array, "b l"] | None = None
    rate: Float[Array, ""] | float | None = None
