"""Directories in audiocraft's form, read and written: `state_dict.bin` and `compression_state_dict.bin`.

Each is a torch file of a state dict and of `xp.cfg`, the YAML of the run that made it. The text encoder is not inside:
it is a T5 in a directory of its own. The arrays' names are in names.py, the configs in
audiocraft_run.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mgjax.checkpoint import Checkpoint, find_tokenizer, replacing
from mgjax.config import CodecConfig, LMConfig, ModelConfig
from mgjax.interop import audiocraft_run, hub, huggingface, names, shapes, table, torch_file
from mgjax.interop.torch_file import CheckpointError, Tensor

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
VERSION = "1.3.0"  # of audiocraft, whose form this is

# A window that the melody's spectrogram keeps; it is computed here.
_IGNORED = (r"^condition_provider\.conditioners\.self_wav\.chroma\.spec\.window$",)

Fetch = Callable[[str], Path]


def read_model(
    directory: str | os.PathLike,
    *,
    text_encoder: str | os.PathLike | None = None,
    dtype: Any = None,
    place: table.Place | None = None,
    fetch: Fetch = hub.fetch,
) -> Checkpoint:
    """The MusicGen model in `directory`.

    Args:
      directory: Holds `state_dict.bin` and `compression_state_dict.bin`.
      text_encoder: The directory or Hub id of the T5; None for the one that the model names.
      dtype: As in `table.load`.
      place: As in `table.load`.
      fetch: Finds the directory of a text encoder or of a codec that the files only name.

    Raises:
      CheckpointError: Files are missing or damaged, do not fit together, or describe another kind of model.
    """
    path = Path(directory) / LM_FILE
    state, run, lm_config = _read_lm(path)
    codec_config, codec = _match_codec(Path(directory), fetch)
    text_config, text, tokenizer = None, None, None
    if fused := lm_config.condition("text"):
        named = audiocraft_run.named_text_encoder(run)
        folder = fetch(str(text_encoder or named))
        text_config, text = huggingface.match_text_encoder(folder)
        tokenizer = find_tokenizer(folder)
        if text_config.dim != fused.dim:
            raise CheckpointError(
                f"{path}: reads text of width {fused.dim} (it was made with {named}), but the text encoder "
                f"in {folder} gives width {text_config.dim}; give text_encoder= another one"
            )
    config = audiocraft_run.model_config(path, run, lm_config, codec_config, text_config)
    wanted = shapes.lm_shapes(lm_config)
    matches = {"lm": table.match(names.audiocraft_lm(lm_config), state, wanted, where=str(path), ignored=_IGNORED)}
    matches |= {"codec": codec} | ({"text": text} if text else {})
    variables = {part: _load(part, match, dtype, place) for part, match in matches.items()}
    return Checkpoint(config, variables, tokenizer)


def read_config(directory: str | os.PathLike, *, fetch: Fetch = hub.fetch) -> ModelConfig:
    """What the model in `directory` is, without reading its weights; its T5 is known by name."""
    path = Path(directory) / LM_FILE
    _, run, lm_config = _read_lm(path)
    codec_config, _ = _match_codec(Path(directory), fetch)
    text_config = None
    if lm_config.condition("text"):
        named = audiocraft_run.named_text_encoder(run)
        text_config = audiocraft_run.T5.get(named) or huggingface.match_text_encoder(fetch(named))[0]
    return audiocraft_run.model_config(path, run, lm_config, codec_config, text_config)


def _read_lm(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], LMConfig]:
    """The language model's state dict, its run's config, and what it is."""
    state, run = _read_package(path)
    audiocraft_run.check_lm(path, run)
    return state, run, audiocraft_run.lm_config(path, state, run)


def read_codec(
    directory: str | os.PathLike,
    *,
    dtype: Any = None,
    place: table.Place | None = None,
    fetch: Fetch = hub.fetch,
) -> tuple[CodecConfig, dict[str, Any]]:
    """The codec in `directory`, which holds `compression_state_dict.bin`."""
    config, match = _match_codec(Path(directory), fetch)
    return config, table.load(match, dtype=dtype, place=place)


def _load(part: str, match: table.Match, dtype: Any, place: table.Place | None) -> dict[str, Any]:
    inside = (lambda path, array: place((part, *path), array)) if place else None
    return table.load(match, dtype=dtype, place=inside)


def _match_codec(directory: Path, fetch: Fetch) -> tuple[CodecConfig, table.Match]:
    path = directory / CODEC_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; fetch it from the repository that {LM_FILE} came from")
    content = torch_file.read(path)
    if isinstance(content, dict) and isinstance(content.get("pretrained"), str):
        return huggingface.match_codec(fetch(content["pretrained"]))
    state, run = _read_package(path)
    audiocraft_run.check_codec(path, run)
    config = audiocraft_run.codec_config(path, run)
    wanted = shapes.codec_shapes(config)
    match = table.match(names.audiocraft_codec(config), state, wanted, where=str(path), aliases=names.ALIASES)
    return config, match


def _read_package(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a file and its run's config, with its references filled in."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give the folder that holds {LM_FILE} and {CODEC_FILE}")
    content = torch_file.read(path)
    state = content.get("best_state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: expected an exported model, with its tensors under 'best_state'. A training checkpoint "
            "(checkpoint.th) has to be exported first, by audiocraft.utils.export"
        )
    try:
        run = yaml.safe_load(content.get("xp.cfg") or "{}")
    except (yaml.YAMLError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its xp.cfg is not YAML ({error})") from None
    if not isinstance(run, dict):
        raise CheckpointError(f"{path}: its xp.cfg should be a YAML mapping")
    return state, audiocraft_run.resolved(run, run)


def write_model(
    directory: str | os.PathLike, checkpoint: Checkpoint, *, dtype: Any = None, text_encoder: str | None = None
) -> None:
    """Writes a model in audiocraft's form; one that is in `directory` already is replaced.

    Args:
      directory: Where to.
      checkpoint: The model.
      dtype: The type of the language model's weights, e.g. "float16" as published; None for what they are.
      text_encoder: The name of the T5, which is not written; None to tell it by its config.

    Raises:
      CheckpointError: audiocraft has no such model.
    """
    config = checkpoint.config
    if config.lm.pattern != "delay":
        raise CheckpointError(f"the pattern {config.lm.pattern!r} is not written for audiocraft; only 'delay' is")
    if config.text is not None:
        text_encoder = text_encoder or audiocraft_run.t5_name(config.text)
    state = table.export(names.audiocraft_lm(config.lm), checkpoint.variables["lm"])
    if dtype is not None:
        state = {name: _cast(tensor, np.dtype(dtype)) for name, tensor in state.items()}
    with replacing(directory) as temporary:
        _write_package(temporary / LM_FILE, state, audiocraft_run.lm_run(config, text_encoder))
        _write_codec(temporary, config.codec, checkpoint.variables["codec"])


def write_codec(directory: str | os.PathLike, config: CodecConfig, variables: dict[str, Any]) -> None:
    """Writes a codec alone, in audiocraft's form."""
    with replacing(directory) as temporary:
        _write_codec(temporary, config, variables)


def _write_codec(directory: Path, config: CodecConfig, variables: dict[str, Any]) -> None:
    state = table.export(names.audiocraft_codec(config), variables)
    _write_package(directory / CODEC_FILE, state, audiocraft_run.codec_run(config))


def _write_package(path: Path, state: dict[str, Tensor], run: dict[str, Any]) -> None:
    text = yaml.safe_dump(run, sort_keys=False)
    torch_file.write(path, {"best_state": state, "xp.cfg": text, "version": VERSION, "exported": True})


def _cast(tensor: Tensor, dtype: np.dtype) -> Tensor:
    return Tensor(tensor.shape, dtype, tensor.file, lambda: tensor.read().astype(dtype))
