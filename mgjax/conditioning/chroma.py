"""The chromagram of a melody: how strong each pitch class is over time (Copet et al. 2023, section 2.3)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from mgjax.config.conditioning import MelodyConfig
from mgjax.devices import sharding
from mgjax.nn import AnyArray

_BLOCK = 32  # frames whose spectra are in memory at once
_LEAST = 1e-6  # a frame whose largest value is below this is not scaled up to 1
_EXACT = jax.lax.Precision.HIGHEST


def chromagram(audio: Float[AnyArray, "b n"], config: MelodyConfig) -> Float32[AnyArray, "b f {config.num_bins}"]:
    """The chromagram, float32 `[b, f, p]`, of mono audio `[b, n]` at `config.sample_rate`: f is `length(n, config)`.

    The power spectrum around every `hop_length`-th sample (a Hann window divided by its norm; the ends are mirrored),
    summed up in pitch classes by `filters`, and each frame divided by its largest value. Audio shorter than a window
    is padded with zeros at both ends. However long the audio is, few spectra are in memory at once.

    Of this, the bottleneck of `config` keeps:

    * "dominant": 1 for the strongest pitch class of each frame, the first of several, and 0 for the others. Silence
      becomes the first pitch class.
    * "suppress": all but the strongest frequency of each frame of the power spectrum, the first of several, which is
      set to 0 before pitch classes are summed up. Its neighbours stay, over which a window spreads a pure tone.
    * "none": all.
    """
    num_frames = length(audio.shape[1], config)
    xp = np if isinstance(audio, np.ndarray) else jnp
    size, missing = config.fft_size, max(0, config.fft_size - audio.shape[1])
    audio = xp.pad(audio.astype(np.float32), ((0, 0), (missing // 2, missing - missing // 2)))
    audio = xp.pad(audio, ((0, 0), (size // 2, size // 2)), mode="reflect")
    if xp is np:  # all lengths of so many blocks of frames share one program
        whole = size + config.hop_length * (-(-num_frames // _BLOCK) * _BLOCK - 1)
        audio = xp.pad(audio[:, :whole], ((0, 0), (0, max(0, whole - audio.shape[1]))))
    return xp.asarray(_frames(audio, config))[:, :num_frames]


@functools.partial(jax.jit, static_argnames="config")
def _frames(audio: Float32[Array, "b m"], config: MelodyConfig) -> Float32[Array, "b f {config.num_bins}"]:
    """The chromagram, in whole blocks of frames, of audio with which the first frame's window begins."""
    size, hop = config.fft_size, config.hop_length
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    window, weights = (hann / np.linalg.norm(hann)).astype(np.float32), jnp.asarray(filters(config))

    def block(starts: Array) -> Array:
        def frame(start: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(audio, start, size, axis=1)

        spectrum = sharding.map_rows(jnp.fft.rfft, jax.vmap(frame, out_axes=1)(starts) * window[None, None])
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        if config.bottleneck == "suppress":
            power = power * (1 - jax.nn.one_hot(jnp.argmax(power, axis=-1), power.shape[-1]))
        chroma = jnp.einsum("bfz,zp->bfp", power, weights, precision=_EXACT)
        return chroma / jnp.maximum(chroma.max(axis=-1, keepdims=True), _LEAST)

    # Frames that fill up the last block are read at the end of the audio, and are cut off later.
    num_blocks = -(-((audio.shape[1] - size) // hop + 1) // _BLOCK)
    starts = hop * jnp.arange(num_blocks * _BLOCK).reshape(num_blocks, _BLOCK)
    chroma = jnp.moveaxis(jax.lax.map(block, starts), 0, 1).reshape(audio.shape[0], -1, config.num_bins)
    if config.bottleneck == "dominant":
        return jax.nn.one_hot(jnp.argmax(chroma, axis=-1), config.num_bins)
    return chroma


def length(num_samples: int, config: MelodyConfig) -> int:
    """Frames of the chromagram of so many samples."""
    return max(num_samples, config.fft_size) // config.hop_length + 1


def repeated(chroma: Float[AnyArray, "b f p"], num_frames: int) -> Float[AnyArray, "b {num_frames} p"]:
    """`chroma` `[b, f, p]` with `num_frames` frames: its first ones, or all of them over and over."""
    return chroma[:, np.arange(num_frames) % chroma.shape[1]]


def null(config: MelodyConfig) -> Float32[np.ndarray, "{config.num_frames} {config.num_bins}"]:
    """The chromagram of silence, as the published models have it: the first pitch class all the time."""
    chroma = np.zeros((config.num_frames, config.num_bins), np.float32)
    chroma[:, 0] = 1
    return chroma


@functools.cache
def filters(config: MelodyConfig) -> Float32[np.ndarray, "z {config.num_bins}"]:
    """How much each frequency of the spectrum (z is fft_size / 2 + 1) counts to each pitch class.

    A bell around every tone of a pitch class, in equal temperament at 440 Hz, twice as narrow as the step from one to
    the next, or as that from one frequency to the next where this is wider. The squares of each frequency's weights
    have the sum 1, times a bell over octaves whose middle is 880 Hz. With 12, 24, ... pitch classes the first is C,
    with fewer than 12 it is A. These are the defaults of librosa.filters.chroma.
    """
    count, size = config.num_bins, config.fft_size
    octaves = np.log2(np.arange(1, size) * config.sample_rate / size / 27.5)  # above the lowest A of a piano
    octaves = np.append(octaves[0] - 1.5, octaves)  # 0 Hz lies nowhere: it is spread out, and far from the middle
    widths = np.append(np.maximum(np.diff(octaves) * count, 1), 1)
    half = round(count / 2)
    distances = (count * octaves[:, None] - np.arange(count) + half) % count - half
    weights = np.exp(-2 * (distances / widths[:, None]) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    weights *= np.exp(-0.5 * ((octaves[:, None] - 5) / 2) ** 2)
    return np.roll(weights, -3 * (count // 12), axis=1)[: size // 2 + 1].astype(np.float32)
