"""Adapters of low rank as the library peft keeps them: `adapter_config.json` beside `adapter_model.safetensors`.

It names the layers of transformers' MusicGen, in which queries, keys and values are layers of their own.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.native import read_json, replacing
from mgjax.checkpoints.tables import musicgen, shapes
from mgjax.config.model import LMConfig
from mgjax.errors import CheckpointError, ConfigError
from mgjax.inputs import files
from mgjax.lm.lora import Adapter, LoraConfig, pairs_of
from mgjax.lm.matrices import matrix

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# peft's settings that change what an adapter does, and the one value of each that is read here.
_ONLY = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
    "lora_bias": False,
}


class Peft(NamedTuple):
    """What an adapter's folder holds."""

    config: LoraConfig
    adapter: Adapter


def is_adapter(directory: str | os.PathLike) -> bool:
    """Whether there is an adapter in `directory`."""
    return (Path(directory) / CONFIG).is_file()


def base(directory: str | os.PathLike) -> str | None:
    """The name of the model that the adapter in `directory` was made for, where it says so."""
    name = read_json(Path(directory) / CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def read(directory: str | os.PathLike, lm: LMConfig) -> Peft:
    """The adapter in `directory` for a language model `lm`, as numpy arrays, its layers apart.

    Raises:
      CheckpointError: There is none, it is damaged, for another model, or of a kind that is not read here.
    """
    directory = Path(directory)
    config = read_json(directory / CONFIG)
    for name, wanted in _ONLY.items():
        found = config.get(name, wanted)
        if found != wanted and not (not found and not wanted):
            raise CheckpointError(f"{directory / CONFIG}: {name} is {found!r:.200}; only {wanted!r} is supported")
    tensors = {_plain(name): tensor for name, tensor in safetensors.read_safetensors(directory / WEIGHTS).items()}
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise CheckpointError(
            f"{directory / CONFIG}: r and lora_alpha must be a whole number and a number above 0, got {rank!r:.99} "
            f"and {alpha!r:.99}"
        )
    if config.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)  # it is taken alpha / sqrt(rank) times then
    pairs, targets = {}, []
    for path, layers in _layers(lm).items():
        found = [layer for layer in layers if f"{layer}.lora_A.weight" in tensors]
        if not found:
            continue
        down, up = _pair(directory, path, layers, tensors, rank, lm)
        targets.append(f"^{re.escape('/'.join(path))}$")
        pairs[path] = {"down": down, "up": up}
    if tensors:
        raise CheckpointError(
            f"{directory / WEIGHTS}: adapts what the model does not have, or what cannot be adapted here: "
            f"{', '.join(sorted(tensors)[:6])[:500]}. It is for another model, or of another kind"
        )
    if not targets:
        raise CheckpointError(f"{directory / WEIGHTS}: holds no adapter of a layer of the language model")
    try:
        made = LoraConfig(rank, float(alpha), float(config.get("lora_dropout", 0.0)), tuple(targets))
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from None
    return Peft(made, unflatten_dict(pairs))


def write(directory: str | os.PathLike, config: LoraConfig, adapter: Adapter, lm: LMConfig, base: str | None) -> None:
    """Writes an adapter, its layers apart; one that is in `directory` already is replaced at the very end.

    Args:
      base: The name of the model that it was made for, as `mgjax.load` and transformers know it.
    """
    tensors: dict[str, Tensor] = {}
    adapted: list[str] = []
    pairs = pairs_of(adapter)
    for path, layers in _layers(lm).items():
        pair = pairs.get(path)
        if not pair:
            continue
        for number, layer in enumerate(layers):
            adapted.append(layer)
            for name, part in (("lora_A", pair["down"]), ("lora_B", pair["up"])):
                array = np.ascontiguousarray(np.asarray(part[number], np.float32).T)
                tensors[f"base_model.model.{layer}.{name}.weight"] = Tensor(
                    array.shape, array.dtype, "", lambda array=array: array
                )
    about = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": adapted,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    with replacing(directory) as temporary:
        safetensors.write_safetensors(temporary / WEIGHTS, tensors)
        files.write_json(temporary / CONFIG, about)


def _layers(lm: LMConfig) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Of each kernel that can be adapted, by the path of its layer: transformers' names of its matrices in order."""
    found = {}
    for rule in musicgen.huggingface_lm(lm):
        path = tuple(rule.targets[0].split("/"))
        if len(rule.targets) == 1 and matrix(path) is not None:
            found[path[:-1]] = tuple(source.removesuffix(".weight") for source in rule.sources)
    return found


def _plain(name: str) -> str:
    """A tensor's name without what peft puts before it; an adapter of the decoder alone leaves "decoder." out."""
    name = name.removeprefix("base_model.model.")
    return f"decoder.{name}" if name.startswith(("model.decoder.", "lm_heads.")) else name


def _pair(
    directory: Path, path: tuple[str, ...], layers: tuple[str, ...], tensors: dict[str, Tensor], rank: Any, lm: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The narrow matrices of a kernel, taken out of `tensors`; zeros where a matrix of it is not adapted."""
    place, shape = matrix((*path, "kernel")), shapes.lm_shapes(lm)["/".join((*path, "kernel"))]
    ins, outs = (math.prod(shape[axis] for axis in axes) for axes in place)
    pairs = [[tensors.pop(f"{layer}.{part}.weight", None) for part in ("lora_A", "lora_B")] for layer in layers]
    for layer, pair in zip(layers, pairs, strict=True):
        have = [None if part is None else part.shape for part in pair]
        if have not in ([None, None], [(rank, ins), (outs, rank)]):
            raise CheckpointError(
                f"{directory / WEIGHTS}: {layer} has matrices of {have[0]} and {have[1]}, expected {(rank, ins)} and "
                f"{(outs, rank)}: the adapter is for another model, or damaged"
            )
    down, up = np.zeros((len(layers), ins, rank), np.float32), np.zeros((len(layers), rank, outs), np.float32)
    for i, pair in enumerate(pairs):
        if pair[0] is not None:
            down[i], up[i] = (part.read().astype(np.float32).T for part in pair)
    return down, up
