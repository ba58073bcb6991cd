"""The toy's run by several processes, each with some of the devices, which come to grief where they are told to.

As a script it runs what test_many_processes.py asks for. Every process is a fork of this one, which has imported
everything and started nothing.
"""

import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time

import numpy as np
import toy_task

from mgjax.devices import distributed, sharding
from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.train.loop import LoopConfig, fit

HEARTBEAT_SECONDS = 10
LIMIT_SECONDS = 240


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in `workdir`, a path or an address, and what happens to one of its processes after some updates.

    The output of the processes goes to files that begin with `logs` (None: as `workdir`). With a folder `local`, there
    are checkpoints of each step in it. It goes on from what is there, or else from all but the last checkpoint of the
    finished run in `begun`.
    """

    workdir: str
    processes: int
    mesh: tuple[int, int, int] = (1, 2, 2)
    trouble: str = "nothing"
    process: int = 1
    moment: int = -1
    begun: str | None = None
    logs: str | None = None
    local: str | None = None


CONFIG = LoopConfig(steps=12, log_every=2, eval_every=6, show_every=6, save_every=4)
DEVICES = 4


class Rows:
    """The rows of this process of all batches."""

    def __init__(self, batches, rows):
        self.batches, self.rows = batches, rows
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __iter__(self):
        return self

    def __next__(self):
        return {name: array[self.rows] for name, array in next(self.batches).items()}


class Slow(toy_task.Interrupted):
    """Batches that take so long that there is time to agree."""

    def __next__(self):
        time.sleep(0.6)
        return super().__next__()


def child(run: Run, process: int, port: int) -> None:
    """One of the processes."""
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={DEVICES // run.processes}"  # the last counts
    distributed.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    if run.processes > 1:
        distributed.start(f"localhost:{port}", run.processes, process, heeds_sigterm=True)
    mesh = sharding.make_mesh(*run.mesh)
    rows = sharding.local_rows(toy_task.ROWS, mesh)

    def save(state, directory):
        whole = sharding.on_host(state)
        if process == 0:
            paths.make_folder(directory)
            with files.replacing(directory / "state.npz") as file:
                np.savez(file, **toy_task.arrays(whole))

    kind = Slow if run.trouble == "stopped" else toy_task.Interrupted
    data = kind(run.moment if process == run.process else -1, ACTIONS[run.trouble])
    task = dataclasses.replace(toy_task.task(), save=save)
    config = CONFIG if run.local is None else dataclasses.replace(CONFIG, local_every=1, local_folder=run.local)
    state = fit(task, Rows(data, rows), lambda: Rows(toy_task.valid(), rows), config, run.workdir, mesh=mesh)
    print(f"ended after update {int(state.step)}", flush=True)


def fail() -> None:
    raise RuntimeError("no such shard")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


ACTIONS = {
    "nothing": None,
    "killed": functools.partial(send, signal.SIGKILL),
    "frozen": functools.partial(send, signal.SIGSTOP),
    "stopped": functools.partial(send, signal.SIGTERM),
    "fails": fail,
}


def play(run: Run) -> dict:
    """The exit status of each process, and how long each went on after the first had failed."""
    if run.begun is not None:
        shutil.copytree(run.begun, run.workdir)
        shutil.rmtree(f"{run.workdir}/checkpoints/{CONFIG.steps}")
    port = free_port()
    started = {}
    for process in range(run.processes):
        pid = os.fork()
        if not pid:
            log = os.open(f"{run.logs or run.workdir}.log.{process}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                child(run, process, port)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            sys.exit()
        started[pid] = process
    statuses, ended = {}, {}
    timer = threading.Timer(LIMIT_SECONDS, lambda: [os.kill(pid, signal.SIGKILL) for pid in started])
    timer.start()
    while started:
        if run.trouble == "frozen" and list(started.values()) == [run.process]:
            os.kill(next(iter(started)), signal.SIGKILL)
        pid, status = os.wait()
        process = started.pop(pid)
        statuses[process], ended[process] = os.waitstatus_to_exitcode(status), time.monotonic()
    timer.cancel()
    failed = min((ended[process] for process, status in statuses.items() if status), default=0.0)
    after = [round(ended[process] - failed, 1) if failed else 0.0 for process in range(run.processes)]
    return {"statuses": [statuses[process] for process in range(run.processes)], "after": after}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    for run in json.loads(sys.argv[1]):
        print(json.dumps(play(Run(**run))), flush=True)
