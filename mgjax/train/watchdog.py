"""Ends a process that hangs, so that whoever started it can start it again, and says where it hung."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
from typing import Any


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

    def __exit__(self, *_: Any) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
