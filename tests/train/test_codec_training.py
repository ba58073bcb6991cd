"""Training of a toy codec: what it learns, that eight devices do as one, that what is saved is what was trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_corpora

import mgjax
from mgjax.audio.metadata import Metadata
from mgjax.codec import losses
from mgjax.codec.discriminator import DiscriminatorConfig
from mgjax.codec.encodec import EncodecModel
from mgjax.codec.losses import LossConfig
from mgjax.codec.rvq_training import QuantizerConfig
from mgjax.config.model import CodecConfig
from mgjax.config.serialization import ConfigError
from mgjax.data import corpus_writing
from mgjax.data.description import describe_audio
from mgjax.data.pipeline import DataConfig
from mgjax.devices import sharding
from mgjax.train import codec, flops
from mgjax.train.codec import CodecRun, training
from mgjax.train.codec.gan import GAN
from mgjax.train.codec.training import read_init
from mgjax.train.optim import Average, OptimConfig
from mgjax.train.programs import Programs
from mgjax.train.state import TrainState
from mgjax.train.task import LoopConfig

_SAMPLES = 120
RUN = CodecRun(
    model=CodecConfig(
        sample_rate=8_000, num_filters=8, ratios=(10,), latent_dim=8, num_codebooks=2, codebook_size=16,
        num_lstm_layers=1, kernel_size=3, last_kernel_size=3, bandwidths=(3.2,),
    ),
    data=DataConfig(batch_size=8, segment_seconds=0.015, num_threads=0, prefetch=1),
    loss=LossConfig(mel_sizes=(64,), num_mels=(8,), commitment=0.5),
    quantizer=QuantizerConfig(decay=0.9),
    discriminator=DiscriminatorConfig(stft_sizes=(64,), stft_filters=4),
    # With the published eps of 1e-8 Adam makes full steps of gradients that are nothing but rounding, as that of a
    # discriminator's last bias at the start, and two meshes would not learn the same.
    optim=dataclasses.replace(codec.PUBLISHED, learning_rate=3e-3, eps=1e-4),
    loop=LoopConfig(steps=3, log_every=1, eval_every=0, show_every=2, save_every=100),
)  # fmt: skip


def batch(seed=0, rows=8):
    """Chords of sines."""
    rng = np.random.default_rng(seed)
    pitches = rng.uniform(0.02, 0.5, (rows, 3, 1))
    audio = 0.2 * np.sin(pitches * np.arange(_SAMPLES) + rng.uniform(0, 6, (rows, 3, 1))).sum(1)
    return {"audio": jnp.asarray(audio[..., None], jnp.float32), "num_samples": jnp.full(rows, _SAMPLES, jnp.int32)}


def jit(function):
    """Compiled in half the time, into what takes a little longer."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def programs(config):
    task = codec.task(config)
    return task, jit(task.train_step), jit(task.eval_step)


def begin(config):
    """A state before the first update, without compiling the initialisation, which takes longer than all the rest."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key != "kernel" and not path[-1].key.endswith("_kernel"):
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        fan_in = leaf.size / max(leaf.shape[-1], 1) if path[-1].key == "kernel" else min(leaf.shape)
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan_in), jnp.float32)

    shapes = jax.eval_shape(GAN(config).init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes.params)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return nothing.replace(params=params, average=Average.init(params["codec"]))


def validated(config, state, seed=100):
    task, _, evaluate = programs(config)
    return {name: metric.value() for name, metric in evaluate(state, task.frozen, batch(seed)).items()}


@pytest.fixture(scope="module")
def trained():
    """The first state, the one after 40 updates, and all metrics."""
    task, step, _ = programs(RUN)
    state = first = begin(RUN)
    history = []
    for i in range(40):
        state, metrics = step(state, task.frozen, batch(i))
        history.append({name: float(value) for name, value in metrics.items()})
    return first, state, history


def test_a_run_learns(trained):
    _, state, history = trained
    assert int(state.step) == 40
    assert set(history[0]) == {
        "l1", "mel", "adversarial_stft", "feature_stft", "discriminator_stft", "commitment", "gradient_norm",
        "perplexity", "loss",
    }  # fmt: skip
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    early, late = (np.mean([metrics["mel"] for metrics in some]) for some in (history[:5], history[-5:]))
    assert late < 0.4 * early  # measured 0.17
    assert history[-1]["discriminator_stft"] < 2  # what it is as long as nothing is told apart
    found = validated(RUN, state)
    assert found["usage_1"] == found["usage_2"] == 1
    assert 8 < found["perplexity_1"] <= 16
    assert set(found) == {"si_snr", "mel_distance", "l1", "usage_1", "usage_2", "perplexity_1", "perplexity_2"}


def test_the_codecs_gradient_is_the_balanced_one_and_the_commitments(trained):
    """One update, put together from the parts: the discriminator first, then the codec's Adam by hand."""
    first = trained[0]
    task, step, _ = programs(RUN)
    audio = batch()["audio"]
    after, metrics = step(first, task.frozen, batch())
    weights = RUN.loss_weights
    assert weights == {"l1": 0.1, "mel": 2.0, "adversarial_stft": 4.0, "feature_stft": 4.0}
    parts = GAN(RUN)

    @jit
    def expected(params, discriminator):
        def forward(weights):
            key = jax.random.fold_in(jax.random.key(0), 0)
            return parts.reconstruct(weights, first.extra["codebooks"], audio, key)

        generated = forward(params).audio
        measures = {
            "l1": lambda x: losses.waveform(x, audio),
            "mel": lambda x: losses.mel(x, audio, 8_000, RUN.loss),
            "adversarial_stft": lambda x: parts.adversarial_losses(discriminator, x, audio)["adversarial_stft"],
            "feature_stft": lambda x: parts.adversarial_losses(discriminator, x, audio)["feature_stft"],
        }
        direction = 0
        for name, measure in measures.items():
            gradient = jax.grad(measure)(generated)
            norm = jnp.mean(jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2))))
            direction += gradient * weights[name] / sum(weights.values()) / norm

        def total(params):
            output = forward(params)
            return jnp.sum(output.audio * direction) + 0.5 * output.commitment

        return jax.grad(total)(params), forward(params)

    gradient, output = expected(first.params["codec"], after.params["discriminator"])
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(gradient)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    adam = after.optimizer["codec"][1][0]
    for moment, leaf in zip(jax.tree.leaves(adam.mu), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(moment, 0.5 * leaf, rtol=1e-4, atol=1e-6 * norm)
    for name, leaf in output.codebooks.items():
        np.testing.assert_allclose(after.extra["codebooks"][name], leaf, rtol=1e-5, atol=1e-6)
    assert float(metrics["commitment"]) == pytest.approx(float(output.commitment), rel=1e-5)


def test_eight_devices_do_as_one(trained):
    first, _, history = trained
    task = programs(RUN)[0]
    split = Programs(task, RUN.loop, sharding.make_mesh(data=2, fsdp=4))
    state = jax.device_put(first, jax.tree.map(lambda leaf: leaf.sharding, split.state_shapes))
    update = split.lowered(batch()).compile({"xla_backend_optimization_level": 0})
    for i in range(2):
        state, metrics = update(state, split.frozen, split.place(jax.device_get(batch(i))))
        for name, value in metrics.items():
            # Measured: 1.1e-6, or 1.8e-6 without division: the adversarial loss is a mean of scores that nearly cancel.
            assert float(value) == pytest.approx(history[i][name], rel=1e-4, abs=1e-5), (i, name)


def test_what_is_saved_is_what_was_validated(trained, tmp_path):
    _, state, _ = trained
    task = programs(RUN)[0]
    task.save(state, tmp_path / "codec")
    loaded = mgjax.load_codec(tmp_path / "codec")
    audio = np.asarray(batch(100)["audio"])
    codes = loaded.encode(audio)
    back = loaded.decode(codes)
    found = validated(RUN, state)
    lengths = jnp.full(8, _SAMPLES)
    ratios = losses.si_snr(jnp.asarray(back), jnp.asarray(audio), lengths)
    assert float(jnp.mean(ratios)) == pytest.approx(found["si_snr"], abs=1e-3)
    for k in range(2):
        assert len(np.unique(codes[..., k])) / 16 == found[f"usage_{k + 1}"]
        counts = np.bincount(codes[..., k].ravel(), minlength=16) / codes[..., k].size
        entropy = -np.sum(counts[counts > 0] * np.log(counts[counts > 0]))
        assert found[f"perplexity_{k + 1}"] == pytest.approx(np.exp(entropy), rel=1e-5)

    sounds = task.show(state, batch(100))
    assert sorted(sounds)[:2] == ["clip0/input", "clip0/reconstruction"]
    assert len(sounds) == 8
    np.testing.assert_array_equal(sounds["clip1/input"].audio, audio[1])
    np.testing.assert_allclose(sounds["clip1/reconstruction"].audio, back[1], atol=1e-5)
    assert sounds["clip1/input"].sample_rate == 8_000


def test_a_decoder_goes_on_for_codes_that_stay(trained, tmp_path):
    _, state, _ = trained
    programs(RUN)[0].save(state, tmp_path / "codec")
    quiet = dataclasses.replace(RUN.loss, adversarial=0.0, feature=0.0)
    config = CodecRun(None, init=str(tmp_path / "codec"), keep_codes=True, data=RUN.data, loss=quiet, optim=RUN.optim)
    begun, pretrained = read_init(config)
    assert begun.model == RUN.model
    task = codec.task(begun, pretrained)
    first = task.init(jax.random.key(0))
    np.testing.assert_array_equal(first.extra["codebooks"]["embed"], state.extra["codebooks"]["embed"])
    after, metrics = jit(task.train_step)(first, task.frozen, batch())
    assert float(metrics["mel"]) < 2 * float(trained[2][-1]["mel"])  # it begins where the other ended

    def changed(part):
        pairs = zip(*(jax.tree.leaves(tree.params["codec"][part]) for tree in (first, after)), strict=True)
        return [not np.array_equal(a, b) for a, b in pairs]

    assert not any(changed("encoder"))
    assert all(changed("decoder"))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.extra["codebooks"], after.extra["codebooks"]))
    with pytest.raises(ConfigError, match="model differs"):
        read_init(dataclasses.replace(config, model=CodecConfig()))


def test_the_averaged_weights_are_validated(trained):
    _, state, _ = trained
    other = jax.tree.map(lambda leaf: 0 * leaf, state.params)
    assert validated(RUN, state.replace(params=other)) == validated(RUN, state)
    weights, average = state.params["codec"], state.average.weights
    apart = [np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (weights, average)), strict=True)]
    assert 0 < max(apart) < 0.1


def test_losses_of_weight_zero_are_left_out():
    config = dataclasses.replace(RUN, loss=dataclasses.replace(RUN.loss, adversarial=0.0, feature=0.0, l1=0.0))
    task = codec.task(config)
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert set(state.params) == {"codec"}
    assert set(state.extra["balancer"]) == {"mel"}
    _, metrics = jax.eval_shape(task.train_step, state, task.frozen, batch())
    assert set(metrics) == {"loss", "mel", "commitment", "gradient_norm", "perplexity"}


def test_a_codec_that_renormalises_codes_the_shape_of_the_sound(trained):
    _, state, _ = trained
    parts = GAN(dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, normalize=True)))
    through = jit(lambda audio: parts.reconstruct(state.params["codec"], state.extra["codebooks"], audio))
    audio = batch()["audio"][:, :117]  # no whole number of frames
    output, louder = through(audio), through(4 * audio)
    assert output.audio.shape == audio.shape
    np.testing.assert_array_equal(output.codes, louder.codes)
    np.testing.assert_allclose(louder.audio, 4 * output.audio, rtol=1e-4, atol=1e-5)


def test_operations_are_counted_from_shapes():
    x, w = jnp.zeros((3, 10, 4)), jnp.zeros((5, 4, 6))

    def convolution(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), [(0, 0)], dimension_numbers=("NHC", "HIO", "NHC"))

    assert flops.products(convolution, x, w) == 2 * 3 * 6 * 6 * (5 * 4)

    def steps(x):
        return jax.lax.scan(lambda h, i: (jax.jit(jnp.dot)(h, i), None), jnp.zeros((4, 4)), x)[0]

    assert flops.products(steps, jnp.zeros((7, 4, 4))) == 7 * 2 * 4**3
    task = codec.task(RUN)
    one, two = (task.flops(batch(rows=rows)) for rows in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    codebooks = shapes.extra["codebooks"]
    variables = {"params": shapes.params["codec"], "codebooks": codebooks}
    assert one > 3 * flops.products(EncodecModel(RUN.model).apply, variables, jnp.zeros((1, _SAMPLES, 1)))


def test_a_run_reads_its_corpora(tmp_path, monkeypatch):
    tones = [np.asarray(batch(i)["audio"][:, :, 0]).reshape(-1, 1) for i in range(2)]
    pieces = [corpus_writing.Piece(f"tone{i}", Metadata(), [tone]) for i, tone in enumerate(tones)]
    tiny_corpora.write(tmp_path / "corpus", describe_audio(8_000, 1), {"train": pieces, "valid": pieces[:1]})
    config = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, corpora=(str(tmp_path / "corpus"),)))
    given, state = {}, TrainState(jnp.int32(0), {}, {}, None, {})

    def fit(*arguments, **named):
        given.update(named, arguments=arguments)
        return state

    monkeypatch.setattr(training, "fit", fit)
    codec.run(config, tmp_path / "run")
    task, train_data, valid_data, loop, workdir = given["arguments"]
    assert (task.name, loop, workdir, given["run"]) == ("codec", config.loop, tmp_path / "run", config)
    assert set(given["inputs"].hashes) == {f"{split} split of {tmp_path / 'corpus'}" for split in ("train", "valid")}
    shapes = {"audio": (8, _SAMPLES, 1), "num_samples": (8,)}
    assert {name: value.shape for name, value in next(train_data).items()} == shapes
    assert [next(valid_data())["audio"].shape] == [(8, _SAMPLES, 1)]
    other = dataclasses.replace(config, model=dataclasses.replace(RUN.model, sample_rate=16_000))
    with pytest.raises(ConfigError, match="8000 Hz with 1 channels, the codec takes 16000 Hz"):
        codec.run(other, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": CodecConfig(norm="none")}, "weight_norm"),
        ({"model": None}, "needs a model, or an init"),
        ({"keep_codes": True}, "set init"),
        ({"optim": OptimConfig(accumulate=2)}, "accumulate must be 1"),
        ({"optim": OptimConfig(name="muon")}, "a codec has none: take adam"),
        ({"data": DataConfig(segment_seconds=0.01)}, "320 samples, the discriminators need 2048"),
    ],
)
def test_runs_without_meaning(changes, message):
    with pytest.raises(ConfigError, match=message):
        CodecRun(**changes)
