"""Names the host that the others wait for: each process tells all how far it is, and what it waited for."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

log = logging.getLogger("mgjax")

_EVERY = 30.0  # seconds between two beats
_BEHIND = 90.0  # seconds without a new step, or a beat, until a process is named
_READING = 0.5  # of its time, that a process may wait for data before it is named
_FOLDER = "mgjax/pulse/"


class Beat(NamedTuple):
    """What a process tells the others."""

    process: int
    host: str
    step: int  # the last one that it has begun
    seconds: float  # since then
    reading: float  # the share of the time since the beat before in which it waited for its data
    time: float  # of the beat, in seconds since 1970


class Store(Protocol):
    """A store of values that all processes share: the client of `jax.distributed`."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> Any:
        """Stores a value."""

    def key_value_dir_get(self, key: str) -> Sequence[tuple[str, str]]:
        """All values below a key."""


class Pulse(contextlib.AbstractContextManager):
    """Tells the other processes of a run, in its block and from a thread, how far this one is; one alone does nothing.

    Every process logs which one is behind the others, or waits for its data while they wait for it.
    """

    def __init__(self, store: Store | None = None, process: int | None = None, every: float = _EVERY):
        self._store = _client() if store is None else store
        self._process = jax.process_index() if process is None else process
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="pulse")
        self._step, self._since, self._reading = 0, time.monotonic(), 0.0

    def begin(self, step: int) -> None:
        """Notes that a training step begins."""
        self._step, self._since = step, time.monotonic()

    @contextlib.contextmanager
    def reading(self) -> Any:
        """Counts the time of its block as that of waiting for data."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._reading += time.monotonic() - begun

    def __enter__(self) -> Pulse:
        if self._store is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        assert self._store is not None
        named: list[str] = []
        while not self._ended.wait(self._every):
            share, self._reading = min(1.0, self._reading / self._every), 0.0
            own = Beat(
                self._process, socket.gethostname(), self._step, time.monotonic() - self._since, share, time.time()
            )
            try:
                self._store.key_value_set(f"{_FOLDER}{self._process}", json.dumps(own), allow_overwrite=True)
                beats = [Beat(*json.loads(value)) for _, value in self._store.key_value_dir_get(_FOLDER)]
            except Exception:  # the other processes are gone, and so will this one be
                return
            found = remarks(beats)
            for remark in found:
                if remark.partition(",")[0] not in named:  # once, until it is over
                    log.warning("%s", remark)
            named = [remark.partition(",")[0] for remark in found]


def remarks(beats: Sequence[Beat]) -> list[str]:
    """A sentence for each process that the others wait for."""
    furthest, latest = max(beat.step for beat in beats), max(beat.time for beat in beats)
    found = []
    for beat in sorted(beats):
        where = f"process {beat.process} of {len(beats)} on {beat.host}"
        if latest - beat.time > _BEHIND:
            found.append(f"{where} is silent, since {latest - beat.time:.0f} s; it was in step {beat.step}")
        elif beat.step < furthest and beat.seconds > _BEHIND:
            progress = f"in step {beat.step} for {beat.seconds:.0f} s; others are in step {furthest}"
            found.append(f"{where} is behind, {progress}")
        elif beat.reading > _READING and any(other.reading < beat.reading / 2 for other in beats):
            found.append(f"{where} is slow, it waits for its data {100 * beat.reading:.0f} % of the time, others less")
    return found


def _client() -> Store | None:
    """The store of this run's processes; None for one process."""
    if jax.process_count() == 1:
        return None
    from jax._src import distributed  # as orbax does; there is no public name for it

    client: Store | None = distributed.global_state.client
    return client
