"""A model and its files: what every reader returns, mgjax's own directory form, and safe replacement of directories.

The form is `config.json` (format, version, and the config of config.py), `model.safetensors` (the variables, with paths
joined by "/"; sharded above 5 GB; see `interop.compact` for those in fewer bytes) and the tokenizer's files as they
came, CLAP's in a folder of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgjax.config import CodecConfig, ModelConfig
from mgjax.interop import compact, shapes, table, weights
from mgjax.interop.torch_file import CheckpointError, Tensor
from mgjax.strict_json import ConfigError, from_dict

VERSION = 1
CLAP_FOLDER = "clap"
CLAP_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A whole model.

    Attributes:
      config: What it is.
      variables: Its arrays: {"lm": params, "codec": {"params": ..., "codebooks": ...}} and, for the encoders that it
        has, {"text": params, "style": {"params": ..., "batch_stats": ..., "codebooks": ..., "features": params},
        "clap": {"text": variables, "audio": variables, "codebooks": ...}}.
      tokenizer: The folder that holds the tokenizer's files, or None.
      clap_tokenizer: The folder that holds the files of CLAP's tokenizer, or None.
    """

    config: ModelConfig
    variables: dict[str, Any]
    tokenizer: Path | None = None
    clap_tokenizer: Path | None = None


def read_model(directory: str | os.PathLike, *, dtype: Any = None, place: table.Place | None = None) -> Checkpoint:
    """The model in mgjax form in `directory`; `dtype` and `place` are those of `interop.table.load`.

    Raises:
      CheckpointError: Files are missing or damaged, or do not fit together.
    """
    directory = Path(directory)
    config = _read_config(directory, "model", ModelConfig)
    match = _match(directory, compact.unpack(weights.find(directory)), shapes.model_shapes(config))
    variables = table.load(match, dtype=dtype, place=place)
    return Checkpoint(config, variables, find_tokenizer(directory), find_clap_tokenizer(directory / CLAP_FOLDER))


def read_config(directory: str | os.PathLike) -> ModelConfig:
    """What the model in mgjax form in `directory` is; its weights need not be there."""
    return _read_config(Path(directory), "model", ModelConfig)


def write_model(directory: str | os.PathLike, checkpoint: Checkpoint, form: str | None = None) -> None:
    """Writes a model in mgjax form; a model that is in `directory` already is replaced at the very end.

    `form` is one of `interop.compact.FORMS` to store the weights in fewer bytes, or None for what they are.
    """
    with replacing(directory) as temporary:
        _write_config(temporary, "model", checkpoint.config)
        _write_weights(temporary, checkpoint.variables, shapes.model_shapes(checkpoint.config), form)
        copy_tokenizer(checkpoint.tokenizer, temporary)
        if checkpoint.clap_tokenizer:
            (temporary / CLAP_FOLDER).mkdir()
            _copy(CLAP_TOKENIZER_FILES, checkpoint.clap_tokenizer, temporary / CLAP_FOLDER)


def read_codec(
    directory: str | os.PathLike, *, dtype: Any = None, place: table.Place | None = None
) -> tuple[CodecConfig, dict[str, Any]]:
    """The codec of a directory in mgjax form that holds a codec alone or a whole model."""
    directory = Path(directory)
    tensors = compact.unpack(weights.find(directory))
    if "model" in read_json(directory / "config.json"):
        config = _read_config(directory, "model", ModelConfig).codec
        tensors = {name.removeprefix("codec/"): tensors[name] for name in tensors if name.startswith("codec/")}
    else:
        config = _read_config(directory, "codec", CodecConfig)
    match = _match(directory, tensors, shapes.codec_shapes(config))
    return config, table.load(match, dtype=dtype, place=place)


def write_codec(directory: str | os.PathLike, config: CodecConfig, variables: dict[str, Any]) -> None:
    """Writes a codec alone, in mgjax form."""
    with replacing(directory) as temporary:
        _write_config(temporary, "codec", config)
        _write_weights(temporary, variables, shapes.codec_shapes(config))


def detect(directory: str | os.PathLike) -> str:
    """The form of the model in `directory`: "mgjax", "huggingface" or "audiocraft".

    Raises:
      CheckpointError: There is no model; the message says what was looked for.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    if config.get("format") == "mgjax":
        return "mgjax"
    originals = any((directory / name).is_file() for name in ("state_dict.bin", "compression_state_dict.bin"))
    # The published repositories hold both forms; where only the original's weights were fetched, those count.
    theirs = [*directory.glob("*.safetensors*"), *directory.glob("pytorch_model*")]
    if "model_type" in config and (theirs or not originals):
        return "huggingface"
    if originals:
        return "audiocraft"
    raise CheckpointError(
        f"{directory}: no model here. Looked for config.json (as mgjax or transformers write it, beside "
        "*.safetensors or pytorch_model*.bin) and for audiocraft's state_dict.bin and compression_state_dict.bin. "
        "Give the folder that holds these files"
    )


def find_tokenizer(directory: Path) -> Path | None:
    """`directory` if the files of a tokenizer are in it, else None."""
    return directory if any((directory / name).is_file() for name in TOKENIZER_FILES[:2]) else None


def find_clap_tokenizer(directory: Path) -> Path | None:
    """`directory` if the files of CLAP's tokenizer are in it, else None."""
    forms = (["tokenizer.json"], ["vocab.json", "merges.txt"])
    return directory if any(all((directory / name).is_file() for name in form) for form in forms) else None


def copy_tokenizer(source: Path | None, directory: Path) -> None:
    """Copies the tokenizer's files, as many as there are."""
    if source:
        _copy(TOKENIZER_FILES, source, directory)


def _copy(names: Sequence[str], source: Path, directory: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


@contextlib.contextmanager
def replacing(directory: str | os.PathLike) -> Iterator[Path]:
    """A new directory to write a model into; at the end of the `with` block it takes the place of `directory`.

    Whatever fails on the way, Ctrl-C included, the old content stays and nothing is left over.

    Raises:
      FileExistsError: `directory` is a file, or has content that is not a model.
    """
    directory = Path(directory).resolve()
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir()) and not _holds_model(directory)):
        raise FileExistsError(f"{directory} exists and is not a model, so it is not replaced; give another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        try:
            if directory.exists():
                directory.rename(old)
            new.rename(directory)
        except BaseException:
            if old.exists() and not directory.exists():
                old.rename(directory)
            raise


def _holds_model(directory: Path) -> bool:
    names = ("config.json", "state_dict.bin", "compression_state_dict.bin", "adapter_config.json")
    return any((directory / name).is_file() for name in names)


def _match(directory: Path, tensors: dict[str, Tensor], wanted: shapes.Shapes) -> table.Match:
    return table.match(_own_rules(wanted), tensors, wanted, where=str(directory))


def _own_rules(wanted: shapes.Shapes) -> list[table.Rule]:
    return [table.Rule((path,), (path,)) for path in wanted]


def _write_weights(directory: Path, variables: dict[str, Any], wanted: shapes.Shapes, form: str | None = None) -> None:
    found = {"/".join(path): tuple(np.shape(array)) for path, array in table.flattened(variables).items()}
    if found != wanted:
        differing = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
        raise CheckpointError(f"the variables are not those of this config; different are {', '.join(differing[:12])}")
    tensors = table.export(_own_rules(wanted), variables)
    weights.write(directory, compact.pack(tensors, form) if form else tensors)


def _write_config(directory: Path, kind: str, config: Any) -> None:
    content = {"format": "mgjax", "version": VERSION, kind: dataclasses.asdict(config)}
    (directory / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def _read_config(directory: Path, kind: str, cls: type) -> Any:
    path = directory / "config.json"
    content = read_json(path)
    if content.get("format") != "mgjax":
        raise CheckpointError(f'{path}: is not in mgjax form (no "format": "mgjax"); load it by mgjax.load')
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: has version {content.get('version')!r}, this mgjax reads version {VERSION}; update mgjax"
        )
    if kind not in content:
        raise CheckpointError(f"{path}: holds no {kind}, only {sorted(set(content) - {'format', 'version'})}")
    try:
        return from_dict(cls, content[kind])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      CheckpointError: There is no such file, or no object in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file; give the folder that holds the model") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); fetch the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: should hold an object; fetch the file again")
    return content
