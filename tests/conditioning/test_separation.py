import sys
import types

import numpy as np
import pytest
import torch

from mgjax.conditioning import separation


@pytest.fixture
def music():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (3000, 2)).astype(np.float32)


@pytest.fixture
def fake_demucs(monkeypatch):
    """A `demucs` whose four stems are the mix times 1, 2, 4 and 8, over 16; records how it is called."""
    calls = []

    class Model:
        sources = ("drums", "bass", "other", "vocals")
        samplerate = 44_100
        audio_channels = 2

        def eval(self):
            calls.append("eval")
            return self

    def get_model(name):
        calls.append(name)
        return Model()

    def apply_model(model, mix, shifts=1, split=True, overlap=0.25):
        assert isinstance(model, Model)
        assert isinstance(mix, torch.Tensor)
        assert not torch.is_grad_enabled()
        calls.append((tuple(mix.shape), mix.dtype, shifts))
        return mix[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])[None, :, None, None] / 16

    monkeypatch.setitem(sys.modules, "demucs", types.ModuleType("demucs"))
    for name, function in (("apply", apply_model), ("pretrained", get_model)):
        module = types.ModuleType(f"demucs.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    separation._htdemucs.cache_clear()
    yield calls
    separation._htdemucs.cache_clear()


def test_demucs_gives_all_but_drums_and_bass(fake_demucs, music):
    found = separation.separated(music, 44_100, "demucs")
    np.testing.assert_allclose(found, 12 / 16 * music, rtol=1e-6)
    separation.separated(music, 44_100, "demucs")
    assert fake_demucs == ["htdemucs", "eval", *[((1, 2, 3000), torch.float32, 0)] * 2]


def test_demucs_works_at_its_own_rate_in_stereo(fake_demucs):
    time = np.arange(4800) / 48_000
    mono = np.sin(2 * np.pi * 440 * time)[:, None].astype(np.float32)
    found = separation.demucs(mono, 48_000)
    assert fake_demucs[-1] == ((1, 2, 4410), torch.float32, 0)
    assert found.shape == (4800, 2)
    inner = slice(400, -400)  # resampling blurs the ends
    np.testing.assert_allclose(found[inner], 12 / 16 * np.repeat(mono, 2, axis=1)[inner], atol=1e-4)  # measured: 1e-6


def test_how_to_install_demucs_is_said(monkeypatch, music):
    monkeypatch.setitem(sys.modules, "demucs", None)
    monkeypatch.setitem(sys.modules, "demucs.apply", None)
    with pytest.raises(ImportError, match=r'needs Demucs: pip install "mgjax\[separate\]"'):
        separation.separated(music, 44_100, "demucs")


def test_a_function_may_give_audio_or_stems(music):
    seen = []

    def halve(audio, sample_rate):
        seen.append((audio.shape, sample_rate))
        return audio[:, 0] / 2

    np.testing.assert_array_equal(separation.separated(music, 8000, halve), music[:, :1] / 2)
    assert seen == [((3000, 2), 8000)]
    stems = {"drums": music, "vocals": music, "other": 2 * music}
    np.testing.assert_allclose(separation.separated(music, 8000, lambda *_: stems), 3 * music, rtol=1e-6)
    np.testing.assert_allclose(separation.separated(music, 8000, stems), 3 * music, rtol=1e-6)
    np.testing.assert_array_equal(separation.mixed({"other": music[:, 0], "bass": music}), music[:, :1])


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("spleeter", ValueError, "separate must be \"demucs\", a function or stems, got 'spleeter'"),
        (3, TypeError, 'separate must be "demucs", a function or stems, got int'),
        (lambda audio, rate: audio[::2], ValueError, r"has 1500 samples and the mix 3000: .* \(44100 Hz\)"),
        (lambda audio, rate: audio * np.nan, ValueError, "the separated melody: holds NaN"),
        (lambda audio, rate: audio.T, ValueError, "the separated melody: .*transpose"),
        (lambda audio, rate: None, TypeError, "the separated melody must be an array of numbers"),
        ({"drums": np.ones(3000)}, ValueError, r"must hold 'vocals' or 'other', got \['drums'\]"),
        ({"vocals": np.ones(3000), "other": np.ones(2999)}, ValueError, r"vocals \[3000, 1\], other \[2999, 1\]"),
        ({"vocals": np.full(3000, np.inf)}, ValueError, "the stem 'vocals': holds NaN or infinity"),
    ],
)
def test_what_does_not_separate_is_said(music, given, kind, message):
    with pytest.raises(kind, match=message):
        separation.separated(music, 44_100, given)
