"""Training of a toy language model: what is learned, and that what is saved is what was trained."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpora
from baselines import token_counts, uniform, unigram

import mgjax
from mgjax.audio.metadata import Metadata
from mgjax.checkpoints.native import Checkpoint, write_model
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.conditioning import tokenizers
from mgjax.config.model import Fused, Sampling
from mgjax.config.serialization import ConfigError
from mgjax.data import corpus_writing
from mgjax.data.corpus import Corpus, Description
from mgjax.data.pipeline import DataConfig
from mgjax.data.prompts import TextConfig
from mgjax.devices import sharding
from mgjax.lm.lora import LoraConfig
from mgjax.lm.model import LM
from mgjax.train import lm
from mgjax.train.lm import export, resolver
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig, MeshConfig

RUN = lm.LMRun(
    lm=dataclasses.replace(DEBUG.lm, conditions=()),
    codec="debug",
    data=DataConfig(batch_size=8, segment_seconds=0.5, num_threads=0, prefetch=1),
    text=TextConfig(max_tokens=16),
    optim=OptimConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, average_every=1),
    loop=LoopConfig(steps=30, log_every=10, eval_every=0, show_every=0, save_every=100),
    prompts=(),
)
TEXTS = ["slow waltz", None, "fast"]
LENGTHS = [25, 9, 9]


def codes(rows=3, frames=25, books=4, seed=0):
    return np.random.default_rng(seed).integers(0, 64, (rows, frames, books)).astype(np.int32)


def made(config, kind="tokens"):
    """The parts of a model, its task, and a state with random weights, on one device."""
    start = lm.pretrained(config)
    task = lm.task(config, start, kind)
    weights = (
        start.variables.get("lm") or random_variables(start.config)["lm"]
    )  # the published initialisation takes long to compile
    return start, task, jax.jit(task.init)(jax.random.key(0), {"lm": weights})


def validated(task, state, batch):
    sums = jax.device_get(jax.jit(task.eval_step)(state, task.frozen, batch))
    return {name: sum.value() for name, sum in sums.items()}


@pytest.mark.parametrize("fuse", ["cross", "prefix"])
def test_what_is_loaded_predicts_as_what_was_validated(fuse, tmp_path):
    """The validation's numbers, from the logits of the model that was saved, codebook by codebook in numpy."""
    text_lm = dataclasses.replace(DEBUG.lm, conditions=(Fused("text", 16, fuse),))
    start, task, state = made(dataclasses.replace(RUN, lm=text_lm, text_encoder="debug"))
    batch = {"codes": codes(), "num_frames": np.array(LENGTHS, np.int32)}
    batch["text_ids"], batch["text_mask"] = tokenizers.load(start.config, start.tokenizer).encode(TEXTS)
    found = validated(task, state, batch)
    task.save(state, tmp_path / "model")
    model = mgjax.load(tmp_path / "model")

    lost = [[] for _ in range(4)]
    for row, (text, length) in enumerate(zip(TEXTS, LENGTHS, strict=True)):
        logits = np.asarray(model.logits(batch["codes"][row, :length], text)[0], np.float64)
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        for k in range(4):  # codebook k comes k steps late, and its last k frames of 25 are not learned
            frames = np.arange(min(length, 25 - k))
            lost[k] += list(-np.log(chances[frames, k, batch["codes"][row, frames, k]]))
    for k in range(4):
        assert found[f"cross_entropy_{k + 1}"] == pytest.approx(np.mean(lost[k]), rel=1e-5)  # measured 8.3e-8
        assert found[f"perplexity_{k + 1}"] == pytest.approx(np.exp(np.mean(lost[k])), rel=1e-5)
    assert found["cross_entropy"] == pytest.approx(np.mean([np.mean(one) for one in lost]), rel=1e-5)
    home = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert home["codec"]["hash"] == model.codec.hash
    assert home["text_encoder"]["hash"] == resolver.hashes(start)["text_encoder"]


def on(corpus, **changes):
    return dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, corpora=(str(corpus),)), **changes)


def test_a_run_learns_and_its_model_loads(corpus, tmp_path):
    """On a mesh of 2 x 2 x 2: better than what does not look back, on pieces that it has not seen."""
    state = lm.run(on(corpus, mesh=MeshConfig(data=2, fsdp=2, model=2)), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    valid = lines[-1]["values"]
    counts = [token_counts(Corpus.open(corpus, split)) for split in ("train", "valid")]
    known = unigram(*counts)
    assert np.abs(known - uniform(64)).max() < 0.01  # each code is as likely as any other
    for k in range(4):
        assert valid[f"cross_entropy_{k + 1}"] < 0.9 * known[k]
    trained = export.weights_of(state)["lm"]
    assert trained["layers"]["ffn"]["up"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "model")
    saved = mgjax.load(tmp_path / "model")
    assert saved.config.window_seconds == 0.5
    kernel = saved._checkpoint().variables["lm"]["layer1"]["ffn"]["up"]["kernel"]
    assert np.array_equal(kernel, np.asarray(trained["layers"]["ffn"]["up"]["kernel"])[1])


def test_parts_of_a_batch_are_weighed_by_what_they_hold():
    """The loss of an update in two parts, of 28 and of 34 frames, is that of the whole batch, codebooks as weighed."""
    config = dataclasses.replace(
        RUN, optim=dataclasses.replace(RUN.optim, accumulate=2), codebook_weights=(3.0, 1.0, 0.5, 0.5)
    )
    _, task, state = made(config)
    batch = {"codes": codes(rows=4), "num_frames": np.array([25, 25, 3, 9], np.int32)}
    whole = validated(task, state, batch)
    after, metrics = jax.jit(task.train_step)(state, task.frozen, batch)
    weighed = [weight * whole[f"cross_entropy_{k + 1}"] for k, weight in enumerate(config.codebook_weights)]
    assert metrics["loss"] == pytest.approx(sum(weighed) / 5, rel=1e-6)
    assert whole["cross_entropy"] == pytest.approx(sum(whole[f"cross_entropy_{k}"] for k in range(1, 5)) / 4, rel=1e-6)
    for k in range(1, 5):
        assert metrics[f"cross_entropy_{k}"] == pytest.approx(whole[f"cross_entropy_{k}"], rel=1e-6)
    assert after.step == 1
    jax.tree.map(np.testing.assert_array_equal, after.average.weights, after.params)  # the first is all there is


def test_training_on_stereo_audio_is_training_on_its_codes():
    """With the codec in the step, left and right coded apart; a mono model to go on from becomes a stereo model."""
    config = dataclasses.replace(RUN, lm=None, init="debug", codec=None, channels=2)
    start, task, state = made(config, "audio")
    audio = np.random.default_rng(0).normal(size=(3, 15_700, 2)).astype(np.float32) / 8
    texts = dict(
        zip(("text_ids", "text_mask"), tokenizers.load(start.config, start.tokenizer).encode(TEXTS), strict=True)
    )
    lengths = np.array([15_700, 6_000, 1], np.int32)
    heard = validated(task, state, {"audio": audio, "num_samples": lengths} | texts)
    frames = np.array([25, 10, 1], np.int32)
    read = validated(task, state, {"codes": resolver.codec_of(start).encode(audio), "num_frames": frames} | texts)
    assert heard == pytest.approx(read, rel=1e-6)
    assert "cross_entropy_8" in read


@pytest.mark.parametrize(
    "changes",
    [
        {"lm": DEBUG.lm, "text_encoder": "debug"},
        {"lm": None, "codec": None, "init": "debug"},
        {"lm": None, "codec": None, "init": "debug", "channels": 2, "train_text": True},
        {"lm": None, "codec": None, "init": "debug", "lora": LoraConfig()},
    ],
)
def test_what_a_run_starts_from_has_the_shapes_that_a_plan_has(changes):
    """The same config, the same variables; and one filter parts them into what trains and what does not."""
    run = dataclasses.replace(RUN, **changes)
    weights, shapes = lm.pretrained(run), lm.pretrained_shapes(run)
    assert weights.config == shapes.config
    assert jax.tree.map(np.shape, weights.variables) == jax.tree.map(np.shape, shapes.variables)
    task = lm.task(run, shapes, "audio")
    pretrained = () if task.pretrained is None else (task.pretrained,)
    state = jax.eval_shape(task.init, jax.random.key(0), *pretrained)
    for tree, trains in ((state.params, True), (task.frozen, False)):
        paths = {sharding.path_of(path) for path, _ in jax.tree.leaves_with_path(tree)}
        assert {run.trainable(path) for path in paths} == {trains}, paths


def test_a_mono_model_becomes_a_stereo_model():
    """Left and right are predicted alike. With embeddings of half the size, left equal to right is heard as mono."""
    variables = random_variables(DEBUG, place=lambda path, array: array)["lm"]
    config, params = DEBUG.lm.stereo(), resolver.to_stereo(variables)
    assert config.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    half = params | {"embed": {"embedding": params["embed"]["embedding"] / 2}}

    @jax.jit
    def both(mono, stereo, tokens):
        def logits(config, params, tokens):
            module = LM(config)
            context = module.apply({"params": params}, {}, batch=2, method="context")
            return module.apply({"params": params}, tokens, context)

        return logits(DEBUG.lm, mono, tokens), logits(config, stereo, jnp.repeat(tokens, 2, axis=2))

    mono, stereo = both(variables, half, jnp.asarray(codes(rows=2, frames=7)))
    assert np.array_equal(stereo[:, :, 0::2], stereo[:, :, 1::2])
    assert np.abs(stereo[:, :, 0::2] - mono).max() < 1e-5  # measured 9.5e-7


def test_codes_can_begin_as_they_are_heard(corpus):
    """Of new weights, on mono and on stereo, whose codebooks stand for each channel; and Muon learns from there."""
    optimizer = OptimConfig(
        name="muon", learning_rate=0.02, adam_learning_rate=0.01, schedule="constant", warmup_steps=0, average_every=1
    )
    run = dataclasses.replace(RUN, codes_as_heard=True, optim=optimizer)
    start = lm.pretrained(run)
    books = start.variables["codec"]["codebooks"]["embed"]
    heard = np.linalg.norm(books[0][:, None] - books[0][None], axis=-1).ravel()

    def alike(embedding):
        apart = np.linalg.norm(embedding[:64, None] - embedding[None, :64], axis=-1).ravel()
        return np.corrcoef(heard, apart)[0, 1]

    task = lm.task(run, start, "tokens")
    state = jax.jit(task.init)(jax.random.key(0))
    assert alike(state.params["lm"]["embed"]["embedding"][0]) > 0.7  # measured 0.84
    batch = {"codes": codes(), "num_frames": np.array(LENGTHS, np.int32)}
    train = jax.jit(task.train_step)
    lost = []
    for _ in range(8):
        state, metrics = train(state, task.frozen, batch)
        lost.append(float(metrics["loss"]))
    assert lost[-1] < lost[0] - 1, lost  # measured 4.63 to 2.11

    stereo = dataclasses.replace(
        run, channels=2, lm=dataclasses.replace(run.lm, num_codebooks=8, delays=tuple(range(8)))
    )
    task = lm.task(stereo, lm.pretrained(stereo), "tokens")
    both = jax.jit(task.init)(jax.random.key(0)).params["lm"]["embed"]["embedding"]
    assert alike(both[0]) > 0.7  # measured 0.82
    assert alike(both[1]) > 0.7  # the other channel's first codebook


def test_how_codes_are_drawn_is_saved_with_the_model(tmp_path):
    """What the run says, and otherwise what the model did that it goes on from."""
    safer = Sampling(temperature=0.8, top_k=50, guidance=4.0)
    start = lm.pretrained(dataclasses.replace(RUN, sampling=safer))
    assert start.config.sampling == safer
    write_model(tmp_path / "given", Checkpoint(start.config, random_variables(start.config)))
    further = dataclasses.replace(RUN, lm=None, codec=None, init=str(tmp_path / "given"))
    assert lm.resolve(further).sampling == safer
    assert lm.resolve(dataclasses.replace(further, sampling=Sampling())).sampling == Sampling()


@pytest.mark.parametrize("changes", [{}, {"lm": None, "codec": None, "init": "debug"}])
def test_the_window_is_the_length_of_segments_where_the_run_says_no_other(changes):
    run = dataclasses.replace(RUN, **changes)
    assert lm.resolve(run).window_seconds == run.data.segment_seconds
    assert lm.resolve(dataclasses.replace(run, window_seconds=1.5)).window_seconds == 1.5


def test_prompts_are_played():
    config = dataclasses.replace(RUN, prompts=("a waltz", "techno"), prompt_seconds=0.1, dtype="bfloat16")
    _, task, state = made(config)
    sounds = task.show(state, {})
    assert [(sound.audio.shape, sound.sample_rate) for sound in sounds.values()] == [((3200, 1), 32_000)] * 2


def test_model_operations():
    """6 for each weight of a product and each code step, and for each pair of steps that attention compares."""
    start, task, _ = made(RUN)
    found = task.flops({"codes": codes(rows=3), "num_frames": np.array([25, 25, 25], np.int32)})
    d, f, steps = 32, 64, 25
    weights = 2 * (4 * d * d + 2 * d * f) + d * 4 * 64
    assert found == 3 * (6 * weights * steps + 2 * 12 * d * steps * steps)
    assert start.config.lm.num_layers == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": None}, "give lm and codec"),
        ({"init": "debug", "codec": None}, "leave lm out"),
        ({"lm": DEBUG.lm}, "reads the conditions {'text': 16}, the model's encoders give {}"),
        ({"codebook_weights": (1.0, 0.5)}, "must be 4 numbers, one for each codebook, got 2"),
        (
            {"lm": dataclasses.replace(RUN.lm, num_codebooks=3, delays=(0, 1, 2)), "channels": 2},
            "writes 3 .* reads 2 x 4",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        lm.resolve(dataclasses.replace(RUN, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"remat": "some"}, "remat must be one of"),
        ({"channels": 3}, "channels must be one of"),
        ({"window_seconds": 0.0}, "window_seconds must be above 0"),
        ({"optim": OptimConfig(accumulate=3)}, "must divide data.batch_size"),
        ({"codebook_weights": (1.0, 0.0)}, "codebook_weights must be above 0"),
        ({"text_rate": 0.0}, "text_rate must be above 0 and at most 1"),
        ({"codes_as_heard": True, "init": "debug", "codec": None, "lm": None}, "those of init are not new"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(RUN, **changes)


def test_codes_of_another_codec_are_refused(tmp_path):
    description = Description(
        kind="tokens", sample_rate=32_000, channels=1, frame_rate=50.0, num_codebooks=4, codebook_size=64,
        codec_source="elsewhere", codec_hash="0123456789ab",
    )  # fmt: skip
    piece = corpus_writing.Piece("piece", Metadata(), codes()[0].astype(np.uint16))
    tiny_corpora.write(tmp_path / "corpus", description, {"train": [piece], "valid": [piece]})
    with pytest.raises(ConfigError, match="made with another codec"):
        lm.run(on(tmp_path / "corpus"), tmp_path / "run")
