"""LoRA adapters in the format of the library peft: `adapter_config.json` beside `adapter_model.safetensors`.

Layers have the names of transformers' MusicGen, in which queries, keys and values are separate layers.
"""

from __future__ import annotations

import functools
import math
import os
import re
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.config_json import read_json, require_values
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.native import replacing
from mgjax.checkpoints.tables import musicgen, shapes
from mgjax.config.model import LMConfig
from mgjax.errors import CheckpointError, ConfigError
from mgjax.inputs import files
from mgjax.lm.lora import Adapter, LoraConfig, pairs_of
from mgjax.lm.matrices import matrix

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Settings of peft that change what an adapter computes, and the only value of each that is supported.
_SUPPORTED = {
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


def base(directory: str | os.PathLike) -> str | None:
    """The name of the model that the adapter in `directory` was trained for; None where it is not stored."""
    name = read_json(Path(directory) / CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def read(directory: str | os.PathLike, lm: LMConfig) -> tuple[LoraConfig, Adapter]:
    """The adapter in `directory` for a model `lm`, with unstacked layers; raises CheckpointError if none fits."""
    directory = Path(directory)
    config = read_json(directory / CONFIG)
    require_values(
        directory / CONFIG, {name: value for name, value in config.items() if value or _SUPPORTED.get(name)}, _SUPPORTED
    )
    tensors = {_plain(name): tensor for name, tensor in safetensors.read_safetensors(directory / WEIGHTS).items()}
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise CheckpointError(
            f"{directory / CONFIG}: r and lora_alpha must be a whole number and a number above 0, got {rank!r:.99} "
            f"and {alpha!r:.99}"
        )
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)  # the product is then scaled by alpha / sqrt(rank)
    pairs, targets = {}, []
    for path, layers in _layers(lm).items():
        if not any(f"{layer}.lora_A.weight" in tensors for layer in layers):
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
        lora = LoraConfig(rank, float(alpha), float(config.get("lora_dropout", 0.0)), tuple(targets))
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from None
    return lora, unflatten_dict(pairs)


def write(directory: str | os.PathLike, config: LoraConfig, adapter: Adapter, lm: LMConfig, base: str | None) -> None:
    """Writes an adapter with unstacked layers; an existing one is replaced once the new one is complete.

    `base` is the name or directory of the model that it was trained for.
    """
    tensors: dict[str, Tensor] = {}
    target_modules: list[str] = []
    pairs = pairs_of(adapter)
    for path, layers in _layers(lm).items():
        pair = pairs.get(path)
        if not pair:
            continue
        for number, layer in enumerate(layers):
            target_modules.append(layer)
            for name, matrices in (("lora_A", pair["down"]), ("lora_B", pair["up"])):
                array = np.ascontiguousarray(np.asarray(matrices[number], np.float32).T)
                tensors[f"base_model.model.{layer}.{name}.weight"] = Tensor(
                    array.shape, array.dtype, "", functools.partial(np.asarray, array)
                )
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    with replacing(directory) as temporary:
        safetensors.write_safetensors(temporary / WEIGHTS, tensors)
        files.write_json(temporary / CONFIG, content)


def _layers(lm: LMConfig) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The path of each layer with a kernel that can be adapted, and transformers' names of the kernel's matrices."""
    layers = {}
    for rule in musicgen.huggingface_transformer(lm):
        path = tuple(next(iter(rule.shapes)).split("/"))
        if matrix(path) is not None:
            layers[path[:-1]] = tuple(source.removesuffix(".weight") for source in rule.sources)
    return layers


def _plain(name: str) -> str:
    """A tensor's name without peft's prefix; an adapter of the decoder alone lacks "decoder."."""
    name = name.removeprefix("base_model.model.")
    return f"decoder.{name}" if name.startswith(("model.decoder.", "lm_heads.")) else name


def _pair(
    directory: Path, path: tuple[str, ...], layers: tuple[str, ...], tensors: dict[str, Tensor], rank: int, lm: LMConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The low-rank matrices of a kernel, popped from `tensors`; zeros for those of its matrices without an adapter."""
    axes, shape = matrix((*path, "kernel")), shapes.lm_shapes(lm)["/".join((*path, "kernel"))]
    assert axes is not None, "_layers has kernels alone"
    ins, outs = (math.prod(shape[axis] for axis in side) for side in axes)
    pairs = [[tensors.pop(f"{layer}.{name}.weight", None) for name in ("lora_A", "lora_B")] for layer in layers]
    for layer, pair in zip(layers, pairs, strict=True):  # before `rank` decides how much is allocated
        have = [None if tensor is None else tensor.shape for tensor in pair]
        if have not in ([None, None], [(rank, ins), (outs, rank)]):
            raise CheckpointError(
                f"{directory / WEIGHTS}: {layer} has matrices of {have[0]} and {have[1]}, expected {(rank, ins)} and "
                f"{(outs, rank)}: the adapter is for another model, or damaged"
            )
    down, up = np.zeros((len(layers), ins, rank), np.float32), np.zeros((len(layers), rank, outs), np.float32)
    for i, (a, b) in enumerate(pairs):
        if a is not None and b is not None:
            down[i], up[i] = a.read().astype(np.float32).T, b.read().astype(np.float32).T
    return down, up
