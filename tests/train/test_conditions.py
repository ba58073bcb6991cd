"""Training with melodies and labels: that they count, what is dropped is absent, and what is saved follows."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clap
import tiny_corpora
import tokenizers

import mgjax
from mgjax.audio.metadata import Metadata
from mgjax.audio.waveform import resample, to_channels
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.clap import match_clap
from mgjax.conditioning import chroma
from mgjax.conditioning.clap import embed_audio
from mgjax.config.conditioning import ClapConditionConfig, LabelConfig, MelodyConfig, NumberConfig, StyleConfig
from mgjax.config.model import Fused
from mgjax.config.serialization import ConfigError
from mgjax.data import corpus_writing, tokenize
from mgjax.data.conditions import BatchConditions, ConditionReader, Dropout, Segment, stored_melody
from mgjax.data.corpus import Corpus, Pieces
from mgjax.data.description import describe_audio
from mgjax.data.pipeline import DataConfig, batches
from mgjax.lm.stack import stack_layers
from mgjax.train import conditions, lm
from mgjax.train.optim import OptimConfig
from mgjax.train.resample import resampled
from mgjax.train.state import TrainState
from mgjax.train.task import LoopConfig

MELODY = MelodyConfig(fft_size=4096, hop_length=3200, num_frames=5, null="nothing")  # 10 frames a second
GENRE = LabelConfig("genre", ("waltz", "techno"))
BPM = NumberConfig("bpm", 40, 200, dim=4)
STYLE = StyleConfig(
    features=None, num_code_streams=2, code_size=64, dim=8, ffn_dim=16, num_layers=1, num_heads=2, num_codebooks=2,
    codebook_size=8, eval_codebooks=2, downsample=3, seconds=0.2,
)  # fmt: skip
NONE = Dropout(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
WAYS = {
    "melody": (Fused("melody", 12, "prefix"), {"melody": MELODY}),
    "silence": (Fused("melody", 12, "prefix"), {"melody": dataclasses.replace(MELODY, null="silence")}),
    "along": (Fused("melody", 12, "interpolate"), {"melody": MELODY}),
    "genre": (Fused("genre", 2, "sum"), {"labels": (GENRE,)}),
    "bpm": (Fused("bpm", 4, "cross"), {"numbers": (BPM,)}),
    "style": (Fused("style", 8, "prefix"), {"style": STYLE}),
    "clap": (Fused("clap", 12, "cross"), {"clap": ClapConditionConfig(num_codebooks=2, codebook_size=8)}),
}
RUN = lm.LMRun(
    lm=dataclasses.replace(DEBUG.lm, conditions=()),
    codec="debug",
    data=DataConfig(batch_size=8, segment_seconds=0.5, num_threads=0, prefetch=1),
    optim=OptimConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, average_every=1),
    loop=LoopConfig(steps=30, log_every=10, eval_every=0, show_every=0, save_every=100),
    prompts=(),
)


def told(*ways, **changes):
    """A run of a model with these conditions."""
    fused = tuple(WAYS[way][0] for way in ways)
    others = {name: value for way in ways for name, value in WAYS[way][1].items()}
    return dataclasses.replace(RUN, lm=dataclasses.replace(RUN.lm, conditions=fused), **others, **changes)


def made(config, weights=None):
    """A run's task, and a state of random weights."""
    start = lm.pretrained(config)
    weights = weights or random_variables(start.config)["lm"]
    task = lm.task(config, start, "tokens")
    return task, TrainState(jnp.int32(0), {"lm": stack_layers(weights)}, (), None, {}), weights


def batch_of(rows=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "codes": rng.integers(0, 64, (rows, 25, 4)).astype(np.int32),
        "num_frames": np.full(rows, 25, np.int32),
        "melody": np.eye(12, dtype=np.float32)[rng.integers(0, 12, (rows, 5))],
        "melody_mask": np.ones((rows, 5), bool),
        "label_genre": np.eye(2, dtype=np.float32)[rng.integers(0, 2, (rows, 1))],
        "label_genre_mask": np.ones((rows, 1), bool),
        "label_bpm": rng.uniform(-1, 1, (rows, 1, 4)).astype(np.float32),
        "label_bpm_mask": np.ones((rows, 1), bool),
    }


def without(batch, name):
    name = {"melody": "melody_mask", "genre": "label_genre_mask", "bpm": "label_bpm_mask"}[name]
    return batch | {name: np.zeros_like(batch[name])}


@pytest.mark.parametrize("way", ["melody", "silence", "along", "genre", "bpm"])
def test_a_condition_counts_and_one_that_is_dropped_is_absent(way):
    task, state, weights = made(told(way))
    name = WAYS[way][0].name
    batch = batch_of()
    evaluate = jax.jit(task.eval_step)

    def loss(batch):
        return evaluate(state, {}, batch)["cross_entropy"].value()

    other = batch | {key: batch_of(seed=1)[key] for key in ("melody", "label_genre", "label_bpm")}
    other["label_genre"] = batch["label_genre"][..., ::-1]
    dropped = loss(without(batch, name))
    assert abs(loss(batch) - loss(other)) > 1e-4
    assert abs(loss(batch) - dropped) > 1e-4
    assert dropped == loss(without(other, name))

    if way == "bpm":
        return  # a model without cross-attention has other weights
    task, state, _ = made(RUN, {key: value for key, value in weights.items() if not key.endswith("_proj")})
    alone = jax.jit(task.eval_step)(state, {}, batch)["cross_entropy"].value()
    if way == "silence":  # zero vectors are attended to, as the published models saw them
        assert abs(dropped - alone) > 1e-4
    else:
        assert dropped == pytest.approx(alone, abs=2e-6)


def notes(seconds, seed, rate=32_000):
    """A tune of pure tones, a new one every 0.3 seconds, with some noise."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    pitches = rng.integers(0, 24, int(seconds / 0.3) + 1)[(times / 0.3).astype(int)]
    phases = 2 * np.pi * np.cumsum(220 * 2 ** (pitches / 12)) / rate
    return (0.4 * np.sin(phases) + 0.01 * rng.standard_normal(len(times))).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same tunes as sound and as codes with chromagrams."""
    directory = tmp_path_factory.mktemp("tunes")
    pieces = [
        corpus_writing.Piece(
            f"tune {i}",
            Metadata(genre=GENRE.values[i % 2], bpm=60 + i, description=f"tune {i}"),
            [notes(1.5 + 0.111 * i, i)],
        )
        for i in range(8)
    ]
    sound, codes = directory / "sound", directory / "codes"
    tiny_corpora.write(sound, describe_audio(32_000, 1), {"train": pieces, "valid": pieces[:4]})
    tokenize.tokenize(sound, codes, "debug", melody=MELODY)
    return {"audio": sound, "tokens": codes}


def test_what_is_stored_is_the_chromagram_of_the_whole_piece(corpora, monkeypatch):
    """Made in stretches of a few frames, as of long pieces."""
    sound, codes = Corpus.open(corpora["audio"]), Corpus.open(corpora["tokens"])
    assert codes.description.melody == stored_melody(MELODY) == stored_melody(codes.description.melody)
    monkeypatch.setattr(tokenize, "_MELODY_FRAMES", 3)
    for piece in (0, 7):
        config = codes.description.melody
        expected = np.asarray(chroma.chromagram(sound.read(piece).T, config))[0]
        assert np.abs(tokenize.chromagram(sound, piece, config) - expected).max() < 1e-5  # measured 0
        found = codes.melody(piece, 0, 100)
        assert np.abs(found - expected).max() < 1e-3  # measured 2.4e-4: 16 bits
        np.testing.assert_array_equal(codes.melody(piece, 4, 5), found[4:9])
        assert expected.std() > 0.1


@pytest.mark.parametrize("bottleneck", ["dominant", "none"])
def test_melodies_of_codes_are_those_of_sound(corpora, bottleneck):
    """Where a segment begins on a frame of the chromagram; but at its ends, beyond which the sound is not known."""
    config = dataclasses.replace(MELODY, bottleneck=bottleneck, num_frames=12)
    sound = Corpus.open(corpora["audio"])
    reader = ConditionReader(Pieces(Corpus.open(corpora["tokens"])), BatchConditions(melody=config, dropout=NONE))
    rows = [(0, 0, 50), (3, 20, 50), (5, 5, 30), (7, 60, 50)]  # piece, first frame and number of frames
    batch = reader([Segment(*row, np.random.default_rng(0)) for row in rows])
    heard = np.zeros((4, 32_000, 1), np.float32)
    lengths = []
    for row, (piece, start, length) in enumerate(rows):
        found = sound.read(piece, start * 640, length * 640)
        heard[row, : len(found)] = found
        lengths.append(len(found))
    expected = np.asarray(conditions.chromagrams(jnp.asarray(heard), config))
    mask = ConditionReader(Pieces(sound), BatchConditions(melody=config, dropout=NONE))(
        [Segment(0, 0, length, np.random.default_rng(0)) for length in lengths]
    )["melody_mask"]
    np.testing.assert_array_equal(batch["melody_mask"], mask)
    assert mask.sum(axis=1).tolist() == [10, 10, 6, -(-lengths[3] // 3200)]
    inner = mask & np.roll(mask, -1, axis=1)
    inner[:, 0] = False
    error = np.abs(batch["melody"] - expected)[inner].max()
    assert error < (1e-3 if bottleneck == "none" else 1e-6), error  # measured 2.4e-4 and 0
    assert not batch["melody"][~mask].any()


def on(corpus, config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, corpora=(str(corpus),)), **changes)


def test_a_style_is_learned_along(tmp_path):
    """Its weights by gradient, its codebooks besides; of its excerpt nothing counts, and without it nothing is told."""
    config = told("style")
    start = lm.pretrained(config)
    task = lm.task(config, start, "tokens")
    first = jax.jit(task.init)(jax.random.key(0), {"lm": random_variables(start.config)["lm"]})
    excerpts = {"style_start": np.array([0, 9, 15], np.int32), "style_mask": np.array([True, False, True])}
    batch = batch_of(rows=3) | excerpts
    train, evaluate = jax.jit(task.train_step), jax.jit(task.eval_step)
    state, _ = train(first, {}, batch)
    assert not np.any(first.extra["style"]["codebooks"]["inited"])
    assert np.all(state.extra["style"]["codebooks"]["inited"])
    assert np.abs(state.extra["style"]["batch_stats"]["mean"]).max() > 1e-3
    for old, new in zip(*(jax.tree.leaves(one.params["style"]) for one in (first, state)), strict=True):
        assert np.abs(new - old).max() > 1e-4

    def found(**changes):
        return jax.device_get(evaluate(state, {}, batch | changes)["cross_entropy"])

    # 25 frames of 3 rows, of which codebook k misses the last k, and two excerpts of 10 frames: the one at the end
    # has frames that would have been missed.
    np.testing.assert_array_equal(found().counts, [3 * (25 - k) - 2 * 10 + k for k in range(4)])
    nothing = np.zeros(3, bool)
    np.testing.assert_array_equal(found(style_mask=nothing).counts, [3 * (25 - k) for k in range(4)])
    elsewhere = np.array([3, 4, 5], np.int32)
    assert found(style_mask=nothing).value() == found(style_mask=nothing, style_start=elsewhere).value()

    logits = mgjax_logits(task, state, tmp_path)
    assert np.abs(logits(notes(0.5, 0)) - logits(notes(0.5, 1))).max() > 1e-4
    assert np.abs(logits(notes(0.5, 0)) - logits(None)).max() > 1e-4


def mgjax_logits(task, state, directory):
    """The logits of what is saved, of some codes after a style."""
    task.save(state, directory / "model")
    model = mgjax.load(directory / "model")
    return lambda style: np.asarray(
        model.logits(np.zeros((1, 10, 4), np.int32), None, style=style, style_sample_rate=32_000)
    )


@pytest.fixture(scope="module")
def clap_encoder(tmp_path_factory):
    """A CLAP of transformers, with a vocabulary of bytes."""
    directory = tiny_clap.save(tiny_clap.clap(), tmp_path_factory.mktemp("clap"))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    (directory / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return str(directory)


def learned(config, directory):
    """What a run of `config` gives: the model, after it has learned."""
    lm.run(config, directory)
    lines = [json.loads(line)["values"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["cross_entropy"] < 0.8 * np.log(64)
    return mgjax.load(directory / "model")


def difference(model, one, other):
    """How much the logits of some codes differ between two ways of telling the model."""
    found = [np.asarray(model.logits(np.zeros((1, 10, 4), np.int32), **told)) for told in (one, other)]
    return np.abs(found[0] - found[1]).max()


@pytest.mark.usefixtures("one_device")
def test_a_run_on_codes_learns_and_its_model_follows(corpora, tmp_path):
    model = learned(on(corpora["tokens"], told("melody", "genre")), tmp_path)
    assert (model.config.melody, model.config.labels) == (MELODY, (GENRE,))
    given = {"texts": None, "melody": notes(0.5, 0), "labels": {"genre": "waltz"}}
    assert difference(model, given, given | {"melody": notes(0.5, 1)}) > 1e-3
    assert difference(model, given, given | {"labels": {"genre": "techno"}}) > 1e-3
    assert model.generate(seconds=0.2, **given).shape == (1, 6400, 1)


def test_a_run_on_sound_learns_with_all_conditions(corpora, clap_encoder, tmp_path):
    """CLAP hears the music in training, and reads texts in the validation and afterwards."""
    ways = ("melody", "genre", "style", "clap")
    model = learned(on(corpora["audio"], told(*ways), clap_encoder=clap_encoder), tmp_path)
    given = {"texts": "tune 3", "melody": notes(0.5, 0), "labels": {"genre": "waltz"}, "style": notes(0.5, 2)}
    given["style_sample_rate"] = 32_000
    others = {"texts": None, "melody": notes(0.5, 1), "labels": {"genre": "techno"}, "style": notes(0.5, 3)}
    for name, other in others.items():
        assert difference(model, given, given | {name: other}) > 1e-3, name
    assert np.all(model._params["clap"]["codebooks"]["inited"])
    assert model.generate(seconds=0.2, **given).shape == (1, 6400, 1)


def test_sound_for_encoders_is_resampled():
    for old, new in ((32_000, 48_000), (32_000, 16_000), (44_100, 48_000)):
        times, later = np.arange(old // 5) / old, np.arange(new // 5) / new
        tone, expected = np.sin(2 * np.pi * 3000 * times), np.sin(2 * np.pi * 3000 * later)
        found = np.asarray(resampled(jnp.asarray(tone[None], jnp.float32), old, new))[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected)[200:-200].max() < 1e-4  # measured 2.0e-5, 3.3e-6 and 1.2e-5
    high = jnp.asarray(np.sin(2 * np.pi * 12_000 * np.arange(6400) / 32_000)[None], jnp.float32)
    assert np.abs(np.asarray(resampled(high, 32_000, 16_000)))[:, 200:-200].max() < 3e-4


def test_clap_hears_in_training_what_it_hears_elsewhere(clap_encoder):
    """But for the filter that resamples: mono of stereo sound at the codec's rate."""
    config, variables = matching.read(match_clap(Path(clap_encoder)))
    stereo = np.concatenate([notes(0.5, 0), notes(0.5, 9)], axis=1)
    audio = np.stack([stereo, np.random.default_rng(0).standard_normal(stereo.shape).astype(np.float32) / 8])
    embed = jax.jit(
        lambda audio: conditions.clap_embeddings(ClapConditionConfig(config), variables, {"audio": audio}, 32_000, 1)
    )
    mono = np.stack([resample(to_channels(row, 1), 32_000, config.audio.sample_rate)[:, 0] for row in audio])
    expected = np.asarray(jax.jit(embed_audio, static_argnums=0)(config, variables["audio"], mono))
    error = np.abs(np.asarray(embed(audio)) - expected).max()
    assert error < 1e-4, error  # measured 6.9e-7
    assert np.abs(expected[0] - expected[1]).max() > 0.05


def test_clap_does_not_hear_codes(corpora, clap_encoder):
    with pytest.raises(ConfigError, match="train with it on a corpus of sound"):
        lm.run(on(corpora["tokens"], told("clap"), clap_encoder=clap_encoder), "never")


def test_batches_are_functions_of_the_seed_and_their_number(corpora):
    config = told("melody", "genre", "bpm")
    wanted = BatchConditions(melody=MELODY, labels=(GENRE, BPM))
    pieces = Corpus.open(corpora["tokens"])

    def take(threads):
        iterator = batches(pieces, dataclasses.replace(config.data, num_threads=threads), seed=1, conditions=wanted)
        return [next(iterator) for _ in range(40)]

    once = take(0)
    for one, other in zip(once, take(3), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    there = {name: np.concatenate([batch[f"{name}_mask"][:, 0] for batch in once])
             for name in ("melody", "label_genre", "label_bpm")}  # fmt: skip
    shares = {name: rows.mean() for name, rows in there.items()}
    # 0.3 of the examples are told nothing; of the others, each condition is told to one half.
    assert shares == pytest.approx(dict.fromkeys(shares, 0.35), abs=0.08)
    nothing = ~np.stack(list(there.values())).any(axis=0)
    assert nothing.mean() == pytest.approx(0.3 + 0.7 / 8, abs=0.08)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": dataclasses.replace(STYLE, seconds=0.5)}, "style.seconds must be below the 0.5 s"),
        ({"optim": OptimConfig(accumulate=2)}, "set optim.accumulate to 1"),
    ],
)
def test_styles_that_cannot_be_trained_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        lm.resolve(dataclasses.replace(told("style"), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 16_000}, "melody.sample_rate is 16000, but"),
        ({"hop_length": 1600}, "holds melodies of .*hop_length=3200"),
        ({"bottleneck": "suppress"}, "holds melodies of .*bottleneck='none'"),
    ],
)
def test_other_melodies_are_refused(corpora, changes, message):
    config = dataclasses.replace(on(corpora["tokens"], told("melody")), melody=dataclasses.replace(MELODY, **changes))
    with pytest.raises(ConfigError, match=message):
        lm.run(config, "never")
