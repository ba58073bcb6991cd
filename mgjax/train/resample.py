"""Resampling within a compiled step, for encoders of audio whose sample rate is not the codec's."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from jaxtyping import Array, Float, Float32

_ZERO_CROSSINGS = 32  # of the filter, on either side


def resampled(audio: Float[Array, "b n"], old: int, new: int) -> Float[Array, "b m"]:
    """Resamples mono audio from `old` to `new` hertz by a polyphase filter that leaves out what either cannot hold."""
    if old == new:
        return audio
    up, down = new // math.gcd(old, new), old // math.gcd(old, new)
    kernel = jnp.asarray(_kernel(up, down))
    half, n = len(kernel) // 2, audio.shape[1]
    m = -(-n * up // down)
    after = (m - 1) * down + half - (n - 1) * up
    y = jax.lax.conv_general_dilated(
        audio.astype(jnp.float32)[:, None],
        kernel[None, None],
        window_strides=(down,),
        padding=[(half, after)],
        lhs_dilation=(up,),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y[:, 0]


@functools.cache
def _kernel(up: int, down: int) -> Float32[np.ndarray, " k"]:
    """A low pass at 0.95 of the lower of the two Nyquist frequencies, a sinc in a Kaiser window of 80 dB."""
    wide = max(up, down)
    taps = scipy.signal.firwin(2 * _ZERO_CROSSINGS * wide + 1, 0.95 / wide, window=("kaiser", 8.0))
    return (up * taps).astype(np.float32)
