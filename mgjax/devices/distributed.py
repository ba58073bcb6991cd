"""Many processes as one run: how they find each other when they start, and leave when one of them fails.

Every host runs the same command. On TPU slices, on GKE and under Slurm it is known who takes part; plain hosts are told
by flags, or by the environment. A process that is alone starts as if this were not here.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# How long a host may take to start after the first one: that of the slowest to be given by the scheduler.
CONNECT_SECONDS = 600
# A host that is not heard of for so long is lost, and the others end. They would wait for it for ever otherwise.
HEARTBEAT_SECONDS = 60
# How long those that are done wait at the end for one that is still writing the model.
LEAVE_SECONDS = 3600

# How long a file that one host has written may be unseen by another: shared file systems keep listings for a while.
_UNSEEN_SECONDS = 60

# The flags of the scripts, and what they are called in the environment.
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
    """Joins the other processes of this run, if there are any. To be called before anything touches a device.

    Args:
      coordinator: The host of process 0 and a free port there, "10.0.0.1:1234". None, here and below: as the
        environment says, or as the scheduler is known to have it.
      num_processes: How many there are; 1 for this one alone, whatever the scheduler says.
      process_id: Which one this is, from 0.
      heeds_sigterm: Whether the work asks for notices itself (`multihost_utils.reached_preemption_sync_point`), so that
        SIGTERM ends nothing by itself.

    Raises:
      ValueError: What was found does not describe a run, or process 0 cannot be reached.
    """
    found = find(coordinator, num_processes, process_id, os.environ)
    if found is None:
        return
    by, arguments = found
    _say(f"joins the other processes (by {by}), for which it waits up to {CONNECT_SECONDS} s")
    if arguments.get("process_id"):
        _reach(arguments["coordinator_address"])
    import jax

    jax.config.update("jax_enable_preemption_service", heeds_sigterm)
    jax.distributed.initialize(
        **arguments,
        initialization_timeout=CONNECT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
    )
    _say(f"is process {jax.process_index()} of {jax.process_count()}")
    tell = sys.excepthook

    def tell_and_leave(*error: Any) -> None:
        tell(*error)
        finish(1)

    sys.excepthook = tell_and_leave


def finish(status: int) -> int:
    """The exit status of this process, which ends here and now if it failed as one of many.

    Python's way out waits for the other processes, and these may be waiting for this one.
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


def check_shared(folder: Path) -> None:
    """Makes sure that `folder`, which is there, is one and the same on all hosts.

    Raises:
      ValueError: It is not.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    mark = folder / f".shared-{multihost_utils.broadcast_one_to_all(np.uint32(random.getrandbits(32)))}"
    if first:
        mark.touch()
    multihost_utils.sync_global_devices("the mark is there")
    seen = multihost_utils.process_allgather(np.array(wait_until(mark.exists)))
    if first:
        mark.unlink()
    if not np.all(seen):
        raise ValueError(
            f"{folder} is not the same folder on all hosts: process {np.argmin(seen)} does not see what process 0 "
            "writes there. Give a folder of a file system that all of them share (NFS, Lustre, Filestore, gcsfuse)"
        )


def wait_until(there: Callable[[], bool], seconds: float = _UNSEEN_SECONDS) -> bool:
    """Whether what another host has written is `there` by now, or a little later."""
    until = time.monotonic() + seconds
    while not there():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> tuple[str, dict[str, Any]] | None:
    """What says that this is one process of many, and the arguments for `jax.distributed.initialize`; None if alone.

    Raises:
      ValueError: What was found contradicts itself, or is not all of it.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    given = {name: environ.get(VARIABLES[name]) if value is None else value for name, value in given.items()}
    if any(value is not None for value in given.values()):
        return _given(given)
    if "SLURM_JOB_ID" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1:
        return _slurm(environ)
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in workers or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "TPU_WORKER_HOSTNAMES, as GKE sets it", {"cluster_detection_method": "gketpu"}
    if not workers and _on_tpu_vm():
        return "the metadata of this TPU VM", {"cluster_detection_method": "gcetpu"}
    return None


def _given(given: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """As `find`, from flags and the environment."""
    numbers = {}
    for name in ("num_processes", "process_id"):
        try:
            numbers[name] = None if given[name] is None else int(given[name])
        except ValueError:
            raise ValueError(f"{_name(name)} must be a whole number, got {given[name]!r}") from None
    count, index = numbers["num_processes"], numbers["process_id"]
    if count == 1:
        return None
    missing = [_name(name) for name, value in given.items() if value is None]
    if missing:
        there = ", ".join(f"{_name(name)} {value}" for name, value in given.items() if value is not None)
        raise ValueError(
            f"there is {there}; missing is {' and '.join(missing)}. Each process of a run on several hosts is told the "
            "host of process 0 and a free port there, how many processes there are, and which one it is, from 0"
        )
    if not 0 <= index < count:
        raise ValueError(f"{_name('process_id')} must be from 0 to {count - 1} for {count} processes, got {index}")
    host, _, port = given["coordinator"].rpartition(":")
    if not (host and port.isdecimal()):
        raise ValueError(
            f"{_name('coordinator')} must be the host of process 0 and a free port there, such as 10.0.0.1:1234, got "
            f"{given['coordinator']!r}"
        )
    arguments = {"coordinator_address": given["coordinator"], "num_processes": count, "process_id": index}
    return f"flags: {index} of {count} at {host}:{port}", arguments | {"cluster_detection_method": "deactivate"}


def _slurm(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """As `find`, in a job of Slurm with several tasks."""
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
        arguments["local_device_ids"] = _share(len(visible.split(",")), environ)
    return f"Slurm: {environ.get('SLURM_PROCID')} of {environ['SLURM_NTASKS']}", arguments


def _share(num_gpus: int, environ: Mapping[str, str]) -> list[int]:
    """Which of the GPUs that it sees a task of Slurm takes: all where it is the only task of the node."""
    tasks, node = [], int(environ.get("SLURM_NODEID", 0))
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):  # "4(x2),3" is 4 on two nodes, then 3
        count, _, times = part.partition("(x")
        tasks += [int(count)] * int(times.rstrip(")") or 1)
    here, index = tasks[node], int(environ.get("SLURM_LOCALID", 0))
    if num_gpus == 1:  # bound to it
        return [0]
    if num_gpus % here:
        raise ValueError(
            f"{here} tasks on this node see {num_gpus} GPUs, which cannot be shared out evenly: ask Slurm for as many "
            "tasks as GPUs (--ntasks-per-node), or for one"
        )
    each = num_gpus // here
    return list(range(index * each, (index + 1) * each))


def _on_tpu_vm() -> bool:
    """Whether this machine has TPUs that are to be used, and Google's server of metadata."""
    import jax  # which says that there is no such server where there are no TPUs

    return "tpu" in (jax.config.jax_platforms or "") and "TPU_SKIP_MDS_QUERY" not in os.environ


def _reach(address: str) -> None:
    """Returns when process 0 can be reached at `address`. JAX would abort the process without a word of this."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"process 0 cannot be reached at {address} for {CONNECT_SECONDS} s ({error}): see whether it is "
                    "running, whether this is its address, and whether that port is open between the hosts"
                ) from error
        time.sleep(0.5)


def _name(flag: str) -> str:
    return f"--{flag.replace('_', '-')} ({VARIABLES[flag]})"


def _say(message: str) -> None:
    print(f"mgjax: {socket.gethostname()} {message}", file=sys.stderr, flush=True)
