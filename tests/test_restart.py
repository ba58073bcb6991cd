"""launch/restart.sh runs a command again until it is done."""

import os
import signal
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "launch" / "restart.sh"

# Ends with the statuses in the file, one after the other, and notes each time.
COMMAND = 'read status < todo; sed -i 1d todo; echo "$status" >> done; exit "$status"'


def run(folder, *statuses):
    (folder / "todo").write_text("".join(f"{status}\n" for status in statuses))
    environ = {**os.environ, "RESTART_PAUSE": "0"}
    result = subprocess.run(
        [SCRIPT, "bash", "-c", COMMAND], cwd=folder, env=environ, capture_output=True, text=True, timeout=30
    )
    return result, (folder / "done").read_text().split()


def test_it_is_run_until_it_is_done(tmp_path):
    result, seen = run(tmp_path, 75, 1, 137, 0, 1)
    assert (result.returncode, seen) == (0, ["75", "1", "137", "0"])
    assert result.stderr.splitlines() == [
        "restart: it was stopped, and is run again",
        "restart: it ended with status 1, and is run again in 0 s",
        "restart: it ended with status 137, and is run again in 0 s",
    ]


def test_a_mistake_ends_it(tmp_path):
    result, seen = run(tmp_path, 1, 2, 0)
    assert (result.returncode, seen) == (2, ["1", "2"])


def test_sigterm_is_handed_on_and_ends_it(tmp_path):
    command = "trap 'echo stopped >> done; exit 75' TERM; touch ready; while :; do sleep 0.05; done"
    with subprocess.Popen([SCRIPT, "bash", "-c", command], cwd=tmp_path) as process:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
    assert (tmp_path / "done").read_text() == "stopped\n"


def test_sigterm_in_a_pause_ends_it(tmp_path):
    environ = {**os.environ, "RESTART_PAUSE": "100"}
    with subprocess.Popen([SCRIPT, "false"], stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert "run again in 100 s" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1
