import numpy as np
import pytest

from mgjax.audio.waveform import resample
from mgjax.conditioning import chroma, melody
from mgjax.config.conditioning import MelodyConfig

CONFIG = MelodyConfig(sample_rate=8000, fft_size=1024, hop_length=256, num_frames=40)  # 1.28 seconds


def tone(hertz, seconds=1.0, sample_rate=8000):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * sample_rate)) / sample_rate).astype(np.float32)


def scale(seconds, sample_rate=8000):
    """A tone of another pitch class in each second, from A upwards."""
    return np.concatenate([tone(440 * 2 ** (step / 12), 1.0, sample_rate) for step in range(seconds)])


def classes(melodies, offset=0.0, window=1.28, beyond=False, config=CONFIG):
    """The pitch class of each frame."""
    tokens, mask = melody.windowed(melodies, offset, window, beyond, config)
    assert tokens.dtype == np.float32
    assert tokens.shape == (len(melodies), config.num_frames, config.num_bins)
    assert mask.all()
    np.testing.assert_array_equal(tokens.sum(axis=-1), 1)
    return tokens.argmax(axis=-1)


@pytest.mark.parametrize("sample_rate", [8000, 11_025, 44_100])
@pytest.mark.parametrize("kind", ["[n]", "[n, 1]", "[n, 2]", "[1, n, 2]", "list", "integers", "float64"])
def test_audio_of_any_form_becomes_mono_at_the_rate_of_the_model(sample_rate, kind):
    sound = tone(440, 0.5, sample_rate)
    stereo = np.stack([sound, np.zeros_like(sound)], axis=1)
    forms = {
        "[n]": sound / 2,
        "[n, 1]": sound[:, None] / 2,
        "[n, 2]": stereo,
        "[1, n, 2]": stereo[None],
        "list": [stereo],
        "integers": np.round(sound * 16384).astype(np.int16),
        "float64": sound.astype(np.float64) / 2,
    }
    (found,) = melody.prepare(forms[kind], sample_rate, 1, CONFIG)
    assert (found.shape, found.dtype) == ((4000,), np.float32)
    inner = slice(200, -200)  # resampling blurs the ends
    np.testing.assert_allclose(found[inner], tone(440, 0.5)[inner] / 2, rtol=0, atol=1e-4)


def test_one_melody_for_all_rows_or_one_for_each():
    a, b = tone(440), tone(550, 0.5)
    assert melody.prepare(None, None, 2, CONFIG) == [None, None]
    assert melody.prepare([None, None], None, 2, CONFIG) == [None, None]
    for given in (a, [a], a[None, :, None]):
        for found in melody.prepare(given, 8000, 3, CONFIG):
            np.testing.assert_array_equal(found, a)
    first, none, last = melody.prepare([a, None, b[:, None]], 8000, 3, CONFIG)
    np.testing.assert_array_equal(first, a)
    assert none is None
    np.testing.assert_array_equal(last, b)
    for found, expected in zip(melody.prepare(np.stack([a, -a])[..., None], 8000, 2, CONFIG), (a, -a), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_stems_and_separation():
    voice, drums = tone(440) / 2, np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    stems = {"vocals": voice, "other": voice, "drums": drums}

    def without_drums(mix, sample_rate):
        assert sample_rate == 8000
        return mix - drums[:, None]

    for given, separate in ((stems, None), (stems, without_drums), (voice + drums, stems)):
        np.testing.assert_array_equal(melody.prepare(given, 8000, 1, CONFIG, separate=separate)[0], 2 * voice)
    (found, none) = melody.prepare([voice + drums, None], 8000, 2, CONFIG, separate=without_drums)
    np.testing.assert_allclose(found, voice, atol=1e-6)
    assert none is None


def test_surround_is_mixed_down_and_that_is_said():
    sound = tone(440)
    surround = np.stack([0 * sound] * 2 + [sound] + [0 * sound] * 3, axis=1)
    with pytest.warns(UserWarning, match="the melody of row 1: 6 channels are mixed down to 2"):
        _, found = melody.prepare([None, surround], 8000, 2, CONFIG)
    np.testing.assert_allclose(found, sound * np.sqrt(0.5) / (1 + 2 * np.sqrt(0.5)), atol=1e-6)


def test_one_melody_for_all_rows_is_separated_once():
    calls = []
    melody.prepare(tone(440), 8000, 4, CONFIG, separate=lambda mix, rate: calls.append(rate) or mix)
    assert calls == [8000]


SOUND = tone(440)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (np.zeros(8000), ValueError, "the melody is silent.*give None"),
        (np.full(8000, 0.3), ValueError, "the melody is silent"),  # a constant is no sound either
        (np.random.default_rng(0).integers(-1, 2, 8000).astype(np.int16), ValueError, "the melody is silent"),  # dither
        (np.zeros(0), ValueError, "the melody: there is no sound in it"),
        (np.where(np.arange(8000) == 7, np.nan, SOUND), ValueError, "the melody: holds NaN or infinity"),
        (np.where(np.arange(8000) == 7, np.inf, SOUND), ValueError, "the melody: holds NaN or infinity"),
        (
            SOUND[:255],
            ValueError,
            r"the melody lasts 0\.0319 seconds, less than one frame of the chromagram \(0\.032\)",
        ),
        (np.stack([SOUND] * 7, axis=1) * 30_000, ValueError, "the melody: has a peak of 30000"),
        (np.stack([SOUND] * 2), ValueError, "transpose"),
        (np.stack([SOUND, -SOUND], axis=1), ValueError, "channels cancel each other out"),
        (np.ones((1, 1, 8000, 1)), ValueError, r"got the shape \(1, 1, 8000, 1\)"),
        (np.float32(1), ValueError, r"got the shape \(\)"),
        ([0.1, 0.2, 0.3], ValueError, "less than one frame"),  # a list of numbers is a sound
        ([], ValueError, "0 melodies do not fit 2 rows: give one, or one for each row"),
        ([SOUND] * 3, ValueError, "3 melodies do not fit 2 rows"),
        (np.stack([SOUND] * 3)[..., None], ValueError, "3 melodies do not fit 2 rows"),
        ([SOUND, np.zeros(8000)], ValueError, "the melody of row 1 is silent"),
        ("tune.wav", TypeError, "a melody must be audio, not the name of a file: read 'tune.wav' first"),
        ({"drums": SOUND}, ValueError, "stems must hold 'vocals' or 'other'"),
        ({"vocals": np.zeros(8000)}, ValueError, "the melody is silent"),
        (SOUND.astype(bool), ValueError, "the melody: expected floating point"),
    ],
)
def test_what_is_no_melody_is_said(given, kind, message):
    with pytest.raises(kind, match=message):
        melody.prepare(given, 8000, 2, CONFIG)


def test_silence_after_separation_is_said():
    with pytest.raises(ValueError, match="the melody is silent after separation"):
        melody.prepare(SOUND, 8000, 1, CONFIG, separate=lambda mix, rate: 0 * mix)


@pytest.mark.parametrize(
    ("rate", "kind", "message"),
    [
        (None, ValueError, "melody_sample_rate is missing"),
        (0, ValueError, "from 1000 to 1000000, got 0"),
        (-8000, ValueError, "got -8000"),
        (44_100.5, ValueError, "must be a whole number of hertz"),
        (float("nan"), ValueError, "got nan"),
        (10**9, ValueError, "got 1000000000"),
        (True, ValueError, "got True"),
        ("cd", TypeError, "melody_sample_rate must be a number of hertz, got 'cd'"),
    ],
)
def test_rates_that_are_none_are_said(rate, kind, message):
    with pytest.raises(kind, match=message):
        melody.prepare(SOUND, rate, 1, CONFIG)


def test_within_a_window_the_whole_melody_is_cut_or_repeated():
    short, long = scale(1)[:5000], scale(4)
    short[2500:] = tone(880 * 2 ** (-1 / 12), 2500 / 8000)
    tokens, mask = melody.windowed([short, long], 0.0, 1.28, False, CONFIG)
    assert mask.all()
    for row, sound in zip(tokens, (short, long), strict=True):
        whole = np.asarray(chroma.chromagram(sound[None], CONFIG))
        assert whole.shape[1] in (20, 126)
        np.testing.assert_array_equal(row, chroma.repeated(whole, 40)[0])
    # Where the window lies is nothing to music that fits in one.
    np.testing.assert_array_equal(melody.windowed([short, long], 0.5, 1.0, False, CONFIG)[0], tokens)


def test_cut_before_its_chromagram_a_melody_keeps_it():
    config = MelodyConfig(sample_rate=8000, fft_size=1024, hop_length=256, num_frames=40, bottleneck="none")
    sound = np.random.default_rng(0).standard_normal(90_000).astype(np.float32)
    whole = np.asarray(chroma.chromagram(sound[None], config))
    found, _ = melody.windowed([sound], 0.0, 1.28, False, config)
    np.testing.assert_allclose(found[0], whole[0, :40], rtol=0, atol=1e-6)


def test_beyond_the_window_the_melody_goes_on_and_begins_again():
    sound = scale(4)  # A, A#, B, C
    middle = slice(8, -8)
    for offset, expected in ((0.0, 9), (1.0, 10), (3.0, 0), (4.0, 9), (6.0, 11), (103.0, 0)):
        found = classes([sound, sound], offset, 1.0, True)
        np.testing.assert_array_equal(found[0, :32][middle], expected)
        np.testing.assert_array_equal(found[1], found[0])
    both = classes([sound], 3.5, 1.28, True)[0]  # the end, then the beginning
    np.testing.assert_array_equal(both[4:12], 0)
    np.testing.assert_array_equal(both[20:36], 9)


def test_beyond_the_window_it_is_the_chromagram_of_that_stretch():
    sound = scale(3)[:20_001]
    offset = 1.7
    stretch = np.roll(np.tile(sound, 2), -round(offset * 8000))[: round(1.28 * 8000)]
    expected = np.asarray(chroma.chromagram(stretch[None], CONFIG))[:, :40]
    found, _ = melody.windowed([sound], offset, 1.28, True, CONFIG)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("null", ["silence", "nothing"])
def test_rows_without_a_melody(null, beyond):
    config = MelodyConfig(sample_rate=8000, fft_size=1024, hop_length=256, num_frames=40, null=null)
    tokens, mask = melody.windowed([None, SOUND, None], 0.0, 1.28, beyond, config)
    alone, _ = melody.windowed([SOUND], 0.0, 1.28, beyond, config)
    np.testing.assert_array_equal(tokens[1], alone[0])
    expected = chroma.null(config) if null == "silence" else np.zeros((40, 12))
    np.testing.assert_array_equal(tokens[::2], np.stack([expected] * 2))
    np.testing.assert_array_equal(mask, np.array([null == "silence", True, null == "silence"])[:, None].repeat(40, 1))


def test_a_published_melody_is_235_frames():
    sound = resample(scale(2)[:, None] / 2, 8000, 44_100)
    prepared = melody.prepare(sound, 44_100, 1, MelodyConfig())
    found = classes(prepared, config=MelodyConfig(), window=30.0)
    assert found.shape == (1, 235)
    np.testing.assert_array_equal(found[0, 16:23], 9)  # 64,000 samples are 16 frames, which begin again
