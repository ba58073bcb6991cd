"""Maps a function over jobs as an Apache Beam pipeline: in this process, in several of this machine, or elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# The jobs' late imports: Beam runs jobs in threads, and concurrent imports may deadlock.
import pyloudnorm  # noqa: F401
import scipy.ndimage
import scipy.signal  # noqa: F401
import soundfile  # noqa: F401
import soxr  # noqa: F401

from mgjax.errors import CorpusError

_ATTEMPTS = 3  # in a row without progress, each ended by the death of a worker
_WORKER_DIED = 75  # exit status of the process that runs the workers


def run(make: Callable[[Any], None], jobs: Sequence[Any], options: Sequence[str] = ()) -> None:
    """Calls `make` for each job in a Beam pipeline with `options`; without any, in this process."""
    if not jobs:
        return
    with _quiet():
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner

        local = ["--direct_running_mode=in_memory"]
        # Beam's default would first look for another runner, and download it.
        runner = None if any(option.startswith("--runner") for option in options) else FnApiRunner()
        pipeline = apache_beam.Pipeline(runner=runner, options=PipelineOptions([*(options or local)]))
        # Without the reshuffle, one worker would do all jobs.
        _ = pipeline | apache_beam.Create(jobs) | apache_beam.Reshuffle() | apache_beam.Map(make)
        failure = None
        try:
            pipeline.run().wait_until_finish()
        except Exception as error:
            failure = error
        if failure is not None:
            # Beam wraps the errors of its workers, even Ctrl-C.
            original = failure.__context__ if "[while running" in str(failure) else None
            raise original or failure


def run_apart(make: Callable[[Any], None], missing: Callable[[], Sequence[Any]], workers: int, log: Path) -> None:
    """Calls `make`, which is pickled, in several processes of this machine until no job is `missing`.

    Beam's direct runner hangs when one of its processes dies. So it runs in a process of its own, which exits as soon
    as that happens, and another one is started for the missing jobs. Their output goes to the file `log`.

    Raises:
      CorpusError: A job failed, or workers die repeatedly.
    """
    futile = 0
    while jobs := missing():
        status = _run_process(make, jobs, workers, log)
        if status > 0 and status != _WORKER_DIED:  # below 0 it was killed by a signal
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise CorpusError(f"the workers failed: {lines[-1]}. All they said is in {log}")
        futile = 0 if len(missing()) < len(jobs) else futile + 1
        if futile == _ATTEMPTS:
            raise CorpusError(
                f"workers died {_ATTEMPTS} times before they finished a shard, perhaps for want of memory: try fewer "
                f"workers. All they said is in {log}; what is done is kept"
            )


def _run_process(make: Callable[[Any], None], jobs: Sequence[Any], workers: int, log: Path) -> int:
    """Runs jobs in a process with workers, which all end when this process does; returns its exit status."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes share the accelerator
    }
    command = [sys.executable, "-c", "from mgjax.data import processes; processes._serve()"]
    with log.open("ab") as output, tempfile.NamedTemporaryFile("w") as options:
        # Beam's workers import these before they start the threads that unpickle the jobs.
        plugins = [name for name in sys.modules if name.startswith("mgjax.data.")]
        plugins += ["mgjax.data.first_program"] * ("mgjax.data.tokenize" in plugins)
        json.dump({"beam_plugins": plugins}, options)
        options.flush()
        environment["PIPELINE_OPTIONS_FILE"] = options.name
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once; the log says why
                pickle.dump((make, list(jobs), workers), process.stdin)
                process.stdin.flush()
            return process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _serve() -> None:
    """The main function of the process that `_run_process` starts."""
    make, jobs, workers = pickle.load(sys.stdin.buffer)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    def end_with_worker(failure: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(failure)
        if failure.thread is not None and failure.thread.name == "run_worker":  # Beam's, one for each worker
            os._exit(_WORKER_DIED)

    threading.Thread(target=end_with_parent, daemon=True).start()
    threading.excepthook = end_with_worker
    status = 1
    try:
        run(make, jobs, ["--direct_running_mode=multi_processing", f"--direct_num_workers={min(workers, len(jobs))}"])
        status = 0
    except Exception as error:
        traceback.print_exc()
        # A worker's traceback is one text whose last line is its error, followed by Beam's name of the step.
        print(str(error).strip().split("\n")[-1].partition(" [while running")[0], file=sys.stderr, flush=True)
    finally:
        os._exit(status)  # Beam's threads may linger


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
