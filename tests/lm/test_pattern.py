import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config.model import PATTERNS, LMConfig
from mgjax.config.serialization import ConfigError
from mgjax.lm import pattern as patterns

S = 99  # the special token, printed in the golden matrices
_UNROLLED = "---- ---- 0--- ---- -00- 1--- ---- ---0 -11- 2--- ---- ---1 -22- ---- ---- ---2 ---- ----"

ALL = {
    "delay": patterns.delay(4),
    "delay stereo": patterns.delay(8, (0, 0, 1, 1, 2, 2, 3, 3)),
    "delay flatten": patterns.delay(3, flatten_first=2),
    "delay late": patterns.delay(2, (1, 3)),
    "delay empty": patterns.delay(3, empty_initial=2),
    "delay no start": patterns.delay(3, empty_initial=-1),
    "parallel": patterns.parallel(4),
    "single": patterns.delay(1),
    "flattened": patterns.flattened(3),
    "flattened partly": patterns.flattened(3, (0, 1, 1)),
    "flattened with a gap": patterns.flattened(3, (0, 2, 2)),
    "flattened delayed": patterns.flattened(4, (0, 1, 1, 2), (0, 3, 3, 4)),
    "coarse first": patterns.coarse_first(4),
    "coarse first delayed": patterns.coarse_first(4, (0, 1, 2)),
    "musiclm": patterns.musiclm(4),
}


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def pattern(request):
    return request.param


def sequence(pattern, num_frames, num_steps=None):
    """The steps of frames 1, 2, ..., codebooks as rows, as the golden matrices are written."""
    codes = np.broadcast_to(np.arange(1, num_frames + 1)[None, :, None], (1, num_frames, pattern.num_codebooks))
    return np.asarray(pattern.build(jnp.asarray(codes, jnp.int32), S, num_steps=num_steps))[0].T.tolist()


def revert(pattern, tokens, num_frames):
    """The codes in a sequence, the inverse of `build`; -1 for codes of steps that the sequence is too short for."""
    steps = pattern.steps(num_frames, tokens.shape[1])
    codes = tokens[:, np.maximum(steps, 0), np.arange(pattern.num_codebooks)[None]]
    return jnp.where((steps >= 0)[None], codes, -1)


def test_delay_full():
    assert sequence(patterns.delay(4), 6) == [
        [S, 1, 2, 3, 4, 5, 6, S, S, S],
        [S, S, 1, 2, 3, 4, 5, 6, S, S],
        [S, S, S, 1, 2, 3, 4, 5, 6, S],
        [S, S, S, S, 1, 2, 3, 4, 5, 6],
    ]


def test_delay_training():
    pattern = patterns.delay(4)
    assert pattern.valid_steps(6) == 7
    assert sequence(pattern, 6, pattern.valid_steps(6)) == [
        [S, 1, 2, 3, 4, 5, 6],
        [S, S, 1, 2, 3, 4, 5],
        [S, S, S, 1, 2, 3, 4],
        [S, S, S, S, 1, 2, 3],
    ]


def test_delay_as_transformers_draws_it():
    """`max_length` 8 of transformers is 8 - 4 = 4 frames; its mask has -1 where a code is free."""
    assert (patterns.delay(4).layout(4) >= 0).T.astype(int).tolist() == [
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_delay_stereo():
    left_and_right = [
        [S, 1, 2, 3, 4, S, S, S],
        [S, S, 1, 2, 3, 4, S, S],
        [S, S, S, 1, 2, 3, 4, S],
        [S, S, S, S, 1, 2, 3, 4],
    ]
    pattern = patterns.delay(8, (0, 0, 1, 1, 2, 2, 3, 3))
    assert sequence(pattern, 4) == [row for row in left_and_right for _ in "lr"]


@pytest.mark.parametrize("pattern", [patterns.delay(4), patterns.delay(8, (0, 0, 1, 1, 2, 2, 3, 3))])
def test_thirty_seconds_are_1504_steps(pattern):
    assert pattern.num_steps(1500) == 1504
    assert pattern.valid_steps(1500) == 1501


@pytest.mark.parametrize(("empty_initial", "start"), [(-1, []), (0, [S]), (2, [S, S, S])])
def test_delay_empty_initial(empty_initial, start):
    pattern = patterns.delay(2, empty_initial=empty_initial)
    assert sequence(pattern, 3) == [[*start, 1, 2, 3, S], [*start, S, 1, 2, 3]]
    assert pattern.valid_steps(3) == len(start) + 3


def test_delay_flatten_first():
    pattern = patterns.delay(3, flatten_first=2)
    assert sequence(pattern, 5) == [
        [S, 1, S, S, 2, S, S, 3, 4, 5, S, S],
        [S, S, 1, S, S, 2, S, S, 3, 4, 5, S],
        [S, S, S, 1, S, S, 2, S, S, 3, 4, 5],
    ]
    assert pattern.valid_steps(5) == 10


def test_parallel():
    assert sequence(patterns.parallel(2), 3) == [[S, 1, 2, 3], [S, 1, 2, 3]]


def test_flattened():
    assert sequence(patterns.flattened(3), 2) == [
        [S, 1, S, S, 2, S, S],
        [S, S, 1, S, S, 2, S],
        [S, S, S, 1, S, S, 2],
    ]
    assert sequence(patterns.flattened(3, (0, 1, 1)), 2) == [[S, 1, S, 2, S], [S, S, 1, S, 2], [S, S, 1, S, 2]]


def test_flattened_delayed():
    """Frame 1 of the delayed codebooks comes in the round of frame 4, and before it."""
    pattern = patterns.flattened(3, (0, 1, 1), (0, 3, 3))
    late = [S, S, S, S, 1, S, 2, S, 3, S, 4, S]
    assert sequence(pattern, 4) == [[S, 1, 2, 3, S, 4, S, S, S, S, S, S], late, late]


def test_coarse_first():
    assert sequence(patterns.coarse_first(3, (0, 1)), 3) == [
        [S, 1, 2, 3, S, S, S, S],
        [S, S, S, S, 1, 2, 3, S],
        [S, S, S, S, S, 1, 2, 3],
    ]


def test_musiclm():
    assert sequence(patterns.musiclm(4), 2) == [
        [S, 1, S, 2, S, S, S, S, S],
        [S, S, 1, S, 2, S, S, S, S],
        [S, S, S, S, S, 1, S, 2, S],
        [S, S, S, S, S, S, 1, S, 2],
    ]


@pytest.mark.parametrize(
    ("pattern", "num_frames", "layout", "num_valid"),
    [
        (
            patterns.delay(3, (0, 0, 2), flatten_first=1, empty_initial=1),
            3,
            ["---", "---", "0--", "-0-", "--0", "11-", "22-", "--1", "--2"],
            7,
        ),
        (patterns.delay(2, (1, 3), flatten_first=2), 1, ["--", "0-", "-0", "--", "--"], 3),
        (patterns.parallel(2, empty_initial=1), 2, ["--", "--", "00", "11"], 4),
        (
            patterns.flattened(4, (0, 1, 1, 3), (0, 1, 1, 2)),
            3,
            _UNROLLED.split(),
            16,
        ),
        (patterns.coarse_first(3, (0, 1)), 2, ["---", "0--", "1--", "-0-", "-10", "--1"], 5),
        (patterns.musiclm(3, 3), 2, ["---", "0--", "-0-", "--0", "1--", "-1-", "--1"], 7),
    ],
)
def test_layouts_of_audiocraft(pattern, num_frames, layout, num_valid):
    """Made by audiocraft 1.4.0a2's pattern providers: a row per step, the frame of each codebook."""
    rows = ["".join("-" if frame < 0 else str(frame) for frame in step) for step in pattern.layout(num_frames)]
    assert rows == layout
    assert pattern.valid_steps(num_frames) == num_valid


def test_delays_of_any_order():
    pattern = patterns.delay(3, (2, 0, 1))
    assert sequence(pattern, 3) == [[S, S, S, 1, 2, 3], [S, 1, 2, 3, S, S], [S, S, 1, 2, 3, S]]
    assert pattern.first_step(3, 1) == 2  # codebook 2 holds frame 1 there
    assert pattern.frames_complete(3).tolist() == [0, 0, 0, 1, 2, 3]
    codes = jnp.arange(9)[None].reshape(1, 3, 3)
    assert np.array_equal(revert(pattern, pattern.build(codes, S), 3), codes)


@pytest.mark.parametrize(
    "values",
    [
        {"delays": (0, 1, 2, 10**9)},
        {"delays": (0, 1, 2, -1)},
        {"flatten_first": -1},
        {"empty_initial": -1},
        {"pattern": "flattened", "flattening": (0, 1, 2, 10**9)},
        {"pattern": "coarse_first", "frame_delays": (10**9, 0, 0)},
    ],
)
def test_numbers_without_end_are_refused_before_anything_is_laid_out(values):
    with pytest.raises(ConfigError, match=r"must be (from 0 to|0 or more and at most) 1000"):
        LMConfig(**values)


def test_build_then_revert_gives_the_codes_back(pattern):
    @jax.jit  # all lengths in one program: compiling is what takes the time
    def there_and_back(batches):
        tokens = [pattern.build(codes, S) for codes in batches]
        return tokens, [
            revert(pattern, sequence, codes.shape[1]) for sequence, codes in zip(tokens, batches, strict=True)
        ]

    numbers = np.random.default_rng(0)
    batches = [numbers.integers(0, S, (2, length, pattern.num_codebooks), np.int32) for length in range(1, 10)]
    for codes, tokens, again in zip(batches, *jax.device_get(there_and_back(batches)), strict=True):
        layout = pattern.layout(codes.shape[1])
        assert tokens.shape == (2, *layout.shape)
        assert np.array_equal(tokens != S, np.broadcast_to(layout >= 0, tokens.shape))
        assert np.array_equal(again, codes)


@pytest.mark.parametrize("num_frames", range(1, 10))
def test_every_code_has_one_step_in_time_and_coarse_to_fine(pattern, num_frames):
    layout = pattern.layout(num_frames)
    assert layout.dtype == np.int32
    for codebook in range(pattern.num_codebooks):
        held = layout[:, codebook]
        assert held[held >= 0].tolist() == list(range(num_frames))
    steps = pattern.steps(num_frames)
    assert np.all(np.diff(steps, axis=1) >= 0)
    assert pattern.valid_steps(num_frames) <= pattern.num_steps(num_frames)


@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_frames_complete(pattern, num_frames):
    layout = pattern.layout(num_frames)
    complete = pattern.frames_complete(num_frames)
    assert complete.shape == (len(layout),)
    assert complete[-1] == num_frames
    for step, count in enumerate(complete):
        known = [set(layout[: step + 1, codebook]) for codebook in range(pattern.num_codebooks)]
        frames = [frame for frame in range(num_frames) if all(frame in of_codebook for of_codebook in known)]
        assert frames[:count] == list(range(count))
        assert count == num_frames or count not in frames


def test_frames_complete_of_delay():
    assert patterns.delay(4).frames_complete(3).tolist() == [0, 0, 0, 0, 1, 2, 3]


def test_logits_at_a_step_predict_the_next():
    pattern = patterns.delay(2)
    logits = jnp.arange(1.0, 5.0)[None, :, None, None] + jnp.zeros((1, 5 - 1, 2, 3))  # steps 0..3 of T=2 hold 1..4
    predictions, known = pattern.revert_logits(logits, 2)
    assert known.all()
    assert predictions[0, :, :, 0].tolist() == [[1, 2], [2, 3]]


def test_logits_of_the_training_layout_leave_out_the_last_delayed_frames():
    pattern = patterns.delay(4)
    steps = pattern.valid_steps(6)
    predictions, known = pattern.revert_logits(jnp.ones((1, steps, 4, 3)), 6)
    assert known.tolist() == [[t < 6 - delay for delay in range(4)] for t in range(6)]
    assert np.array_equal(predictions[0, :, :, 0], known)


def test_logits_line_up_with_codes(pattern):
    """One-hot predictions of the next step's tokens come back as the codes."""
    num_frames = 7
    codes = np.random.default_rng(0).integers(0, 7, (1, num_frames, pattern.num_codebooks), np.int32)

    @jax.jit
    def predict(codes):
        tokens = pattern.build(codes, 7)
        if pattern.layout(num_frames)[0].max() < 0:
            tokens = jnp.concatenate([tokens[:, 1:], jnp.full_like(tokens[:, :1], 7)], axis=1)
        return pattern.revert_logits(jax.nn.one_hot(tokens, 8), num_frames)

    predictions, known = predict(codes)
    assert known.all()
    assert np.array_equal(predictions.argmax(-1), codes)


def test_revert_of_a_short_sequence_marks_what_is_missing():
    pattern = patterns.delay(3)
    tokens = pattern.build(jnp.ones((1, 4, 3), jnp.int32), S, num_steps=pattern.valid_steps(4))
    assert revert(pattern, tokens, 4)[0].T.tolist() == [[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1]]


def test_first_step():
    pattern = patterns.delay(4)
    assert pattern.first_step(1500, 600) == 601
    assert pattern.layout(1500)[601].tolist() == [600, 599, 598, 597]
    assert pattern.first_step(1500, 0) == 1
    assert patterns.musiclm(4).first_step(10, 3) == 7


@pytest.mark.parametrize("offset", [-1, 10, 11])
def test_first_step_of_a_prompt_that_is_too_long(offset):
    with pytest.raises(ValueError, match="leaves nothing to generate"):
        patterns.delay(4).first_step(10, offset)


def test_patterns_are_values():
    assert patterns.delay(4) == patterns.delay(4, [0, 1, 2, 3])
    assert hash(patterns.delay(4)) == hash(patterns.delay(4, (0, 1, 2, 3)))
    assert patterns.delay(4) != patterns.delay(4, flatten_first=1)


def test_from_config():
    assert patterns.from_config(LMConfig()) == patterns.delay(4)
    assert patterns.from_config(LMConfig(delays=(0, 0, 1, 1))) == patterns.delay(4, (0, 0, 1, 1))
    late = LMConfig(delays=(2, 0, 0, 1), flatten_first=3, empty_initial=1)
    assert patterns.from_config(late) == patterns.delay(4, (2, 0, 0, 1), flatten_first=3, empty_initial=1)
    assert patterns.from_config(LMConfig(pattern="parallel", empty_initial=2)) == patterns.parallel(4, empty_initial=2)
    unrolled = LMConfig(pattern="flattened", flattening=(0, 1, 1, 3), frame_delays=(0, 2, 2, 3))
    assert patterns.from_config(unrolled) == patterns.flattened(4, (0, 1, 1, 3), (0, 2, 2, 3))
    coarse = LMConfig(pattern="coarse_first", frame_delays=(0, 1, 2))
    assert patterns.from_config(coarse) == patterns.coarse_first(4, (0, 1, 2))
    assert patterns.from_config(LMConfig(pattern="musiclm", group_by=4)) == patterns.musiclm(4, 4)
    assert tuple(patterns.PATTERNS) == PATTERNS
    for name, make in patterns.PATTERNS.items():
        assert patterns.from_config(LMConfig(pattern=name)) == make(4)
    with pytest.raises(ConfigError, match="pattern must be one of"):
        patterns.from_config(LMConfig(pattern="random"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: patterns.delay(0),
        lambda: patterns.delay(3, (0, 1)),
        lambda: patterns.delay(2, (-1, 0)),
        lambda: patterns.delay(2, flatten_first=-1),
        lambda: patterns.flattened(2, (0,)),
        lambda: patterns.flattened(2, (0, 0), (0, 1)),
        lambda: patterns.coarse_first(1),
        lambda: patterns.coarse_first(3, (0, 1, 2)),
        lambda: patterns.musiclm(3),
    ],
)
def test_patterns_that_cannot_be(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    "made",
    [
        patterns.delay(4),
        patterns.delay(3, (0, 5, 9), flatten_first=7, empty_initial=2),
        patterns.flattened(3, (0, 1, 1), (0, 4, 4)),
        patterns.coarse_first(3, (0, 5)),
        patterns.musiclm(4),
    ],
    ids=lambda made: type(made).__name__,
)
def test_steps_are_counted_without_a_table(made, monkeypatch):
    """A day of music has millions, and the flattened pattern's table alone takes minutes."""
    expected = [len(made.layout(num_frames)) for num_frames in (1, 20, 21, 22, 100)]
    monkeypatch.setattr(patterns, "_FEW_FRAMES", 20)
    assert [made.num_steps(num_frames) for num_frames in (1, 20, 21, 22, 100)] == expected
    assert made.num_steps(4_320_000) > 4_320_000
