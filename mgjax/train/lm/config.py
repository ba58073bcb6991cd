"""The settings of a run that trains a language model."""

from __future__ import annotations

import dataclasses
from dataclasses import field

from mgjax.config.conditioning import (
    ClapConditionConfig,
    LabelConfig,
    MelodyConfig,
    NumberConfig,
    StyleConfig,
    T5Config,
)
from mgjax.config.model import LMConfig, Sampling
from mgjax.config.serialization import one_of, ranged
from mgjax.data.conditions import Dropout
from mgjax.data.pipeline import DataConfig
from mgjax.data.prompts import TextConfig
from mgjax.errors import ConfigError
from mgjax.lm.lora import LoraConfig
from mgjax.lm.stack import REMAT
from mgjax.train.optim import OptimConfig
from mgjax.train.task import LoopConfig, MeshConfig, check_numbers, take_old_mesh
from mgjax.train.trainable import Filter, path_filter

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LMRun:
    """A run: what is trained, on what, and how. The defaults are the published recipe for the medium model.

    Sources are directories, Hub ids, or "debug".

    Attributes:
      lm: The language model; None for that of `init`.
      init: A model to go on from; None for new weights.
      codec: A codec, or a model that has one; None for that of `init`.
      codes_as_heard: Whether to initialise embeddings and heads of a new model from the codec's codebooks, so that
        codes that sound alike are read and predicted alike from the start.
      codebook_weights: The weight of each codebook's cross-entropy in the loss; () for equal ones, as published. The
        last codebooks are hard to predict, so short runs gain from training the first ones more.
      text_encoder: A T5 (FLAN-T5 too), or a model that has one. None for that of `init`; without `init`, for a model
        without text or with a new text encoder.
      new_text: A new text encoder, trained from scratch; None for none. A `vocab_size` that is left at T5's own becomes
        that of the vocabulary.
      vocabulary: The vocabulary of the new text encoder: a folder with spiece.model, of `mgjax corpus vocabulary`; None
        or "bytes" for the bytes of the texts.
      train_text: Whether the text encoder is trained with the language model rather than frozen.
      text_rate: Its learning rate then, as a share of the optimiser's. At rates that suit new embeddings, the encoder
        collapses to one output for all texts before the language model attends to them.
      channels: The channels of the audio; 2 with a mono `init` makes a stereo model of it.
      window_seconds: The length of music that the model generates at once; None for the length of the segments.
      data: Corpora of tokens made with `codec`, or of audio at its rate.
      text: How text prompts are made, if the model reads text.
      melody: The chromagram that the model follows, one of the conditions of `lm`; None for none, or that of `init`.
      style: The style conditioner, which is trained too. It reads an excerpt of each segment, which the loss leaves
        out: its codes (`features` None), or its features by `style_encoder`. None for none, or that of `init`.
      style_encoder: A frozen MERT or HuBERT of transformers, whose config replaces `style.features` but for
        `normalize`. None for that of `init`, or none.
      clap: The condition on CLAP embeddings, of audio in training and of text in generation; with a `clap_encoder`.
      clap_encoder: A frozen CLAP of transformers, whose config replaces `clap.clap`. None for that of `init`, or none.
      labels: Labels that `lm` reads, by their names in the metadata; () for none, or for those of `init`.
      numbers: Numeric conditions, in the same way.
      lora: A LoRA adapter that is trained instead of the weights of `init`, which are frozen; None to train these.
      dropout: The dropout of conditions.
      optim: The optimiser.
      sampling: The default sampling parameters of the model; None for those of `init`, or of the published models.
      loop: The length of the run, and what it reports and keeps.
      mesh: The device mesh.
      dtype: The dtype of activations: "float32" or "bfloat16". Weights, logits and losses are float32.
      scan_layers: Whether one layer is compiled for all, which saves minutes, rather than each.
      remat: What is not stored for the backward pass but computed again: "none", "dots" (all but products with weights
        and attention by a kernel) or "full" (all within a layer). "weights" is "dots", but weights that are split among
        devices are also stored as they were gathered, not gathered again.
      prompts: The text prompts of the clips for TensorBoard. A model without text generates as many clips.
      prompt_seconds: The length of these clips.
    """

    lm: LMConfig | None = field(default_factory=LMConfig)
    init: str | None = None
    codec: str | None = None
    codes_as_heard: bool = False
    codebook_weights: tuple[float, ...] = ()
    text_encoder: str | None = None
    new_text: T5Config | None = None
    vocabulary: str | None = None
    train_text: bool = False
    text_rate: float = 1.0
    channels: int = 1
    window_seconds: float | None = None
    data: DataConfig = field(default_factory=lambda: DataConfig(batch_size=192, sample_on_duration=False))
    text: TextConfig = field(default_factory=TextConfig)
    melody: MelodyConfig | None = None
    style: StyleConfig | None = None
    style_encoder: str | None = None
    clap: ClapConditionConfig = field(default_factory=ClapConditionConfig)
    clap_encoder: str | None = None
    labels: tuple[LabelConfig, ...] = ()
    numbers: tuple[NumberConfig, ...] = ()
    lora: LoraConfig | None = None
    dropout: Dropout = field(default_factory=Dropout)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sampling: Sampling | None = None
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1_000_000))
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"
    prompts: tuple[str, ...] = ("a slow waltz on accordion", "driving techno with a deep bass")
    prompt_seconds: float = 8.0

    def __post_init__(self) -> None:
        take_old_mesh(self)
        check_numbers(self)
        one_of("dtype", self.dtype, DTYPES)
        one_of("remat", self.remat, tuple(REMAT))
        one_of("channels", self.channels, (1, 2))
        ranged(self, "above 0", "window_seconds prompt_seconds codebook_weights")
        ranged(self, "above 0 and at most 1", "text_rate")
        if self.codes_as_heard and self.init is not None:
            raise ConfigError("codes_as_heard initialises new weights, and those of init are not new: leave it out")
        self._check_text()
        if self.lora is not None:
            self._check_lora()
        if self.data.batch_size % self.optim.accumulate:
            raise ConfigError(
                f"optim.accumulate must divide data.batch_size, got {self.optim.accumulate} and {self.data.batch_size}"
            )

    @property
    def trainable(self) -> Filter:
        """The weights that train, by their paths in the model's variables; an adapter's are those of "lora".

        The encoder of style excerpts is frozen, and so is CLAP but for its codebooks.
        """
        parts = ["lora/" if self.lora else "lm/", r"style/(?!features/)", "clap/codebooks/"]
        return path_filter(*parts, *(["text/"] if self.train_text else []))

    def _check_text(self) -> None:
        if self.new_text is None:
            if self.vocabulary is not None:
                raise ConfigError(
                    "vocabulary is that of a new text encoder, and there is none: set new_text, or leave vocabulary out"
                )
            if self.train_text and self.init is None and self.text_encoder is None:
                raise ConfigError(
                    "there is no text encoder to train: set text_encoder, new_text or init, or no train_text"
                )
            return
        for name in ("text_encoder", "init"):
            if getattr(self, name) is not None:
                raise ConfigError(f"new_text is a new text encoder, and {name} brings one: leave one of the two out")
        if not self.train_text:
            raise ConfigError("a new text encoder (new_text) knows nothing and has to be trained: set train_text")

    def _check_lora(self) -> None:
        if self.train_text:
            raise ConfigError("an adapter is of the language model alone: leave train_text out, or lora")
        if self.optim.name == "muon":
            raise ConfigError("optim.name muon is for whole matrices, an adapter has narrow ones: take adamw")
