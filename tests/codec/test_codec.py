"""The codec against transformers' EncodecModel in every published form, and its behaviour at the edges."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from mgjax import NotFiniteError
from mgjax.codec import codec as codec_module
from mgjax.codec.chunks import Chunks
from mgjax.codec.codec import Codec
from mgjax.config.model import CodecConfig

_TOLERANCE = 1e-5  # measured: 2e-6, of a waveform with a standard deviation of 0.06 to 0.9


def _sound(num_samples, channels=1, batch=2):
    sound = np.random.default_rng(num_samples).standard_normal((batch, num_samples, channels)) * 0.3
    return sound.clip(-1, 1).astype(np.float32)


def _theirs(model, audio, bandwidth):
    """(codes [b, chunks, t, k], scales or None, waveform [b, n, c]) by transformers."""
    with torch.no_grad():
        made = model.encode(torch.tensor(np.moveaxis(audio, 2, 1)), bandwidth=bandwidth)
        back = model.decode(made.audio_codes, made.audio_scales, last_frame_pad_length=made.last_frame_pad_length)
    scales = torch.cat(made.audio_scales, 1).numpy() if model.config.normalize else None
    codes = made.audio_codes.numpy().transpose(1, 0, 3, 2).astype(np.int32)
    return codes, scales, np.moveaxis(back.audio_values.numpy(), 1, 2)


@pytest.mark.parametrize(
    ("form", "num_samples"),
    [("32khz", n) for n in (1, 100, 639, 640, 641, 32_001)]
    + [("16khz", n) for n in (319, 16_001)]
    + [("24khz", n) for n in (1, 319, 24_001)],
)
def test_codes_and_waveform_are_those_of_transformers(pair, form, num_samples):
    model, codec = pair(form)
    audio = _sound(num_samples)
    codes, _, waveform = _theirs(model, audio, codec.config.bandwidths[-1])
    ours = codec.encode(audio)
    assert ours.shape == (2, -(-num_samples // codec.hop_length), codec.num_codebooks)
    assert np.mean(ours == codes[:, 0]) >= 0.999  # measured: 1
    np.testing.assert_allclose(codec.decode(codes[:, 0]), waveform, atol=_TOLERANCE)


def test_a_bandwidth_uses_as_many_codebooks_as_fit(pair):
    model, codec = pair("24khz")
    assert [codec.config.codebooks_for(bandwidth) for bandwidth in (1.5, 3.0, 6.0, 12.0, 24.0)] == [2, 4, 8, 16, 32]
    audio = _sound(2_000)
    codes, _, waveform = _theirs(model, audio, 3.0)
    assert codes.shape == (2, 1, 7, 4)
    np.testing.assert_array_equal(codec.encode(audio, bandwidth=3.0), codes[:, 0])
    np.testing.assert_allclose(codec.decode(codes[:, 0]), waveform, atol=_TOLERANCE)


@pytest.mark.parametrize("num_samples", [1, 48_000, 50_000, 96_100])
def test_chunks_are_those_of_transformers(pair, num_samples):
    model, codec = pair("48khz")
    audio = _sound(num_samples, channels=2)
    codes, scales, waveform = _theirs(model, audio, 24.0)
    ours = codec.encode(audio)
    assert ours.num_samples == num_samples
    assert np.mean(ours.codes == codes) >= 0.999  # measured: 1
    np.testing.assert_allclose(ours.scales, scales, rtol=1e-6)  # measured: 1e-7
    back = codec.decode(Chunks(codes, scales, num_samples))
    np.testing.assert_allclose(back, waveform[:, :num_samples], atol=_TOLERANCE)


def test_chunks_where_the_second_last_is_short_too(pair):
    # 10 samples into the third chunk, the second is not full either; transformers cannot stack these.
    _, codec = pair("48khz")
    audio = _sound(2 * 47_520 + 10, channels=2)
    whole = codec.encode(audio)
    assert whole.codes.shape[1] == 3
    assert codec.decode(whole).shape == audio.shape
    pieces = list(codec.encode_blocks(np.split(audio, [7, 50_000, 95_043], axis=1)))
    np.testing.assert_array_equal(np.concatenate([piece.codes[:, 0, :149] for piece in pieces[:2]], axis=1),
                                  whole.codes[:, :2, :149].reshape(2, 298, 16))  # fmt: skip
    back = np.concatenate(list(codec.decode_blocks(pieces)), axis=1)
    np.testing.assert_array_equal(back, codec.decode(whole))


def test_left_and_right_by_a_mono_codec(pair):
    _, mono = pair("32khz")
    stereo = Codec(mono.folded_config, mono.variables, channels=2)
    audio = _sound(2_000, channels=2, batch=1)
    codes = stereo.encode(audio)
    assert codes.shape == (1, 4, 8) == (1, 4, stereo.num_codebooks)
    apart = np.moveaxis(audio, 2, 0)[:, 0, :, None]  # left and right as two rows
    np.testing.assert_array_equal(codes[0, :, 0::2], mono.encode(apart)[0])
    np.testing.assert_array_equal(codes[0, :, 1::2], mono.encode(apart)[1])
    np.testing.assert_array_equal(stereo.decode(codes)[0].T, mono.decode(mono.encode(apart))[..., 0])
    pieces = np.concatenate(list(stereo.decode_blocks([codes])), axis=1)
    np.testing.assert_allclose(pieces, stereo.decode(codes), atol=_TOLERANCE)


def test_audio_is_converted_to_the_codecs_channels_and_rate(pair):
    _, codec = pair("32khz")
    audio = _sound(2_000, channels=2)
    mono = audio.mean(axis=2, dtype=np.float32)
    np.testing.assert_array_equal(codec.encode(audio), codec.encode(mono[..., None]))
    assert codec.encode(audio, sample_rate=16_000).shape == (2, 7, 4)  # 4000 samples
    stereo = Codec(codec.folded_config, codec.variables, channels=2).encode(mono[0])
    assert stereo.shape == (1, 4, 8)
    np.testing.assert_array_equal(stereo[..., 0::2], stereo[..., 1::2])


def test_one_program_serves_many_lengths(pair):
    _, codec = pair("32khz")
    codec.decode(codec.encode(_sound(2)))
    before = codec_module._apply._cache_size()
    for num_samples in range(17, 8 * 640, 301):
        codec.decode(codec.encode(_sound(num_samples)))
    assert codec_module._apply._cache_size() == before


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((0,), np.float32), "no sound"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.zeros((1, 1, 10, 1)), r"expected \[samples\] or \[samples, channels\]"),
        (np.full(10, 9000.0), "a peak of 9000"),
        ([np.zeros(10), np.zeros(11)], r"of one length, got \[10, 11\] samples"),
        ([np.zeros(10), None], "array of numbers"),
        ("song.wav", "not the name of a file"),
    ],
)
def test_bad_audio(pair, audio, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pair("32khz")[1].encode(audio)


@pytest.mark.parametrize("rate", [2**63, 10**12, 0, -8000, 44_100.5, float("nan")])
def test_bad_rates(pair, rate):
    """Most of these would hang in native code."""
    with pytest.raises(ValueError, match="sample_rate must be a"):
        pair("32khz")[1].encode(_sound(10), sample_rate=rate)


def test_audio_comes_in_any_form(pair):
    _, codec = pair("32khz")
    audio = _sound(2_000, batch=1)[0]
    codes = codec.encode(audio)
    for form in (
        list(audio[:, 0]),
        [audio],
        torch.tensor(audio, requires_grad=True),
        (np.float64(audio)),
        np.stack([0 * audio, audio, audio], axis=1)[..., 0][:, 1:],
    ):
        np.testing.assert_array_equal(codec.encode(form), codes)
    np.testing.assert_array_equal(codec.encode(audio, sample_rate=32_000.0), codes)
    np.testing.assert_array_equal(codec.encode([audio, audio]), np.repeat(codes, 2, axis=0))
    surround = codec.encode_blocks(np.split(audio.repeat(6, axis=1)[None], [700, 1300], axis=1))
    with pytest.warns(UserWarning, match="audio: 6 channels are mixed down to 1") as told:
        pieces = list(surround)
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), codes)
    assert len(told) == 1


def with_nan(codec, *names):
    """The codec with a NaN in one of its weights."""
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[(0,) * leaf.ndim].set(np.nan) if [key.key for key in path] == [*names] else leaf,
        codec.variables,
    )
    return Codec(codec.folded_config, variables)


def test_what_is_not_finite_is_an_error(pair):
    """It names the rows and the weights."""
    _, codec = pair("32khz")
    audio, codes = _sound(2_000), np.zeros((2, 4, 4), int)
    for names in [("params", "encoder", "conv_in", "kernel"), ("codebooks", "embed")]:
        broken = with_nan(codec, *names)
        message = rf"encoder gives is not finite in row 0, 1: the weights codec/{'/'.join(names)} are NaN"
        with pytest.raises(NotFiniteError, match=message):
            broken.encode(audio)
        with pytest.raises(NotFiniteError, match=message):
            list(broken.encode_blocks([audio]))
    broken = with_nan(codec, "params", "decoder", "conv_in", "kernel")
    np.testing.assert_array_equal(broken.encode(audio), codec.encode(audio))
    message = "decoder gives is not finite in row 0, 1: the weights codec/params/decoder/conv_in/kernel are NaN"
    with pytest.raises(NotFiniteError, match=message):
        broken.decode(codes)
    with pytest.raises(NotFiniteError, match=message):
        list(broken.decode_blocks([codes]))
    codes[1] = 1
    with pytest.raises(NotFiniteError, match="decoder gives is not finite in row 0: the weights codec/codebooks/embed"):
        with_nan(codec, "codebooks", "embed").decode(codes)


def test_scales_that_are_not_finite_are_an_error(pair):
    _, codec = pair("48khz")
    whole = codec.encode(_sound(2_000, channels=2))
    with pytest.raises(NotFiniteError, match="decoder gives is not finite in row 1: all weights are finite"):
        codec.decode(dataclasses.replace(whole, scales=np.array([[1], [np.inf]], np.float32)))


@pytest.mark.parametrize("shape", [(2, 10, 1), (1, 10, 2)])
def test_blocks_of_unlike_shapes_are_refused(pair, shape):
    _, codec = pair("32khz")
    stereo = Codec(codec.folded_config, codec.variables, channels=2)
    blocks = [np.zeros((1, 10, 1), np.float32), np.zeros(shape, np.float32)]
    if shape[0] == 2:
        with pytest.raises(ValueError, match="alike but for their length"):
            list(codec.encode_blocks(blocks))
    codes = [np.zeros((1, 5, 4), int), np.zeros((shape[0], 5, 2 * (3 - shape[2])), int)]
    with pytest.raises(ValueError, match="alike but for their length"):
        list(stereo.decode_blocks(codes))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((3,), int), "of shape"),
        (np.zeros((3, 4), int), "of shape"),
        (np.zeros((1, 0, 4), int), "0 frames"),
        (np.zeros((0, 3, 4), int), "of shape"),
        (np.zeros((1, 3, 5), int), "4 codebooks"),
        (np.full((1, 3, 4), 64), "0 to 63"),
        (np.full((1, 3, 4), -1), "0 to 63"),
    ],
)
def test_bad_codes(pair, codes, message):
    with pytest.raises(ValueError, match=message):
        pair("32khz")[1].decode(codes)


@pytest.mark.parametrize("num_samples", [-1, True])
def test_lengths_that_are_none(pair, num_samples):
    with pytest.raises(ValueError, match="num_samples must be a whole number"):
        pair("32khz")[1].decode(np.zeros((1, 3, 4), int), num_samples=num_samples)


def test_forms_that_have_no_meaning(pair):
    _, codec = pair("48khz")
    with pytest.raises(ValueError, match="chunk_seconds"):
        Codec(CodecConfig(normalize=True), codec.variables)
    with pytest.raises(ValueError, match="2 channels only"):
        Codec(codec.config, codec.variables, channels=4)
    with pytest.raises(ValueError, match="chunks"):
        codec.decode(np.zeros((1, 3, 16), int))
    with pytest.raises(ValueError, match="bandwidths"):
        codec.encode(_sound(10, 2), bandwidth=5.0)
