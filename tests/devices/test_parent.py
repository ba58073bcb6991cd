import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, os, signal, time
from mgjax.devices.parent import end_with_parent

def work(mark):
    print("at work", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    pool = multiprocessing.get_context("spawn").Pool(1, end_with_parent)
    pool.imap(work, [0])
    time.sleep(60)
"""


def test_a_process_ends_at_once_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGKILL)
        # The pipe has its end when nobody holds it any more, and the worker holds it.
        rest, _ = process.communicate(timeout=20)
    assert rest == ""
