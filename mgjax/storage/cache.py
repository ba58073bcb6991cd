"""Local copies of what is in buckets, each fetched once, in a cache folder of bounded size.

Environment: `MGJAX_BUCKET_CACHE` is the folder, `MGJAX_BUCKET_CACHE_GB` the most that it holds (100, and no more than
nine tenths of what the disk has free for it).
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Sequence

from filelock import FileLock

from mgjax.storage import buckets, paths

_LARGEST = 100.0  # GB
_SHARE = 0.9  # of the disk
_GB = 1e9
_LOCKS = ".locks"
_PATIENCE = 60.0  # seconds that a reader waits for room
_STALE = 86_400.0  # seconds after which nobody fetches any more


def local_file(source: paths.PathLike) -> pathlib.Path:
    """A local file with the content of `source`: itself, or a copy of the object, which stays until `unpin`.

    Raises:
      FileNotFoundError: There is no such object.
      OSError: It cannot be fetched, or there is no room for it.
    """
    return pathlib.Path(source) if not paths.is_remote(source) else _copy(source, is_pinned=True)


def fetch(source: paths.PathLike) -> None:
    """Makes the copy of an object that `local_file` returns, ahead of its use; raises as that."""
    _copy(source, is_pinned=False)


def _copy(source: paths.PathLike, *, is_pinned: bool) -> pathlib.Path:
    address = os.fspath(source)
    version = buckets.version(address)
    if version is None:
        raise FileNotFoundError(f"{address}: there is no such object")
    name = address.rpartition("/")[2]
    return _entry(f"{address} {version}", {name: address}, is_pinned=is_pinned) / name


def local_folder(source: paths.PathLike, select: Callable[[Sequence[str]], Sequence[str]]) -> pathlib.Path:
    """A local folder with files of the folder `source`: itself, or copies of those that `select` chooses by name.

    Raises:
      FileNotFoundError: There is no such folder.
      OSError: They cannot be fetched, or there is no room for them.
    """
    if not paths.is_remote(source):
        return pathlib.Path(source)
    address = paths.absolute(source)
    versions = {found.removeprefix(f"{address}/"): item.version for found, item in buckets.objects(address).items()}
    if not versions:
        raise FileNotFoundError(f"{address}: there is no such folder")
    chosen = sorted(select(list(versions)))
    key = f"{address} {[(name, versions[name]) for name in chosen]}"
    return _entry(key, {name: f"{address}/{name}" for name in chosen}, is_pinned=True)


def root() -> pathlib.Path:
    """The cache folder."""
    import platformdirs

    return pathlib.Path(
        os.environ.get("MGJAX_BUCKET_CACHE") or pathlib.Path(platformdirs.user_cache_dir("mgjax"), "buckets")
    )


def capacity() -> float:
    """The most bytes that the cache may hold."""
    try:
        largest = float(os.environ.get("MGJAX_BUCKET_CACHE_GB") or _LARGEST) * _GB
    except ValueError:
        raise ValueError(
            f"MGJAX_BUCKET_CACHE_GB must be a number of gigabytes, got {os.environ['MGJAX_BUCKET_CACHE_GB']!r}"
        ) from None
    folder = root()
    folder.mkdir(parents=True, exist_ok=True)
    return min(largest, _SHARE * (shutil.disk_usage(folder).free + sum(_sizes(folder).values())))


_pinned: set[str] = set()  # entries that this process may still read from


def unpin(file: pathlib.Path) -> None:
    """Allows that the copy `file` is removed, which this process has open, or needs no more."""
    _pinned.discard(file.parent.name)


def _entry(key: str, files: dict[str, str], *, is_pinned: bool) -> pathlib.Path:
    """The folder with copies of `files`, addresses by name, fetched unless it is there."""
    entry = root() / hashlib.sha256(key.encode()).hexdigest()[:24]
    if is_pinned:
        _pinned.add(entry.name)
    if not _used(entry):
        (entry.parent / _LOCKS).mkdir(parents=True, exist_ok=True)
        with FileLock(entry.parent / _LOCKS / entry.name):  # two processes of a host fetch it once
            if not _used(entry):
                _fetch(entry, files, may_wait=is_pinned)
    return entry


def _used(entry: pathlib.Path) -> bool:
    """Whether an entry is there; notes that it was needed now."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    return True


def _fetch(entry: pathlib.Path, files: dict[str, str], *, may_wait: bool) -> None:
    """Fetches files into a new entry, once there is room for them; others may be fetching and leave some soon."""
    needed = sum(buckets.size(address) or 0 for address in files.values())
    deadline = time.monotonic() + _PATIENCE * may_wait
    while (scratch := _reserved(entry, needed)) is None:
        if time.monotonic() > deadline:
            raise OSError(
                f"{entry.parent}: there is no room for {needed / _GB:.3g} GB in this cache of {capacity() / _GB:.3g} "
                "GB, as all in it is in use; give it more (MGJAX_BUCKET_CACHE_GB)"
            )
        time.sleep(0.05)
    try:
        for name, address in files.items():
            target = scratch / name
            if ".." in target.parts:
                raise ValueError(f"{address}: is no name of a file")
            target.parent.mkdir(parents=True, exist_ok=True)
            buckets.download(address, target)
        scratch.rename(entry)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _reserved(entry: pathlib.Path, needed: int) -> pathlib.Path | None:
    """A new folder whose name reserves `needed` bytes; None where all that would have to be removed is in use.

    The entries that were not needed for longest are removed first.
    """
    folder, largest = entry.parent, capacity()
    if needed > largest:
        raise OSError(
            f"{folder}: {needed / _GB:.3g} GB do not fit into this cache of at most {largest / _GB:.3g} GB; give it "
            "more (MGJAX_BUCKET_CACHE_GB), or another disk (MGJAX_BUCKET_CACHE)"
        )
    with FileLock(folder / _LOCKS / "room"):
        for leftover in folder.glob(".*.tmp"):  # of a process that was killed
            if time.time() - _last_use(leftover) > _STALE:
                shutil.rmtree(leftover, ignore_errors=True)
        sizes = _sizes(folder)
        total = sum(sizes.values()) + sum(int(path.suffixes[-2][1:]) for path in folder.glob(".*.tmp")) + needed
        for oldest in sorted(sizes, key=_last_use):
            if total > largest and oldest.name not in _pinned:
                shutil.rmtree(oldest, ignore_errors=True)
                total -= sizes[oldest]
        if total > largest:
            return None
        scratch = folder / f".{entry.name}.{uuid.uuid4().hex[:8]}.{needed}.tmp"
        scratch.mkdir()
        return scratch


def _sizes(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """The bytes of each entry."""
    return {entry: _bytes(entry) for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."}


_known_sizes: dict[pathlib.Path, int] = {}  # an entry never changes


def _bytes(entry: pathlib.Path) -> int:
    """The bytes of an entry; 0 where another process has just removed it."""
    if entry not in _known_sizes:
        try:
            size = sum(found.stat().st_size for found in entry.rglob("*") if found.is_file())
        except FileNotFoundError:
            return 0
        if not entry.exists():
            return 0
        _known_sizes[entry] = size
    return _known_sizes[entry]


def _last_use(entry: pathlib.Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0
