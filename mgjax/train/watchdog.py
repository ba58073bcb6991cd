"""Ends a process that hangs, with the stacks of its threads, so that it can be started again."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("mgjax")

_FIRST_WARNING = 60.0  # seconds until the first warning about something slow; each pause is twice the one before


class Watchdog(contextlib.AbstractContextManager):
    """Ends the process with status 1 unless `restart` is called every `seconds` within its block; 0 for no timeout.

    The stacks of all threads are written to stderr before. It works even where Python is stuck in a call that never
    returns.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def restart(self) -> None:
        """Restarts the timeout; the first call starts it."""
        if self._seconds and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    @contextlib.contextmanager
    def waiting(self, what: str, *, may_last: bool = False) -> Iterator[None]:
        """Warns at growing intervals while its block runs: "still {what}, after 60 s".

        The block may last longer than the timeout if it `may_last`, as downloads and compiling do.
        """
        done, start = threading.Event(), time.monotonic()

        def warn() -> None:
            pause = _FIRST_WARNING
            while not done.wait(pause):
                pause *= 2
                log.warning("still %s, after %.0f s", what, time.monotonic() - start)

        self.__exit__() if may_last else self.restart()
        thread = threading.Thread(target=warn, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def __exit__(self, *_: Any) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
