"""The training step of the codec (Défossez et al. 2022, section 3.4): a generator against its discriminators."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mgjax.codec import balancer, losses, rvq_training
from mgjax.codec.discriminator import Discriminator
from mgjax.codec.encodec import EncodecModel, Reconstruction
from mgjax.codec.rvq_training import Codebooks
from mgjax.devices import sharding
from mgjax.train import optim
from mgjax.train.codec.config import CodecRun
from mgjax.train.optim import Average
from mgjax.train.state import TrainState
from mgjax.train.task import Batch
from mgjax.train.trainable import mask

Metrics = dict[str, Float[Array, ""]]


class GAN:
    """The pure functions of a run, with the codec that it trains."""

    def __init__(self, config: CodecRun):
        self.config, self.model = config, config.codec
        self.codec = EncodecModel(self.model)
        self.discriminator = Discriminator(config.discriminator)
        self.optimizer = optim.make(config.optim, config.loop.steps)

    def init(self, key: Array, pretrained: dict[str, Any] | None = None) -> TrainState:
        """The state before the first training step, from the `pretrained` variables of the codec if there are any.

        New codebooks are initialised from the first batch.
        """
        config, model = self.config, self.model
        codec_key, discriminator_key = jax.random.split(key)
        variables = self.codec.init(codec_key, jnp.zeros((1, model.hop_length, model.channels)))
        if pretrained is not None:
            variables = jax.tree.map(jnp.asarray, pretrained)
        params = {"codec": variables["params"]}
        if config.has_discriminators:
            audio = jnp.zeros((1, config.discriminator.least_samples, model.channels))
            params["discriminator"] = self.discriminator.init(discriminator_key, audio)["params"]
        return TrainState(
            step=jnp.int32(0),
            params=params,
            optimizer={name: self.optimizer.init(weights) for name, weights in params.items()},
            average=Average.init(params["codec"]),
            extra={"codebooks": variables["codebooks"], "balancer": balancer.init(config.loss_weights)},
        )

    def train_step(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        """Trains the discriminators, then the codec on the same audio, as in the published code."""
        config, audio = self.config, batch["audio"]
        params, optimizer, metrics = dict(state.params), dict(state.optimizer), {}
        key = jax.random.fold_in(jax.random.key(config.loop.seed), state.step)

        def forward(weights: Any) -> tuple[tuple[Array, Array], Reconstruction]:
            output = self.reconstruct(weights, state.extra["codebooks"], audio, key)
            return (output.audio, output.commitment), output

        (generated, commitment), backward, output = jax.vjp(forward, params["codec"], has_aux=True)

        if config.has_discriminators:
            loss = jax.grad(self.discriminator_loss, has_aux=True)
            gradient, metrics = loss(params["discriminator"], generated, audio)
            params["discriminator"], optimizer["discriminator"] = self._update(
                params["discriminator"], optimizer["discriminator"], gradient
            )

        values, gradients = self.generator_losses(params.get("discriminator"), generated, audio)
        balanced, balancer_state = balancer.combine(
            gradients,
            config.loss_weights,
            state.extra["balancer"],
            decay=config.loss.balancer_decay,
            total_norm=config.loss.total_norm,
        )
        (gradient,) = backward((balanced, jnp.float32(config.loss.commitment)))
        learned, optimizer["codec"] = self._update(params["codec"], optimizer["codec"], gradient)
        trains = mask(learned, config.trainable)
        params["codec"] = jax.tree.map(lambda train, new, old: new if train else old, trains, learned, params["codec"])

        step = state.step + 1
        counts = rvq_training.histogram(output.codes, self.model.codebook_size)
        metrics |= values | {
            "loss": sum(weight * values[name] for name, weight in config.loss_weights.items()),
            "commitment": commitment,
            "gradient_norm": optax.tree.norm(gradient),
            "perplexity": jnp.mean(rvq_training.perplexity(counts)),
        }
        return TrainState(
            step=step,
            params=params,
            optimizer=optimizer,
            average=state.average.update(config.optim, params["codec"], step),
            extra={"codebooks": output.codebooks, "balancer": balancer_state},
        ), metrics

    def reconstruct(
        self, weights: Any, codebooks: Codebooks, audio: Float[Array, "b n c"], key: Array | None = None
    ) -> Reconstruction:
        """The generator's forward pass; with a `key`, as in training, while the codebooks learn."""
        variables = {"params": sharding.gathered("codec", weights), "codebooks": codebooks}
        learns = key is not None and not self.config.keep_codes
        reconstruction: Any = self.codec.apply(variables, audio, key, self.config.quantizer if learns else None)
        return reconstruction

    def discriminator_loss(
        self, weights: Any, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """The discriminators' hinge loss: the sum over families, and each family's."""
        weights = sharding.gathered("discriminator", weights)
        outputs: Any = self.discriminator.apply({"params": weights}, jnp.concatenate([audio, generated]))
        values = {}
        for family, discriminators in outputs.items():
            real, fake = zip(*(jnp.split(scores, 2) for scores, _ in discriminators), strict=True)
            values[f"discriminator_{family}"] = losses.discriminator_hinge(real, fake)
        total: Any = sum(values.values())
        return total, values

    def generator_losses(
        self, discriminator: Any, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]
    ) -> tuple[Metrics, dict[str, Float[Array, "b n c"]]]:
        """The generator's losses by name, and the gradient of each with respect to the generated audio.

        Without weights of the `discriminator`, they are the losses of the reconstruction alone.
        """
        config = self.config
        reconstruction = {
            "l1": lambda x: losses.waveform(x, audio),
            "mel": lambda x: losses.mel(x, audio, self.model.sample_rate, config.loss),
        }
        values, gradients = {}, {}
        for name, loss in reconstruction.items():  # in this order: every process has to compile the same program
            if name in config.loss_weights:
                values[name], gradients[name] = jax.value_and_grad(loss)(generated)
        if discriminator is not None:
            adversarial, backward = jax.vjp(lambda x: self.adversarial_losses(discriminator, x, audio), generated)
            for name in adversarial:
                if name in config.loss_weights:
                    (gradients[name],) = backward({other: jnp.float32(other == name) for other in adversarial})
            values |= adversarial
        return values, gradients

    def adversarial_losses(
        self, weights: Any, generated: Float[Array, "b n c"], audio: Float[Array, "b n c"]
    ) -> Metrics:
        """The adversarial loss and the feature matching loss that each family of discriminators gives the generator."""
        weights = sharding.gathered("discriminator", weights)
        fake: Any = self.discriminator.apply({"params": weights}, generated)
        real: Any = self.discriminator.apply({"params": weights}, audio)
        values = {}
        for family in fake:
            values[f"adversarial_{family}"] = losses.adversarial([scores for scores, _ in fake[family]])
            values[f"feature_{family}"] = losses.feature_matching(
                [maps for _, maps in real[family]], [maps for _, maps in fake[family]]
            )
        return values

    def _update(self, weights: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        """The weights and the optimiser's state after a gradient."""
        updates, state = self.optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state
