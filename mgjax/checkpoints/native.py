"""A model and its files: what every reader returns, mgjax's own directory format, and safe replacement of directories.

The format is `config.json` (format, version, and the config), `model.safetensors` (the variables, with paths
joined by "/"; sharded above 5 GB; see `files.packed` for those in fewer bytes) and the tokenizer's files as they
came, CLAP's in a folder of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mgjax.checkpoints.files import packed, safetensors
from mgjax.checkpoints.files.config_json import parse_config, read_json
from mgjax.checkpoints.tables import matching, shapes
from mgjax.checkpoints.tables.matching import Place
from mgjax.config.model import CodecConfig, ModelConfig
from mgjax.config.serialization import Config, to_json
from mgjax.errors import CheckpointError
from mgjax.inputs import files
from mgjax.nn import Shapes
from mgjax.storage import paths

VERSION = 1
_HEADER = {"format": "mgjax", "version": VERSION}
_HASHED_NUMBERS = 1024  # of each array
CLAP_FOLDER = "clap"
CLAP_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A whole model.

    Attributes:
      config: Its config.
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


def hash_of(config: Any, variables: Any) -> str:
    """The hash of a model: 12 hexadecimal digits, of its config and of a sample of every array."""
    digest = hashlib.sha256(to_json(config).encode())
    for path, array in jax.tree_util.tree_leaves_with_path(variables):
        # On a CPU, numpy shares the memory; elsewhere only the sample is fetched.
        flat = np.asarray(array).flat if jax.default_backend() == "cpu" else array.ravel()
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape}".encode())
        digest.update(np.asarray(flat[:: max(1, array.size // _HASHED_NUMBERS)], np.float32).tobytes())
    return digest.hexdigest()[:12]


def read_model(directory: str | os.PathLike, *, dtype: Any = None, place: Place | None = None) -> Checkpoint:
    """The model in mgjax's format in `directory`, as by `matching.load`; raises CheckpointError if it is damaged."""
    directory = Path(directory)
    config = _read_config(directory, "model", ModelConfig)
    tensors = packed.unpack(safetensors.find(directory))
    match = matching.match(_identity_rules(shapes.model_shapes(config)), tensors, where=str(directory))
    variables = matching.load(match, dtype=dtype, place=place)
    return Checkpoint(config, variables, find_tokenizer(directory), find_clap_tokenizer(directory / CLAP_FOLDER))


def read_config(directory: str | os.PathLike) -> ModelConfig:
    """The config of the model in mgjax's format in `directory`, without its weights."""
    return _read_config(Path(directory), "model", ModelConfig)


def write_model(directory: str | os.PathLike, checkpoint: Checkpoint, compact: str | None = None) -> None:
    """Writes a model in mgjax's format; an existing one is replaced once the new one is complete.

    `compact` is one of `checkpoints.files.packed.DTYPES` to store the weights in fewer bytes, or None for their dtype.
    """
    with replacing(directory) as temporary:
        files.write_json(temporary / "config.json", _HEADER | {"model": dataclasses.asdict(checkpoint.config)})
        _write_weights(temporary, checkpoint.variables, shapes.model_shapes(checkpoint.config), compact)
        copy_files(TOKENIZER_FILES, checkpoint.tokenizer, temporary)
        copy_files(CLAP_TOKENIZER_FILES, checkpoint.clap_tokenizer, temporary / CLAP_FOLDER)


def match_codec(directory: str | os.PathLike) -> tuple[CodecConfig, matching.Match]:
    """The config of the codec in `directory`, alone or part of a model, and its match to the files."""
    directory = Path(directory)
    tensors = packed.unpack(safetensors.find(directory))
    if "model" in read_json(directory / "config.json"):
        config = _read_config(directory, "model", ModelConfig).codec
        tensors = {name.removeprefix("codec/"): tensors[name] for name in tensors if name.startswith("codec/")}
    else:
        config = _read_config(directory, "codec", CodecConfig)
    return config, matching.match(_identity_rules(shapes.codec_shapes(config)), tensors, where=str(directory))


def write_codec(directory: str | os.PathLike, config: CodecConfig, variables: dict[str, Any]) -> None:
    """Writes a codec alone, in mgjax's format."""
    with replacing(directory) as temporary:
        files.write_json(temporary / "config.json", _HEADER | {"codec": dataclasses.asdict(config)})
        _write_weights(temporary, variables, shapes.codec_shapes(config))


def detect(directory: str | os.PathLike) -> str:
    """The format of the model in `directory`, "mgjax", "huggingface" or "audiocraft"; CheckpointError for none."""
    directory = Path(directory)
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    if config.get("format") == "mgjax":
        return "mgjax"
    has_audiocraft = any((directory / name).is_file() for name in ("state_dict.bin", "compression_state_dict.bin"))
    # The published repositories hold both formats; the format is that of the weights that are here.
    transformers_weights = [*directory.glob("*.safetensors*"), *directory.glob("pytorch_model*")]
    if "model_type" in config and (transformers_weights or not has_audiocraft):
        return "huggingface"
    if has_audiocraft:
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


def copy_files(names: Sequence[str], source: Path | None, directory: Path) -> None:
    """Copies those of the files that are in `source`, if there is one."""
    for name in names:
        if source and (source / name).is_file():
            directory.mkdir(exist_ok=True)
            shutil.copyfile(source / name, directory / name)


# The files that mark a model in a format that mgjax writes; they are moved out first and in last.
_MARKERS = ("config.json", "adapter_config.json", "compression_state_dict.bin")
# All files of such a model.
_MODEL_FILES = (
    *(*_MARKERS, "state_dict.bin", "generation_config.json", "preprocessor_config.json", "provenance.json"),
    *("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "adapter_model.safetensors"),
    *(*TOKENIZER_FILES, *(f"{CLAP_FOLDER}/{name}" for name in CLAP_TOKENIZER_FILES)),
)


def check_replaceable(directory: str | os.PathLike) -> None:
    """Raises FileExistsError if `replacing` would not write to `directory`: a file, or a folder without a model.

    A model of any format that mgjax writes is replaced, whatever other files are beside it; hidden files do not count.
    """
    directory = paths.resolved(directory)
    markers = [directory / name for name in _MARKERS if _is_there(directory / name)]
    foreign = [path for path in markers if not _is_written_by_mgjax(path)]
    if foreign:
        raise FileExistsError(f"{foreign[0]} is not of a model that mgjax writes, so it stays; give another folder")
    visible = directory.is_dir() and any(path.name[:1] not in ("", ".") for path in directory.iterdir())
    if (visible and not markers) or (directory.exists() and not directory.is_dir()):
        raise FileExistsError(f"{directory} exists and is not a model, so it is not replaced; give another folder")


def _is_there(path: paths.Path) -> bool:
    """Whether there is a file, also if it is a link to nothing."""
    return os.path.lexists(path) if isinstance(path, Path) else path.exists()


def _is_written_by_mgjax(marker: paths.Path) -> bool:
    if marker.suffix == ".bin":
        return marker.is_file()
    try:
        values = read_json(marker)
    except CheckpointError:
        return False
    adapted = values.get("target_modules")
    if values.get("format") == "mgjax" or values.get("model_type") in ("musicgen", "musicgen_melody", "encodec"):
        return True
    return isinstance(adapted, list) and all(str(layer).startswith("decoder.") for layer in adapted)


@contextlib.contextmanager
def replacing(directory: str | os.PathLike) -> Iterator[Path]:
    """A new directory to write a model into; at the end of the `with` block its files take the place of an old model's.

    All else in `directory` stays. After any error, Ctrl-C included, the old model is in place and nothing is left over.

    Raises:
      FileExistsError: `directory` is a file, or has content that is not a model.
    """
    check_replaceable(directory)
    if paths.is_remote(directory):
        with tempfile.TemporaryDirectory(prefix="mgjax-") as local:
            yield Path(local)
            check_replaceable(directory)
            _publish(Path(local), paths.path(directory))
        return
    directory = Path(os.path.realpath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    # A new folder is renamed from beside it, whole; an existing one may be a disk of its own.
    place = directory if directory.is_dir() else directory.parent
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=place))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        check_replaceable(directory)
        if directory.is_dir():
            _exchange(directory, new, old)
        else:
            new.rename(directory)
    except BaseException:
        if not _files(old):  # else it is what could not be put back
            shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)


def _publish(new: Path, directory: paths.Path) -> None:
    """Writes a model's files to a folder in a bucket, where they take the place of an old model's.

    All are written beside them first. Then the markers of the old model are removed, the files take their places by
    copies within the bucket, and the new markers come last: readers see a whole model or none. What an interruption
    leaves in ".new-..." is whole, unless the old model is.
    """
    from mgjax.storage import buckets

    names = sorted((path.relative_to(new).as_posix() for path in paths.below(new)), key=lambda name: name in _MARKERS)
    beside = directory / f".new-{uuid.uuid4().hex[:8]}"
    try:
        for name in names:
            buckets.upload(new / name, beside / name)
    except BaseException:
        paths.remove(beside)
        raise
    old = [path for pattern in _MODEL_FILES for path in directory.glob(pattern)]
    for path in sorted(old, key=lambda path: path.name not in _MARKERS):
        if path.name in _MARKERS or path.relative_to(directory).as_posix() not in names:
            path.unlink(missing_ok=True)
    for name in names:
        buckets.copy(beside / name, directory / name)
    paths.remove(beside)


def _exchange(directory: Path, new: Path, old: Path) -> None:
    """Moves a model's files from `directory` to `old` and those in `new` to `directory`: all or none of them."""
    paths = (path for pattern in _MODEL_FILES for path in directory.glob(pattern) if not path.is_dir())
    moves = [(path.relative_to(directory), directory, old) for path in paths]
    moves += [(name, new, directory) for name in sorted(_files(new), key=lambda name: name.name in _MARKERS)]
    try:
        for move in moves:
            _move(*move)
        if (old / CLAP_FOLDER).exists() and not any((directory / CLAP_FOLDER).iterdir()):
            (directory / CLAP_FOLDER).rmdir()
    except BaseException:
        for name, source, target in reversed(moves):
            if os.path.lexists(target / name) and not os.path.lexists(source / name):
                _move(name, target, source)
        raise


def _move(name: Path, source: Path, target: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).rename(target / name)


def _files(directory: Path) -> list[Path]:
    """The names of all files below `directory`."""
    return [path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir() or path.is_symlink()]


def _identity_rules(expected: Shapes) -> list[matching.Rule]:
    return [matching.single(path, shape, path) for path, shape in expected.items()]


def _write_weights(directory: Path, variables: dict[str, Any], expected: Shapes, compact: str | None = None) -> None:
    actual = {path: tuple(np.shape(array)) for path, array in flatten_dict(variables, sep="/").items()}
    if actual != expected:
        differing = sorted(path for path in actual | expected if actual.get(path) != expected.get(path))
        raise CheckpointError(f"the variables are not those of this config; different are {', '.join(differing[:12])}")
    tensors = matching.export(_identity_rules(expected), variables)
    safetensors.write(directory, packed.pack(tensors, compact) if compact else tensors)


def _read_config(directory: Path, kind: str, cls: type[Config]) -> Config:
    path = directory / "config.json"
    content = read_json(path)
    if content.get("format") != "mgjax":
        raise CheckpointError(f'{path}: is not in mgjax form (no "format": "mgjax"); load it by mgjax.load')
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: has version {content.get('version')!r}, this mgjax reads version {VERSION}; update mgjax"
        )
    if kind not in content:
        raise CheckpointError(f"{path}: holds no {kind}, only {sorted(set(content) - {'format', 'version'})!s:.200}")
    return parse_config(path, cls, content[kind])
