"""Real processes that come to grief, and go on with the same command: nothing shows it in the end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "toy_task.py"

# What happens to each of the processes, which validate after updates 6 and 12, and write checkpoints after every third
# and the last. What is not written to the end counts for nothing.
TROUBLES = [
    ("killed after", 2),
    ("killed when writing", 6),
    ("disk full after", 9),
    ("killed after", 10),
    ("hangs before", 13),
    ("killed when writing", 14),
    ("killed when saving", 0),
    ("nothing", 0),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of a run that nobody disturbed and of one that was killed again and again."""
    whole, killed, cache = (tmp_path_factory.mktemp(name) for name in ("whole", "killed", "cache"))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    children = [(str(whole), "nothing", 0), *((str(killed), *trouble) for trouble in TROUBLES)]
    command = [sys.executable, SCRIPT, json.dumps(children)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    codes = [int(line) for line in result.stdout.split()]
    assert codes == [0, -9, -9, 1, -9, 1, -9, -9, 0], result.stderr
    assert re.search(r"could not be written .* last good one is that of step (6|9)\. ", result.stderr), result.stderr
    hung = result.stderr.split("Timeout (0:00:0")[1]
    assert re.search(r'toy_task\.py", line \d+ in hang\n.*loop\.py", line \d+ in fit', hung, re.DOTALL), result.stderr
    # Checkpoints are written in the background, so that of step 9 may be there or not when its process ends.
    resumed = [int(step) for step in re.findall(r"goes on from the checkpoint of step (\d+)", result.stderr)]
    assert resumed in ([3, 6, 6, 12, 12, 14], [3, 6, 9, 12, 12, 14], [3, 9, 9, 12, 12, 14]), result.stderr
    return whole, killed


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        assert line.pop("clock")["time"] > 0
    return found


@pytest.mark.parametrize("name", ["model", "best"])
def test_the_state_has_the_same_bits(runs, name):
    whole, killed = (np.load(workdir / name / "state.npz") for workdir in runs)
    assert whole.files == killed.files
    for path in whole.files:
        assert whole[path].tobytes() == killed[path].tobytes(), path


def test_metrics_are_the_same(runs):
    whole, killed = map(lines, runs)
    assert whole == killed
    assert [line["step"] for line in whole] == [2, 4, 6, 6, 8, 10, 12, 12, 14, 14]


def test_the_same_checkpoints_are_left(runs):
    whole, killed = ({path.name for path in (workdir / "checkpoints").iterdir()} for workdir in runs)
    assert whole == killed
