"""Directories in audiocraft's form, read and written: `state_dict.bin` and `compression_state_dict.bin`.

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
from mgjax.checkpoints.tables.audiocraft_clap import clap_config
from mgjax.checkpoints.tables.audiocraft_style import IGNORED, PREFIX, style_config
from mgjax.config.conditioning import StyleConfig
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig
from mgjax.config.published import MERT, T5
from mgjax.errors import CheckpointError, ConfigError

LM_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
VERSION = "1.3.0"  # of audiocraft, whose form this is

# The window of the melody's spectrogram, without which audiocraft does not open a model; it is computed here.
_WINDOW = PREFIX + "chroma.spec.window"
_IGNORED = (f"^{re.escape(_WINDOW)}$", *IGNORED)

Fetch = Callable[[str], Path]


def read_model(
    directory: str | os.PathLike,
    *,
    text_encoder: str | os.PathLike | None = None,
    style_encoder: str | os.PathLike | None = None,
    dtype: Any = None,
    place: matching.Place | None = None,
    fetch: Fetch = hub.fetch,
) -> Checkpoint:
    """The MusicGen model in `directory`.

    Args:
      directory: Holds `state_dict.bin` and `compression_state_dict.bin`.
      text_encoder: The directory or Hub id of the T5; None for the one that the model names. Of a model with a CLAP
        condition, that of a ClapModel of transformers, which is required.
      style_encoder: The directory or Hub id of the MERT of a style model; None for the published one.
      dtype: As in `matching.load`.
      place: As in `matching.load`.
      fetch: Finds the directory of an encoder or of a codec that the files only name.

    Raises:
      CheckpointError: Files are missing or damaged, do not fit together, or describe another kind of model.
      ConfigError: An encoder is passed that the model has no condition for.
    """
    path = Path(directory) / LM_FILE
    state, config, encoders = _match_parts(path, text_encoder, style_encoder, fetch)
    match = matching.match(musicgen.audiocraft(config), state, where=str(path), ignored=_IGNORED)
    flat = flatten_dict(matching.load(match, dtype=dtype, place=place))
    for prefix, match in encoders.matches.items():
        inside = (lambda path, array, prefix=prefix: place((*prefix, *path), array)) if place else None
        # The style's encoder is float32, as the style conditioner itself.
        kind = None if prefix[0] == "style" else dtype
        part = flatten_dict(matching.load(match, dtype=kind, place=inside))
        flat |= {(*prefix, *path): array for path, array in part.items()}
    return Checkpoint(config, unflatten_dict(flat), encoders.tokenizer, encoders.clap_tokenizer)


def _match_parts(
    path: Path, text_encoder: str | os.PathLike | None, style_encoder: str | os.PathLike | None, fetch: Fetch
) -> tuple[dict[str, Tensor], ModelConfig, _Encoders]:
    """The language model's state dict, the whole model's config, and the matches of the other parts."""
    state, run, lm_config = _read_lm(path)
    if text_encoder is not None and not (lm_config.condition("text") or lm_config.condition("clap")):
        raise ConfigError(f"{path}: the model reads no text: leave text_encoder out")
    if style_encoder is not None and not lm_config.condition("style"):
        raise ConfigError(f"{path}: the model hears no style: leave style_encoder out")
    codec_config, codec = match_codec(path.parent, fetch=fetch)
    encoders = _Encoders({("codec",): codec})
    if fused := lm_config.condition("text"):
        encoders.add_text(path, fused, audiocraft_config.named_text_encoder(run), text_encoder, fetch)
    if fused := lm_config.condition("clap"):
        encoders.add_clap(path, fused, run, text_encoder, fetch)
    if lm_config.condition("style"):
        encoders.add_style(path, style_config(run), state, style_encoder or MERT, fetch)
    return state, audiocraft_config.model_config(path, run, lm_config, codec_config, **encoders.configs), encoders


@dataclasses.dataclass(eq=False)
class _Encoders:
    """The parts of a model that are in directories of their own.

    Attributes:
      matches: What `matching.load` needs to read each, by its path in the variables.
      configs: The configs of the encoders, by their names in `ModelConfig`.
      tokenizer: The folder of the text encoder's tokenizer.
      clap_tokenizer: The folder of CLAP's.
    """

    matches: dict[matching.Path, matching.Match]
    configs: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Path | None = None
    clap_tokenizer: Path | None = None

    def add_text(self, path: Path, fused: Fused, named: str, source: Any, fetch: Fetch) -> None:
        folder = fetch(str(source or named))
        config, self.matches["text",] = huggingface.match_text_encoder(folder)
        if config.dim != fused.dim:
            raise CheckpointError(
                f"{path}: reads text of width {fused.dim} (it was made with {named}), but the text encoder "
                f"in {folder} gives width {config.dim}; give text_encoder= another one"
            )
        self.configs["text"], self.tokenizer = config, find_tokenizer(folder)

    def add_clap(self, path: Path, fused: Fused, run: dict[str, Any], source: Any, fetch: Fetch) -> None:
        if source is None:
            named = (run["conditioners"]["description"].get("clap") or {}).get("checkpoint")
            raise CheckpointError(
                f"{path}: hears texts through CLAP, which is not inside. It was made with {named}, a file in LAION's "
                "own form, which is not read here: give text_encoder= the directory or Hub id of the same CLAP as a "
                "ClapModel of transformers, such as laion/larger_clap_music"
            )
        folder = fetch(str(source))
        config, self.matches["clap",] = clap.match_clap(folder)
        if config.dim != fused.dim:
            raise CheckpointError(
                f"{path}: reads joint embeddings of width {fused.dim}, but the CLAP in {folder} gives width "
                f"{config.dim}; give text_encoder= another one"
            )
        self.configs["clap"], self.clap_tokenizer = clap_config(run, config), find_clap_tokenizer(folder)

    def add_style(self, path: Path, config: StyleConfig, state: dict[str, Tensor], source: Any, fetch: Fetch) -> None:
        self.configs["style"] = config
        if config.features is None:
            return
        folder = fetch(str(source))
        features, self.matches["style", "features"] = hubert.match_hubert(folder)
        weight = state.get(f"{PREFIX}embed.weight")
        if weight is not None and weight.shape[-1] != features.dim:
            raise CheckpointError(
                f"{path}: its style conditioner reads features of width {weight.shape[-1]} (it was made with {MERT}), "
                f"but the encoder in {folder} gives width {features.dim}; give style_encoder= another one"
            )
        # The conditioner was trained on features of unnormalised audio, whatever the encoder itself was trained on.
        features = dataclasses.replace(features, normalize=False)
        self.configs["style"] = dataclasses.replace(config, features=features)


def read_config(
    directory: str | os.PathLike,
    *,
    text_encoder: str | os.PathLike | None = None,
    style_encoder: str | os.PathLike | None = None,
    fetch: Fetch = hub.fetch,
) -> ModelConfig:
    """The config of the model in `directory`, without its weights; encoders that are not passed are known by name."""
    path = Path(directory) / LM_FILE
    if text_encoder is not None or style_encoder is not None:
        return _match_parts(path, text_encoder, style_encoder, fetch)[1]
    _, run, lm_config = _read_lm(path)
    codec_config, _ = match_codec(path.parent, fetch=fetch)
    configs: dict[str, Any] = {}
    if lm_config.condition("text"):
        named = audiocraft_config.named_text_encoder(run)
        configs["text"] = T5.get(named) or huggingface.match_text_encoder(fetch(named))[0]
    if lm_config.condition("clap"):
        configs["clap"] = clap_config(run)
    if lm_config.condition("style"):
        configs["style"] = style_config(run)
    return audiocraft_config.model_config(path, run, lm_config, codec_config, **configs)


def _read_lm(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], LMConfig]:
    """The language model's state dict, its run's config, and its own config."""
    state, run = _read_package(path)
    audiocraft_config.check_lm(path, run)
    return state, run, audiocraft_config.lm_config(path, state, run)


def match_codec(directory: str | os.PathLike, *, fetch: Fetch = hub.fetch) -> tuple[CodecConfig, matching.Match]:
    """The config of the codec in `directory` (`compression_state_dict.bin`), and its match to the file."""
    path = Path(directory) / CODEC_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; fetch it from the repository that {LM_FILE} came from")
    content = torch_file.read(path)
    if isinstance(content, dict) and isinstance(content.get("pretrained"), str):
        return huggingface.match_codec(fetch(content["pretrained"]))
    state, run = _read_package(path)
    audiocraft_config.check_codec(path, run)
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
    """Writes a model in audiocraft's form; an existing one is replaced once the new one is complete.

    Args:
      directory: The folder of the model.
      checkpoint: The model.
      text_encoder: The name of the T5, which is not written; None to infer it from its config.

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
        _write_codec(temporary, config.codec, checkpoint.variables["codec"])


def write_codec(directory: str | os.PathLike, config: CodecConfig, variables: dict[str, Any]) -> None:
    """Writes a codec alone, in audiocraft's form."""
    with replacing(directory) as temporary:
        _write_codec(temporary, config, variables)


def _write_codec(directory: Path, config: CodecConfig, variables: dict[str, Any]) -> None:
    state = matching.export(musicgen.audiocraft_codec(config), variables)
    _write_package(directory / CODEC_FILE, state, audiocraft_config.codec_run(config))


def _write_package(path: Path, state: dict[str, Tensor], run: dict[str, Any]) -> None:
    text = yaml.safe_dump(run, sort_keys=False)
    torch_file.write(path, {"best_state": state, "xp.cfg": text, "version": VERSION, "exported": True})
