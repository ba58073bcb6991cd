"""The model that a run trains: assembled of trained and frozen weights, saved, and sampled for TensorBoard."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax

from mgjax.api import MusicGen
from mgjax.checkpoints import peft
from mgjax.checkpoints.native import Checkpoint, hash_of, write_model
from mgjax.devices import sharding
from mgjax.inputs import files
from mgjax.lm import lora
from mgjax.lm.stack import unstack_layers
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.train.lm import resolver
from mgjax.train.lm.config import LMRun
from mgjax.train.metrics import Sound
from mgjax.train.state import TrainState

_PROVENANCE = "provenance.json"  # beside a model: its codec, text encoder, corpora and so on


def weights_of(state: TrainState) -> dict[str, Any]:
    """The weights that are validated and saved: the averaged ones if there is an average."""
    return state.params if state.average is None else state.average.weights


def assembled(run: LMRun, start: Checkpoint, state: TrainState, dtype: str = "float32") -> Checkpoint:
    """The whole model with the averaged weights, as numpy arrays of this process; the language model's in `dtype`.

    `start` is the model that the run started from.
    """
    weights, extra = sharding.on_host((weights_of(state), state.extra))
    if run.lora is not None:
        lm = lora.merge(run.lora, start.variables["lm"], _unstacked(run, weights["lora"]))
    else:
        lm = _unstacked(run, weights["lm"])
    trained = {"lm": jax.tree.map(lambda leaf: leaf.astype(dtype), lm)}
    if "text" in weights:
        trained["text"] = weights["text"]
    if "style" in extra:
        trained["style"] = {**start.variables.get("style", {}), "params": weights["style"], **extra["style"]}
    if "clap" in extra:
        trained["clap"] = {**start.variables["clap"], "codebooks": extra["clap"]}
    return dataclasses.replace(start, variables=start.variables | trained)


def show(run: LMRun, start: Checkpoint, state: TrainState) -> dict[str, Sound]:
    """Generates the run's prompts with the averaged weights, without other conditions."""
    weights = assembled(run, start, state, run.dtype)
    model = MusicGen(dataclasses.replace(weights, variables=jax.device_put(weights.variables)))
    texts = [text if start.config.text else None for text in run.prompts]
    sampling = model.config.sampling
    if not any(texts):
        sampling = dataclasses.replace(sampling, guidance=1.0)  # without a prompt it changes nothing
    audio = model.generate(texts, seconds=run.prompt_seconds, sampling=sampling)
    names = [f"{i + 1} {text or ''}".strip() for i, text in enumerate(texts)]
    return {name: Sound(row, model.sample_rate) for name, row in zip(names, audio, strict=True)}


def save(run: LMRun, start: Checkpoint, state: TrainState, directory: Path) -> None:
    """Writes the averaged weights, of the model or of the adapter, for `mgjax.load`, and their provenance."""
    model = assembled(run, start, state)
    weights = sharding.on_host(weights_of(state)) if run.lora else {}
    if jax.process_index() != 0:
        return
    if run.lora is None:
        write_model(directory, model)
    else:
        base = os.path.abspath(run.init) if run.init and os.path.isdir(run.init) else run.init
        peft.write(directory, run.lora, _unstacked(run, weights["lora"]), model.config.lm, base)
    text = None
    if model.config.text is not None:
        text = {
            "source": "new" if run.new_text else run.text_encoder or run.init,
            "vocabulary": run.vocabulary,
            "trained": run.train_text,
            "hash": hash_of(model.config.text, model.variables["text"]),
        }
    provenance = {
        "codec": {"source": run.codec or run.init, "hash": resolver.codec_of(start).hash},
        "text_encoder": text,
        "init": run.init,
        "corpora": list(run.data.corpora),
        "updates": int(state.step),
    }
    files.write_json(paths.path(directory, _PROVENANCE), provenance)


def _unstacked(run: LMRun, params: dict[str, Any]) -> dict[str, Any]:
    return unstack_layers(params) if run.scan_layers else params
