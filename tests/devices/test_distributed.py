"""Who takes part in a run, as flags, environment and schedulers say it."""

import argparse
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from mgjax.cli import options
from mgjax.devices import distributed

FLAGS = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}
NO_FLAGS = dict.fromkeys(FLAGS)
# What srun sets, as Slurm 23 does, on the second of two nodes.
SLURM = {
    **{"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    **{"SLURM_STEP_NODELIST": "node[07-08]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
}


def find(environ=None, **flags):
    found = distributed.find(**(NO_FLAGS | flags), environ=environ or {})
    return found and found[1]


def test_flags_and_the_environment_say_the_same():
    expected = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 2}
    expected["cluster_detection_method"] = "deactivate"
    assert find(**FLAGS) == expected
    variables = {distributed.VARIABLES[name]: str(value) for name, value in FLAGS.items()}
    assert find(variables) == expected
    assert find(variables | SLURM, process_id=0) == expected | {"process_id": 0}, "a flag goes before a variable"


def test_a_process_that_is_alone_starts_as_ever():
    assert find() is None
    assert find(SLURM, num_processes=1) is None
    assert find(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    code = "import time, sys; from mgjax.devices import distributed; distributed.start(heeds_sigterm=True); import jax"
    code += "; print(jax.distributed.is_initialized(), jax._src.xla_bridge.backends_are_initialized())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"], "and touches no device"
    assert distributed.finish(2) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"process_id": None},
            r"there is --coordinator .* 10.0.0.1:1234, --num-processes .* 4; missing is --process-id",
        ),
        ({"coordinator": None, "num_processes": None}, r"missing is --coordinator .* and --num-processes"),
        ({"process_id": 4}, r"must be from 0 to 3 for 4 processes, got 4"),
        ({"coordinator": "10.0.0.1"}, r"host of process 0 and a free port there, such as .*, got '10.0.0.1'"),
        ({"coordinator": "node1:port"}, r"got 'node1:port'"),
        ({"num_processes": "four"}, r"--num-processes \(JAX_NUM_PROCESSES\) must be a whole number, got 'four'"),
    ],
)
def test_what_is_no_run_is_reported(changes, message):
    with pytest.raises(ValueError, match=message):
        find(**(FLAGS | changes))


def test_slurm_is_found_in_its_steps():
    assert find(SLURM) == {"cluster_detection_method": "slurm"}
    outside = {name: value for name, value in SLURM.items() if "STEP" not in name}
    with pytest.warns(UserWarning, match="has 4 tasks, and this process was not started by srun: it runs alone"):
        assert find(outside) is None


@pytest.mark.parametrize(
    ("visible", "tasks", "expected"),
    [
        ("0,1,2,3", "2(x2)", [2, 3]),  # two tasks share a node of four GPUs
        ("0,1", "2(x2)", [1]),
        ("3", "2(x2)", [0]),  # Slurm has bound one to each
        ("0,1,2,3", "2,4", [1]),
    ],
)
def test_tasks_of_slurm_share_the_gpus_of_their_node(visible, tasks, expected):
    found = find(SLURM | {"CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_TASKS_PER_NODE": tasks})
    assert found["local_device_ids"] == expected


def test_the_only_task_of_a_node_takes_all_its_gpus():
    alone = {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert find(SLURM | alone)["local_device_ids"] == [0, 1, 2, 3]


def test_gpus_that_cannot_be_shared_out_are_reported():
    with pytest.raises(ValueError, match="2 tasks on this node see 3 GPUs"):
        find(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"})


@pytest.mark.parametrize(
    "environ",
    [
        {"TPU_WORKER_HOSTNAMES": "a-0,a-1", "TPU_WORKER_ID": "1"},
        {"TPU_WORKER_HOSTNAMES": "a-0", "MEGASCALE_NUM_SLICES": "2"},
        {"TPU_PROCESS_ADDRESSES": "a-0:8476,a-1:8476"},
    ],
)
def test_slices_on_gke_are_found(environ):
    assert find(environ) == {"cluster_detection_method": "gketpu"}


def test_a_process_0_that_is_not_there_is_reported(monkeypatch):
    monkeypatch.setattr(distributed, "CONNECT_SECONDS", 0)
    with pytest.raises(ValueError, match=r"cannot be reached at localhost:1 for 0 s .*see whether it is running"):
        distributed.start("localhost:1", 2, 1, heeds_sigterm=True)


def test_a_folder_that_other_hosts_do_not_see_is_reported(monkeypatch, tmp_path):
    """As process 0 of two, the other of which has a folder of its own."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda number: number)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: None)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.array([mine, True]))
    distributed.check_shared(tmp_path)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.array([mine, False]))
    with pytest.raises(ValueError, match="not the same folder on all hosts: process 1 does not see"):
        distributed.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [["--num-processes", "4", "--process-id", "2"], ["--num_processes", "4", "--process_id", "2"]]
)
def test_options_in_both_spellings(words):
    parser = argparse.ArgumentParser()
    options.add_host_options(parser)
    found = parser.parse_args(words)
    assert (found.num_processes, found.process_id) == (4, 2)
