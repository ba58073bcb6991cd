"""What steers the music, whatever its kind: a sequence of vectors, and which of them are there."""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Bool, Float


@struct.dataclass
class Condition:
    """A batch of conditions, each a sequence of vectors, padded to one length.

    Attributes:
      tokens: What an encoder made of the text or the melody.
      mask: Where there is something. A row that is False everywhere is the null condition: the music is then free.
    """

    tokens: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]
