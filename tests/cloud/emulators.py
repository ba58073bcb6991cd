"""Emulators of Google's and Amazon's buckets, in memory, each a process in an environment of its own.

The environment is made once for a user: what the emulators need does not go together with what mgjax needs.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

HERE = Path(__file__).parent


def environment() -> Path:
    """The Python that has the packages of requirements.txt, installed when it is asked for the first time."""
    requirements = HERE / "requirements.txt"
    key = hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()[:12]
    cache = platformdirs.user_cache_path("mgjax-tests")
    folder = cache / f"emulators-{key}"
    # An environment knows its own path: it is made where it stays, and the marker, written last, says that it is whole.
    marker = folder / "installed"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"emulators-{key}.lock"):
        if not marker.exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True, symlinks=os.name != "nt")
            pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "-r", requirements], check=True)
            marker.touch()
    return python


@contextlib.contextmanager
def _serve(kind: str) -> Iterator[str]:
    python = environment()
    with tempfile.TemporaryFile("w+") as errors:
        # -I: what the tests set (PYTHONPATH) is not meant for the emulators.
        command = [python, "-I", HERE / "serve.py", kind, str(os.getpid())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            port = process.stdout.readline().strip()
            if not port:
                process.wait()
                errors.seek(0)
                raise RuntimeError(f"the emulator of {kind} did not start:\n{errors.read()}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def gcs() -> contextlib.AbstractContextManager[str]:
    """The URL of an emulator of Google Cloud Storage, which runs as long as the context. It knows no preconditions."""
    return _serve("gcs")


def s3() -> contextlib.AbstractContextManager[str]:
    """The URL of an emulator of Amazon S3, which runs as long as the context."""
    return _serve("s3")
