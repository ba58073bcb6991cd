"""Runs code in a process of its own, such as that of another version of mgjax, to take turns with it."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class Side:
    """A process that reads lines of JSON, and answers each with one."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def __call__(self, request: Any = None) -> Any:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended, and says why above")
        return json.loads(answer)


@contextlib.contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator[Side]:
    """Runs the command with the code in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=folder, env=environment) as process:
        yield Side(process)
        process.stdin.close()
