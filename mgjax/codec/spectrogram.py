"""Short-time Fourier transforms and mel spectrograms that training takes gradients through.

The conventions are torchaudio's, which the published recipe was run with: a periodic Hann window, no padding but what
the caller adds, and division by the window's norm (its `normalized=True`).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from mgjax.devices import sharding

_EXACT = jax.lax.Precision.HIGHEST


def frames(x: Float[Array, "b n"], size: int) -> Float[Array, "b t {size}"]:
    """The windows of `size` samples that begin every quarter of `size`; what fills none at the end is dropped.

    They are put together from whole hops: gathering them by index would make the gradient a scatter.
    """
    hop = size // 4
    hops = x[:, : x.shape[1] // hop * hop].reshape(x.shape[0], -1, hop)
    count = hops.shape[1] - 3
    return jnp.concatenate([hops[:, i : i + count] for i in range(4)], axis=2)


def stft(x: Float[Array, "b n"], size: int) -> tuple[Float[Array, "b t f"], Float[Array, "b t f"]]:
    """Real and imaginary part of the spectrum at every quarter of a window of `size`; f is size / 2 + 1.

    As a matrix product, fast on accelerators; on CPU the fast transform takes a third of its time.
    """

    def product(x: Array) -> tuple[Array, Array]:
        spectrum = jnp.einsum("btn,nf->btf", x, jnp.asarray(_dft(size)), precision=_EXACT)
        return spectrum[..., : size // 2 + 1], spectrum[..., size // 2 + 1 :]

    def fast(x: Array) -> tuple[Array, Array]:
        spectrum = sharding.map_rows(jnp.fft.rfft, x * jnp.asarray(window(size))[None, None])
        return jnp.real(spectrum), jnp.imag(spectrum)

    return jax.lax.platform_dependent(frames(x, size), cpu=fast, default=product)


@functools.cache
def window(size: int) -> Float32[np.ndarray, " {size}"]:
    """A periodic Hann window, divided by its norm."""
    values = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return (values / np.sqrt(np.sum(values**2))).astype(np.float32)


@functools.cache
def _dft(size: int) -> Float32[np.ndarray, "{size} {size+2}"]:
    """The windowed cosines of each frequency, then the negative sines."""
    turns = np.arange(size)[:, None] * np.arange(size // 2 + 1)[None] % size / size
    waves = np.concatenate([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=1)
    return (waves * window(size).astype(np.float64)[:, None]).astype(np.float32)


@functools.cache
def mel_filters(sample_rate: int, size: int, num_mels: int, f_min: float) -> Float32[np.ndarray, "f {num_mels}"]:
    """Triangles of height 1, evenly spaced in mels from `f_min` hertz to half the sample rate (HTK's formula).

    These are torchaudio's defaults: `mel_scale="htk"`, `norm=None`. Windows of few samples leave low filters empty.
    """

    def mels(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    edges = np.linspace(mels(f_min), mels(sample_rate / 2), num_mels + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)
    hertz = np.linspace(0, sample_rate / 2, size // 2 + 1)[:, None]
    rising = (hertz - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None]
    falling = (edges[None, 2:] - hertz) / (edges[2:] - edges[1:-1])[None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def mel_spectrogram(
    audio: Float[Array, "b n c"], sample_rate: int, size: int, num_mels: int, f_min: float
) -> Float[Array, "r t {num_mels}"]:
    """The power in each mel band, of every channel (r is b * c), ceil(n / (size / 4)) frames.

    The ends are mirrored by 3/8 of a window, and zeros fill up the last hop.
    """
    hop = size // 4
    rows = jnp.moveaxis(audio, 2, 1).reshape(-1, audio.shape[1]).astype(jnp.float32)
    padding = (size - hop) // 2
    rows = jnp.pad(rows, ((0, 0), (padding, padding)), mode="reflect")
    count = math.ceil(audio.shape[1] / hop)
    rows = jnp.pad(rows, ((0, 0), (0, (count + 3) * hop - rows.shape[1])))
    real, imaginary = stft(rows, size)
    filters = jnp.asarray(mel_filters(sample_rate, size, num_mels, f_min))
    return jnp.einsum("rtf,fm->rtm", jnp.square(real) + jnp.square(imaginary), filters, precision=_EXACT)
