"""Runs on many processes: how they connect at the start, and end together when one of them fails.

Every host runs the same command. On TPU slices, on GKE and under Slurm the processes are detected; elsewhere flags or
environment variables describe them. For a single process this does nothing.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from mgjax.storage.paths import Path

# How long a process waits for the last host to start, which the scheduler may provide late.
CONNECT_SECONDS = 600
# Without a heartbeat for so long a host is lost, and the others end instead of waiting for ever.
HEARTBEAT_SECONDS = 60
# How long processes wait at the end for the one that still writes the model.
LEAVE_SECONDS = 3600

# How long a file of another host may stay invisible: shared file systems cache listings.
_LONGEST_MESSAGE = 1000  # bytes
_UNSEEN_SECONDS = 60

# Flag -> environment variable.
VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heeds_sigterm: bool,
) -> None:
    """Initializes `jax.distributed` if this is one of several processes; to be called before JAX uses a device.

    Process 0 listens at `coordinator`, its host and a free port on it ("10.0.0.1:1234"). Each of the three that is None
    is read from the environment or the scheduler; `num_processes` 1 is a run on its own, whatever the scheduler says. A
    run that checks for preemption itself (`multihost_utils.reached_preemption_sync_point`) `heeds_sigterm`, which must
    not end the process.

    Raises ValueError if the settings are incomplete or contradict each other, or process 0 cannot be reached.
    """
    detected = find(coordinator, num_processes, process_id, os.environ)
    if detected is None:
        return
    origin, arguments = detected
    _say(f"joins the other processes (by {origin}), for which it waits up to {CONNECT_SECONDS} s")
    if arguments.get("process_id"):
        _wait_for_coordinator(arguments["coordinator_address"])
    import jax

    jax.config.update("jax_enable_preemption_service", heeds_sigterm)
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=CONNECT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
    )
    _say(f"is process {jax.process_index()} of {jax.process_count()}")
    print_error = sys.excepthook

    def print_and_exit(*error: Any) -> None:
        print_error(*error)
        finish(1)

    sys.excepthook = print_and_exit


def finish(status: int) -> int:
    """The exit status of this process, which exits at once if it failed as one of several.

    A regular exit would wait for the other processes, and these may be waiting for this one.
    """
    jax = sys.modules.get("jax")
    if status and jax and jax.distributed.is_initialized():
        _say(
            f"ends with status {status}, and the other processes end with it, at the latest {HEARTBEAT_SECONDS} s from "
            "now. Started again, all go on from what is kept"
        )
        sys.stdout.flush()
        os._exit(status)
    return status


def on_all(check: Callable[[], None]) -> None:
    """Calls `check` on every process. Where it raises OSError on some, all raise, and say on which host it was first.

    Raises OSError.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    problem: OSError | None = None
    try:
        check()
    except OSError as error:
        problem = error
    if jax.process_count() > 1:
        text = np.zeros(_LONGEST_MESSAGE, np.uint8)
        if problem is not None:
            line = np.frombuffer(f"{socket.gethostname()}: {problem}".encode()[:_LONGEST_MESSAGE], np.uint8)
            text[: len(line)] = line
        texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(text)]
        failed = [index for index, line in enumerate(texts) if line]
        if failed and problem is None:
            raise OSError(f"process {failed[0]} of {len(texts)}, on {texts[failed[0]]}")
    if problem is not None:
        raise problem


def check_shared(folder: Path) -> None:
    """Raises ValueError unless the existing `folder` is the same one on all hosts."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    mark = folder / f".shared-{multihost_utils.broadcast_one_to_all(np.uint32(random.getrandbits(32)))}"
    if first:
        mark.touch()
    multihost_utils.sync_global_devices("the mark is written")
    seen = multihost_utils.process_allgather(np.array(wait_until(mark.exists)))
    if first:
        mark.unlink()
    if not np.all(seen):
        raise ValueError(
            f"{folder} is not the same folder on all hosts: process {np.argmin(seen)} does not see what process 0 "
            "writes there. Give a folder of a file system that all of them share (NFS, Lustre, Filestore, gcsfuse)"
        )


def wait_until(is_visible: Callable[[], bool], seconds: float = _UNSEEN_SECONDS) -> bool:
    """Whether the files of another host are visible (`is_visible`) within `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_visible():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> tuple[str, dict[str, Any]] | None:
    """The origin of the settings, for messages, and the arguments of `jax.distributed.initialize`.

    None for a single process. Raises ValueError if the settings are incomplete or contradict each other.
    """
    settings: dict[str, Any] = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    settings = {name: environ.get(VARIABLES[name]) if value is None else value for name, value in settings.items()}
    if any(value is not None for value in settings.values()):
        return _explicit(settings)
    if "SLURM_JOB_ID" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1:
        return _slurm(environ)
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in workers or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "TPU_WORKER_HOSTNAMES, as GKE sets it", {"cluster_detection_method": "gketpu"}
    if not workers and _on_tpu_vm():
        return "the metadata of this TPU VM", {"cluster_detection_method": "gcetpu"}
    return None


def _explicit(settings: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """`find` from flags and the environment."""

    def integer(name: str) -> int:
        try:
            return -1 if settings[name] is None else int(settings[name])
        except ValueError:
            raise ValueError(f"{_name(name)} must be a whole number, got {settings[name]!r}") from None

    count, index = integer("num_processes"), integer("process_id")
    if count == 1:
        return None
    missing = [_name(name) for name, value in settings.items() if value is None]
    if missing:
        present = ", ".join(f"{_name(name)} {value}" for name, value in settings.items() if value is not None)
        raise ValueError(
            f"there is {present}; missing is {' and '.join(missing)}. Each process of a run on several hosts needs the "
            "host of process 0 and a free port there, the number of processes, and its own index, from 0"
        )
    if not 0 <= index < count:
        raise ValueError(f"{_name('process_id')} must be from 0 to {count - 1} for {count} processes, got {index}")
    host, _, port = settings["coordinator"].rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError(
            f"{_name('coordinator')} must be the host of process 0 and a free port there, such as 10.0.0.1:1234, got "
            f"{settings['coordinator']!r}"
        )
    arguments = {"coordinator_address": settings["coordinator"], "num_processes": count, "process_id": index}
    return f"flags: {index} of {count} at {host}:{port}", arguments | {"cluster_detection_method": "deactivate"}


def _slurm(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """`find` in a Slurm job with several tasks."""
    if "SLURM_STEP_NODELIST" not in environ:
        warnings.warn(
            f"this job of Slurm has {environ['SLURM_NTASKS']} tasks, and this process was not started by srun: it runs "
            "alone. For all of them, put srun before the command",
            stacklevel=4,
        )
        return None
    arguments: dict[str, Any] = {"cluster_detection_method": "slurm"}
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        arguments["local_device_ids"] = _local_gpus(len(visible.split(",")), environ)
    return f"Slurm: {environ.get('SLURM_PROCID')} of {environ['SLURM_NTASKS']}", arguments


def _local_gpus(num_gpus: int, environ: Mapping[str, str]) -> list[int]:
    """The indices of the visible GPUs that this Slurm task uses: an even share of those of its node."""
    tasks, node = [], int(environ.get("SLURM_NODEID", 0))
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):  # "4(x2),3" is 4 on two nodes, then 3
        count, _, times = part.partition("(x")
        tasks += [int(count)] * int(times.rstrip(")") or 1)
    num_tasks, index = tasks[node], int(environ.get("SLURM_LOCALID", 0))
    if num_gpus == 1:  # bound to it
        return [0]
    if num_gpus % num_tasks:
        raise ValueError(
            f"{num_tasks} tasks on this node see {num_gpus} GPUs, which cannot be shared out evenly: ask Slurm for as "
            "many tasks as GPUs (--ntasks-per-node), or for one"
        )
    each = num_gpus // num_tasks
    return list(range(index * each, (index + 1) * each))


def _on_tpu_vm() -> bool:
    """Whether this is a TPU VM with Google's metadata server, and its TPUs are to be used."""
    import jax  # sets TPU_SKIP_MDS_QUERY where there are no TPUs

    platforms = jax.config.jax_platforms  # type: ignore[attr-defined] # jax's flags are defined at run time
    return "tpu" in (platforms or "") and "TPU_SKIP_MDS_QUERY" not in os.environ


def _wait_for_coordinator(address: str) -> None:
    """Returns when process 0 can be reached at `address`; JAX would abort the process without saying why."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"process 0 cannot be reached at {address} for {CONNECT_SECONDS} s ({error}): see whether it is "
                    "running, whether this is its address, and whether that port is open between the hosts"
                ) from error
        time.sleep(0.5)


def _name(flag: str) -> str:
    return f"--{flag.replace('_', '-')} ({VARIABLES[flag]})"


def _say(message: str) -> None:
    print(f"mgjax: {socket.gethostname()} {message}", file=sys.stderr, flush=True)
