"""Training of the codec: EnCodec against discriminators (Défossez et al. 2022), as MusicGen's codecs were trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from mgjax.checkpoints import sources
from mgjax.checkpoints.native import hash_of, write_codec
from mgjax.checkpoints.tables.weight_norm import unfold
from mgjax.codec import balancer, losses, rvq, rvq_training
from mgjax.codec.discriminator import Discriminator, DiscriminatorConfig
from mgjax.codec.encodec import EncodecModel
from mgjax.codec.losses import LossConfig
from mgjax.codec.rvq_training import Quantized, QuantizerConfig
from mgjax.config.model import CodecConfig
from mgjax.data.corpus import Corpus
from mgjax.data.description import SPLITS
from mgjax.data.pipeline import DataConfig, batches, validation_batches
from mgjax.devices import sharding
from mgjax.errors import ConfigError
from mgjax.train import optim
from mgjax.train.flops import products
from mgjax.train.inputs import Inputs
from mgjax.train.loop import fit
from mgjax.train.metrics import Mean, Sound
from mgjax.train.optim import Average, OptimConfig
from mgjax.train.state import TrainState
from mgjax.train.task import LoopConfig, MeshConfig, Task, check_numbers, take_old_mesh
from mgjax.train.watchdog import Watchdog

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]

PUBLISHED = OptimConfig(
    name="adam", learning_rate=3e-4, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9, weight_decay=0.0,
    max_grad_norm=None, average_decay=0.99, average_every=1,
)  # fmt: skip

_SHOWN = 4  # clips of the validation split that can be listened to


@dataclasses.dataclass(frozen=True)
class CodecRun:
    """A run: what is trained, on what, and how. The defaults are the published recipe for 32 kHz.

    Attributes:
      model: The codec; `norm` is "weight_norm" or "time_group_norm". None for that of `init`.
      init: A codec to go on from, or a model that has one; None for new weights.
      keep_codes: Only the decoder learns: the encoder and the codebooks stay as they are in `init`, so that corpora of
        its codes, and language models of them, stay valid.
      data: Audio corpora at the codec's rate and of its channels.
      loss: What is made small.
      quantizer: How the codebooks learn.
      discriminator: What judges the audio.
      optim: How the weights are updated, the codec's and the discriminators' alike.
      loop: How long, and what is reported and kept.
      mesh: How the devices are laid out.
    """

    model: CodecConfig | None = field(default_factory=CodecConfig)
    init: str | None = None
    keep_codes: bool = False
    data: DataConfig = field(default_factory=lambda: DataConfig(batch_size=64, segment_seconds=1.0))
    loss: LossConfig = field(default_factory=LossConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optim: OptimConfig = field(default_factory=lambda: PUBLISHED)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=400_000))
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        take_old_mesh(self)
        check_numbers(self)
        if self.model is None and self.init is None:
            raise ConfigError("a codec needs a model, or an init that has one")
        if self.keep_codes and self.init is None:
            raise ConfigError("keep_codes keeps the codes of another codec: set init to it")
        if self.optim.name == "muon":
            raise ConfigError("optim.name muon is for the layers of a language model, a codec has none: take adam")
        if self.model is None:
            return  # until `init` is read
        if self.model.norm == "none":
            raise ConfigError('model.norm "none" is a form for use, not for training: set it to "weight_norm"')
        if self.optim.accumulate != 1:
            raise ConfigError(
                "optim.accumulate must be 1 for a codec, whose codebooks and balancer see the whole batch at once, "
                f"got {self.optim.accumulate}: make data.batch_size smaller instead"
            )
        samples = int(self.data.segment_seconds * self.model.sample_rate)
        if self.judged and samples < self.discriminator.least_samples:
            raise ConfigError(
                f"data.segment_seconds gives {samples} samples, the discriminators need "
                f"{self.discriminator.least_samples}: make segments longer, or stft_sizes smaller"
            )

    @property
    def judged(self) -> bool:
        """Whether there are discriminators at all."""
        return bool(self.discriminator.families) and (self.loss.adversarial > 0 or self.loss.feature > 0)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss in the balancer; those of weight 0 are left out."""
        weights = {"l1": self.loss.l1, "mel": self.loss.mel}
        for family in self.discriminator.families:
            weights[f"adversarial_{family}"] = self.loss.adversarial
            weights[f"feature_{family}"] = self.loss.feature
        return {name: weight for name, weight in weights.items() if weight}


@struct.dataclass
class Usage:
    """How often each code of a codebook occurred, summed over batches.

    The value is the share of the codes that occurred at all or, where `perplexity`, the exponential of their entropy.
    """

    counts: Float[Array, " v"]
    perplexity: bool = struct.field(pytree_node=False)

    def value(self) -> float:
        measure = rvq_training.perplexity if self.perplexity else rvq_training.usage
        return float(measure(jnp.asarray(self.counts)[None])[0])


def run(config: CodecRun, workdir: str | Path) -> TrainState:
    """Trains a codec on the corpora of `config.data`, and goes on where a run in `workdir` was stopped.

    Raises:
      ConfigError: The corpora do not hold what this codec codes.
    """
    with Watchdog(config.loop.hang_seconds) as watchdog:
        with watchdog.waiting("reading what the run begins with", may_last=True):
            config, pretrained = _begun(config)
        with watchdog.waiting("opening the corpora"):
            corpora = {split: [Corpus.open(path, split) for path in config.data.corpora] for split in SPLITS}
            begun = pretrained and hash_of(config.model, pretrained)
            inputs = Inputs.of(corpora["train"] + corpora["valid"], config.data.may_grow, init=begun)
    for corpus in corpora["train"] + corpora["valid"]:
        _check(corpus, config.model)
    mesh = config.mesh.make()
    rows = sharding.rows_here(config.data.batch_size, mesh)
    train_data = batches(corpora["train"], config.data, seed=config.loop.seed, rows=rows)

    def valid_data() -> Iterator[dict[str, np.ndarray]]:
        return validation_batches(corpora["valid"], config.data, rows=rows)

    options = {"run": config, "mesh": mesh, "inputs": inputs}
    return fit(task(config, pretrained), train_data, valid_data, config.loop, workdir, **options)


def _begun(config: CodecRun) -> tuple[CodecRun, dict[str, Any] | None]:
    """The run with the model of its `init`, and the variables of that; None where it begins with new weights.

    Raises:
      ConfigError: `model` is another codec than that of `init`.
    """
    if config.init is None:
        return config, None
    model, variables = unfold(*sources.read_codec(config.init))
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
    step = _Step(config, pretrained)
    return Task(
        name="codec",
        init=step.init,
        train_step=step.train,
        eval_step=step.evaluate,
        frozen={},
        flops=step.flops,
        show=step.show,
        save=step.save,
        best=("mel_distance", "min"),
    )


class _Step:
    """The pure functions of a run, with what they have in common."""

    def __init__(self, config: CodecRun, pretrained: dict[str, Any] | None = None):
        self.config, self.pretrained = config, pretrained
        self.codec = EncodecModel(config.model)
        self.discriminator = Discriminator(config.discriminator)
        self.optimizer = optim.make(config.optim, config.loop.steps)
        self._reconstruct = jax.jit(lambda *arguments: self.reconstruct(*arguments)[0])

    def init(self, key: Array) -> TrainState:
        """The state before the first update. New codebooks are made from the first batch."""
        config, model = self.config, self.config.model
        codec_key, discriminator_key = jax.random.split(key)
        variables = self.codec.init(codec_key, jnp.zeros((1, model.hop_length, model.channels)))
        if self.pretrained is not None:
            variables = jax.tree.map(jnp.asarray, self.pretrained)
        params = {"codec": variables["params"]}
        if config.judged:
            audio = jnp.zeros((1, config.discriminator.least_samples, model.channels))
            params["discriminator"] = self.discriminator.init(discriminator_key, audio)["params"]
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer={name: self.optimizer.init(weights) for name, weights in params.items()},
            average=Average.begin(params["codec"]),
            extra={"codebooks": variables["codebooks"], "balancer": balancer.begin(config.weights)},
        )

    def train(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update of the discriminators, then one of the codec on the same audio (as in the published code)."""
        config, audio = self.config, batch["audio"]
        key = jax.random.fold_in(jax.random.key(config.loop.seed), state.step)

        def generate(weights: Any) -> tuple[tuple[Array, Array], Quantized]:
            generated, quantized = self.generate(weights, state.extra["codebooks"], audio, key)
            return (generated, quantized.commitment), quantized

        (generated, commitment), pull, quantized = jax.vjp(generate, state.params["codec"], has_aux=True)
        values, gradients = self.compare(generated, audio)
        params, optimizer = dict(state.params), dict(state.optimizer)
        if config.judged:
            learned = self.judge(params["discriminator"], optimizer["discriminator"], generated, audio)
            params["discriminator"], optimizer["discriminator"], judged_values, judged_gradients = learned
            values, gradients = values | judged_values, gradients | judged_gradients
        direction, balance = balancer.combine(
            gradients,
            config.weights,
            state.extra["balancer"],
            decay=config.loss.balancer_decay,
            total_norm=config.loss.total_norm,
        )
        (gradient,) = pull((direction, jnp.float32(config.loss.commitment)))
        learned, optimizer["codec"] = self.update(params["codec"], optimizer["codec"], gradient)
        params["codec"] = learned | {"encoder": params["codec"]["encoder"]} if config.keep_codes else learned
        step = state.step + 1
        counts = rvq_training.histogram(quantized.codes, config.model.codebook_size)
        metrics = values | {
            "loss": sum(weight * values[name] for name, weight in config.weights.items()),
            "commitment": commitment,
            "gradient_norm": optax.tree.norm(gradient),
            "perplexity": jnp.mean(rvq_training.perplexity(counts)),
        }
        return TrainState(
            step=step,
            params=params,
            optimizer=optimizer,
            average=state.average.update(config.optim, params["codec"], step),
            extra={"codebooks": quantized.codebooks, "balancer": balance},
        ), metrics

    def generate(
        self, weights: Any, codebooks: rvq_training.Codebooks, audio: Float[Array, "b n c"], key: Array
    ) -> tuple[Float[Array, "b n c"], Quantized]:
        """The audio coded and decoded while the codebooks learn."""
        quantized = None

        def quantize(latents: Array) -> Array:
            nonlocal quantized
            if self.config.keep_codes:
                codes = rvq.quantize(latents, codebooks["embed"])
                words = rvq.dequantize(codes, codebooks["embed"])
                quantized = Quantized(words, codes, jnp.float32(0), codebooks, jnp.int32(codes.shape[-1]))
                return words
            quantized = rvq_training.quantize(latents, codebooks, key, self.config.quantizer)
            return quantized.latents

        generated = self.through(weights, codebooks, audio, quantize)
        return generated, quantized

    def reconstruct(
        self, weights: Any, codebooks: rvq_training.Codebooks, audio: Float[Array, "b n c"]
    ) -> tuple[Float[Array, "b n c"], Int[Array, "b t k"]]:
        """The audio coded and decoded by all the codebooks, and its codes."""
        codes = None

        def quantize(latents: Array) -> Array:
            nonlocal codes
            codes = rvq.quantize(latents, codebooks["embed"])
            return rvq.dequantize(codes, codebooks["embed"])

        generated = self.through(weights, codebooks, audio, quantize)
        return generated, codes

    def through(
        self, weights: Any, codebooks: rvq_training.Codebooks, audio: Float[Array, "b n c"], quantize: Callable
    ) -> Float[Array, "b n c"]:
        """The audio through the encoder, `quantize` and the decoder."""
        model, n = self.config.model, audio.shape[1]
        scale = jnp.ones((audio.shape[0], 1, 1))
        if model.normalize:
            scale = 1e-8 + jnp.sqrt(jnp.mean(jnp.square(jnp.mean(audio, axis=2)), axis=1))[:, None, None]
        frames = -(-n // model.hop_length)
        whole = jnp.pad(audio / scale, ((0, 0), (0, frames * model.hop_length - n), (0, 0)))
        variables = {"params": sharding.gathered("codec", weights), "codebooks": codebooks}
        latents = self.codec.apply(variables, whole, n, method=lambda module, *inputs: module.encoder(*inputs))
        generated = self.codec.apply(
            variables, quantize(latents), frames, method=lambda module, *inputs: module.decoder(*inputs)
        )
        return generated[:, :n] * scale

    def compare(self, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]) -> tuple[Metrics, dict]:
        """The losses that need no discriminator, and their gradients with respect to the generated audio."""
        config = self.config
        functions = {
            "l1": lambda x: losses.waveform(x, audio),
            "mel": lambda x: losses.mel(x, audio, config.model.sample_rate, config.loss),
        }
        values, gradients = {}, {}
        for name, function in functions.items():  # in their order: every process has to compile the same program
            if name in config.weights:
                values[name], gradients[name] = jax.value_and_grad(function)(generated)
        return values, gradients

    def judge(
        self, weights: Any, optimizer: Any, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]
    ) -> tuple[Any, Any, Metrics, dict]:
        """The discriminators after an update, then the losses and gradients that they give the codec."""
        gradient, values = jax.grad(self.discriminate, has_aux=True)(weights, generated, audio)
        weights, optimizer = self.update(weights, optimizer, gradient)
        judged, pull = jax.vjp(lambda x: self.deceive(weights, x, audio), generated)
        gradients = {}
        for name in judged:
            if name in self.config.weights:
                one = {other: jnp.float32(other == name) for other in judged}
                (gradients[name],) = pull(one)
        return weights, optimizer, values | judged, gradients

    def discriminate(
        self, weights: Any, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """What the discriminators make small: the sum over families, and each family's."""
        weights = sharding.gathered("discriminator", weights)
        both = self.discriminator.apply({"params": weights}, jnp.concatenate([audio, generated]))
        values = {}
        for family, judgements in both.items():
            real, fake = zip(*(jnp.split(scores, 2) for scores, _ in judgements), strict=True)
            values[f"discriminator_{family}"] = losses.discriminator_hinge(real, fake)
        return sum(values.values()), values

    def deceive(self, weights: Any, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]) -> Metrics:
        """What the codec makes small of the discriminators' judgement."""
        weights = sharding.gathered("discriminator", weights)
        fake = self.discriminator.apply({"params": weights}, generated)
        real = self.discriminator.apply({"params": weights}, audio)
        values = {}
        for family in fake:
            values[f"adversarial_{family}"] = losses.adversarial([scores for scores, _ in fake[family]])
            values[f"feature_{family}"] = losses.feature_matching(
                [maps for _, maps in real[family]], [maps for _, maps in fake[family]]
            )
        return values

    def update(self, weights: Any, optimizer: Any, gradient: Any) -> tuple[Any, Any]:
        updates, optimizer = self.optimizer.update(gradient, optimizer, weights)
        return optax.apply_updates(weights, updates), optimizer

    def evaluate(self, state: TrainState, frozen: Any, batch: Batch) -> dict[str, Mean | Usage]:
        """How near the averaged weights come to the audio by all codebooks, and which codes they use."""
        model, codebooks = self.config.model, state.extra["codebooks"]
        audio, num_samples = batch["audio"], batch["num_samples"]
        generated, codes = self.reconstruct(state.average.value(), codebooks, audio)
        there = num_samples > 0
        metrics: dict[str, Mean | Usage] = {
            "si_snr": Mean.of(losses.si_snr(generated, audio, num_samples), there),
            "mel_distance": Mean.of(losses.mel_distance(generated, audio, num_samples, model.sample_rate), there),
            "l1": Mean.of(jnp.mean(jnp.abs(generated - audio), axis=(1, 2)), there),
        }
        counts = rvq_training.histogram(codes, model.codebook_size)
        for k in range(model.num_codebooks):
            metrics[f"usage_{k + 1}"] = Usage(counts[k], perplexity=False)
            metrics[f"perplexity_{k + 1}"] = Usage(counts[k], perplexity=True)
        return metrics

    def show(self, state: TrainState, batch: Batch) -> dict[str, Sound]:
        """The first clips of a batch, before and after the codec."""
        audio = batch["audio"][:_SHOWN]
        generated = self._reconstruct(state.average.value(), state.extra["codebooks"], audio)
        sounds = {}
        for i, (before, after) in enumerate(zip(*sharding.on_host((audio, generated)), strict=True)):
            sounds[f"clip{i}/input"] = Sound(before, self.config.model.sample_rate)
            sounds[f"clip{i}/reconstruction"] = Sound(after, self.config.model.sample_rate)
        return sounds

    def save(self, state: TrainState, directory: Path) -> None:
        """Writes the codec with its averaged weights, for `mgjax.load_codec`."""
        variables = sharding.on_host({"params": state.average.value(), "codebooks": state.extra["codebooks"]})
        if jax.process_index() == 0:
            write_codec(directory, self.config.model, variables)

    def flops(self, batch: Batch) -> float:
        """The operations of all convolutions and matrix products that one update needs.

        The codec goes forward once and backward twice as long. The discriminators hear real and generated audio to
        learn (3 times 2), then again to teach, with a way back to the audio for each of their two losses (2 and 2).
        """
        config = self.config
        audio = jax.ShapeDtypeStruct(batch["audio"].shape, jnp.float32)
        state = jax.eval_shape(self.init, jax.random.key(0))
        codebooks = state.extra["codebooks"]
        total = 3 * products(self.reconstruct, state.params["codec"], codebooks, audio)
        if config.judged:
            total += 10 * products(self.discriminator.apply, {"params": state.params["discriminator"]}, audio)
        return total
