"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent(*_: int) -> None:
    """Ends this process at once when the process that started it ends, even by a signal.

    To be called first in a process that `multiprocessing` or grain started; grain passes the process's number and their
    count, which are ignored. Without this, an orphaned worker would finish its work, or wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a process of multiprocessing"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
