"""Training of a language model on corpora of codes or of audio, from start to end."""

from __future__ import annotations

import functools

from mgjax.checkpoints.native import Checkpoint
from mgjax.codec.codec import Codec
from mgjax.conditioning import tokenizers
from mgjax.config.model import ModelConfig
from mgjax.data.conditions import BatchConditions
from mgjax.data.corpus import Corpus
from mgjax.data.pipeline import batches, validation_batches
from mgjax.devices import sharding
from mgjax.errors import ConfigError
from mgjax.storage.paths import PathLike
from mgjax.train.inputs import InputHashes, open_corpora
from mgjax.train.lm import resolver
from mgjax.train.lm.config import LMRun
from mgjax.train.lm.step import task
from mgjax.train.loop import fit
from mgjax.train.state import TrainState
from mgjax.train.watchdog import Watchdog


def run(config: LMRun, workdir: PathLike) -> TrainState:
    """Trains a language model on the corpora of `config.data`, and goes on where a run in `workdir` was stopped.

    Raises:
      CheckpointError: There is nothing readable at a source.
      ConfigError: The parts or the corpora do not fit together.
    """
    with Watchdog(config.loop.hang_seconds) as watchdog:
        with watchdog.waiting("opening the corpora"):
            corpora = open_corpora(config.data.corpora)
        with watchdog.waiting("reading the weights to start from", may_last=True):
            start = resolver.pretrained(config)
            inputs = InputHashes.of(corpora["train"] + corpora["valid"], config.data.may_grow, **resolver.hashes(start))
    _check_corpora(corpora["train"] + corpora["valid"], start.config, resolver.codec_of(start))
    mesh = config.mesh.make()
    rows, conditions = sharding.local_rows(config.data.batch_size, mesh), batch_conditions(config, start)
    train_data = batches(corpora["train"], config.data, seed=config.loop.seed, rows=rows, conditions=conditions)
    valid_data = functools.partial(validation_batches, corpora["valid"], config.data, rows=rows, conditions=conditions)
    training = task(config, start, "audio" if corpora["train"][0].kind == "audio" else "tokens")
    return fit(training, train_data, valid_data, config.loop, workdir, run=config, mesh=mesh, inputs=inputs)


def batch_conditions(config: LMRun, start: Checkpoint) -> BatchConditions:
    """The conditioning inputs of a run; raises CheckpointError if the model came without the files of a tokenizer."""
    model = start.config
    return BatchConditions(
        text=None if model.text is None else config.text,
        tokenize=None if model.text is None else tokenizers.load(model, start.tokenizer).encode,
        melody=model.melody,
        style=None if model.style is None else model.style.seconds,
        clap=None if model.clap is None else tokenizers.load_clap(model.clap.clap, start.clap_tokenizer).encode,
        labels=(*model.labels, *model.numbers),
        dropout=config.dropout,
    )


def _check_corpora(corpora: list[Corpus], model: ModelConfig, codec: Codec) -> None:
    """Raises ConfigError unless the model can be trained on all of the corpora."""
    for corpus in corpora:
        if corpus.kind == "audio":
            if (corpus.sample_rate, corpus.width) != (codec.sample_rate, codec.channels):
                raise ConfigError(
                    f"{corpus.directory} holds audio of {corpus.sample_rate} Hz with {corpus.width} channels, the "
                    f"model is of {codec.sample_rate} Hz with {codec.channels}: build the corpus again with these"
                )
        elif corpus.codec_hash != codec.hash:
            raise ConfigError(
                f"the codes in {corpus.directory} were made with another codec ({corpus.description.codec_source}, "
                f"hash {corpus.codec_hash}) than that of this run (hash {codec.hash}): set codec to that one, or "
                "tokenize the corpus anew"
            )
        elif corpus.width != codec.num_codebooks:
            raise ConfigError(
                f"{corpus.directory} holds {corpus.width} codebooks, the model has {codec.num_codebooks} for "
                f"{codec.channels} channels: set channels to that of the corpus, or tokenize the corpus anew"
            )
    if resolver.corpus_kind(model) == "tokens" or all(corpus.kind == "audio" for corpus in corpora):
        return
    if model.clap is not None:
        raise ConfigError("CLAP embeds audio, not codes: train with it on a corpus of sound")
    raise ConfigError(
        "the style's encoder reads audio, not codes: train on a corpus of sound, or set "
        "style.features to None for a style of codes"
    )
