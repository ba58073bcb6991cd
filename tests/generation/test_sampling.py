import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_lm import context, make, text

from mgjax import NotFiniteError
from mgjax.config.model import Sampling
from mgjax.generation.arguments import window_and_stride
from mgjax.generation.sampling import CAPACITIES, SamplingParams, _kept_by_bits, capacity_for, guide, sample
from mgjax.generation.windows import Extent, Window, decode, extents
from mgjax.lm import pattern


def frequencies(logits, sampling, count=4000):
    """How often each code is drawn, over many rows with seeds of their own."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, 1, len(logits)))
    codes = sample(rows, SamplingParams.of([sampling] * count, list(range(count)), 1), jnp.int32(3))
    return np.bincount(np.asarray(codes).ravel(), minlength=len(logits)) / count


LOGITS = np.log([0.05, 0.4, 0.3, 0.15, 0.1])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=0), [0.05, 0.4, 0.3, 0.15, 0.1]),
        (Sampling(top_k=5), [0.05, 0.4, 0.3, 0.15, 0.1]),
        (Sampling(top_k=1000), [0.05, 0.4, 0.3, 0.15, 0.1]),
        (Sampling(top_k=2), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_k=1), [0, 1, 0, 0, 0]),
        (Sampling(top_p=0.5), [0, 4 / 7, 3 / 7, 0, 0]),
        (Sampling(top_p=0.71, top_k=1), [0, 8 / 17, 6 / 17, 3 / 17, 0]),
        (Sampling(top_p=1e-6), [0, 1, 0, 0, 0]),
        (Sampling(top_p=1.0), [0.05, 0.4, 0.3, 0.15, 0.1]),
        (Sampling(temperature=0), [0, 1, 0, 0, 0]),
        (Sampling(temperature=0.5, top_k=0), np.square([0.05, 0.4, 0.3, 0.15, 0.1]) / 0.285),
    ],
)
def test_codes_are_drawn_as_often_as_they_should_be(sampling, expected):
    measured = frequencies(LOGITS, sampling)
    assert np.abs(measured - expected).max() < 0.03  # four standard deviations of 4000 draws
    assert np.array_equal(measured > 0, np.array(expected) > 0)


def test_codes_that_tie_with_the_last_one_kept_are_kept():
    assert (frequencies(np.array([2.0, 1.0, 1.0, 0.0]), Sampling(top_k=2)) > 0).tolist() == [True, True, True, False]


def sorted_kept(logits, top_k, top_p):
    """By sorting, as the definition has it."""
    logits = logits.astype(np.float64)
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits[order]) / np.exp(logits).sum()
    before = np.cumsum(probabilities) - probabilities
    count = (before <= top_p).sum() if top_p > 0 else min(top_k or len(logits), len(logits))
    return logits >= logits[order][max(count, 1) - 1]


@pytest.mark.parametrize("num_bits", [1, 4])
def test_codes_are_kept_as_by_sorting(num_bits):
    rng = np.random.default_rng(0)
    settings = [(1, 0), (7, 0), (250, 0), (0, 0), (5000, 0), (0, 0.02), (0, 0.5), (3, 0.9), (0, 0.97)]
    logits = rng.standard_normal((len(settings), 3, 2048)).astype(np.float32) * 3
    logits[:, 1] = np.round(logits[:, 1])  # many that tie
    logits[:, 2, ::2] = np.where(logits[:, 2, ::2] > 0, 0.0, -0.0)
    top_k, top_p = (jnp.asarray(column)[:, None, None] for column in zip(*settings, strict=True))
    kept = jax.jit(_kept_by_bits, static_argnums=3)(logits, top_k, top_p.astype(jnp.float32), num_bits)
    for row, setting in enumerate(settings):
        for k in range(3):
            assert np.array_equal(kept[row, k], sorted_kept(logits[row, k], *setting)), (setting, k)


def test_guidance_goes_from_the_null_prediction_through_the_conditioned_one():
    conditioned, null = jnp.full((1, 1, 2), 3.0), jnp.full((1, 1, 2), 1.0)
    both = jnp.concatenate([conditioned, null])
    for scale, expected in ((0.0, 1.0), (1.0, 3.0), (3.0, 7.0), (-1.0, -1.0)):
        assert np.all(guide(both, jnp.array([[scale]])) == expected)


def test_capacities_are_few_and_enough():
    for steps in (1, 256, 257, 1503, 1536, 1537, 4000):
        capacity = capacity_for(steps)
        assert capacity >= steps
        assert capacity in CAPACITIES or capacity % CAPACITIES[-1] == 0


def made(model, num_frames, **options):
    return list(making(model, num_frames, **options))


def making(model, num_frames, *, lengths=(3, 5), prompt=None, seeds=(1, 2), sampling=None, window=1500, stride=900):
    module, params = model
    condition = text(lengths, 6)
    rows = len(lengths)
    guided = sampling is None or sampling.guidance != 1
    if guided:
        null = text((0,) * rows, 6)
        condition = jax.tree.map(lambda *x: jnp.concatenate(x), condition, null)
    prompt = np.zeros((rows, 0, module.config.num_codebooks), np.int32) if prompt is None else prompt
    sampling = sampling or Sampling()
    plan = (
        Window(
            extent,
            {"text": condition},
            np.full((extent.num_frames, int(guided), rows), sampling.guidance, np.float32),
        )
        for extent in extents(num_frames, prompt.shape[1], window, stride)
    )
    return decode(module, params, plan, prompt, SamplingParams.of([sampling] * rows, list(seeds), 4))


@pytest.fixture(scope="module")
def model():
    return make()


PATTERNS = {"delay": (0, 1, 2, 3), "parallel": (), "flattened": (), "coarse_first": (), "musiclm": ()}


@pytest.mark.parametrize("name", PATTERNS)
def test_greedy_codes_are_those_that_the_model_predicts(name):
    """Every code is the likeliest one, given those before it in the pattern, in one look at the whole sequence."""
    module, params = make(pattern=name, delays=PATTERNS[name])
    codes = np.concatenate(made((module, params), 20, sampling=Sampling(temperature=0, guidance=1)), axis=1)
    assert codes.shape == (2, 20, 4)
    layout = pattern.from_config(module.config)
    tokens = layout.build(jnp.asarray(codes), module.config.special_token)
    logits = module.apply({"params": params}, tokens, context((module, params), text=text((3, 5), 6)))
    predicted, known = layout.revert_logits(logits, 20)
    assert known.all()
    assert np.array_equal(np.argmax(predicted, axis=-1), codes)
    assert len(np.unique(codes)) > 5


def test_a_row_does_not_depend_on_its_batch(model):
    together = np.concatenate(made(model, 60, lengths=(3, 5, 2), seeds=(1, 7, 3)), axis=1)
    alone = np.concatenate(made(model, 60, lengths=(3,), seeds=(1,)), axis=1)
    assert np.array_equal(together[:1], alone)
    assert not np.array_equal(together[0], together[1])
    other = np.concatenate(made(model, 60, lengths=(3,), seeds=(2,)), axis=1)
    assert not np.array_equal(alone, other)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_prompt_is_kept_and_continued_as_if_it_had_been_made(model, guidance):
    sampling = Sampling(temperature=0, guidance=guidance)
    whole = np.concatenate(made(model, 40, sampling=sampling), axis=1)
    continued = np.concatenate(made(model, 40, sampling=sampling, prompt=whole[:, :17]), axis=1)
    assert np.array_equal(continued, whole)


def test_a_prompt_that_the_model_would_not_make_is_kept(model):
    """Its delayed codes too, which stand in the steps that are already being drawn."""
    prompt = np.random.default_rng(3).integers(0, 20, (2, 9, 4)).astype(np.int32)
    codes = np.concatenate(made(model, 15, prompt=prompt), axis=1)
    assert np.array_equal(codes[:, :9], prompt)


def test_a_longer_cache_changes_nothing(model, monkeypatch):
    """Growing twice on the way, special tokens at the end included, gives what one large cache gives."""
    sampling = Sampling(temperature=0, guidance=1)
    whole = np.concatenate(made(model, 120, sampling=sampling), axis=1)
    monkeypatch.setattr("mgjax.generation.sampling.CAPACITIES", (8, 60, 110, 130))
    monkeypatch.setattr("mgjax.generation.windows._FIRST_CAPACITY", 8)
    assert np.array_equal(np.concatenate(made(model, 120, sampling=sampling), axis=1), whole)


def test_windows_cover_the_piece():
    assert list(extents(100, 0, 150, 90)) == [Extent(0, 100, 0, 100)]
    assert list(extents(150, 10, 150, 90)) == [Extent(0, 150, 10, 150)]
    assert list(extents(151, 0, 150, 90)) == [Extent(0, 150, 0, 150), Extent(90, 61, 60, 61)]
    assert list(extents(330, 20, 150, 90)) == [
        Extent(0, 150, 20, 150),
        Extent(90, 150, 60, 150),
        Extent(180, 150, 60, 150),
    ]


def test_each_window_continues_the_one_before(model):
    """The frames that two windows share are made once, and the second is what a prompt of them gives."""
    sampling = Sampling(temperature=0)
    whole = np.concatenate(made(model, 100, sampling=sampling, window=60, stride=40), axis=1)
    assert whole.shape == (2, 100, 4)
    first = np.concatenate(made(model, 60, sampling=sampling), axis=1)
    second = np.concatenate(made(model, 60, sampling=sampling, prompt=first[:, 40:]), axis=1)
    assert np.array_equal(whole, np.concatenate([first, second[:, 20:]], axis=1))


def test_windows_draw_different_numbers():
    """A model that is told nothing and predicts everything alike must not repeat itself in the second window."""
    module, params = make()
    flat = (module, jax.tree.map(jnp.zeros_like, params))
    codes = np.concatenate(made(flat, 300, window=150, stride=100, sampling=Sampling(guidance=1)), axis=1)[0]
    for shift in range(1, 200):
        assert np.mean(codes[shift:] == codes[:-shift]) < 0.3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nothing_is_drawn_from_what_is_not_finite(model, guidance):
    """A row reads a code whose embedding is NaN: what is good before that comes, then an error that says so."""
    module, params = model
    sampling = Sampling(temperature=0, guidance=guidance)
    whole = np.concatenate(made(model, 120, sampling=sampling), axis=1)
    # The code that turns up latest, and in one row only.
    firsts = {code: np.argwhere(whole[:, :, 0] == code) for code in range(20)}
    firsts = {code: found for code, found in firsts.items() if len(found) and len(set(found[:, 0])) == 1}
    code = max(firsts, key=lambda code: firsts[code][0, 1])
    row, frame = firsts[code][0]
    assert frame > 4
    embedding = params["embed"]["embedding"].at[0, code].set(np.nan)
    broken = module, {**params, "embed": {"embedding": embedding}}
    pieces = []
    message = rf"predictions of row {row} are not finite, after {frame - 2} good frames"
    with pytest.raises(NotFiniteError, match=message):
        pieces.extend(making(broken, 120, sampling=sampling))
    # Frame f of the first codebook is drawn in step f + 1, by when the fourth codebook is at frame f - 3.
    assert np.array_equal(np.concatenate(pieces, axis=1), whole[:, : frame - 2])


def test_a_plan_of_millions_of_windows_is_refused():
    assert len(list(extents(100_000, 0, 1500, 900))) == 111
    with pytest.raises(ValueError, match="a stride of 1 frames is too short for 4320000 frames"):
        window_and_stride(30, 0.02, 4_320_000, 30, 50.0)


@pytest.mark.parametrize(("window", "stride"), [(None, 18.0), (40, 18.0), (29, 17.4), (10, 6.0), (0.1, 0.06)])
def test_the_stride_is_18_seconds_or_a_share_of_a_shorter_window(window, stride):
    assert window_and_stride(window, None, 1500, 30, 50.0) == (round((window or 30) * 50), round(stride * 50))


def test_codes_come_as_they_are_made(model):
    chunks = made(model, 130)
    assert len(chunks) > 2
    assert sum(chunk.shape[1] for chunk in chunks) == 130
