import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from mgjax.conditioning.clap_features import clips, log_mel, mel_filters
from mgjax.config.conditioning import ClapAudioConfig
from mgjax.config.serialization import ConfigError

PUBLISHED = ClapAudioConfig()
SMALL = ClapAudioConfig(
    sample_rate=16_000, fft_size=256, hop_length=160, num_mels=16, lowest_hz=0.0, highest_hz=8000.0, seconds=0.2,
    image_size=32, patch_size=2, window=4, depths=(1, 1), num_heads=(1, 1),
)  # fmt: skip


def extractor(config):
    made = transformers.ClapFeatureExtractor(
        feature_size=config.num_mels, sampling_rate=config.sample_rate, hop_length=config.hop_length,
        max_length_s=config.seconds, fft_window_size=config.fft_size, frequency_min=config.lowest_hz,
        frequency_max=config.highest_hz, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    made.nb_max_samples = config.num_samples
    return made


def expected(config, rows):
    features = extractor(config)(list(rows), sampling_rate=config.sample_rate, return_tensors="np")
    return features["input_features"][:, 0]


def test_equals_transformers():
    """Beside a tone the power is below what float32 transforms resolve: there they are wrong by 0.1 dB."""
    seconds = np.arange(480_000) / 48_000
    noise = np.random.default_rng(0).standard_normal(480_000)
    tone = np.sin(2 * np.pi * 441.3 * seconds)
    rows = np.float32([0.3 * noise, 0.9 * tone, 1e-5 * tone, 1e-6 * noise])
    got = np.asarray(jax.jit(log_mel, static_argnums=1)(rows, PUBLISHED))
    right = expected(PUBLISHED, rows)
    assert got.dtype == np.float32
    assert got.shape == (4, 1001, 64)
    assert right.min() == -100
    assert right.max() > 25
    errors = np.abs(got - right).max(axis=(1, 2))
    assert (errors < 1e-4).all(), errors  # measured 4e-6 (noise), 1.5e-5 (tones), 0 (all below -100 dB)


@pytest.mark.parametrize("length", [1, 100, 1500, 1601, 3199, 3200])
def test_short_clips_are_repeated_and_filled_up(length):
    rows = np.random.default_rng(length).standard_normal((2, length)).astype(np.float32)
    got = np.asarray(jax.jit(log_mel, static_argnums=1)(rows, SMALL))
    assert np.abs(got - expected(SMALL, rows)).max() < 1e-4  # measured 1.4e-6


def test_filters_equal_transformers():
    for config in (PUBLISHED, SMALL):
        sizes = (config.sample_rate, config.fft_size, config.num_mels, config.lowest_hz, config.highest_hz)
        assert np.abs(mel_filters(*sizes) - extractor(config).mel_filters_slaney).max() < 1e-8


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (3200, [0]),
        (3201, [0, 1]),
        (6080, [0, 2880]),
        (6081, [0, 2880, 2881]),
        (9000, [0, 2880, 5760, 5800]),
    ],
)
def test_long_audio_is_cut_into_overlapping_pieces(length, starts):
    audio = jnp.arange(2 * length, dtype=jnp.float32).reshape(2, length)
    pieces = clips(audio, SMALL)
    assert pieces.shape == (len(starts), 2, 3200)
    assert pieces[:, 0, 0].tolist() == starts
    assert pieces[:, 1, -1].tolist() == [length + start + 3199 for start in starts]


@pytest.mark.parametrize(("length", "message"), [(0, "empty"), (3201, "at most 3200 samples")])
def test_wrong_lengths(length, message):
    with pytest.raises(ValueError, match=message):
        log_mel(jnp.zeros((1, length)), SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mels": 100}, "multiple of num_mels"),
        ({"window": 16}, "not below the window of 16"),
        ({"patch_size": 3}, "even"),
        ({"depths": (2, 2)}, "one length"),
        ({"num_heads": (4, 8, 16, 5)}, "do not divide"),
        ({"highest_hz": 30_000.0}, "half the sample rate"),
        ({"seconds": 10.3}, "10.3 seconds do not fit"),
        ({"seconds": 0.01}, "0.01 seconds do not fit"),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(ConfigError, match=message):
        ClapAudioConfig(**changes)
