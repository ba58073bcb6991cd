import functools
import importlib
import types

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import torch

from mgjax.conditioning import chroma
from mgjax.config.conditioning import MelodyConfig

PUBLISHED = MelodyConfig()
SMALL = MelodyConfig(sample_rate=8000, fft_size=1024, hop_length=256, bottleneck="none")


def tune(seconds, sample_rate, seed=0):
    """A melody of plucked tones over a little noise, `[n]`."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    sound = 0.01 * rng.standard_normal(len(time))
    for start in np.arange(0, seconds, 0.25):
        plucked = (time >= start) * np.exp(-8 * np.maximum(time - start, 0))
        sound += plucked * np.sin(2 * np.pi * 220 * 2 ** (rng.integers(24) / 12) * time)
    return sound.astype(np.float32)


def by_formula(audio, config):
    """The chromagram of `[n]` before the bottleneck, in float64, one frame after the other, with librosa's filters."""
    size, rows = config.fft_size, []
    if len(audio) < size:
        before = (size - len(audio)) // 2
        audio = np.pad(audio, (before, size - len(audio) - before))
    audio = np.pad(audio.astype(np.float64), size // 2, mode="reflect")
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(size) / size))
    bank = librosa.filters.chroma(
        sr=config.sample_rate, n_fft=size, tuning=0, n_chroma=config.num_bins, dtype=np.float64
    )
    for start in range(0, len(audio) - size + 1, config.hop_length):
        power = np.abs(np.fft.rfft(audio[start : start + size] * window) / np.sqrt(np.sum(window**2))) ** 2
        if config.bottleneck == "suppress":
            power[np.argmax(power)] = 0
        row = bank @ power
        rows.append(row / max(row.max(), 1e-6))
    rows = np.stack(rows)
    return np.eye(config.num_bins)[rows.argmax(axis=1)] if config.bottleneck == "dominant" else rows


@pytest.mark.parametrize(
    ("num_bins", "sample_rate", "size"),
    [(12, 32_000, 16_384), (8, 32_000, 16_384), (24, 44_100, 4096), (13, 16_000, 2048), (1, 8000, 512)],
)
def test_filters_are_those_of_librosa(num_bins, sample_rate, size):
    config = MelodyConfig(num_bins, sample_rate, size)
    expected = librosa.filters.chroma(sr=sample_rate, n_fft=size, tuning=0, n_chroma=num_bins)
    np.testing.assert_allclose(chroma.filters(config).T, expected, rtol=0, atol=1e-7)  # measured: equal


@pytest.mark.parametrize("bottleneck", ["none", "suppress", "dominant"])
@pytest.mark.parametrize(
    ("seconds", "num_bins"), [(4.0, 12), (4.0, 8), (0.3, 12)], ids=["12 bins", "8 bins", "less than a window"]
)
def test_the_chromagram_is_the_formula(bottleneck, seconds, num_bins):
    config = MelodyConfig(num_bins=num_bins, bottleneck=bottleneck)
    audio = np.stack([tune(seconds, config.sample_rate, seed) for seed in range(2)])
    found = chroma.chromagram(audio, config)
    assert found.shape == (2, chroma.length(audio.shape[1], config), num_bins)
    for row, sound in zip(found, audio, strict=True):
        expected = by_formula(sound, config)
        # measured: 1.2e-6 before the bottleneck, equal after it
        np.testing.assert_allclose(row, expected, rtol=0, atol=0 if bottleneck == "dominant" else 1e-4)


@pytest.mark.parametrize(("num_samples", "num_bins"), [(3001, 12), (16_385, 8), (960_000, 12)])
def test_as_the_feature_extractor_of_transformers(monkeypatch, num_samples, num_bins):
    """Whole, but for the spectrogram: torchaudio, which it takes that from, is not among the tests' needs.

    With torchaudio 2.11 itself the one-hot frames were equal too, for 8 and 12 bins and 3000 to 1,200,000 samples, and
    what comes before the bottleneck was within 2e-6.
    """
    module = importlib.import_module("transformers.models.musicgen_melody.feature_extraction_musicgen_melody")

    def spectrogram(n_fft, win_length, hop_length, power, center, pad, normalized):
        assert (win_length, power, center, pad, normalized) == (n_fft, 2, True, 0, True)
        window = torch.hann_window(n_fft)
        stft = functools.partial(torch.stft, n_fft=n_fft, hop_length=hop_length, window=window, return_complex=True)
        return lambda audio: (stft(audio).abs() / window.square().sum().sqrt()) ** 2

    transforms = types.SimpleNamespace(Spectrogram=spectrogram)
    monkeypatch.setattr(module, "torchaudio", types.SimpleNamespace(transforms=transforms), raising=False)
    extractor = module.MusicgenMelodyFeatureExtractor(num_chroma=num_bins, feature_size=num_bins)
    audio = tune(num_samples / 32_000, 32_000, seed=3)[None]
    expected = extractor(list(audio), sampling_rate=32_000, return_tensors="np")["input_features"]
    np.testing.assert_array_equal(chroma.chromagram(audio, MelodyConfig(num_bins=num_bins)), expected)


def test_pitch_classes_begin_at_c():
    time = np.arange(32_000) / 32_000
    scale = 440 * 2 ** ((np.arange(12) - 9) / 12)  # C to B
    found = chroma.chromagram(np.sin(2 * np.pi * scale[:, None] * time).astype(np.float32), PUBLISHED)
    np.testing.assert_array_equal(found, np.repeat(np.eye(12)[:, None], found.shape[1], axis=1))


def test_the_strongest_frequency_is_suppressed_and_no_other():
    bin_width = 8000 / 1024
    time = np.arange(8000) / 8000
    strong, weak = (np.sin(2 * np.pi * round(hertz / bin_width) * bin_width * time) for hertz in (440, 1760 * 1.26))
    audio = (strong + 0.1 * weak)[None].astype(np.float32)
    kept = np.asarray(chroma.chromagram(audio, SMALL))[:, 2:-3]
    suppressed = np.asarray(chroma.chromagram(audio, MelodyConfig(12, 8000, 1024, 256, bottleneck="suppress")))[:, 2:-3]
    assert (kept.argmax(axis=-1) == 9).all()  # A
    # What the Hann window spreads to the two neighbours, a quarter of the power each, is left of the strong tone.
    power = np.zeros(513)
    power[[55, 57]], power[round(1760 * 1.26 / bin_width)] = 0.25, 0.01
    power[round(1760 * 1.26 / bin_width) + np.array([-1, 1])] = 0.0025
    expected = chroma.filters(SMALL).T @ power
    np.testing.assert_allclose(suppressed, np.broadcast_to(expected / expected.max(), suppressed.shape), atol=1e-4)


def test_silence():
    silence = np.zeros((1, 20_000), np.float32)
    none = MelodyConfig(bottleneck="none", num_frames=5)
    np.testing.assert_array_equal(chroma.chromagram(silence, none), np.zeros((1, 5, 12)))
    dominant = MelodyConfig(num_frames=5)
    np.testing.assert_array_equal(chroma.chromagram(silence, dominant)[0], chroma.null(dominant))


def test_very_soft_music_is_not_scaled_up():
    audio = 1e-6 * tune(0.5, 8000)[None]
    found = chroma.chromagram(audio, SMALL)
    assert 0 < found.max() < 1e-2
    np.testing.assert_allclose(found[0], by_formula(audio[0], SMALL), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 5), (16_383, 5), (20_479, 5), (20_480, 6), (960_000, 235)])
def test_length(num_samples, expected):
    assert chroma.length(num_samples, PUBLISHED) == expected
    shape = jax.eval_shape(lambda a: chroma.chromagram(a, PUBLISHED), jnp.zeros((1, num_samples))).shape
    assert shape == (1, expected, 12)


def test_a_frame_does_not_depend_on_where_its_block_begins():
    audio = tune(5, 8000)[None]
    whole = np.asarray(chroma.chromagram(audio, SMALL))
    for skipped in (7, 40):
        rest = np.asarray(chroma.chromagram(audio[:, skipped * SMALL.hop_length :], SMALL))
        np.testing.assert_allclose(rest[:, 2:], whole[:, skipped + 2 :], rtol=0, atol=1e-6)  # measured: equal


def test_an_hour_takes_little_more_memory_than_its_audio():
    hour = jax.ShapeDtypeStruct((1, 3600 * 32_000), jnp.float32)
    memory = jax.jit(lambda audio: chroma.chromagram(audio, PUBLISHED)).lower(hour).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5 * 4 * hour.size  # measured: 1.01 times; 8 times with all frames at once


def test_repeated():
    frames = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    for array in (frames, jnp.asarray(frames)):
        longer = chroma.repeated(array, 7)
        assert isinstance(longer, type(array))
        np.testing.assert_array_equal(longer[0, :, 0], [0, 2, 4, 0, 2, 4, 0])
        np.testing.assert_array_equal(chroma.repeated(array, 2), frames[:, :2])


def test_null_is_the_first_pitch_class():
    null = chroma.null(MelodyConfig(num_bins=8, num_frames=3))
    np.testing.assert_array_equal(null, np.eye(8)[[0, 0, 0]])


def test_melodies_of_other_lengths_need_no_other_program():
    config = MelodyConfig(sample_rate=8000, fft_size=512, hop_length=256)
    before = chroma._frames._cache_size()
    for num_samples in (2000, 2001, 5000, 31 * 256):
        found = chroma.chromagram(np.ones((1, num_samples), np.float32), config)
        assert found.shape[1] == chroma.length(num_samples, config)
    assert chroma._frames._cache_size() == before + 1
