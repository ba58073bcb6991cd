"""A training run of the codec, from its config to the loop."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from mgjax.checkpoints import sources
from mgjax.checkpoints.native import hash_of, write_codec
from mgjax.codec import losses, rvq_training, weight_norm
from mgjax.config.model import CodecConfig
from mgjax.data.corpus import Corpus
from mgjax.data.pipeline import batches, validation_batches
from mgjax.devices import sharding
from mgjax.errors import ConfigError
from mgjax.storage.paths import Path, PathLike
from mgjax.train.codec.config import CodecRun
from mgjax.train.codec.gan import GAN
from mgjax.train.flops import products
from mgjax.train.inputs import InputHashes, open_corpora
from mgjax.train.loop import fit
from mgjax.train.metrics import Mean, Sound
from mgjax.train.state import TrainState
from mgjax.train.task import Batch, BatchShapes, Task
from mgjax.train.watchdog import Watchdog

_CLIPS = 4  # of the validation split that can be listened to


@struct.dataclass
class Usage:
    """How often each code of a codebook occurred, summed over batches.

    The value is the share of the codes that occurred at all or, where `perplexity`, the exponential of their entropy.
    """

    counts: Float[Array, " v"] | Float[np.ndarray, " v"]
    perplexity: bool = struct.field(pytree_node=False)

    def value(self) -> float:
        """The share, or the perplexity, over all batches."""
        measure = rvq_training.perplexity if self.perplexity else rvq_training.usage
        return float(measure(jnp.asarray(self.counts)[None])[0])


def run(config: CodecRun, workdir: PathLike) -> TrainState:
    """Trains a codec on the corpora of `config.data`, and goes on where a run in `workdir` was stopped.

    Raises ConfigError if the corpora do not hold what this codec codes.
    """
    with Watchdog(config.loop.hang_seconds) as watchdog:
        with watchdog.waiting("reading the weights to start from", may_last=True):
            config, pretrained = read_init(config)
        with watchdog.waiting("opening the corpora"):
            corpora = open_corpora(config.data.corpora)
            init_hash = None if pretrained is None else hash_of(config.codec, pretrained)
            inputs = InputHashes.of(corpora["train"] + corpora["valid"], config.data.may_grow, init=init_hash)
    for corpus in corpora["train"] + corpora["valid"]:
        _check(corpus, config.codec)
    mesh = config.mesh.make()
    rows = sharding.local_rows(config.data.batch_size, mesh)
    train_data = batches(corpora["train"], config.data, seed=config.loop.seed, rows=rows)
    valid_data = functools.partial(validation_batches, corpora["valid"], config.data, rows=rows)
    training = task(config, pretrained)
    return fit(training, train_data, valid_data, config.loop, workdir, run=config, mesh=mesh, inputs=inputs)


def read_init(config: CodecRun) -> tuple[CodecRun, dict[str, Any] | None]:
    """The run with the codec of its `init` as its model, and the variables of that; None for new weights.

    Raises ConfigError if `model` is another codec than that of `init`.
    """
    if config.init is None:
        return config, None
    model, variables = weight_norm.unfold(*sources.read_codec(config.init))
    if config.model not in (None, model):
        raise ConfigError(f"model differs from that of {config.init}: make model None, or leave init out")
    return dataclasses.replace(config, model=model), variables


def _check(corpus: Corpus, model: CodecConfig) -> None:
    if corpus.kind != "audio":
        raise ConfigError(f"{corpus.directory} is a corpus of {corpus.kind}: a codec is trained on audio")
    if (corpus.sample_rate, corpus.width) != (model.sample_rate, model.channels):
        raise ConfigError(
            f"{corpus.directory} holds audio of {corpus.sample_rate} Hz with {corpus.width} channels, the codec takes "
            f"{model.sample_rate} Hz with {model.channels}: build the corpus again with these"
        )


def task(config: CodecRun, pretrained: dict[str, Any] | None = None) -> Task:
    """The functions that the loop runs; `pretrained` are the codec's variables to go on from."""
    gan = GAN(config)
    reconstructed = jax.jit(lambda *arguments: gan.reconstruct(*arguments).audio)
    return Task(
        name="codec",
        init=functools.partial(gan.init, pretrained=pretrained),
        train_step=gan.train_step,
        eval_step=functools.partial(_evaluate, gan),
        frozen={},
        flops=functools.partial(_flops, gan),
        show=functools.partial(_show, config.codec.sample_rate, reconstructed),
        save=functools.partial(_save, config.codec),
        best=("mel_distance", "min"),
    )


def _evaluate(gan: GAN, state: TrainState, frozen: Any, batch: Batch) -> dict[str, Mean | Usage]:
    """The distances of the reconstruction by all codebooks, with the averaged weights, and the use of the codes."""
    model, audio, num_samples = gan.model, batch["audio"], batch["num_samples"]
    output = gan.reconstruct(state.average.weights, state.extra["codebooks"], audio)
    generated, valid = output.audio, num_samples > 0
    metrics: dict[str, Mean | Usage] = {
        "si_snr": Mean.of(losses.si_snr(generated, audio, num_samples), valid),
        "mel_distance": Mean.of(losses.mel_distance(generated, audio, num_samples, model.sample_rate), valid),
        "l1": Mean.of(jnp.mean(jnp.abs(generated - audio), axis=(1, 2)), valid),
    }
    counts = rvq_training.histogram(output.codes, model.codebook_size)
    for k in range(model.num_codebooks):
        metrics[f"usage_{k + 1}"] = Usage(counts[k], perplexity=False)
        metrics[f"perplexity_{k + 1}"] = Usage(counts[k], perplexity=True)
    return metrics


def _show(sample_rate: int, reconstructed: Any, state: TrainState, batch: Batch) -> dict[str, Sound]:
    """The first clips of a batch, before and after the codec."""
    audio = batch["audio"][:_CLIPS]
    generated = reconstructed(state.average.weights, state.extra["codebooks"], audio)
    sounds = {}
    for i, (before, after) in enumerate(zip(*sharding.on_host((audio, generated)), strict=True)):
        sounds[f"clip{i}/input"] = Sound(before, sample_rate)
        sounds[f"clip{i}/reconstruction"] = Sound(after, sample_rate)
    return sounds


def _save(model: CodecConfig, state: TrainState, directory: Path) -> None:
    """Writes the codec with its averaged weights, for `mgjax.load_codec`."""
    variables = sharding.on_host({"params": state.average.weights, "codebooks": state.extra["codebooks"]})
    if jax.process_index() == 0:
        write_codec(directory, model, variables)


def _flops(gan: GAN, batch: BatchShapes) -> float:
    """The operations of all convolutions and matrix products that one training step needs.

    The codec goes forward once and backward twice as long. The discriminators see real and generated audio for their
    own loss (3 times 2), then again for the generator's, with a way back to the audio for the adversarial loss and
    feature matching (2 and 2).
    """
    audio = jax.ShapeDtypeStruct(batch["audio"].shape, jnp.float32)
    state = jax.eval_shape(gan.init, jax.random.key(0))
    total = 3 * products(gan.reconstruct, state.params["codec"], state.extra["codebooks"], audio)
    if gan.config.has_discriminators:
        total += 10 * products(gan.discriminator.apply, {"params": state.params["discriminator"]}, audio)
    return total
