"""Ends a process that hangs, so that whoever started it can start it again, and says where it hung; tells what a start
that takes long is waiting for."""

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

_PATIENCE = 60.0  # seconds until it is said for the first time what takes so long; then twice as many, and so on


class Watchdog(contextlib.AbstractContextManager):
    """Within its block, `again` has to be called every `seconds`, or the stacks of all threads are written to stderr
    and the process ends with status 1. It works where Python itself is stuck in a call that never returns.

    Args:
      seconds: 0 for no watch.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds if sys.__stderr__ is not None else 0

    def again(self) -> None:
        """Says that the process is alive; the first call begins the watch."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)

    @contextlib.contextmanager
    def waiting(self, what: str, *, may_last: bool = False) -> Iterator[None]:
        """Says now and then, as long as its block runs, that the process is still `what` ("reading the first batch").

        Args:
          may_last: That it may take longer than `seconds`, as downloads and compiling do.
        """
        over, begun = threading.Event(), time.monotonic()

        def tell() -> None:
            pause = _PATIENCE
            while not over.wait(pause):
                pause *= 2
                log.warning("still %s, after %.0f s", what, time.monotonic() - begun)

        self.__exit__() if may_last else self.again()
        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def __exit__(self, *_: Any) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
