"""Two processes whose run is in a bucket, killed and started again, with and without the local disk of one."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from mgjax.train import lines

SCRIPT = Path(__file__).parents[1] / "train" / "toy_hosts.py"


def play(environ, *runs):
    """Runs of two processes each, by the script of tests/train; the exit statuses of each."""
    environment = {**os.environ, **environ, "JAX_PLATFORMS": "cpu"}
    asked = [{"processes": 2, "mesh": (1, 2, 2)} | run for run in runs]
    command = [sys.executable, SCRIPT, json.dumps(asked)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return [json.loads(line)["statuses"] for line in result.stdout.splitlines()]


def test_two_hosts_in_a_bucket_do_as_on_a_shared_disk(gcs, s3, tmp_path):
    """One goes on from both local disks; of the other, one disk is lost, and it goes on from the bucket."""
    environ = {**gcs.environ, **s3.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
    disk = {"workdir": str(tmp_path / "disk")}
    remote = {
        name: {"workdir": f"{bucket.url}/run", "logs": str(tmp_path / name), "local": str(tmp_path / f"{name}-local")}
        for name, bucket in (("gcs", gcs), ("s3", s3))
    }
    killed = {"trouble": "killed", "moment": 8}
    statuses = play(environ, disk, *(run | killed for run in remote.values()))
    assert statuses[0] == [0, 0]
    assert all(status[1] == -9 for status in statuses[1:])
    for name in remote:
        own = sorted(Path(remote[name]["local"]).glob("checkpoints/*/process-*"))
        assert [folder.name for folder in own] == ["process-00000", "process-00001"]
        assert all((folder / "7" / "record.json").is_file() for folder in own)
    shutil.rmtree(own[1])  # of s3

    assert play(environ, *remote.values()) == [[0, 0], [0, 0]]
    said = {name: "".join(path.read_text() for path in tmp_path.glob(f"{name}.log.*")) for name in remote}
    assert re.search(r"goes on from the checkpoint of step [78]\b", said["gcs"])
    assert re.search(r"goes on from the checkpoint of step [468]\b", said["s3"])

    def without_clock(workdir):
        return [{name: line[name] for name in ("step", "split", "values")} for line in lines.read(workdir)]

    for bucket in (gcs, s3):
        written = bucket.objects()
        for name in ("model", "best"):
            found = dict(np.load(io.BytesIO(written[f"run/{name}/state.npz"])))
            expected = dict(np.load(tmp_path / "disk" / name / "state.npz"))
            assert found.keys() == expected.keys()
            assert all(found[path].tobytes() == expected[path].tobytes() for path in expected)
        assert without_clock(f"{bucket.url}/run") == without_clock(tmp_path / "disk")
        steps = {name.split("/")[2] for name in written if name.startswith("run/checkpoints/")}
        assert {step for step in steps if step.isdecimal()} == {
            p.name for p in (tmp_path / "disk/checkpoints").iterdir()
        }
        assert not [name for name in written if ".shared-" in name or ".mgjax-" in name]
