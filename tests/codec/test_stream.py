"""Coding in blocks gives what coding in one piece gives, whatever the blocks."""

import dataclasses

import numpy as np
import pytest
from random_codec import random_variables

from mgjax.codec import codec as codec_module
from mgjax.codec import layers, stream
from mgjax.codec.codec import Codec
from mgjax.config.model import CodecConfig

_SMALL = CodecConfig(num_filters=3, latent_dim=6, codebook_size=32, num_codebooks=2, ratios=(5, 4))
_FORMS = {
    "centred": _SMALL,
    "causal": dataclasses.replace(_SMALL, causal=True, conv_shortcut=True),
    "constant": dataclasses.replace(_SMALL, pad_mode="constant", num_residual_layers=2),
    "phases": dataclasses.replace(_SMALL, ratios=(5, 2), phases=2, num_lstm_layers=0),
}
_FRAMES = 28
_BLOCKS = {"small": [1, 1, 3, 0, 2, 1], "one": [_FRAMES]}


@pytest.fixture(scope="module", params=_FORMS)
def codec(request):
    return _codec(_FORMS[request.param])


def _codec(config):
    return Codec(config, random_variables(config))


def _codes(codec):
    return np.random.default_rng(0).integers(0, codec.codebook_size, (1, _FRAMES, codec.num_codebooks))


def _audio(codec):
    n = (_FRAMES - 1) * codec.hop_length + 1  # the end that mirrors the most
    return np.random.default_rng(0).choice(np.float32([-1, 1]), (1, n, 1))


@pytest.mark.parametrize("sizes", _BLOCKS.values(), ids=_BLOCKS)
def test_decoding_in_blocks(codec, sizes):
    codes = _codes(codec)
    pieces = list(codec.decode_blocks(np.split(codes, np.cumsum(sizes), axis=1)))
    whole = codec.decode(codes)
    assert whole.std() > 0.1
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5)  # measured: 0 to 3e-7


@pytest.mark.parametrize("sizes", _BLOCKS.values(), ids=_BLOCKS)
def test_encoding_in_blocks(codec, sizes):
    audio = _audio(codec)
    pieces = list(codec.encode_blocks(np.split(audio, 21 * np.cumsum(sizes), axis=1)))
    codes = codec.encode(audio)
    assert len(np.unique(codes)) > 8
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), codes)


def test_a_long_signal_goes_through_windows(codec, monkeypatch):
    audio, codes = _audio(codec), _codes(codec)
    expected = codec.encode(audio), codec.decode(codes)
    monkeypatch.setattr(codec_module, "_MOST_FRAMES", 8)
    monkeypatch.setattr(codec_module, "_WINDOW_FRAMES", 8)
    np.testing.assert_array_equal(codec.encode(audio), expected[0])
    np.testing.assert_allclose(codec.decode(codes), expected[1], atol=1e-5)  # measured: 0 to 3e-7


@pytest.mark.parametrize(("form", "frames"), [("centred", 6), ("causal", 7), ("constant", 6)])
def test_sound_comes_as_soon_as_it_can(form, frames):
    # The causal form looks ahead only at its start, which mirrors the 6 frames after the first.
    codec = _codec(_FORMS[form])
    fed = 0

    def blocks():
        nonlocal fed
        for frame in np.split(_codes(codec), _FRAMES, axis=1):
            fed += 1
            yield frame

    pieces = codec.decode_blocks(blocks())
    first = next(pieces)
    assert fed == frames
    assert first.shape[1] + sum(piece.shape[1] for piece in pieces) == _FRAMES * codec.hop_length


def test_receptive_fields_at_the_size_of_musicgen():
    # checkpoints.md, by float64 derivatives: the decoder looks 3.75 frames ahead, 3 of them by its first convolution.
    config = CodecConfig()
    decoder = layers.decoder(config)
    assert stream.receptive_field(config, decoder.before) == (3, 3, 4, 1, 1)
    assert stream.receptive_field(config, decoder.after) == (1, 1, 2, 1, 640)


def test_buffers_are_few_and_little_larger_than_needed():
    sizes = [stream.bucket(units) for units in range(1, 513)]
    assert all(units <= size <= max(8, 1.25 * units) for units, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 25


def test_nothing_is_an_error(codec):
    with pytest.raises(ValueError, match="0 samples"):
        list(codec.encode_blocks([]))
    with pytest.raises(ValueError, match="0 frames"):
        list(codec.decode_blocks([np.zeros((1, 0, 2), np.int32)]))


def test_norms_over_the_whole_signal_cannot_be_streamed(codec):
    config = dataclasses.replace(codec.folded_config, norm="time_group_norm")
    with pytest.raises(ValueError, match="whole signal"):
        next(Codec(config, codec.variables).encode_blocks([np.zeros((10, 1), np.float32)]))
