"""The inputs of CLAP's audio tower: clips of ten seconds as log-mel spectrograms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from mgjax.config.conditioning import ClapAudioConfig
from mgjax.devices import sharding

_FLOOR = 1e-10  # of the power in a band: -100 dB
_OVERLAP = 10  # a clip's tenth: a second of ten


def clips(audio: Float[Array, "b n"], config: ClapAudioConfig) -> Float[Array, "p b clip"]:
    """Audio of any length as pieces of `config.seconds`.

    Shorter audio is repeated as often as it fits whole, then padded with zeros. Longer audio is cut into pieces that
    overlap by a tenth of a clip (a second); the last ends with the audio, and so may overlap by more.
    """
    n, size = audio.shape[1], config.num_samples
    if n == 0:
        raise ValueError("the audio is empty: CLAP needs at least one sample")
    if n <= size:
        repeated = jnp.tile(audio, (1, size // n))
        return jnp.pad(repeated, ((0, 0), (0, size - repeated.shape[1])))[None]
    starts = [*range(0, n - size, size - size // _OVERLAP), n - size]
    return jnp.stack([audio[:, start : start + size] for start in starts])


def log_mel(audio: Float[Array, "b n"], config: ClapAudioConfig) -> Float[Array, "b f m"]:
    """The power in each mel band in decibels, float32 [b, frames, mels], of mono audio at `config.sample_rate`.

    A frame is centred at every `hop_length`-th sample, with the ends mirrored. Audio shorter than `config.seconds` is
    repeated and padded (see `clips`), so there are always `1 + num_samples // hop_length` frames.

    The Fourier transform is float64, or float32 on TPUs, which lack it: there, bands far from a pure tone, where
    little but rounding is left, are off by up to 0.1 dB; those of noise are not.

    Raises:
      ValueError: The audio is empty, or longer than a clip.
    """
    if audio.shape[1] > config.num_samples:
        raise ValueError(
            f"a clip has at most {config.num_samples} samples ({config.seconds:g} seconds at {config.sample_rate} "
            f"hertz), got {audio.shape[1]}: use clips or embed_audio for longer audio"
        )
    size, hop = config.fft_size, config.hop_length
    whole = jnp.pad(clips(audio, config)[0].astype(jnp.float32), ((0, 0), (size // 2, size // 2)), mode="reflect")
    starts = np.arange(0, whole.shape[1] - size + 1, hop)
    frames = whole[:, starts[:, None] + np.arange(size)]
    power = sharding.map_rows(functools.partial(jax.lax.platform_dependent, tpu=_power, default=_exact_power), frames)
    filters = mel_filters(config.sample_rate, size, config.num_mels, config.lowest_hz, config.highest_hz)
    mels = jnp.einsum("btf,fm->btm", power, filters, precision="highest")
    return 10 * jnp.log10(jnp.maximum(mels, _FLOOR))


def _power(frames: Float[Array, "b t n"]) -> Float32[Array, "b t f"]:
    """The squared magnitude of each frequency, through a periodic Hann window."""
    size = frames.shape[2]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(frames.dtype)
    spectrum = jnp.fft.rfft(frames * window[None, None])
    return (jnp.square(spectrum.real) + jnp.square(spectrum.imag)).astype(jnp.float32)


def _exact_power(frames: Float[Array, "b t n"]) -> Float32[Array, "b t f"]:
    with jax.enable_x64(True):
        return _power(frames.astype(jnp.float64))


@functools.cache
def mel_filters(
    sample_rate: int, size: int, num_mels: int, lowest_hz: float, highest_hz: float
) -> Float32[np.ndarray, "f {num_mels}"]:
    """Triangles of area 1 in hertz, evenly spaced in mels by Slaney's scale.

    That scale is linear up to 1000 hertz (15 mels) and logarithmic above, 27 mels for each factor of 6.4.
    """

    def mels(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)

    mel_points = np.linspace(mels(lowest_hz), mels(highest_hz), num_mels + 2)
    edges = np.where(mel_points < 15, mel_points * 200 / 3, 1000 * 6.4 ** ((mel_points - 15) / 27))
    low, middle, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    hertz = np.linspace(0, sample_rate / 2, size // 2 + 1)[:, None]
    triangles = np.maximum(0, np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)))
    return (triangles * 2 / (high - low)).astype(np.float32)
