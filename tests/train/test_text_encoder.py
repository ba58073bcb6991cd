"""The text encoder of a run: read from elsewhere, frozen or trained, or new with a vocabulary of its own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpora
import torch
import transformers
from jax.sharding import PartitionSpec as P

import mgjax
from mgjax.audio.metadata import Metadata
from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.checkpoints.native import hash_of
from mgjax.checkpoints.random_weights import random_variables
from mgjax.conditioning.t5 import T5Encoder
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.conditioning.tokenizers import load as load_tokenizer
from mgjax.config.conditioning import T5Config
from mgjax.config.model import Fused, LMConfig
from mgjax.config.serialization import ConfigError
from mgjax.data import corpus_writing, vocabulary
from mgjax.data.corpus import Corpus, Description
from mgjax.data.pipeline import DataConfig
from mgjax.data.prompts import TextConfig
from mgjax.devices import sharding
from mgjax.train import lm, text
from mgjax.train.lm import resolver
from mgjax.train.optim import OptimConfig
from mgjax.train.overrides import from_config_dict, to_config_dict
from mgjax.train.task import LoopConfig

NEW = T5Config(dim=8, head_dim=4, ffn_dim=12, num_layers=1, num_heads=2, num_buckets=8, activation="gated-gelu")
CAPTIONS = ["a slow waltz on accordion", "driving techno with a deep bass", "a cheerful folk dance"]
RUN = lm.LMRun(
    lm=LMConfig(dim=16, num_layers=1, num_heads=2, ffn_dim=16, codebook_size=64, conditions=(Fused("text", 8),)),
    codec="debug",
    new_text=NEW,
    train_text=True,
    data=DataConfig(batch_size=8, segment_seconds=0.2, num_threads=0, prefetch=1),
    text=TextConfig(max_tokens=32),
    optim=OptimConfig(
        learning_rate=0.01, schedule="constant", warmup_steps=0, weight_decay=0.0, average_decay=0.9, average_every=1
    ),
    loop=LoopConfig(steps=4, log_every=1, eval_every=0, show_every=0, save_every=2),
    scan_layers=False,
    prompts=(),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    description = Description(
        kind="tokens", sample_rate=32_000, channels=1, frame_rate=50.0, num_codebooks=4, codebook_size=64,
        codec_source="debug", codec_hash=mgjax.load_codec("debug").hash,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    pieces = [
        corpus_writing.Piece(caption, Metadata(description=caption), rng.integers(0, 64, (12, 4)).astype(np.uint16))
        for caption in CAPTIONS
    ]
    directory = tmp_path_factory.mktemp("corpus") / "codes"
    tiny_corpora.write(directory, description, {"train": pieces, "valid": pieces})
    return directory


@pytest.fixture(scope="module")
def words(corpus, tmp_path_factory):
    """The folder of a vocabulary."""
    directory = tmp_path_factory.mktemp("words")
    vocabulary.train(vocabulary.texts_of([Corpus.open(corpus)]), 284, directory)
    return directory


@pytest.fixture(scope="module")
def flan(words, tmp_path_factory):
    """A tiny T5 with gates, as transformers writes it, and what it makes of the captions."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("flan")
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=284, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=8,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(directory)
    (directory / "spiece.model").write_bytes((words / "spiece.model").read_bytes())
    ids, mask = Tokenizer.from_directory(directory).encode(CAPTIONS)
    with torch.no_grad():
        hidden = theirs(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
    return directory, ids, mask, hidden


def batch_of(start):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 64, (3, 10, 4)).astype(np.int32)
    texts = dict(
        zip(
            ("text_ids", "text_mask"),
            load_tokenizer(start.config, start.tokenizer).encode([*CAPTIONS[:2], None]),
            strict=True,
        )
    )
    return {"codes": codes, "num_frames": np.array([10, 10, 10], np.int32)} | texts


def same(tree, other):
    return [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)]


def predicted(model, codes, texts):
    """The cross-entropy that the logits of a loaded model give: codebook k comes k steps late."""
    logits = np.asarray(model.logits(codes, texts), np.float64)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    lost = -np.log(np.take_along_axis(chances, codes[..., None], axis=3)[..., 0])
    return np.mean([lost[:, : 10 - k, k].mean() for k in range(4)])


def test_an_encoder_can_learn_more_slowly_than_the_rest(words):
    config = dataclasses.replace(RUN, vocabulary=str(words), optim=dataclasses.replace(RUN.optim, name="muon"))
    start = lm.pretrained(config)
    batch = batch_of(start)
    moved = {}
    for rate in (1.0, 0.1):
        task = lm.task(dataclasses.replace(config, text_rate=rate), start, "tokens")
        before = jax.jit(task.init)(jax.random.key(0))
        after, _ = jax.jit(task.train_step)(before, task.frozen, batch)
        moved[rate] = jax.tree.map(lambda new, old: np.asarray(new - old), after.params, before.params)
    for one, other in zip(jax.tree.leaves(moved[1.0]["text"]), jax.tree.leaves(moved[0.1]["text"]), strict=True):
        np.testing.assert_allclose(other, 0.1 * one, atol=1e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moved[1.0]["text"])) > 1e-3
    assert all(same(moved[1.0]["lm"], moved[0.1]["lm"]))


@pytest.mark.usefixtures("one_device")
def test_a_new_encoder_is_trained_saved_and_loaded(corpus, words, tmp_path):
    config = dataclasses.replace(RUN, vocabulary=str(words), data=dataclasses.replace(RUN.data, corpora=(str(corpus),)))
    state = lm.run(config, tmp_path)
    assert state.params["text"]["embed"]["embedding"].shape == (284, 8)
    assert not all(same(state.params["text"], state.average.weights["text"]))
    task = lm.task(config, lm.pretrained(config), "tokens")
    before = jax.jit(task.init)(jax.random.key(config.loop.seed)).params["text"]
    assert not any(same(before, state.params["text"]))
    moved = np.any(np.asarray(before["embed"]["embedding"] != state.params["text"]["embed"]["embedding"]), axis=1)
    assert moved[1]  # the end of a text
    assert moved[259:].mean() > 0.8
    assert not moved[3:259].any()  # the gradient is that of the texts, which need no bytes

    model = mgjax.load(tmp_path / "model")
    assert all(same(model._checkpoint().variables["text"], state.average.weights["text"]))
    assert model.config.text == dataclasses.replace(NEW, vocab_size=284)
    batch = batch_of(lm.pretrained(config))
    sums = jax.device_get(jax.jit(task.eval_step)(jax.tree.map(np.asarray, state), task.frozen, batch))
    found = sums["cross_entropy"].value()
    assert found == pytest.approx(predicted(model, batch["codes"], [*CAPTIONS[:2], None]), rel=1e-5)  # measured 2e-8
    others = predicted(model, batch["codes"], [CAPTIONS[1], CAPTIONS[0], None])
    assert abs(found - others) > 1e-4 * found  # the texts are heard

    assert (tmp_path / "model" / "spiece.model").read_bytes() == (words / "spiece.model").read_bytes()
    home = json.loads((tmp_path / "model" / "provenance.json").read_text())["text_encoder"]
    assert home == {
        "source": "new",
        "vocabulary": str(words),
        "trained": True,
        "hash": hash_of(model.config.text, model._checkpoint().variables["text"]),
    }


def test_a_trained_encoder_is_split_among_devices():
    """The weights, their averages and what the optimiser keeps of them: nothing of two axes lies whole everywhere."""
    mesh = sharding.make_mesh(2, 2, 2)
    config = dataclasses.replace(RUN, new_text=dataclasses.replace(NEW, vocab_size=320))
    state = jax.eval_shape(lm.task(config, lm.pretrained(config), "tokens").init, jax.random.key(0))
    placed = {
        sharding.path_of(path): where.spec
        for path, where in jax.tree_util.tree_leaves_with_path(sharding.shardings(state, mesh))
    }
    paths = [path for path in placed if "/text/" in path and path.endswith("kernel")]
    assert len(paths) == 4 * 7  # attention and three of the gated layer; weights, average and two moments
    assert all(sorted(filter(None, placed[path])) == ["fsdp", "model"] for path in paths)
    embeddings = [spec for path, spec in placed.items() if path.endswith("text/embed/embedding")]
    assert embeddings == [P("model", "fsdp")] * 4


@pytest.mark.parametrize("is_trained", [False, True])
def test_an_encoder_from_elsewhere_is_trained_if_asked_to(is_trained, flan, tmp_path):
    directory, ids, mask, hidden = flan
    config = dataclasses.replace(RUN, new_text=None, text_encoder=str(directory), train_text=is_trained)
    start = lm.pretrained(config)
    task = lm.task(config, start, "tokens")
    given = random_variables(start.config)["lm"]  # the published initialisation takes long to compile
    state = task.init(jax.random.key(0), {**(task.pretrained or {}), "lm": given})
    learned, read = set(state.params), set(task.frozen)
    assert (learned, read) == (({"lm", "text"}, set()) if is_trained else ({"lm"}, {"text"}))
    weights = {**task.frozen, **state.params}["text"]
    assert hash_of(start.config.text, weights) == resolver.hashes(start)["text_encoder"]
    if is_trained:
        moved = jax.tree.map(lambda leaf: jnp.asarray(leaf) + 1, weights)
        state = state.replace(params=state.params | {"text": moved}, average=None)
    else:
        moved = weights
        made = jax.jit(T5Encoder(start.config.text).apply)({"params": weights}, ids, mask)
        assert np.abs(np.asarray(made) - hidden)[mask].max() < 1e-5  # measured 7e-7
    task.save(state, tmp_path / "model")
    assert all(same(mgjax.load(tmp_path / "model")._checkpoint().variables["text"], moved))
    home = json.loads((tmp_path / "model" / "provenance.json").read_text())["text_encoder"]
    assert home == {
        "source": str(directory),
        "vocabulary": None,
        "trained": is_trained,
        "hash": hash_of(start.config.text, jax.device_get(moved)),
    }


def test_operations_of_a_trained_encoder_count_three_times(flan):
    """Forward and twice as much backward, where a frozen one goes forward only."""
    config = dataclasses.replace(RUN, new_text=None, text_encoder=str(flan[0]))
    start = lm.pretrained(config)
    batch = batch_of(start)
    trained, frozen = (
        lm.task(dataclasses.replace(config, train_text=choice), start, "tokens").flops(batch)
        for choice in (True, False)
    )
    length, rows = batch["text_ids"].shape[1], len(batch["codes"])
    weights = 4 * 8 * 8 + 3 * 8 * 12
    assert trained - frozen == 2 * rows * (2 * weights * length + 2 * 2 * 8 * length * length)


def test_a_new_encoder_fits_its_vocabulary(words, tmp_path):
    assert text.new(NEW, str(words)).config.vocab_size == 284
    assert text.new(NEW, None).config.vocab_size == text.new(NEW, "bytes").config.vocab_size == 259
    padded = dataclasses.replace(NEW, vocab_size=384)
    assert text.new(padded, str(words)).config == padded
    with pytest.raises(ConfigError, match="vocab_size must be 284 or more"):
        text.new(dataclasses.replace(NEW, vocab_size=283), str(words))
    with pytest.raises(CheckpointError, match="mgjax corpus vocabulary CORPUS"):
        text.new(NEW, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"reads the conditions \{'text': 8\}, the model's encoders give"):
        lm.resolve(dataclasses.replace(RUN, new_text=dataclasses.replace(NEW, dim=12)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_text": False}, "has to be trained: set train_text"),
        ({"text_encoder": "debug"}, "text_encoder brings one"),
        ({"init": "debug"}, "init brings one"),
        ({"new_text": None, "text_encoder": "debug", "vocabulary": "words"}, "leave vocabulary out"),
        ({"new_text": None}, "no text encoder to train"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(RUN, **changes)


def test_a_model_without_text_has_no_encoder_to_train(tmp_path):
    deaf = dataclasses.replace(
        RUN, lm=dataclasses.replace(RUN.lm, conditions=()), new_text=None, train_text=False, scan_layers=True
    )
    task = lm.task(deaf, lm.pretrained(deaf), "tokens")
    given = random_variables(lm.resolve(deaf))["lm"]
    task.save(task.init(jax.random.key(0), {"lm": given}), tmp_path / "model")
    config = dataclasses.replace(RUN, init=str(tmp_path / "model"), lm=None, codec=None, new_text=None)
    with pytest.raises(ConfigError, match="reads no text, so there is no text encoder to train"):
        lm.resolve(config)


def test_a_new_encoder_can_be_asked_for_on_the_command_line():
    """What is None at first takes the settings of a text encoder, and each can be overridden."""
    config = to_config_dict(lm.LMRun())
    config.new_text = to_config_dict(NEW)
    config.new_text.num_layers = 3
    config.train_text = True
    assert from_config_dict(lm.LMRun, config).new_text == dataclasses.replace(NEW, num_layers=3)
