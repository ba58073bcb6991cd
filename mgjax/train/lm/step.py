"""The training step of the language model (Copet et al. 2023): from codes, or from audio with the codec in the step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from mgjax.checkpoints.native import Checkpoint
from mgjax.codec.encodec import EncodecModel
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.t5 import T5Encoder
from mgjax.config.model import CodecConfig, LMConfig
from mgjax.lm import codewords, lora
from mgjax.lm import loss as losses
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM
from mgjax.lm.stack import stack_layers, unstack_layers
from mgjax.train import conditions, optim
from mgjax.train.flops import products
from mgjax.train.lm import export
from mgjax.train.lm.config import LMRun
from mgjax.train.metrics import CrossEntropy, Mean, Perplexity
from mgjax.train.optim import Average
from mgjax.train.state import TrainState
from mgjax.train.task import Batch, BatchShapes, Task
from mgjax.train.trainable import mask, partition, path_filter

Metrics = dict[str, Float[Array, ""]]


def task(run: LMRun, start: Checkpoint, kind: Literal["tokens", "audio"]) -> Task:
    """The functions that the loop runs, on batches of codes ("tokens") or of audio.

    `start` is the model that the run starts from, of arrays or of shapes (`resolver.pretrained` or
    `pretrained_shapes`).
    """
    trained, frozen = partition(start.variables, run.trainable)
    if kind == "tokens":
        frozen.pop("codec", None)
    if "style" in frozen:
        frozen["features"] = frozen.pop("style")["features"]
    if "lm" in frozen:
        frozen["lm"] = _stored(run, frozen["lm"])
    step = TrainStep(run, start, frozen)
    return Task(
        name="language model",
        init=step.init,
        train_step=step.train,
        eval_step=step.evaluate,
        frozen=frozen,
        flops=step.flops,
        show=(lambda state, _: export.show(run, start, state)) if run.prompts else None,
        save=functools.partial(export.save, run, start),
        best=("cross_entropy", "min"),
        pretrained=trained or None,
    )


def _stored(run: LMRun, params: dict[str, Any]) -> dict[str, Any]:
    """The frozen weights (or their shapes) beside an adapter, in the dtype of activations, in which they are read."""

    def stored(params: dict[str, Any]) -> dict[str, Any]:
        params = jax.tree.map(lambda leaf: leaf.astype(run.dtype), params)
        return stack_layers(params) if run.scan_layers else params

    are_shapes = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
    return jax.eval_shape(stored, params) if are_shapes else stored(params)


class TrainStep:
    """The pure functions of a run: its initial state, one training step, one validation step.

    The `frozen` weights, which are read and not trained, are arrays or shapes.
    """

    def __init__(self, run: LMRun, start: Checkpoint, frozen: dict[str, Any]):
        self.run, self.model = run, start.config
        self.codebooks = start.variables["codec"]["codebooks"]["embed"] if run.codes_as_heard else None
        self.frozen_shapes = jax.eval_shape(lambda: frozen)
        self.lm = LM(self.model.lm, jnp.dtype(run.dtype), scan_layers=run.scan_layers, remat=run.remat)
        self.pattern = patterns.from_config(self.model.lm)
        self.optimizer = optim.make(run.optim, run.loop.steps)
        if run.text_rate < 1:
            slower = optax.masked(optax.scale(run.text_rate), functools.partial(mask, accepted=path_filter("text/")))
            self.optimizer = optax.chain(self.optimizer, slower)

    def init(self, key: Array, pretrained: Any = None) -> TrainState:
        """The state before the first step: initialised as published, or from the pretrained weights."""
        pretrained, params = pretrained or {}, {}
        if self.model.text is not None and self.run.trainable("text/"):
            key, text_key = jax.random.split(key)
            ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
            params["text"] = pretrained.get("text") or T5Encoder(self.model.text).init(text_key, ids, mask)["params"]
        style_key = key
        if self.model.style is not None:
            key, style_key = jax.random.split(key)
        conditioners, extra = conditions.initial(self.model, pretrained, style_key)
        params |= conditioners
        if self.run.lora is not None:
            params["lora"] = lora.initial(self.run.lora, self.frozen_shapes["lm"], key)
        else:
            params["lm"] = self.new_lm(key, pretrained.get("lm"))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer=self.optimizer.init(params),
            average=Average.init(params) if self.run.optim.average_decay else None,
            extra=extra,
        )

    def new_lm(self, key: Array, pretrained: dict[str, Any] | None) -> dict[str, Any]:
        """The language model's initial parameters: `pretrained`, or new ones if that is None."""
        codes_key = key
        if self.codebooks is not None:
            key, codes_key = jax.random.split(key)
        stacked = initial(self.model.lm, key) if pretrained is None else stack_layers(pretrained)
        if self.codebooks is not None:
            groups = self.model.channels // self.model.codec.channels  # of channels, each encoded alone
            codebooks = jnp.repeat(self.codebooks, groups, axis=0)[: self.model.lm.num_codebooks]
            stacked = codewords.init_from_codebooks(stacked, codebooks, codes_key)
        return stacked if self.run.scan_layers else unstack_layers(stacked)

    def lm_params(self, params: Any, frozen: Any, key: Array | None = None) -> dict[str, Any]:
        """The language model's parameters, with the adapter beside them if one is trained."""
        if self.run.lora is None:
            return params["lm"]
        return lora.insert(self.run.lora, frozen["lm"], params["lora"], key)

    def train(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        """One training step."""
        config = self.run.optim
        inputs = self.inputs(frozen, batch)
        counts = jnp.sum(inputs["steps"].counted, axis=(0, 1), dtype=jnp.float32)

        key = jax.random.fold_in(jax.random.key(self.run.loop.seed), state.step)

        def loss(params: Any, part: Any) -> tuple[Array, Any]:
            sums, extra = self.cross_entropy(params, frozen, part, state.extra, key)
            return losses.mean(sums, counts, self.run.codebook_weights or None), (sums, extra)

        value, (sums, extra), gradient = optim.gradients(loss, state.params, inputs, config.accumulate)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        rate = optim.learning_rate(config, self.run.loop.steps, optimizer, state.step)
        params, step = optax.apply_updates(state.params, updates), state.step + 1
        average = None if state.average is None else state.average.update(config, params, step)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient), "learning_rate": rate}
        for k, cross_entropy in enumerate(sums / jnp.maximum(counts, 1.0)):
            metrics[f"cross_entropy_{k + 1}"] = cross_entropy
        return TrainState(step=step, params=params, optimizer=optimizer, average=average, extra=extra), metrics

    def evaluate(self, state: TrainState, frozen: Any, batch: Batch) -> dict[str, Any]:
        """The cross-entropy and the perplexity of each codebook, with the averaged weights."""
        inputs = self.inputs(frozen, batch)
        sums, _ = self.cross_entropy(export.weights_of(state), frozen, inputs, state.extra)
        counts = jnp.sum(inputs["steps"].counted, axis=(0, 1), dtype=jnp.float32)
        metrics: dict[str, Any] = {"cross_entropy": CrossEntropy(sums, counts)}
        for k in range(self.model.lm.num_codebooks):
            metrics[f"cross_entropy_{k + 1}"] = Mean(sums[k], counts[k])
            metrics[f"perplexity_{k + 1}"] = Perplexity(sums[k], counts[k])
        return metrics

    def inputs(self, frozen: Any, batch: Batch) -> dict[str, Any]:
        """The teacher-forced steps of the pattern ("steps"), and the conditioning inputs."""
        if "codes" in batch:
            codes, num_frames = batch["codes"], batch["num_frames"]
        else:
            encode = functools.partial(encode_audio, self.model.codec, frozen["codec"])
            codes = optim.in_parts(encode, batch["audio"], self.run.optim.accumulate)
            num_frames = -(-batch["num_samples"] // self.model.codec.hop_length)
        conditioning = conditions.conditioning_inputs(self.model, frozen, batch, codes, self.run.optim.accumulate)
        special, codes = self.model.lm.special_token, codes[..., : self.model.lm.num_codebooks]
        steps = losses.teacher_forced(self.pattern, codes, num_frames, special)
        excerpt = conditions.excerpt_mask(self.model, batch, codes.shape[1])
        if excerpt is not None:
            masked = jnp.where(excerpt[..., None], special, codes)
            steps = steps._replace(counted=losses.teacher_forced(self.pattern, masked, num_frames, special).counted)
        return {"steps": steps} | conditioning

    def cross_entropy(
        self, params: Any, frozen: Any, inputs: dict[str, Any], extra: Any, key: Array | None = None
    ) -> tuple[Float[Array, " k"], Any]:
        """The cross-entropy of each codebook, summed over the loss mask, and `TrainState.extra` after it.

        `extra` changes with a `key` only, as in training.
        """
        steps = inputs["steps"]
        variables = {"params": self.lm_params(params, frozen, key)}
        weights, extra_key = {**frozen, **params}, key if extra else None
        batch_conditions, extra = conditions.conditions(self.model, weights, inputs, extra, extra_key)
        apply: Callable[..., Any] = functools.partial(self.lm.apply, variables)
        context = apply(batch_conditions, batch=steps.inputs.shape[0], method="context")
        hidden = apply(steps.inputs, context, method="hidden")
        return losses.cross_entropy_in_parts(functools.partial(apply, method="logits"), hidden, steps), extra

    def flops(self, batch: BatchShapes) -> float:
        """The operations of all convolutions and matrix products that one training step needs.

        The backward pass of the language model, and of a trained text encoder, takes twice the operations of the
        forward pass: 6 in all for each weight and step, with attention in full, although half of it is masked. Frozen
        encoders have a forward pass only; beside an adapter, the language model's backward pass takes as many
        operations as its forward pass, without gradients of its weights. What `remat` computes again is not counted.
        """
        frozen = self.frozen_shapes
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))
        state = jax.eval_shape(self.init, jax.random.key(0))
        inputs = jax.eval_shape(self.inputs, frozen, shapes)
        trained = products(self.cross_entropy, state.params, frozen, inputs, state.extra)
        forward_only = products(self.inputs, frozen, shapes)
        if self.model.text is not None and "text" in frozen:
            encoder = T5Encoder(self.model.text)
            text = products(encoder.apply, {"params": frozen["text"]}, shapes["text_ids"], shapes["text_mask"])
            trained, forward_only = trained - text, forward_only + text
        return (2 if "lm" in frozen else 3) * trained + forward_only


def initial(config: LMConfig, key: Array) -> dict[str, Any]:
    """New weights of a language model, its layers stacked."""

    def use_all(module: LM) -> Array:
        conditions = {
            fused.name: Condition(jnp.zeros((1, 1, fused.dim)), jnp.ones((1, 1), bool), rate=1.0)
            for fused in config.conditions
        }
        return module(jnp.zeros((1, 1, config.num_codebooks), jnp.int32), module.context(conditions))

    return LM(config, scan_layers=True).init(key, method=use_all)["params"]


def encode_audio(config: CodecConfig, variables: dict[str, Any], audio: Float[Array, "b n c"]) -> Int[Array, "b t k"]:
    """Encodes audio from -1 to 1 within a compiled step, to the codes of `Codec.encode`.

    Weight norm is folded into the kernels of the codec. If the audio has more channels than the codec, groups of them
    are encoded one by one.
    """
    b, n, c = audio.shape
    groups, hop = c // config.channels, config.hop_length
    rows = jnp.moveaxis(audio.reshape(b, n, groups, -1), 2, 1).reshape(b * groups, n, -1)
    rows = jnp.pad(rows, ((0, 0), (0, -n % hop), (0, 0)))
    with jax.default_matmul_precision("highest"):  # a code is a hard decision
        codes: Any = EncodecModel(config).apply(variables, rows, n, method="encode")
    return jnp.moveaxis(codes.reshape(b, groups, *codes.shape[1:]), 1, 3).reshape(b, codes.shape[1], -1)
