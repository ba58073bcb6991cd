"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps other runs out of `folder`, which is made if missing; raises FileExistsError where one is at work in it."""
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
