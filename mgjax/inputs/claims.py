"""A lock on a folder, so that one run at a time works in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Locks `folder`, which is created if missing; raises FileExistsError where another run holds the lock."""
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
