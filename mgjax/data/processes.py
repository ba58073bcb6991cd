"""Maps a function over jobs: in this process, in several of this machine, or as an Apache Beam pipeline anywhere."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.connection
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# The jobs' late imports: Beam runs jobs in threads, and concurrent imports may deadlock.
import pyloudnorm  # noqa: F401
import scipy.ndimage
import scipy.signal  # noqa: F401
import soundfile  # noqa: F401
import soxr  # noqa: F401

from mgjax.devices.parent import end_with_parent
from mgjax.errors import CorpusError

_ATTEMPTS = 3  # in a row without progress, each ended by the death of a worker


def run(make: Callable[[Any], None], jobs: Sequence[Any], options: Sequence[str] = ()) -> None:
    """Calls `make` for each job: as a Beam pipeline if there are `options` of one, else in this process."""
    if not options:
        for job in jobs:
            make(job)
    elif jobs:
        with _quiet():
            _run_pipeline(make, jobs, options)


def pipeline(make: Callable[[Any], None], jobs: Sequence[Any], options: Sequence[str]) -> Any:
    """The Apache Beam pipeline that calls `make` for each job, for the runner in the `options`, or Beam's own."""
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    # Beam's default would first look for another runner, and download it.
    runner = None if any(option.startswith("--runner") for option in options) else FnApiRunner()
    made = apache_beam.Pipeline(runner=runner, options=PipelineOptions([*options]))
    # Without the reshuffle, one worker would do all jobs.
    _ = made | apache_beam.Create(jobs) | apache_beam.Reshuffle() | apache_beam.Map(make)
    return made


def _run_pipeline(make: Callable[[Any], None], jobs: Sequence[Any], options: Sequence[str]) -> None:
    failure = None
    try:
        pipeline(make, jobs, options).run().wait_until_finish()
    except Exception as error:
        failure = error
    if failure is not None:
        # Beam wraps the errors of its workers, even Ctrl-C.
        original = failure.__context__ if "[while running" in str(failure) else None
        raise original or failure


def run_apart(make: Callable[[Any], None], missing: Callable[[], Sequence[Any]], workers: int, log: Path) -> None:
    """Calls `make`, which is pickled, in several processes of this machine until no job is `missing`.

    A process that dies is replaced. Their output goes to the file `log`.

    Raises:
      CorpusError: A job failed, or workers die repeatedly.
    """
    log.touch()
    futile = 0
    while jobs := missing():
        if _run_workers([(make, jobs[i::workers], log) for i in range(min(workers, len(jobs)))]):
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise CorpusError(f"the workers failed: {lines[-1]}. All they said is in {log}")
        futile = 0 if len(missing()) < len(jobs) else futile + 1
        if futile == _ATTEMPTS:
            raise CorpusError(
                f"workers died {_ATTEMPTS} times before they finished a shard, perhaps for want of memory: try fewer "
                f"workers. All they said is in {log}; what is done is kept"
            )


def _run_workers(arguments: Sequence[tuple[Callable[[Any], None], Sequence[Any], Path]]) -> bool:
    """Runs a worker with each of `arguments`, until all have ended, or one fails: whether one has failed."""
    # Not forked, as the caller may have threads, such as JAX's.
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=own, daemon=True) for own in arguments]
    try:
        for worker in workers:
            worker.start()
        running = workers
        while running:
            multiprocessing.connection.wait([worker.sentinel for worker in running])
            running = [worker for worker in running if worker.is_alive()]
            if any((worker.exitcode or 0) > 0 for worker in workers):  # below 0 it was killed by a signal
                return True
        return False
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()


def _work(make: Callable[[Any], None], jobs: Sequence[Any], log: Path) -> None:
    """Does `jobs` in a process of its own."""
    end_with_parent()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share the accelerator
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for job in jobs:
        make(job)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Beam, which logs much and adds a handler to the root logger when it is imported."""
    root, beam = logging.getLogger(), logging.getLogger("apache_beam")
    handler, level = logging.NullHandler(), beam.level
    root.addHandler(handler)
    beam.setLevel(logging.CRITICAL)
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        yield
    finally:
        logging.disable(disabled)
        beam.setLevel(level)
        root.removeHandler(handler)
