"""Directories in audiocraft's format, read and written: `state_dict.bin` and `compression_state_dict.bin`.

Each is a torch file of a state dict and of `xp.cfg`, the YAML of its training run. Frozen encoders are not inside: the
text's is a T5 or a CLAP, the style's MERT, each in a directory of its own. The tensors' names are in tables/, the
configs in audiocraft_config.py and files/xp_cfg.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flax.traverse_util import flatten_dict, unflatten_dict

from mgjax.checkpoints import audiocraft_config, hub, huggingface
from mgjax.checkpoints.files import torch_file, xp_cfg
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.native import Checkpoint, find_clap_tokenizer, find_tokenizer, replacing
from mgjax.checkpoints.tables import clap, hubert, matching, musicgen
from mgjax.checkpoints.tables.audiocraft_conditioners import IGNORED, PREFIX, clap_config, style_config
from mgjax.config.conditioning import ClapConditionConfig, StyleConfig, T5Config
from mgjax.config.model import CodecConfig, Fused, ModelConfig
from mgjax.config.published import MERT, T5
from mgjax.errors import CheckpointError, ConfigError

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
VERSION = "1.3.0"  # of audiocraft, whose format this is

# The window of the melody's spectrogram, without which audiocraft does not open a model; it is computed here.
_WINDOW = PREFIX + "chroma.spec.window"
_IGNORED = (f"^{re.escape(_WINDOW)}$", *IGNORED)

Fetch = Callable[[str], Path]
Matches = dict[matching.ArrayPath, matching.Match]  # what `matching.load` needs, by the paths of parts in the variables
Tokenizers = dict[str, Path | None]  # their folders, by the fields of `Checkpoint`


def read_model(
    directory: str | os.PathLike,
    *,
    text_encoder: str | os.PathLike | None = None,
    style_encoder: str | os.PathLike | None = None,
    dtype: Any = None,
    place: matching.Place | None = None,
    fetch: Fetch = hub.fetch,
) -> Checkpoint:
    """The MusicGen model in `directory`; `dtype` and `place` are those of `matching.load`.

    `text_encoder` is the directory or Hub id of the T5, None for the one that the model names; of a model with a CLAP
    condition, that of a ClapModel of transformers, which is required. `style_encoder` is that of the MERT of a style
    model, None for the published one. `fetch` finds the directory of an encoder or of a codec that the files only name.

    Raises:
      CheckpointError: Files are missing or damaged, do not fit together, or describe another kind of model.
      ConfigError: An encoder is passed that the model has no condition for.
    """
    path = Path(directory) / LM_FILE
    state, config, matches, tokenizers = _read_parts(path, text_encoder, style_encoder, fetch)
    match = matching.match(musicgen.audiocraft(config), state, where=str(path), ignored=_IGNORED)
    flat = flatten_dict(matching.load(match, dtype=dtype, place=place))
    for prefix, match in matches.items():
        inside = (lambda path, array, prefix=prefix: place((*prefix, *path), array)) if place else None
        # The style's encoder is float32, as the style conditioner itself.
        kind = None if prefix[0] == "style" else dtype
        part = flatten_dict(matching.load(match, dtype=kind, place=inside))
        flat |= {(*prefix, *path): array for path, array in part.items()}
    return Checkpoint(config, unflatten_dict(flat), **tokenizers)


def read_config(
    directory: str | os.PathLike,
    *,
    text_encoder: str | os.PathLike | None = None,
    style_encoder: str | os.PathLike | None = None,
    fetch: Fetch = hub.fetch,
) -> ModelConfig:
    """The config of the model in `directory`, without its weights; encoders that are not passed are known by name."""
    return _read_parts(Path(directory) / LM_FILE, text_encoder, style_encoder, fetch, with_weights=False)[1]


def _read_parts(
    path: Path, text_encoder: Any, style_encoder: Any, fetch: Fetch, *, with_weights: bool = True
) -> tuple[dict[str, Tensor], ModelConfig, Matches, Tokenizers]:
    """The language model's state dict, the whole model's config, and the parts in directories of their own."""
    state, run = _read_package(path)
    lm_config = audiocraft_config.lm_config(path, state, run)
    text, joint, style = map(lm_config.condition, ("text", "clap", "style"))
    if text_encoder is not None and not (text or joint):
        raise ConfigError(f"{path}: the model reads no text: leave text_encoder out")
    if style_encoder is not None and not style:
        raise ConfigError(f"{path}: the model has no style condition: leave style_encoder out")
    codec_config, codec = match_codec(path.parent, fetch=fetch)
    encoders: dict[str, tuple[Any, Matches, Tokenizers]] = {}
    if text:
        encoders["text"] = _text(path, text, run, text_encoder, fetch, with_weights)
    if joint:
        encoders["clap"] = _clap(path, joint, run, text_encoder, fetch, with_weights)
    if style:
        encoders["style"] = _style(path, state, run, style_encoder, fetch, with_weights)
    matches: Matches = {("codec",): codec}
    tokenizers: Tokenizers = {}
    for _, encoder_matches, folders in encoders.values():
        matches |= encoder_matches
        tokenizers |= folders
    configs = {name: config for name, (config, _, _) in encoders.items()}
    config = audiocraft_config.model_config(path, run, lm_config, codec_config, **configs)
    return state, config, matches, tokenizers


def _text(
    path: Path, fused: Fused, run: dict[str, Any], source: Any, fetch: Fetch, with_weights: bool
) -> tuple[T5Config, Matches, Tokenizers]:
    named = str(xp_cfg.at(run, "conditioners.description.t5.name", "t5-base"))
    if source is None and not with_weights and named in T5:
        return T5[named], {}, {}
    folder = fetch(str(source or named))
    config, match = huggingface.match_text_encoder(folder)
    reads = f"reads text of width {fused.dim} (it was made with {named}), but the text encoder"
    _check_width(path, fused.dim, config.dim, reads, folder, "text_encoder")
    return config, {("text",): match}, {"tokenizer": find_tokenizer(folder)}


def _clap(
    path: Path, fused: Fused, run: dict[str, Any], source: Any, fetch: Fetch, with_weights: bool
) -> tuple[ClapConditionConfig, Matches, Tokenizers]:
    if source is None and not with_weights:
        return clap_config(run), {}, {}
    if source is None:
        named = (run["conditioners"]["description"].get("clap") or {}).get("checkpoint")
        raise CheckpointError(
            f"{path}: encodes texts by a CLAP that is not in its files. It was trained with {named}, a file in LAION's "
            "own form, which is not read here: give text_encoder= the directory or Hub id of the same CLAP as a "
            "ClapModel of transformers, such as laion/larger_clap_music"
        )
    folder = fetch(str(source))
    towers, match = clap.match_clap(folder)
    reads = f"reads joint embeddings of width {fused.dim}, but the CLAP"
    _check_width(path, fused.dim, towers.dim, reads, folder, "text_encoder")
    return clap_config(run, towers), {("clap",): match}, {"clap_tokenizer": find_clap_tokenizer(folder)}


def _style(
    path: Path, state: dict[str, Tensor], run: dict[str, Any], source: Any, fetch: Fetch, with_weights: bool
) -> tuple[StyleConfig, Matches, Tokenizers]:
    config = style_config(run)
    if config.features is None or (source is None and not with_weights):
        return config, {}, {}
    folder = fetch(str(source or MERT))
    features, match = hubert.match_hubert(folder)
    weight = state.get(f"{PREFIX}embed.weight")
    if weight is not None:
        width = weight.shape[-1]
        reads = f"its style conditioner reads features of width {width} (it was made with {MERT}), but the encoder"
        _check_width(path, width, features.dim, reads, folder, "style_encoder")
    # The conditioner was trained on features of unnormalised audio, whatever the encoder itself was trained on.
    features = dataclasses.replace(features, normalize=False)
    return dataclasses.replace(config, features=features), {("style", "features"): match}, {}


def _check_width(path: Path, expected: int, actual: int, reads: str, folder: Path, argument: str) -> None:
    if actual != expected:
        raise CheckpointError(f"{path}: {reads} in {folder} gives width {actual}; give {argument}= another one")


def match_codec(directory: str | os.PathLike, *, fetch: Fetch = hub.fetch) -> tuple[CodecConfig, matching.Match]:
    """The config of the codec in `directory` (`compression_state_dict.bin`), and its match to the file."""
    path = Path(directory) / CODEC_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; fetch it from the repository that {LM_FILE} came from")
    content = torch_file.read(path)
    if isinstance(content, dict) and isinstance(content.get("pretrained"), str):
        return huggingface.match_codec(fetch(content["pretrained"]))
    state, run = _read_package(path)
    config = audiocraft_config.codec_config(path, run)
    rules = musicgen.audiocraft_codec(config)
    return config, matching.match(rules, state, where=str(path), aliases=musicgen.ALIASES)


def _read_package(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a file and its run's config, with its references filled in."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give the folder that holds {LM_FILE} and {CODEC_FILE}")
    content = torch_file.read(path)
    state = content.get("best_state") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        raise CheckpointError(
            f"{path}: expected an exported model, with its tensors under 'best_state'. A training checkpoint "
            "(checkpoint.th) has to be exported first, by audiocraft.utils.export"
        )
    return state, xp_cfg.parse(path, content.get("xp.cfg") or "{}")


def write_model(directory: str | os.PathLike, checkpoint: Checkpoint, *, text_encoder: str | None = None) -> None:
    """Writes a model in audiocraft's format; an existing one is replaced once the new one is complete.

    `text_encoder` is the name of the T5, which is not written; None to infer it from its config.

    Raises:
      CheckpointError: audiocraft has no such model.
    """
    config = checkpoint.config
    audiocraft_config.check_writable(config)
    if config.text is not None:
        text_encoder = text_encoder or audiocraft_config.t5_name(config.text)
    run = audiocraft_config.lm_run(config, text_encoder)
    state = matching.export(musicgen.audiocraft(config), checkpoint.variables)
    if config.melody:
        size, dtype = config.melody.fft_size, np.dtype(np.float32)
        state[_WINDOW] = Tensor((size,), dtype, _WINDOW, lambda: np.hanning(size + 1)[:-1].astype(dtype))
    with replacing(directory) as temporary:
        _write_package(temporary / LM_FILE, state, run)
        codec = matching.export(musicgen.audiocraft_codec(config.codec), checkpoint.variables["codec"])
        _write_package(temporary / CODEC_FILE, codec, audiocraft_config.codec_run(config.codec))


def _write_package(path: Path, state: dict[str, Tensor], run: dict[str, Any]) -> None:
    text = yaml.safe_dump(run, sort_keys=False)
    torch_file.write(path, {"best_state": state, "xp.cfg": text, "version": VERSION, "exported": True})
