"""Training of the language model (Copet et al. 2023): from codes, or from audio with the codec in the step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mgjax.checkpoints import sources
from mgjax.codec.codec import Codec
from mgjax.codec.encodec import EncodecModel
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.t5 import T5Encoder
from mgjax.config.model import LMConfig
from mgjax.data.conditions import BatchConditions
from mgjax.data.corpus import Corpus
from mgjax.data.description import SPLITS
from mgjax.data.pipeline import batches, validation_batches
from mgjax.devices import sharding
from mgjax.errors import ConfigError
from mgjax.generation import arguments
from mgjax.lm import codewords, lora
from mgjax.lm import loss as losses
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM
from mgjax.lm.stack import stack_layers, unstack_layers
from mgjax.train import conditions, lm_model, optim, start
from mgjax.train import text as text_encoders
from mgjax.train.flops import products
from mgjax.train.inputs import Inputs
from mgjax.train.lm_run import LMRun
from mgjax.train.loop import fit
from mgjax.train.metrics import CrossEntropy, Mean, Perplexity
from mgjax.train.optim import Average
from mgjax.train.start import Start
from mgjax.train.state import TrainState
from mgjax.train.task import Task
from mgjax.train.watchdog import Watchdog

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


def run(config: LMRun, workdir: str | Path) -> TrainState:
    """Trains a language model on the corpora of `config.data`, and goes on where a run in `workdir` was stopped.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts or the corpora do not fit together.
    """
    with Watchdog(config.loop.hang_seconds) as watchdog:
        with watchdog.waiting("opening the corpora"):
            corpora = {split: [Corpus.open(path, split) for path in config.data.corpora] for split in SPLITS}
        with watchdog.waiting("reading what the run begins with", may_last=True):
            begun = begin(config)
            inputs = Inputs.of(corpora["train"] + corpora["valid"], config.data.may_grow, **begun.hashes())
    for corpus in corpora["train"] + corpora["valid"]:
        _check(corpus, begun)
    kinds = {corpus.kind for corpus in corpora["train"]}
    if begun.config.clap and "tokens" in kinds:
        raise ConfigError("CLAP hears music, and codes are none: train with it on a corpus of sound")
    if begun.features is not None and "tokens" in kinds:
        raise ConfigError(
            "the style's encoder hears music, and codes are none: it needs a corpus of sound. Train on one, or set "
            "style.features to None for a style of codes"
        )
    tokenizer = begun.tokenizer()
    batch_conditions = BatchConditions(
        text=config.text if tokenizer else None,
        tokenize=tokenizer.encode if tokenizer else None,
        melody=begun.config.melody,
        style=begun.config.style and begun.config.style.seconds,
        clap=begun.clap_tokenizer().encode if begun.config.clap else None,
        labels=(*begun.config.labels, *begun.config.numbers),
        dropout=config.dropout,
    )
    mesh = sharding.make_mesh(config.loop.data, config.loop.fsdp, config.loop.model)
    options = {"rows": sharding.rows_here(config.data.batch_size, mesh), "conditions": batch_conditions}
    train_data = batches(corpora["train"], config.data, seed=config.loop.seed, **options)

    def valid_data() -> Iterator[dict[str, np.ndarray]]:
        return validation_batches(corpora["valid"], config.data, **options)

    made = task(config, begun, kinds.pop())
    return fit(made, train_data, valid_data, config.loop, workdir, run=config, inputs=inputs)


def begin(config: LMRun) -> Start:
    """The parts of the model that `config` trains.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts do not fit together.
    """
    if config.lora and config.init is None:
        raise ConfigError("lora adapts a model that is there: set init to it")
    begun = start.read(config)
    weights, num_codebooks = config.codebook_weights, begun.config.lm.num_codebooks
    if weights and len(weights) != num_codebooks:
        raise ConfigError(
            f"codebook_weights must be {num_codebooks} numbers, one for each codebook, got {len(weights)}"
        )
    if config.prompts:
        arguments.num_frames(config.prompt_seconds, begun.codec.frame_rate)
    conditions.check(begun.config, config.optim.accumulate, config.data.segment_seconds)
    if config.lora:
        _check_lora(config, begun)
    if config.train_text and begun.config.text is None:
        raise ConfigError(f"{config.init} reads no text, so there is no text encoder to train: leave train_text out")
    return begun


def _check_lora(config: LMRun, begun: Start) -> None:
    """Raises ConfigError where more than the language model would learn, which an adapter's files cannot hold."""
    model = begun.config
    if config.channels != sources.read_config(config.init).channels:
        raise ConfigError(
            f"an adapter cannot make a model of {config.channels} channels of {config.init}: leave lora out"
        )
    if model.style is not None or (model.clap is not None and model.clap.num_codebooks):
        raise ConfigError(f"in {config.init} more learns than the language model, how it hears music: leave lora out")
    jax.eval_shape(functools.partial(lora.initial, config.lora), begun.lm, jax.random.key(0))


def _check(corpus: Corpus, begun: Start) -> None:
    """Raises ConfigError unless the model can be trained on the corpus."""
    codec = begun.codec
    if corpus.kind == "audio":
        found, expected = (corpus.sample_rate, corpus.width), (codec.sample_rate, codec.channels)
        if found != expected:
            raise ConfigError(
                f"{corpus.directory} holds audio of {found[0]} Hz with {found[1]} channels, the model is of "
                f"{expected[0]} Hz with {expected[1]}: build the corpus again with these"
            )
    elif corpus.codec_hash != codec.hash:
        raise ConfigError(
            f"the codes in {corpus.directory} were made with another codec ({corpus.codec_source}, hash "
            f"{corpus.codec_hash}) than that of this run (hash {codec.hash}): set codec to that one, or tokenize the "
            "corpus anew"
        )
    elif corpus.width != codec.num_codebooks:
        raise ConfigError(
            f"{corpus.directory} holds {corpus.width} codebooks, the model has {codec.num_codebooks} for "
            f"{codec.channels} channels: set channels to that of the corpus, or tokenize the corpus anew"
        )


def task(config: LMRun, begun: Start, kind: Literal["tokens", "audio"]) -> Task:
    """The functions that the loop runs, for batches of codes or of audio."""
    step = _Step(config, begun)
    texts = {} if begun.text is None else {"text": begun.text}
    learned = {"lm": begun.lm} if begun.lm is not None and not config.lora else {}
    learned |= {"style": begun.style} if begun.config.style and begun.style else {}
    if begun.config.clap and "codebooks" in begun.clap:
        learned["clap"] = {"codebooks": begun.clap["codebooks"]}
    learned |= texts if config.train_text else {}
    frozen = {} if config.train_text else texts
    if config.lora:
        frozen["lm"] = step.base()
    if begun.config.clap:
        frozen["clap"] = {name: begun.clap[name] for name in ("text", "audio")}
    if begun.features is not None:
        frozen["features"] = begun.features
    if kind == "audio":
        frozen["codec"] = begun.codec.variables
    return Task(
        name="language model",
        init=step.init,
        train_step=step.train,
        eval_step=step.evaluate,
        frozen=frozen,
        flops=functools.partial(step.flops, jax.eval_shape(lambda: frozen)),
        show=(lambda state, _: lm_model.show(config, begun, state)) if config.prompts else None,
        save=functools.partial(lm_model.save, config, begun),
        best=("cross_entropy", "min"),
        pretrained=learned or None,
    )


class _Step:
    """The pure functions of a run, with what they have in common."""

    def __init__(self, config: LMRun, begun: Start):
        self.config = config
        self.begun = begun
        self.model = begun.config
        self.lm = LM(self.model.lm, jnp.dtype(config.dtype), scan_layers=config.scan_layers, remat=config.remat)
        self.pattern = patterns.from_config(self.model.lm)
        self.optimizer = optim.make(config.optim, config.loop.steps)
        if config.text_rate < 1:
            of_text = functools.partial(jax.tree_util.tree_map_with_path, lambda path, _: path[0].key == "text")
            self.optimizer = optax.chain(self.optimizer, optax.masked(optax.scale(config.text_rate), of_text))

    def init(self, key: Array, pretrained: Any = None) -> TrainState:
        """The state before the first update: the published initialisation, or the weights to go on from."""
        given, params = pretrained or {}, {}
        if self.config.train_text:
            key, text_key = jax.random.split(key)
            params["text"] = given["text"] if "text" in given else text_encoders.initial(self.model.text, text_key)
        key, style_key = (key, None) if self.model.style is None else jax.random.split(key)
        learned, extra = conditions.initial(self.model, given, style_key)
        params |= learned
        if self.config.lora:
            params["lora"] = lora.initial(self.config.lora, self.base(), key)
        else:
            params["lm"] = self.new(key, given)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer=self.optimizer.init(params),
            average=Average.begin(params) if self.config.optim.average_decay else None,
            extra=extra,
        )

    def new(self, key: Array, given: dict[str, Any]) -> dict[str, Any]:
        """The language model's weights before the first update, those of `given` where it has them."""
        key, codes_key = (key, None) if not self.config.codes_as_heard else jax.random.split(key)
        stacked = stack_layers(given["lm"]) if "lm" in given else initial(self.model.lm, key)
        if codes_key is not None:
            codebooks = self.begun.codec.variables["codebooks"]["embed"]
            groups = self.model.channels // self.model.codec.channels  # that are coded apart
            codebooks = jnp.repeat(codebooks, groups, axis=0)[: self.model.lm.num_codebooks]
            stacked = codewords.placed(stacked, codebooks, codes_key)
        return stacked if self.config.scan_layers else unstack_layers(stacked)

    def base(self) -> dict[str, Any]:
        """The weights that an adapter leaves as they are, in the type of the activations, which they are read in."""
        weights = jax.tree.map(lambda leaf: leaf.astype(self.config.dtype), self.begun.lm)
        return stack_layers(weights) if self.config.scan_layers else weights

    def language(self, params: Any, frozen: Any, key: Array | None = None) -> dict[str, Any]:
        """The language model's weights; with an adapter beside them where that is what learns."""
        if not self.config.lora:
            return params["lm"]
        return lora.insert(self.config.lora, frozen["lm"], params["lora"], key)

    def train(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update."""
        config = self.config.optim
        pieces = self.pieces(frozen, batch)
        counts = jnp.sum(pieces["steps"].counted, axis=(0, 1), dtype=jnp.float32)

        key = jax.random.fold_in(jax.random.key(self.config.loop.seed), state.step)

        def loss(params: Any, part: Any) -> tuple[Array, Any]:
            sums, extra = self.cross_entropy(params, frozen, part, state.extra, key)
            return losses.mean(sums, counts, self.config.codebook_weights or None), (sums, extra)

        value, (sums, extra), gradient = optim.gradients(loss, state.params, pieces, config.accumulate)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        rate = optim.learning_rate(config, self.config.loop.steps, optimizer, state.step)
        params, step = optax.apply_updates(state.params, updates), state.step + 1
        average = None if state.average is None else state.average.update(config, params, step)
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate,
        }
        for k, one in enumerate(sums / jnp.maximum(counts, 1.0)):
            metrics[f"cross_entropy_{k + 1}"] = one
        return TrainState(step=step, params=params, optimizer=optimizer, average=average, extra=extra), metrics

    def evaluate(self, state: TrainState, frozen: Any, batch: Batch) -> dict[str, Any]:
        """How well the averaged weights predict each codebook."""
        pieces = self.pieces(frozen, batch)
        sums, _ = self.cross_entropy(lm_model.weights_of(state), frozen, pieces, state.extra)
        counts = jnp.sum(pieces["steps"].counted, axis=(0, 1), dtype=jnp.float32)
        metrics = {"cross_entropy": CrossEntropy(sums, counts)}
        for k in range(self.model.lm.num_codebooks):
            metrics[f"cross_entropy_{k + 1}"] = Mean(sums[k], counts[k])
            metrics[f"perplexity_{k + 1}"] = Perplexity(sums[k], counts[k])
        return metrics

    def pieces(self, frozen: Any, batch: Batch) -> dict[str, Any]:
        """The batch as the language model learns from it: its steps, and its conditioning inputs."""
        if "codes" in batch:
            codes, num_frames = batch["codes"], batch["num_frames"]
        else:
            encode = functools.partial(encoded, self.begun.codec, frozen["codec"])
            codes = optim.in_parts(encode, batch["audio"], self.config.optim.accumulate)
            num_frames = -(-batch["num_samples"] // self.begun.codec.hop_length)
        inputs = conditions.conditioning_inputs(self.model, frozen, batch, codes, self.config.optim.accumulate)
        special, codes = self.model.lm.special_token, codes[..., : self.model.lm.num_codebooks]
        steps = losses.layout(self.pattern, codes, num_frames, special)
        excerpts = conditions.excerpt_mask(self.model, batch, codes.shape[1])
        if excerpts is not None:
            others = jnp.where(excerpts[..., None], special, codes)
            steps = steps._replace(counted=losses.layout(self.pattern, others, num_frames, special).counted)
        return {"steps": steps} | inputs

    def cross_entropy(
        self, params: Any, frozen: Any, pieces: dict[str, Any], extra: Any, key: Array | None = None
    ) -> tuple[Float[Array, " k"], Any]:
        """The cross-entropy of each codebook, summed over what counts; and `extra` of the state after it, where there
        is a `key`: then the conditions learn."""
        steps = pieces["steps"]
        variables = {"params": self.language(params, frozen, key)}
        told, extra = conditions.conditions(self.model, {**frozen, **params}, pieces, extra, key if extra else None)
        context = self.lm.apply(variables, told, batch=steps.inputs.shape[0], method="context")
        hidden = self.lm.apply(variables, steps.inputs, context, method="hidden")
        predict = functools.partial(self.lm.apply, variables, method="logits")
        return losses.cross_entropy_of(predict, hidden, steps), extra

    def flops(self, frozen: Any, batch: Batch) -> float:
        """The operations of all convolutions and matrix products that one update needs.

        The language model goes forward once and backward twice as long, which is 6 for each weight and code step, and
        its attention (counted in full, although half of it is masked); so does a text encoder that is trained. What is
        not trained goes forward only; but beside an adapter the language model goes backward too, as long as forward,
        for there are no gradients of its weights. What `remat` computes again is not counted.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))
        state = jax.eval_shape(self.init, jax.random.key(0))
        pieces = jax.eval_shape(self.pieces, frozen, shapes)
        learned = products(self.cross_entropy, state.params, frozen, pieces, state.extra)
        frozen_ones = products(self.pieces, frozen, shapes)
        if self.model.text is not None and not self.config.train_text:
            encoder = T5Encoder(self.model.text)
            text = products(encoder.apply, {"params": frozen["text"]}, shapes["text_ids"], shapes["text_mask"])
            learned, frozen_ones = learned - text, frozen_ones + text
        return (2 if self.config.lora else 3) * learned + frozen_ones


def initial(config: LMConfig, key: Array) -> dict[str, Any]:
    """New weights of a language model, its layers stacked."""

    def touch_all(module: LM) -> Array:
        told = {
            fused.name: Condition(jnp.zeros((1, 1, fused.dim)), jnp.ones((1, 1), bool), rate=1.0)
            for fused in config.conditions
        }
        return module(jnp.zeros((1, 1, config.num_codebooks), jnp.int32), module.context(told))

    return LM(config, scan_layers=True).init(key, method=touch_all)["params"]


def encoded(codec: Codec, variables: dict[str, Any], audio: Float[Array, "b n c"]) -> Int[Array, "b t k"]:
    """The codes of `audio`, as `codec.encode` gives them, within a compiled step."""
    b, n, c = audio.shape
    groups, hop = c // codec.config.channels, codec.hop_length
    rows = jnp.moveaxis(audio.reshape(b, n, groups, -1), 2, 1).reshape(b * groups, n, -1)
    rows = jnp.pad(rows, ((0, 0), (0, -n % hop), (0, 0)))
    with jax.default_matmul_precision("highest"):  # a code is a hard decision
        codes = EncodecModel(codec.folded_config).apply(variables, rows, n, method="encode")
    return jnp.moveaxis(codes.reshape(b, groups, *codes.shape[1:]), 1, 3).reshape(b, codes.shape[1], -1)
