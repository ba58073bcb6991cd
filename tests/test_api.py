"""The public surface on the toy model: what is asked, checked, made, kept."""

import copy
import dataclasses
import inspect
import logging
import pickle

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import mgjax
from mgjax import api, nn
from mgjax.checkpoints import sources
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.codec.codec import _apply
from mgjax.devices import sharding
from mgjax.generation import arguments, sampling

SOFT = mgjax.Sampling(top_k=50)


@pytest.fixture(scope="module")
def model():
    return mgjax.load("debug")


def tone(seconds, rate=32_000):
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_all_that_generate_take_the_same_keywords():
    """Of the same kinds, with the same defaults and types; `logits` those that it takes."""
    parameters = {
        name: dict(inspect.signature(getattr(api.MusicGen, name)).parameters)
        for name in ("generate", "stream", "generate_codes", "stream_codes", "logits")
    }
    scored = parameters.pop("logits")
    expected = parameters["generate"]
    assert list(expected)[:2] == ["self", "prompts"]
    assert {parameter.kind for name, parameter in expected.items() if name not in ("self", "prompts")} == {
        inspect.Parameter.KEYWORD_ONLY
    }
    for name, found in parameters.items():
        assert list(found.items()) == list(expected.items()), name
    assert list(scored)[:3] == ["self", "codes", "prompts"]
    shared = [name for name in expected if name in scored]
    assert [name for name in scored if name != "codes"] == shared
    for name in set(shared) - {"prompts"}:  # which cannot change within what is scored
        assert scored[name] == expected[name], name
    conditions = inspect.signature(arguments._conditioning_inputs).parameters
    assert {*conditions} - {"config", "seeds"} == {*shared} - {"self", "prompts", "seed"}


def test_prompts_may_still_be_called_texts(model):
    codes = model.generate_codes("a", seconds=0.5)
    assert np.array_equal(model.generate_codes(texts="a", seconds=0.5), codes)
    assert np.array_equal(model.logits(codes, texts="a"), model.logits(codes, "a"))
    assert sum(piece.shape[1] for piece in model.stream(texts="a", seconds=0.5)) == 16_000
    for twice in (lambda: model.stream("a", texts="b"), lambda: model.stream(prompts="a", texts="b")):
        with pytest.raises(TypeError, match=r"prompts|texts"):
            twice()


def test_audio_has_the_length_that_was_asked_for(model):
    audio = model.generate(["a waltz", "a march"], seconds=2.3, seed=1, sampling=SOFT)
    assert audio.shape == (2, 115 * 640, 1)
    assert audio.dtype == np.float32
    assert (model.sample_rate, model.channels, model.frame_rate) == (32_000, 1, 50)
    assert (model.num_codebooks, model.codebook_size) == (4, 64)


def test_streamed_pieces_are_the_generated_audio(model):
    pieces = list(model.stream("a waltz", seconds=4.0, seed=3, sampling=SOFT))
    whole = model.generate("a waltz", seconds=4.0, seed=3, sampling=SOFT)
    assert len(pieces) > 2
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)
    codes = model.generate_codes("a waltz", seconds=4.0, seed=3, sampling=SOFT)
    assert np.abs(model.codec.decode(codes) - whole).max() < 1e-5


def test_a_stream_can_be_left_where_python_ends(model, monkeypatch):
    stream = model.stream_codes("a waltz", seconds=4.0)
    next(stream)
    monkeypatch.setattr(api, "NotFiniteError", None)  # as modules are emptied at the end of a script
    stream.close()


def test_the_same_seed_gives_the_same_music_in_any_batch(model):
    batch = model.generate_codes(["a", "b", "a rather longer text than the others"], seconds=1.0, seed=[5, 9, 7])
    assert np.array_equal(batch[1:2], model.generate_codes("b", seconds=1.0, seed=9))
    assert not np.array_equal(batch[1:2], model.generate_codes("b", seconds=1.0, seed=10))
    counted = model.generate_codes(["a", "b"], seconds=1.0, seed=5)
    assert np.array_equal(counted[0], batch[0])
    assert np.array_equal(counted[1:], model.generate_codes("b", seconds=1.0, seed=6))


def test_texts_steer(model):
    codes = np.zeros((1, 5, 4), np.int32)
    one, other, none = (np.asarray(model.logits(codes, text)) for text in ("piano", "drums", None))
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - none).max() > 1e-3
    assert np.array_equal(none, np.asarray(model.logits(codes, "")))
    assert not np.array_equal(none, np.asarray(model.logits(codes, " ")))


def test_no_text_is_the_same_in_every_wording(model):
    quiet = mgjax.Sampling(guidance=1.0)
    plain = model.generate_codes(None, seconds=1.0, sampling=quiet)
    assert np.array_equal(plain, model.generate_codes("", seconds=1.0, sampling=quiet))
    with pytest.warns(UserWarning, match="guidance has no effect"):
        assert np.array_equal(plain, model.generate_codes([None], seconds=1.0))


def test_a_prompt_is_continued(model):
    prompt = tone(1.0, 44_100)[:44_100]
    codes = model.generate_codes("more", seconds=2.0, prompt=prompt, prompt_sample_rate=44_100)
    assert codes.shape == (1, 100, 4)
    assert np.array_equal(codes[:, :50], model.codec.encode(prompt, sample_rate=44_100))
    pair = np.stack([tone(1.0), -0.5 * tone(1.0)])[..., None]
    both = model.generate_codes(["a", "b"], seconds=1.5, prompt=pair)
    assert np.array_equal(both[:, :50], model.codec.encode(pair))
    assert np.array_equal(both, model.generate_codes(["a", "b"], seconds=1.5, prompt=list(pair)))


def test_long_music_goes_window_by_window(model):
    progress = []
    codes = model.generate_codes(
        "long", seconds=5.0, window=2.0, stride=1.2, progress=lambda done, of: progress.append((done, of))
    )
    assert codes.shape == (1, 250, 4)
    assert np.array_equal(codes[:, :100], model.generate_codes("long", seconds=2.0))
    assert progress[-1] == (250, 250)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_programs_are_compiled_a_bounded_number_of_times(model):
    """Other texts, lengths, prompts, seeds and sampling, and there is little or nothing new to compile."""
    music = (sampling.prefill, sampling.decode_steps, sampling.grow, nn.jit_apply, sampling.make_context)

    def compiled(functions):
        return sum(function._cache_size() for function in functions)

    def make(letters, seconds, prompt, seed):
        model.generate("b" * letters, seconds=seconds, seed=seed, sampling=SOFT, prompt=tone(prompt))
        model.logits(np.zeros((1, int(40 * seconds), 4), np.int32), "b" * letters)

    make(3, 3.0, 1.0, 0)
    make(20, 3.0, 1.0, 0)  # a longer bucket of text
    before = compiled(music), compiled([_apply])
    for i in range(4):
        make(3 + i, 3.0 + i / 50, 1.0 - i / 50, i)
        make(20 + i, 3.0 - i / 50, 1.0 - i / 50, i)
    assert compiled(music) == before[0]
    assert compiled([_apply]) - before[1] <= 10  # sizes of the codec's last pieces, which are few
    before = compiled([_apply])
    make(5, 3.04, 0.98, 9)
    assert compiled([_apply]) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_play(model, dtype, tmp_path):
    """The language model and the text encoder are halved; the codec is not, so its codes are the same."""
    model.save(tmp_path)
    half = mgjax.load(tmp_path, dtype=dtype)
    assert half.dtype == mgjax.load("debug", dtype=dtype).dtype == dtype
    assert np.array_equal(half.codec.encode(tone(0.5)), model.codec.encode(tone(0.5)))
    audio = half.generate("a", seconds=1.0, prompt=tone(0.5))
    assert audio.shape == (1, 32_000, 1)
    assert np.isfinite(audio).all()
    codes = model.codec.encode(tone(0.5))
    error = np.abs(np.asarray(half.logits(codes, "a")) - np.asarray(model.logits(codes, "a"))).max()
    assert error < 0.1  # measured 0.03 in bfloat16, where logits have a standard deviation of 1


@pytest.mark.parametrize("dtype", ["int8", "float64", "fp16", np.int32])
def test_types_that_a_model_cannot_have_are_refused(dtype):
    with pytest.raises(ValueError, match="float32, bfloat16, float16"):
        mgjax.load("debug", dtype=dtype)


def test_a_tokenizer_of_another_model_is_refused(model):
    saved = model._checkpoint()
    narrow = dataclasses.replace(saved.config, text=dataclasses.replace(saved.config.text, vocab_size=100))
    with pytest.raises(CheckpointError, match="259 tokens, and the text encoder knows 100"):
        api.MusicGen(dataclasses.replace(saved, config=narrow)).generate_codes("a")


def test_more_than_the_window_is_not_scored_at_once(model):
    with pytest.raises(ValueError, match="last 31 seconds, and the model sees 30 at once"):
        model.logits(np.zeros((1, 1550, 4), np.int32), "a")


# The bad inputs of the reference, one by one: what the caller reads, before anything is made.
BAD = {
    "text that is a number": (TypeError, "texts must be a string", 7, {}),
    "bytes": (TypeError, "texts must be a string", b"a", {}),
    "a list with a number": (TypeError, "texts must be a string", ["a", 3], {}),
    "no text": (ValueError, "at least one", [], {}),
    "no time": (ValueError, "above 0, got 0", "a", {"seconds": 0}),
    "negative time": (ValueError, "above 0, got -1", "a", {"seconds": -1}),
    "time that is not a number": (ValueError, "finite number of seconds, got nan", "a", {"seconds": float("nan")}),
    "endless time": (ValueError, "finite", "a", {"seconds": float("inf")}),
    "less than a frame": (ValueError, "at least 0.02", "a", {"seconds": 0.01}),
    "time in words": (TypeError, "number of seconds, got 'two'", "a", {"seconds": "two"}),
    "prompt as long as the result": (ValueError, "above 1, got 1", "a", {"seconds": 1.0, "prompt": tone(1.0)}),
    "prompt longer than the result": (ValueError, "above 2, got 1", "a", {"seconds": 1.0, "prompt": tone(2.0)}),
    "prompt longer than the window": (ValueError, "--trim-prompt", "a", {"prompt": tone(3.0), "window": 2}),
    "three prompts for two texts": (
        ValueError,
        "do not fit",
        ["a", "b"],
        {"prompt": np.zeros((3, 640, 1))},
    ),
    "three prompts in a list": (ValueError, "3 prompts do not fit 2 rows", ["a", "b"], {"prompt": [tone(0.5)] * 3}),
    "a prompt for one of two": (ValueError, "begin with a prompt, or none", ["a", "b"], {"prompt": [tone(0.5), None]}),
    "prompts of two lengths": (ValueError, r"of one length, got \[", ["a", "b"], {"prompt": [tone(0.5), tone(0.4)]}),
    "a prompt in the scale of 16 bits": (ValueError, "a peak of 9", "a", {"prompt": 30_000 * tone(0.5)}),
    "the name of a prompt": (TypeError, "not the name of a file", "a", {"prompt": "song.wav"}),
    "a rate that no sound has": (ValueError, "hertz", "a", {"prompt": tone(0.5), "prompt_sample_rate": 10**12}),
    "prompt with NaN": (ValueError, "finite|NaN", "a", {"prompt": np.full(6400, np.nan, np.float32)}),
    "prompt with infinity": (ValueError, "finite|inf", "a", {"prompt": np.full(6400, np.inf, np.float32)}),
    "prompt of no length": (ValueError, "no sound", "a", {"prompt": np.zeros(0, np.float32)}),
    "prompt of many channels": (ValueError, "transpose", "a", {"prompt": np.zeros((2, 6400), np.float32)}),
    "stride of the whole window": (ValueError, "below the window", "a", {"window": 2.0, "stride": 2.0}),
    "stride beyond the window": (ValueError, "below the window", "a", {"stride": 31}),
    "no stride": (ValueError, "above 0, got 0", "a", {"stride": 0}),
    "two seeds for one text": (ValueError, "2 seeds do not fit 1 texts", "a", {"seed": [1, 2]}),
    "negative seed": (ValueError, "0 or above", "a", {"seed": -1}),
    "seed of the next universe": (ValueError, "below 2", "a", {"seed": 2**32}),
    "a year of music": (ValueError, "at most 86400", "a", {"seconds": 3e7}),
    "a window of hours": (ValueError, "to 300 seconds", "a", {"window": 1e4}),
    "a window in words": (TypeError, "number of seconds", "a", {"window": "long"}),
    "an option that there is not": (TypeError, "stream.*second", "a", {"second": 3}),
    "seed in words": (TypeError, "whole number", "a", {"seed": "lucky"}),
    "time of hundreds of digits": (ValueError, "seconds must be a finite", "a", {"seconds": 10**400}),
    "more time than there is": (ValueError, "at most 86400", "a", {"seconds": 1e308}),
    "window of hundreds of digits": (ValueError, "window must be a finite", "a", {"window": 10**400}),
    "seed of thousands of digits": (ValueError, "below 2", "a", {"seed": 10**5000}),
    "millions of windows": (ValueError, "a stride of 1 frames is too short", "a", {"seconds": 86_400, "stride": 0.02}),
    "a book": (ValueError, "a text has 100000000 characters", "a" * 10**8, {}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_say_what_is_wrong(model, case):
    error, message, prompts, options = BAD[case]
    with pytest.raises(error, match=message):
        model.stream(prompts, **options)  # at the call, before the first piece is asked for


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_p": -0.1}, "top_p must be"),
        ({"top_k": 2**31}, "top_k must be"),
        ({"guidance": float("inf")}, "guidance must be"),
        ({"temperature": 10**400}, "temperature must be"),
        ({"top_p": 10**400}, "top_p must be"),
        ({"guidance": ((0, 1), (10**400, 2))}, "guidance must be"),
    ],
)
def test_bad_sampling_says_what_is_allowed(values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mgjax.Sampling(**values)


def test_more_top_k_than_codes_is_all_codes(model):
    every = model.generate_codes("a", seconds=0.5, sampling=mgjax.Sampling(top_k=64))
    assert np.array_equal(every, model.generate_codes("a", seconds=0.5, sampling=mgjax.Sampling(top_k=5000)))


def test_very_long_texts_are_cut_and_it_is_said(model):
    with pytest.warns(UserWarning, match="89 more than"):
        long = model.generate_codes("a" * 600, seconds=0.5)
    assert np.array_equal(long, model.generate_codes("a" * 511, seconds=0.5))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 4, 3), np.int32), "4"),
        (np.zeros((1, 0, 4), np.int32), "codes must be"),
        (np.full((1, 4, 4), 64), "from 0 to 63"),
        (np.full((1, 4, 4), -1), "from 0 to 63"),
    ],
)
def test_bad_codes_say_what_is_wrong(model, codes, message):
    with pytest.raises(ValueError, match=message):
        model.logits(codes, "a")


def test_seeds_wrap_around(model):
    last = 2**32 - 1
    codes = model.generate_codes(["a", "a"], seconds=0.5, seed=last)
    assert np.array_equal(codes, model.generate_codes(["a", "a"], seconds=0.5, seed=np.array([last, 0])))


def test_melodies_are_for_melody_models(model):
    with pytest.raises(ValueError, match="melody model"):
        model.logits(np.zeros((1, 4, 4), np.int32), "a", chroma=np.zeros((1, 235, 12), np.float32))


@pytest.mark.parametrize("form", ["mgjax", "huggingface", "audiocraft"])
def test_a_saved_model_is_the_same_model(model, tmp_path, form):
    codes = model.generate_codes("a", seconds=0.5)
    options = {}
    if form == "audiocraft":
        model.save(tmp_path / "t5", format="huggingface")
        options["text_encoder"] = str(tmp_path / "t5")
    model.save(tmp_path / "saved", format=form, **options)
    saved = mgjax.load(tmp_path / "saved", **options)
    without_text = np.zeros((1, 6, 4), np.int32)
    error = np.abs(np.asarray(model.logits(without_text, None)) - np.asarray(saved.logits(without_text, None))).max()
    assert error < 1e-6
    assert np.abs(model.codec.decode(codes) - saved.codec.decode(codes)).max() < 1e-4
    if form == "mgjax":
        assert np.array_equal(saved.generate_codes("a", seconds=0.5), codes)
        assert saved.hash == model.hash
    else:
        with pytest.raises(CheckpointError, match=r"spiece\.model"):
            saved.generate_codes("a")


def with_nan(model, *names, at):
    """The model with NaN in one of its weights."""
    saved = model._checkpoint()
    tree = saved.variables
    for name in names[:-1]:
        tree[name] = dict(tree[name])
        tree = tree[name]
    tree[names[-1]] = jax.numpy.asarray(tree[names[-1]]).at[at].set(np.nan)
    return api.MusicGen(saved)


def test_what_is_not_finite_is_no_music(model):
    """The error says which weights it comes from, where the language model only passes it on too."""
    for names, what in [(("lm", "head", "kernel"), "predictions"), (("text", "embed", "embedding"), "conditions")]:
        broken = with_nan(model, *names, at=(-1,) if what == "predictions" else (3 + ord("a"),))
        message = rf"{what}.* of row 0, 1 are not finite, after 0 good frames: the weights {'/'.join(names)} are NaN"
        with pytest.raises(mgjax.NotFiniteError, match=message):
            broken.generate(["a", "a"], seconds=1.0, sampling=SOFT)
    fine = with_nan(model, "text", "embed", "embedding", at=(3 + ord("z"),))  # which is in no text
    assert np.isfinite(fine.generate("a", seconds=1.0, sampling=SOFT)).all()


def test_a_model_is_pickled_and_copied(model):
    model.tokenizer  # noqa: B018 - read, and then held
    expected = model.generate_codes("a", seconds=0.5)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(again.generate_codes("a", seconds=0.5), expected)
    with pytest.raises(TypeError, match="save and load it"):
        pickle.dumps(mgjax.load("debug", mesh=sharding.make_mesh(2, 2, 2)))


def test_unknown_formats_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="'mgjax', 'huggingface', 'audiocraft'"):
        model.save(tmp_path / "x", format="onnx")
    assert not (tmp_path / "x").exists()


def test_hashes_tell_models_apart(model):
    assert len(model.hash) == 12
    same = model._checkpoint()
    assert api.MusicGen(same).hash == model.hash
    for part in ("lm", "text", "codec"):
        moved = {**same.variables, part: jax.tree.map(lambda x: x + 1e-3, same.variables[part])}
        assert api.MusicGen(dataclasses.replace(same, variables=moved)).hash != model.hash


def test_the_licence_is_told_once_when_metas_weights_are_loaded(model, caplog, monkeypatch, tmp_path):
    saved = model._checkpoint()
    unlicensed = dataclasses.replace(saved.config, license="unknown")
    sources.write(tmp_path / "published", dataclasses.replace(saved, config=unlicensed))
    monkeypatch.setattr("mgjax.checkpoints.hub.fetch", lambda source, allow=None: tmp_path / "published")
    with caplog.at_level(logging.WARNING, "mgjax"):
        told = mgjax.load("facebook/musicgen-of-this-test")
        mgjax.load("facebook/musicgen-of-this-test")
        assert len(caplog.records) == 1
        assert "CC-BY-NC-4.0" in caplog.text
        mgjax.load_codec("facebook/encodec-of-this-test")
        assert len(caplog.records) == 2
        caplog.clear()
        mgjax.load(tmp_path / "published")
        assert not caplog.records
    assert told.config.license == "CC-BY-NC-4.0"


@pytest.mark.parametrize(("data", "fsdp", "tensor", "cache"), [(2, 2, 2, None), (1, 8, 1, None), (2, 2, 2, "int8")])
def test_a_mesh_gives_the_same_music(model, data, fsdp, tensor, cache):
    spread = mgjax.load("debug", mesh=sharding.make_mesh(data, fsdp, tensor), cache=cache)
    texts = ["a", "b", "c", "d"]
    greedy = {"seconds": 0.6, "sampling": mgjax.Sampling(temperature=0, guidance=3.0)}
    expected = (mgjax.load("debug", cache=cache) if cache else model).generate_codes(texts, **greedy)
    before = sampling.decode_steps._cache_size()
    assert np.array_equal(spread.generate_codes(texts, **greedy), expected)
    assert sampling.decode_steps._cache_size() == before + 1


def test_a_mesh_takes_batches_that_it_does_not_divide(model):
    spread = mgjax.load("debug", mesh=sharding.make_mesh(2, 2, 2))
    options = {"seconds": 0.4, "sampling": mgjax.Sampling(temperature=0), "prompt": tone(0.2)}
    expected = model.generate_codes(["a", "b", "c"], **options)
    assert np.array_equal(spread.generate_codes(["a", "b", "c"], **options), expected)


@pytest.mark.parametrize("cache", [None, "int8"])
def test_caches_are_spread_over_the_mesh(monkeypatch, cache):
    """Rows over data, heads over model, from the first chunk on; the scales of int8 as its numbers."""
    spread = mgjax.load("debug", mesh=sharding.make_mesh(4, 1, 2), cache=cache)
    states = []
    decode_steps = sampling.decode_steps

    def watched(*args):
        for state in (args[3], decode_steps(*args)):
            states.extend(leaf.sharding.spec for leaf in jax.tree.leaves(state.cache.layers[0].key))
        raise StopIteration

    monkeypatch.setattr("mgjax.generation.sampling.decode_steps", watched)
    with pytest.raises((RuntimeError, StopIteration)):
        spread.generate_codes(["a", "b", "c", "d"], seconds=0.5)
    assert states == [P("data", "model")] * (4 if cache else 2)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_weights_may_be_kept_in_fewer_bits(weights, tmp_path):
    """What they are read as, and what they predict; a model that is saved is loaded in any of them."""
    loaded = mgjax.load("debug", weights=weights)
    assert (loaded.weights, loaded.dtype) == (weights, "float32")
    plain = api.MusicGen(sources.read("debug", dtype="float32"))
    codes = np.random.default_rng(0).integers(0, plain.codebook_size, (2, 30, 4))
    difference = np.abs(loaded.logits(codes, "a waltz") - plain.logits(codes, "a waltz")).max()
    least, most = {"float32": (1e-9, 1e-5), "bfloat16": (1e-5, 0.02), "int8": (1e-3, 0.1)}[weights]
    assert least <= difference < most, difference  # measured 1.1e-6, 0.018 and 0.040
    loaded.save(tmp_path)
    again = mgjax.load(tmp_path, weights=weights)
    assert np.array_equal(again.logits(codes, "a waltz"), loaded.logits(codes, "a waltz"))
    assert (loaded.hash == plain.hash) == (weights == "float32")
    assert again.hash == loaded.hash


def test_float32_weights_give_the_same_codes_however_they_are_kept(model):
    kept = mgjax.load("debug")
    plain = api.MusicGen(sources.read("debug", dtype="float32"))
    arguments = dict(seconds=1.5, seed=[4, 5], sampling=SOFT)
    prompts = ["a waltz", "a march"]
    assert np.array_equal(kept.generate_codes(prompts, **arguments), plain.generate_codes(prompts, **arguments))


@pytest.mark.parametrize(("cache", "types"), [("bfloat16", {"uint16"}), ("int8", {"int8", "float32"})])
def test_the_cache_may_be_kept_in_fewer_bits(model, monkeypatch, cache, types):
    """With a prompt, which is read at once. uint16 is the bits of bfloat16."""
    kept = mgjax.load("debug", cache=cache)
    assert (kept.weights, kept.dtype) == ("float32", "float32")
    caches = []
    decode_steps = sampling.decode_steps

    def watched(*args):
        state = decode_steps(*args)
        caches.append({str(leaf.dtype) for leaf in jax.tree.leaves(state.cache)})
        return state

    monkeypatch.setattr("mgjax.generation.sampling.decode_steps", watched)
    options = {"seconds": 0.5, "prompt": tone(0.2), "sampling": SOFT}
    codes = [each.generate_codes("a waltz", **options) for each in (model, kept)]
    assert caches == [{"float32"}, types]
    assert codes[1].shape == codes[0].shape


@pytest.mark.parametrize("given", [{"weights": "int4"}, {"cache": "int4"}, {"weights": 8}])
def test_types_that_nothing_is_kept_in(given):
    [name] = given
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        mgjax.load("debug", **given)


def test_weights_on_a_mesh_are_those_of_its_dtype():
    with pytest.raises(ValueError, match="weights is for a model on one device"):
        mgjax.load("debug", weights="int8", mesh=sharding.make_mesh(8))
