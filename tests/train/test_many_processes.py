"""Several processes learn what one learns, stop together, and go on from what any number of them has written.

benchmarks/hosts.py does the same at length, by the real scripts.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "toy_hosts.py"
ACROSS = (1, 2, 2)  # data, fsdp and model: over two processes fsdp goes between them, over four model does too

RUNS = {
    "one": {"processes": 1},
    "two": {"processes": 2},
    "killed": {"processes": 2, "trouble": "killed", "moment": 7},
    "stopped": {"processes": 2, "trouble": "stopped", "moment": 7, "workdir": "killed"},
    "rest": {"processes": 2, "workdir": "killed"},
    "four": {"processes": 4},
    "four, then one": {"processes": 1, "begun": "four"},
    "four, then two": {"processes": 2, "begun": "four"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, and what became of their processes."""
    folder = tmp_path_factory.mktemp("hosts")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    asked = [{"workdir": name, "mesh": ACROSS} | run for name, run in RUNS.items()]
    asked = [run | {key: str(folder / run[key]) for key in ("workdir", "begun") if key in run} for run in asked]
    command = [sys.executable, SCRIPT, json.dumps(asked)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said, _ = process.communicate(timeout=540)
    finally:
        with contextlib.suppress(ProcessLookupError):  # where all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
    found = dict(zip(RUNS, map(json.loads, said.splitlines()), strict=False))
    logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log.*")))
    assert found.keys() == RUNS.keys(), logs
    for name, run in found.items():
        assert set(run["statuses"]) == {0} or name == "killed", (name, run, logs)
    return folder, found


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def nearly_equal(one, other):
    """Measured: 2e-7."""
    assert [(line["step"], line["split"]) for line in one] == [(line["step"], line["split"]) for line in other]
    for line, like in zip(one, other, strict=True):
        assert line["values"] == pytest.approx(like["values"], rel=1e-5)


@pytest.mark.parametrize("name", ["two", "four"])
def test_processes_learn_together_what_one_learns(runs, name):
    folder, _ = runs
    nearly_equal(lines(folder / name), lines(folder / "one"))
    several, one = (np.load(folder / run / "model" / "state.npz") for run in (name, "one"))
    for path in one.files:
        np.testing.assert_allclose(several[path], one[path], atol=1e-5, err_msg=path)


def test_a_run_that_is_killed_and_stopped_ends_with_the_same_bits(runs):
    folder, found = runs
    assert found["killed"]["statuses"][1] == -signal.SIGKILL
    assert found["killed"]["statuses"][0] != 0, "the other one ends too"
    assert found["killed"]["after"][0] < 30, "and soon"  # measured 0.2; 8 where a checkpoint was being written
    ended = [re.findall(r"ended after update (\d+)", (folder / f"killed.log.{i}").read_text()) for i in range(2)]
    assert ended[0] == ended[1], "after the same update, though one alone was told to stop"
    assert 7 <= int(ended[0][0]) < int(ended[0][1]) == 12
    assert "goes on from the checkpoint of step " + ended[0][0] in (folder / "killed.log.0").read_text()
    for name in ("model", "best"):
        whole, killed = (np.load(folder / run / name / "state.npz") for run in ("two", "killed"))
        assert all(whole[path].tobytes() == killed[path].tobytes() for path in whole.files)
    clocks = [line.pop("clock") for run in ("two", "killed") for line in lines(folder / run)]
    assert len(clocks) == 2 * 8, "each line is there once"


@pytest.mark.parametrize("name", ["four, then one", "four, then two"])
def test_what_four_processes_have_written_others_go_on_from(runs, name):
    folder, _ = runs
    assert "goes on from the checkpoint of step 8" in (folder / f"{name}.log.0").read_text()
    nearly_equal(lines(folder / name), lines(folder / "four"))
