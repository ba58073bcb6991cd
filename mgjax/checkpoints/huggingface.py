"""Directories as transformers writes them: MusicGen, MusicGen Melody, EnCodec and T5, read and written.

The tensors' names are in tables/musicgen.py, the configs in huggingface_config.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgjax.checkpoints import huggingface_config
from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.huggingface_config import part_of_model, read_config
from mgjax.checkpoints.native import TOKENIZER_FILES, Checkpoint, copy_files, find_tokenizer, replacing
from mgjax.checkpoints.tables import matching, musicgen
from mgjax.checkpoints.tables.matching import Place
from mgjax.codec import weight_norm
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, LMConfig
from mgjax.errors import CheckpointError

# Positions are computed, and some old files hold them; a whole T5 has a decoder too, which music does not need.
_IGNORED = (r"\.embed_positions\.weights?$",)
_IGNORED_OF_T5 = (r"^decoder\.", r"^lm_head\.")


def read_model(directory: str | os.PathLike, *, dtype: Any = None, place: Place | None = None) -> Checkpoint:
    """The MusicGen model in `directory`, as by `matching.load`; raises CheckpointError if it is damaged or another."""
    directory = Path(directory)
    config = read_config(directory)
    tensors = safetensors.find(directory) | {name: identity for _, name, identity in _identities(config.lm)}
    match = _match(directory, musicgen.huggingface(config), tensors, _IGNORED)
    return Checkpoint(config, matching.load(match, dtype=dtype, place=place), find_tokenizer(directory))


def match_codec(directory: str | os.PathLike) -> tuple[CodecConfig, matching.Match]:
    """The config of the codec in `directory`, alone or part of a MusicGen model, and its match to the files."""
    directory = Path(directory)
    values, prefix = part_of_model(directory, "encodec", "audio_encoder")
    config = huggingface_config.codec_config(values, directory / "config.json")
    tensors = _with_prefix(safetensors.find(directory), prefix)
    return config, _match(directory, musicgen.huggingface_codec(config), tensors)


def match_text_encoder(directory: Path) -> tuple[T5Config, matching.Match]:
    """The config of the text encoder in `directory`, of a T5 or of a MusicGen model, and its match to the files."""
    values, prefix = part_of_model(directory, "t5", "text_encoder")
    config = huggingface_config.t5_config(values, directory / "config.json")
    tensors, ignored = _with_prefix(safetensors.find(directory), prefix), () if prefix else _IGNORED_OF_T5
    return config, _match(directory, musicgen.t5(config), tensors, ignored)


def _match(
    directory: Path,
    rules: Iterable[matching.Rule],
    tensors: Mapping[str, Tensor],
    ignored: tuple[str, ...] = (),
) -> matching.Match:
    return matching.match(rules, tensors, where=str(directory), aliases=musicgen.ALIASES, ignored=ignored)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def write_model(directory: str | os.PathLike, checkpoint: Checkpoint) -> None:
    """Writes a model for transformers' `from_pretrained`; raises CheckpointError if transformers has none such."""
    codec_config, codec = weight_norm.unfold(checkpoint.config.codec, checkpoint.variables["codec"])
    config = dataclasses.replace(checkpoint.config, codec=codec_config)
    variables = checkpoint.variables | {"codec": codec}
    values = huggingface_config.model_values(config) | {"dtype": str(variables["lm"]["head"]["kernel"].dtype)}
    tensors = matching.export(musicgen.huggingface(config), variables)
    for condition, name, identity in _identities(config.lm):
        if not np.array_equal(tensors.pop(name).read(), identity.read()):
            raise CheckpointError(
                f"transformers has no projection of the {condition} between equal widths ({config.lm.dim}), and this "
                "model's changes its input. Save it in mgjax form instead"
            )
    with replacing(directory) as temporary:
        _write_json(temporary / "config.json", values)
        _write_json(temporary / "generation_config.json", huggingface_config.generation_values(config))
        _write_json(temporary / "preprocessor_config.json", huggingface_config.preprocessor_values(config))
        safetensors.write(temporary, tensors)
        copy_files(TOKENIZER_FILES, checkpoint.tokenizer, temporary)


def _identities(config: LMConfig) -> Iterator[tuple[str, str, Tensor]]:
    """The projections that transformers leaves out because their input is as wide as the model; they change nothing.

    Yields:
      The name of the condition, and the name and the content of each tensor.
    """
    dim = config.dim
    for name in (condition.name for condition in config.conditions if condition.dim == dim):
        for part, shape, make in (("weight", (dim, dim), np.eye), ("bias", (dim,), np.zeros)):
            read = functools.partial(make, dim, dtype=np.float32)
            key = f"{musicgen.HUGGINGFACE_PROJECTIONS[name]}.{part}"
            yield name, key, Tensor(shape, np.dtype(np.float32), "none", read)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
