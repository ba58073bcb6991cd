"""A training run of the codec: what is trained, on what, and how."""

from __future__ import annotations

import dataclasses
from dataclasses import field

from mgjax.codec.discriminator import DiscriminatorConfig
from mgjax.codec.losses import LossConfig
from mgjax.codec.rvq_training import QuantizerConfig
from mgjax.config.model import CodecConfig
from mgjax.data.pipeline import DataConfig
from mgjax.errors import ConfigError
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig, MeshConfig, check_numbers, take_old_mesh
from mgjax.train.trainable import Filter, path_filter

PUBLISHED = OptimConfig(
    name="adam", learning_rate=3e-4, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9, weight_decay=0.0,
    max_grad_norm=None, average_decay=0.99, average_every=1,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CodecRun:
    """A run. The defaults are the published recipe for 32 kHz.

    Attributes:
      model: The codec; `norm` is "weight_norm" or "time_group_norm". None for that of `init`.
      init: A codec to go on from, or a model that has one; None for new weights.
      keep_codes: Whether only the decoder is trained. The encoder and the codebooks of `init` are frozen, so that
        corpora of its codes, and language models of them, stay valid.
      data: Audio corpora at the codec's rate and of its channels.
      loss: The losses and their weights.
      quantizer: The training of the codebooks.
      discriminator: The discriminators that the codec is trained against.
      optim: The optimiser, of the codec and of the discriminators.
      loop: The length of the run, and what it reports and keeps.
      mesh: The device mesh.
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

    def __post_init__(self) -> None:
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
        if self.has_discriminators and samples < self.discriminator.least_samples:
            raise ConfigError(
                f"data.segment_seconds gives {samples} samples, the discriminators need "
                f"{self.discriminator.least_samples}: make segments longer, or stft_sizes smaller"
            )

    @property
    def codec(self) -> CodecConfig:
        """The codec that is trained: `model`, once `training.read_init` has put that of `init` there."""
        assert self.model is not None, "read_init comes first"
        return self.model

    @property
    def trainable(self) -> Filter:
        """Which of the codec's parameters train, by their paths."""
        return path_filter("decoder/" if self.keep_codes else "")

    @property
    def has_discriminators(self) -> bool:
        """Whether there are discriminators at all."""
        return bool(self.discriminator.families) and (self.loss.adversarial > 0 or self.loss.feature > 0)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss in the balancer; those of weight 0 are left out."""
        weights = {"l1": self.loss.l1, "mel": self.loss.mel}
        for family in self.discriminator.families:
            weights[f"adversarial_{family}"] = self.loss.adversarial
            weights[f"feature_{family}"] = self.loss.feature
        return {name: weight for name, weight in weights.items() if weight}
