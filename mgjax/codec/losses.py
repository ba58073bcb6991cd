"""The codec's losses (Défossez et al. 2022, section 3.4, as MusicGen's codecs were trained), and its measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.codec.spectrogram import mel_spectrogram
from mgjax.config.serialization import ranged
from mgjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The losses and their weights.

    All weights but `commitment` are those of the gradient balancer: shares of the gradient, whatever the losses'
    scales. A loss of weight 0 is left out.

    Attributes:
      adversarial: Weight of the adversarial loss of each family of discriminators.
      feature: Of feature matching in each family of discriminators.
      l1: Of the difference of the waveforms.
      mel: Of the difference of mel spectrograms at several resolutions.
      commitment: Of the distance of the latents from their codewords; outside the balancer.
      mel_sizes: Windows of the mel spectrograms, in samples.
      num_mels: Mel bands of each. Few for short windows and many for long ones (as in Kumar et al. 2023) tell harmonics
        from a buzz that has the same power in a wide band.
      f_min: Lowest frequency of the mel bands, in hertz.
      floor: What is added to a power before its logarithm is taken.
      balancer_decay: Of the moving average of the gradients' norms.
      total_norm: The norm that the balanced gradient of one row of the batch has on average.
    """

    adversarial: float = 4.0
    feature: float = 4.0
    l1: float = 0.1
    mel: float = 2.0
    commitment: float = 1.0
    mel_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    num_mels: tuple[int, ...] = (64, 64, 64, 64, 64)
    f_min: float = 64.0
    floor: float = 1e-5
    balancer_decay: float = 0.999
    total_norm: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.adversarial, self.feature, self.l1, self.mel)
        if min(*weights, self.commitment) < 0 or not any(weights):
            raise ConfigError(f"loss: weights must be 0 or above, and one of them above 0, got {self}")
        if not self.mel_sizes or any(size < 8 or size % 8 for size in self.mel_sizes):
            raise ConfigError(f"loss.mel_sizes must be multiples of 8 samples, got {self.mel_sizes}")
        ranged(self, "0 or above and below 1", "balancer_decay", "loss.")
        ranged(self, "above 0", "num_mels floor total_norm", "loss.")
        ranged(self, "0 or more", "f_min", "loss.")
        if len(self.num_mels) != len(self.mel_sizes):
            raise ConfigError(f"loss.num_mels must be one number for each of {self.mel_sizes}, got {self.num_mels}")


def waveform(generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]) -> Float[Array, ""]:
    """The mean absolute difference of the samples."""
    return jnp.mean(jnp.abs(generated - audio))


def mel(
    generated: Float[Array, "b n c"], audio: Float[Array, "b n c"], sample_rate: int, config: LossConfig
) -> Float[Array, ""]:
    """The difference of the mel spectrograms, averaged over `mel_sizes`.

    For each size it is the mean of the L1 distance of the powers and the squared distance of their decimal logarithms.
    """
    total = jnp.float32(0)
    for size, bands in zip(config.mel_sizes, config.num_mels, strict=True):
        ours, theirs = (mel_spectrogram(x, sample_rate, size, bands, config.f_min) for x in (generated, audio))
        total += jnp.mean(jnp.abs(ours - theirs))
        total += jnp.mean(jnp.square(jnp.log10(config.floor + ours) - jnp.log10(config.floor + theirs)))
    return total / (2 * len(config.mel_sizes))


def discriminator_hinge(real: Sequence[Float[Array, "..."]], fake: Sequence[Float[Array, "..."]]) -> Float[Array, ""]:
    """The discriminators' hinge loss, from their scores of real and generated audio: the mean over discriminators."""
    losses = [
        jnp.mean(jnp.maximum(1 - genuine, 0)) + jnp.mean(jnp.maximum(1 + generated, 0))
        for genuine, generated in zip(real, fake, strict=True)
    ]
    return _mean(losses)


def adversarial(fake: Sequence[Float[Array, "..."]]) -> Float[Array, ""]:
    """The generator's adversarial loss: minus the mean score of generated audio, over the discriminators."""
    return jnp.asarray(-sum(jnp.mean(scores) for scores in fake) / len(fake))


def feature_matching(
    real: Sequence[Sequence[Float[Array, "..."]]], fake: Sequence[Sequence[Float[Array, "..."]]]
) -> Float[Array, ""]:
    """The feature matching loss: the mean absolute difference over a discriminator's maps, then over discriminators.

    The paper divides each map's difference by the map's size; its published code does not, nor does this.
    """
    return _mean(
        [
            _mean([jnp.mean(jnp.abs(generated - genuine)) for genuine, generated in zip(*maps, strict=True)])
            for maps in zip(real, fake, strict=True)
        ]
    )


def _mean(losses: Sequence[Float[Array, ""]]) -> Float[Array, ""]:
    return jnp.asarray(sum(losses) / len(losses))


def si_snr(
    generated: Float[Array, "b n c"], audio: Float[Array, "b n c"], num_samples: Int[Array, " b"]
) -> Float[Array, " b"]:
    """The scale-invariant signal-to-noise ratio of each row in decibels (Le Roux et al. 2019); higher is better.

    Each channel counts alone, over its first `num_samples` samples, with its mean taken off.
    """
    counts = (jnp.arange(audio.shape[1])[None] < num_samples[:, None])[..., None]
    length = jnp.maximum(num_samples, 1)[:, None, None]

    def centred(x: Array) -> Array:
        x = jnp.where(counts, x.astype(jnp.float32), 0)
        return jnp.where(counts, x - jnp.sum(x, axis=1, keepdims=True) / length, 0)

    generated, audio = centred(generated), centred(audio)
    tiny = 1e-8
    scale = jnp.sum(generated * audio, axis=1, keepdims=True) / (jnp.sum(audio**2, axis=1, keepdims=True) + tiny)
    signal = jnp.sum((scale * audio) ** 2, axis=1)
    noise = jnp.sum((generated - scale * audio) ** 2, axis=1)
    return jnp.mean(10 * jnp.log10((signal + tiny) / (noise + tiny)), axis=1)


def mel_distance(
    generated: Float[Array, "b n c"], audio: Float[Array, "b n c"], num_samples: Int[Array, " b"], sample_rate: int
) -> Float[Array, " b"]:
    """The mean absolute difference of each row's log10 mel powers: 64 bands from 64 Hz, windows of 1024, floor 1e-5.

    Frames that begin at or after `num_samples` do not count. 0.1 is a difference of 1 dB.
    """
    b, _, c = audio.shape
    ours, theirs = (
        jnp.log10(1e-5 + mel_spectrogram(x, sample_rate, 1024, 64, 64.0)).reshape(b, c, -1, 64)
        for x in (generated, audio)
    )
    counts = jnp.arange(ours.shape[2])[None] * 256 < num_samples[:, None]
    difference = jnp.mean(jnp.abs(ours - theirs), axis=(1, 3))
    return jnp.sum(difference * counts, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1)
