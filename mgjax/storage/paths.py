"""Paths on local disks (`pathlib`) and in buckets (`etils.epath`), which have the same methods."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import TypeAlias

from etils import epath

Path: TypeAlias = pathlib.Path | epath.Path
PathLike: TypeAlias = str | os.PathLike[str]

SCHEMES = ("gs://", "s3://")

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(source: PathLike) -> bool:
    """Whether `source` is the address of something in a bucket."""
    return os.fspath(source).startswith(SCHEMES)


def path(source: PathLike, *names: str) -> Path:
    """The path `source`, and below it `names`: a `pathlib.Path`, or an `epath.Path` for gs:// and s3://.

    Raises ValueError if it is the address of anything else, or what reads such buckets is not installed.
    """
    text = os.fspath(source)
    if not is_remote(text):
        if _ADDRESS.match(text):
            raise ValueError(f"{text}: of addresses, only {' and '.join(SCHEMES)} are known; give one, or a path")
        return pathlib.Path(text, *names)
    from mgjax.storage import buckets

    buckets.register(text)
    return epath.Path(text.rstrip("/"), *names)


def absolute(source: PathLike) -> str:
    """`source` as it can be used from any working directory, or on any host."""
    return os.fspath(source).rstrip("/") if is_remote(source) else os.path.abspath(source)


def resolved(source: PathLike) -> Path:
    """The absolute path of `source`, without symbolic links."""
    return path(source) if is_remote(source) else pathlib.Path(source).resolve()


def size(source: PathLike) -> int | None:
    """The bytes of a file; None where there is no such file."""
    there = path(source)
    if isinstance(there, pathlib.Path):
        return os.path.getsize(there) if os.path.isfile(there) else None
    from mgjax.storage import buckets

    return buckets.size(there)


def read_range(source: PathLike, start: int, count: int) -> bytes:
    """`count` bytes of a file from `start` on, or fewer where it ends before."""
    if not count:
        return b""
    if not is_remote(source):
        with open(source, "rb") as file:
            file.seek(start)
            return file.read(count)
    from mgjax.storage import buckets

    return buckets.read_range(source, start, count)


def sizes(folder: PathLike) -> dict[str, int]:
    """The bytes of each file in a folder, by name; none where it is missing."""
    there = path(folder)
    if isinstance(there, pathlib.Path):
        with os.scandir(there) if there.is_dir() else contextlib.nullcontext(()) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    from mgjax.storage import buckets

    prefix = f"{os.fspath(there)}/"
    names = {address.removeprefix(prefix): found.size for address, found in buckets.objects(there).items()}
    return {name: size for name, size in names.items() if "/" not in name}


def below(folder: PathLike) -> Sequence[Path]:
    """All files in `folder` and its subfolders, in order; none where it is missing."""
    there = path(folder)
    if isinstance(there, pathlib.Path):
        return sorted(found for found in there.rglob("*") if found.is_file())
    from mgjax.storage import buckets

    return [epath.Path(address) for address in buckets.objects(there)]


def make_folder(folder: Path) -> None:
    """Creates a folder where it is missing, and those above it. Buckets have none, and s3fs would make a bucket."""
    if isinstance(folder, pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)


def rename(folder: Path, target: Path) -> None:
    """Renames a folder; in a bucket, file by file."""
    if isinstance(folder, pathlib.Path):
        folder.rename(target)
        return
    from mgjax.storage import buckets

    prefix = f"{folder}/"
    for address in buckets.objects(folder):
        buckets.copy(address, target / address.removeprefix(prefix))
    buckets.remove(folder)


def remove(folder: PathLike) -> None:
    """Removes a folder with all that is in it; a missing one is not an error."""
    there = path(folder)
    if isinstance(there, pathlib.Path):
        import shutil

        shutil.rmtree(there, ignore_errors=not there.exists())
        return
    from mgjax.storage import buckets

    buckets.remove(there)
