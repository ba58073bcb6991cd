"""The model that a run has trained: put together of what was learned and what was given, listened to, and written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from mgjax.api import MusicGen
from mgjax.checkpoints import peft
from mgjax.checkpoints.native import Checkpoint, hash_of, write_model
from mgjax.devices import sharding
from mgjax.inputs import files
from mgjax.lm import lora
from mgjax.lm.stack import unstack_layers
from mgjax.train.lm_run import LMRun
from mgjax.train.metrics import Sound
from mgjax.train.start import Start
from mgjax.train.state import TrainState

_HOME = "provenance.json"  # beside a model: what it was made of


def weights_of(state: TrainState) -> dict[str, Any]:
    """What is validated, heard and saved: the averaged weights where there is an average."""
    return state.params if state.average is None else state.average.value()


def together(config: LMRun, begun: Start, state: TrainState, dtype: str = "float32") -> Checkpoint:
    """The whole model with the averaged weights, as numpy has them: on this process alone.

    Args:
      config: The run.
      begun: What it started from.
      state: How far it is.
      dtype: Of the language model's weights.
    """
    model, weights = begun.config, sharding.on_host(weights_of(state))
    if config.lora:
        weights["lm"] = lora.merge(config.lora, begun.lm, _adapter(config, weights))
    elif config.scan_layers:
        weights["lm"] = unstack_layers(weights["lm"])
    variables = {"lm": jax.tree.map(lambda leaf: leaf.astype(dtype), weights["lm"]), "codec": begun.codec.variables}
    if model.text is not None:
        variables["text"] = weights.get("text", begun.text)
    if model.style is not None:
        features = {} if begun.features is None else {"features": begun.features}
        moved = sharding.on_host(state.extra["style"])
        variables["style"] = {"params": weights["style"], **moved, **features}
    if model.clap is not None:
        codebooks = {"codebooks": sharding.on_host(state.extra["clap"])} if "clap" in state.extra else {}
        variables["clap"] = {name: begun.clap[name] for name in ("text", "audio")} | codebooks
    return Checkpoint(model, variables, begun.tokenizer_files, begun.clap_tokenizer_files)


def show(config: LMRun, begun: Start, state: TrainState) -> dict[str, Sound]:
    """Music that the averaged weights make of the run's prompts, and of no other conditions."""
    weights = together(config, begun, state, config.dtype)
    model = MusicGen(dataclasses.replace(weights, variables=jax.device_put(weights.variables)))
    texts = [text if begun.config.text else None for text in config.prompts]
    sampling = model.config.sampling
    if not any(texts):
        sampling = dataclasses.replace(sampling, guidance=1.0)  # there is nothing to be guided to
    audio = model.generate(texts, seconds=config.prompt_seconds, sampling=sampling)
    names = [f"{i + 1} {text or ''}".strip() for i, text in enumerate(texts)]
    return {name: Sound(row, model.sample_rate) for name, row in zip(names, audio, strict=True)}


def save(config: LMRun, begun: Start, state: TrainState, directory: Path) -> None:
    """Writes the averaged weights, of the whole model or of the adapter, for `mgjax.load`; and where they are from."""
    model = together(config, begun, state)
    adapter = _adapter(config, sharding.on_host(weights_of(state))) if config.lora else None
    if jax.process_index() != 0:
        return
    if adapter is None:
        write_model(directory, model)
    else:
        base = os.path.abspath(config.init) if os.path.isdir(config.init) else config.init
        peft.write(directory, config.lora, adapter, model.config.lm, base)
    text = None
    if model.config.text is not None:
        text = {
            "source": "new" if config.new_text else config.text_encoder or config.init,
            "vocabulary": config.vocabulary,
            "trained": config.train_text,
            "hash": hash_of(model.config.text, model.variables["text"]),
        }
    home = {
        "codec": {"source": config.codec or config.init, "hash": begun.codec.hash},
        "text_encoder": text,
        "init": config.init,
        "corpora": list(config.data.corpora),
        "updates": int(state.step),
    }
    files.write_json(Path(directory) / _HOME, home)


def _adapter(config: LMRun, weights: dict[str, Any]) -> lora.Adapter:
    """The adapter out of the trained weights, its layers apart."""
    return unstack_layers(weights["lora"]) if config.scan_layers else weights["lora"]
