"""A lock on a folder, so that one run at a time works in it."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from mgjax.storage.paths import Path

NAME = ".lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Locks `folder`, which is created if missing; raises FileExistsError where another run holds the lock.

    In a bucket there are no locks: what several runs might write there is written by `files.create`.
    """
    if not isinstance(folder, pathlib.Path):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / NAME).acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"{folder}: another run is at work in it; let it end, or give another folder") from None
    with lock:
        try:
            yield
        finally:
            (folder / NAME).unlink(missing_ok=True)
