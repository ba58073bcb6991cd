"""The losses and measures against torch and numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from mgjax.codec import losses, spectrogram
from mgjax.codec.losses import LossConfig
from mgjax.config.serialization import ConfigError
from mgjax.devices import sharding

_RATE = 16_000


def _pair(num_samples=4_001, channels=1):
    rng = np.random.default_rng(0)
    audio = 0.3 * rng.standard_normal((2, num_samples, channels))
    return _arrays([audio + 0.1 * rng.standard_normal(audio.shape), audio])


def _arrays(arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def _torch(array):
    return torch.tensor(np.asarray(array, np.float64))


@functools.cache
def _filters(size, bands=64):
    # Windows of few samples leave filters empty, which transformers warns of.
    with pytest.warns(UserWarning, match="zero values") if size < 512 else pytest.MonkeyPatch.context():
        return torch.tensor(mel_filter_bank(size // 2 + 1, bands, 64.0, _RATE / 2, _RATE, norm=None, mel_scale="htk"))


def _torch_mel(audio, size, bands=64):
    """Powers [rows, frames, mels] of [b, n, c], as torchaudio's MelSpectrogram(normalized=True) gives them."""
    hop = size // 4
    rows = audio.transpose(1, 2).flatten(0, 1)
    padded = torch.nn.functional.pad(rows[:, None], ((size - hop) // 2,) * 2, mode="reflect")[:, 0]
    frames = -(-rows.shape[1] // hop)
    padded = torch.nn.functional.pad(padded, (0, (frames - 1) * hop + size - padded.shape[1]))
    window = torch.hann_window(size, dtype=torch.float64)
    spectrum = torch.stft(padded, size, hop, window=window, center=False, return_complex=True)
    power = (spectrum / window.square().sum().sqrt()).abs().square()
    return torch.einsum("rft,fm->rtm", power, _filters(size, bands))


@pytest.mark.parametrize("size", [64, 256, 1024])
@pytest.mark.parametrize("num_samples", [4_000, 4_001])
def test_mel_spectrograms_are_those_of_torch(size, num_samples):
    audio, _ = _pair(num_samples, channels=2)
    ours = jax.jit(lambda x: spectrogram.mel_spectrogram(x, _RATE, size, 64, 64.0))(audio)
    theirs = _torch_mel(_torch(audio), size).numpy()
    assert ours.shape == theirs.shape == (4, -(-num_samples // (size // 4)), 64)
    assert np.abs(ours - theirs).max() < 1e-5 * theirs.max()


def test_filters_are_those_of_transformers():
    for size in (64, 512, 2048):
        ours = spectrogram.mel_filters(_RATE, size, 64, 64.0)
        np.testing.assert_allclose(ours, _filters(size).numpy(), atol=1e-6)


def test_the_mel_loss_and_its_gradient_are_those_of_torch():
    config = LossConfig(mel_sizes=(64, 512), num_mels=(48, 64))
    generated, audio = _pair(1_500)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: losses.mel(x, audio, _RATE, config)))(generated)

    x, y = _torch(generated).requires_grad_(), _torch(audio)
    total = 0
    for size, bands in zip(config.mel_sizes, config.num_mels, strict=True):
        ours, theirs = _torch_mel(x, size, bands), _torch_mel(y, size, bands)
        total += (ours - theirs).abs().mean()
        total += ((1e-5 + ours).log10() - (1e-5 + theirs).log10()).square().mean()
    total = total / 4
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)
    error = np.linalg.norm(gradient - x.grad.numpy()) / np.linalg.norm(x.grad.numpy())
    assert error < 1e-4


def test_adversarial_and_feature_losses():
    rng = np.random.default_rng(0)
    real, fake = ([rng.standard_normal((2, n, 3)) for n in (5, 8)] for _ in range(2))
    learned = np.mean([np.maximum(1 - r, 0).mean() + np.maximum(1 + f, 0).mean() for r, f in zip(real, fake)])  # noqa: B905
    assert float(losses.discriminator_hinge(*map(_arrays, (real, fake)))) == pytest.approx(learned, rel=1e-6)
    assert float(losses.adversarial(_arrays(fake))) == pytest.approx(-np.mean([f.mean() for f in fake]), rel=1e-6)

    maps = [[rng.standard_normal((2, n, 3)) for n in sizes] for sizes in ((5, 8, 4), (7,))]
    other = [[x + rng.standard_normal(x.shape) for x in each] for each in maps]
    expected = np.mean([np.mean([np.abs(x - y).mean() for x, y in zip(*both)]) for both in zip(maps, other)])  # noqa: B905
    found = losses.feature_matching([_arrays(each) for each in maps], [_arrays(each) for each in other])
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_si_snr_counts_the_music_alone():
    generated, audio = _pair(1_000, channels=2)
    lengths = jnp.array([1_000, 600])
    measure = jax.jit(losses.si_snr)
    found = measure(generated, audio, lengths)
    for row, length in enumerate(lengths):
        expected = []
        for channel in range(2):
            x, y = (np.asarray(a[row, :length, channel], np.float64) for a in (generated, audio))
            x, y = x - x.mean(), y - y.mean()
            target = (x @ y) / (y @ y) * y
            expected.append(10 * np.log10((target @ target) / ((x - target) @ (x - target))))
        assert float(found[row]) == pytest.approx(np.mean(expected), rel=1e-5)
    np.testing.assert_allclose(measure(3 * generated, audio, lengths), found, rtol=1e-5)
    noisy = generated.at[1, 600:].set(100)
    np.testing.assert_array_equal(measure(noisy, audio, lengths), found)
    assert np.all(np.isfinite(measure(generated, 0 * audio, lengths)))


def test_mel_distance():
    generated, audio = _pair(2_048)
    lengths = jnp.array([2_048, 1_024])
    measure = jax.jit(lambda x, y: losses.mel_distance(x, y, lengths, _RATE))
    found = measure(generated, audio)
    ours, theirs = (_torch_mel(_torch(x), 1024).numpy() for x in (generated, audio))
    apart = np.abs(np.log10(1e-5 + ours) - np.log10(1e-5 + theirs))
    assert float(found[0]) == pytest.approx(apart[0].mean(), rel=1e-5)
    assert float(found[1]) == pytest.approx(apart[1, :4].mean(), rel=1e-5)
    np.testing.assert_allclose(measure(audio, audio), [0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"l1": -1.0}, "0 or above"),
        ({"l1": 0.0, "mel": 0.0, "adversarial": 0.0, "feature": 0.0}, "one of them above 0"),
        ({"mel_sizes": (100,)}, "multiples of 8"),
        ({"mel_sizes": (64, 512)}, "one number for each of"),
        ({"balancer_decay": 1.0}, "below 1"),
        ({"floor": 0.0}, "above 0"),
    ],
)
def test_losses_without_meaning(values, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**values)


def test_each_device_transforms_its_own_rows():
    """XLA alone gathers the rows of all devices on each of them for a Fourier transform."""
    mesh = sharding.make_mesh(data=8)
    audio = np.random.default_rng(0).standard_normal((16, 256, 1)).astype(np.float32)
    spectrum = jax.jit(sharding.on_mesh(mesh, lambda x: spectrogram.mel_spectrogram(x, 8_000, 64, 8, 0.0)))
    found = spectrum.lower(sharding.place_rows(audio, mesh)).compile()
    assert "all-gather" not in found.as_text()
    # Measured: 0.
    alone = spectrogram.mel_spectrogram(jnp.asarray(audio), 8_000, 64, 8, 0.0)
    np.testing.assert_allclose(found(sharding.place_rows(audio, mesh)), alone, rtol=1e-5)
