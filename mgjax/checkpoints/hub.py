"""Locates the files of a model: bundled with mgjax, in a folder or a bucket, or on the Hub (only the needed files)."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from mgjax.checkpoints.native import CLAP_FOLDER, CLAP_TOKENIZER_FILES, TOKENIZER_FILES
from mgjax.errors import CheckpointError
from mgjax.storage import cache, paths

BUNDLED = ("mini",)
_PRETRAINED = Path(__file__).parents[1] / "pretrained"

_CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json")
# RoBERTa's tokenizer, in the repository of a CLAP and in that of a model with one.
_CLAP_FILES = ("vocab.json", "merges.txt", *(f"{CLAP_FOLDER}/{name}" for name in CLAP_TOKENIZER_FILES))
# The errors of huggingface_hub and of the HTTP library under it.
_HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
_AUDIOCRAFT_WEIGHTS = ("state_dict.bin", "compression_state_dict.bin")


def fetch(source: str | os.PathLike, allow: Sequence[str] | None = None) -> Path:
    """The folder of a model: a bundled one (`BUNDLED`; "./mini" is a folder), `source`, or a download of the Hub.

    `allow` are patterns of the files to download; None for the configs, the tokenizer and one format of the weights.

    Raises:
      CheckpointError: There is no such folder or repository, it may not be read, or it cannot be reached and is not
        cached.
    """
    if source in BUNDLED:
        if not (_PRETRAINED / source / "config.json").is_file():
            raise CheckpointError(
                f"{source}: its weights are not in this copy of mgjax, which looks for them in {_PRETRAINED / source}. "
                "Install a released mgjax, or a clone that has them; or use another model, such as "
                '"facebook/musicgen-small", or "debug", a toy that makes noise'
            )
        return _PRETRAINED / source
    source = os.fspath(source)
    if paths.is_remote(source):
        return _fetch_from_bucket(source, allow)
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]*\w(/\w[\w.-]*)?", source):
        raise CheckpointError(f"{source}: there is no such folder; give a folder, or the id of a model on the Hub")
    try:
        files = huggingface_hub.list_repo_files(source)
        patterns = select(files, source) if allow is None else list(allow)
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=patterns))
    except GatedRepoError:
        raise CheckpointError(
            f"{source}: its owner gives access on request only; ask for it at https://huggingface.co/{source}, then "
            "log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{source}: neither a folder here nor a model on the Hub; check the spelling, or log in with "
            "`hf auth login` if it is private"
        ) from None
    except CheckpointError:
        raise
    except _HUB_ERRORS as error:
        try:
            return Path(huggingface_hub.snapshot_download(source, local_files_only=True))
        except _HUB_ERRORS:
            raise CheckpointError(
                f"{source}: could not be fetched from the Hub ({type(error).__name__}: {error}) and no copy from before"
                " is on this machine; connect to the network (or unset HF_HUB_OFFLINE), or give a folder that holds the"
                " model"
            ) from None


def _fetch_from_bucket(source: str, allow: Sequence[str] | None) -> Path:
    """A local copy of the files of a model in a bucket, those that `fetch` would download of the Hub."""

    def chosen(names: Sequence[str]) -> Sequence[str]:
        if allow is not None:
            return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in allow)]
        try:
            return select(names, source)
        except CheckpointError:  # an adapter, or a tokenizer alone
            return [name for name in names if "/" not in name]

    try:
        return cache.local_folder(paths.path(source), chosen)
    except FileNotFoundError:
        raise CheckpointError(f"{source}: there is no such folder in this bucket, or no such bucket") from None
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error})") from error


def select(files: Sequence[str], source: str) -> list[str]:
    """The needed files of a repository: configs, tokenizer, weights; raises CheckpointError if none can be read."""
    needed = [name for name in (*_CONFIGS, *TOKENIZER_FILES, *_CLAP_FILES) if name in files]
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        if f"{stem}.{suffix}" in files:
            return [*needed, f"{stem}.{suffix}"]
        index = f"{stem}.{suffix}.index.json"
        shards = [name for name in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", name)]
        # The last shard's name has the number of shards; an index may be present without them.
        if index in files and shards and len(shards) == int(re.findall(r"\d+", max(shards))[-1]):
            return [*needed, index, *shards]
    if any(name in files for name in _AUDIOCRAFT_WEIGHTS):
        return [*needed, *(name for name in _AUDIOCRAFT_WEIGHTS if name in files)]
    variants = [
        name for name in files if re.fullmatch(r"(model\.[\w-]+\.safetensors|pytorch_model\.[\w-]+\.bin)", name)
    ]
    if len(variants) == 1:
        return [*needed, *variants]
    raise CheckpointError(
        f"{source}: this repository holds no weights that can be read here (model.safetensors, pytorch_model.bin, "
        "their sharded forms, or audiocraft's state_dict.bin); check that it is a MusicGen, EnCodec or T5 model"
    )
