"""What a process that works for another one owes to it."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent(*_: int) -> None:
    """Has this process end at once with the one that started it, even if that is killed.

    To be called first in a process that `multiprocessing` or grain started, which may hand over its number and how
    many there are. It would otherwise finish what it is at, or wait for ever.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
