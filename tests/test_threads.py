"""Nothing is imported for the first time off the main thread: threads that import at once may wait for each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grain")

from mgjax.audio import files as audio_files

ROOT = Path(__file__).parents[1]

# Python runs this file of this name at the start of every process, those that Beam and grain start as well.
HOOK = """
import os, sys, threading, traceback

class Watch:
    def find_spec(self, name, path=None, target=None):
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            places = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in traceback.extract_stack()]
            places = [place for place in places if not place.startswith("<frozen")][:-1]
            with open(os.environ["IMPORTS"], "a") as log:
                log.write(f"{os.getpid()} {name} in {thread.name}: {' < '.join(places[:-16:-1])}\\n")

sys.meta_path.insert(0, Watch())
"""

READ = """
import sys, threading
from mgjax.data.corpus import Corpus
corpora = [Corpus.open(path, "train") for path in sys.argv[1:]]
def read():
    for corpus in corpora:
        corpus.metadata(0), corpus.read(0), corpus.name(0)
threads = [threading.Thread(target=read) for _ in range(4)]
[thread.start() for thread in threads]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python in a process of its own, and gives the imports in threads, of it and of all that it started."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    log = folder / "imports"

    def run(*words):
        log.write_text("")
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "IMPORTS": str(log)}
        environment["XLA_FLAGS"] = environment["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
        assert done.returncode == 0, done.stderr
        return log.read_text()

    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def music(work):
    (work / "music").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        audio_files.write(work / "music" / f"{number}.wav", 0.1 * rng.standard_normal((48_000, 2)), 22_050)
        (work / "music" / f"{number}.json").write_text(json.dumps({"description": "a waltz", "bpm": 90}))
    return work / "music"


@pytest.mark.parametrize("workers", [1, 2])
def test_building(run, music, work, workers):
    words = [music, work / f"sound{workers}", "--loudness=-14", "--valid=0.3", f"--workers={workers}"]
    assert run("-m", "mgjax", "corpus", "build", *words) == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_tokenizing(run, work, workers):
    words = [work / "sound1", work / f"codes{workers}", "--codec=debug", "--tokenizer=bytes", "--melody"]
    assert run("-m", "mgjax", "corpus", "tokenize", *words, f"--workers={workers}") == ""


def test_reading(run, work):
    assert run("-c", READ, work / "sound1", work / "codes1") == ""


@pytest.mark.parametrize("kind", ["sound", "codes"])
@pytest.mark.parametrize("workers", [0, 1])
def test_training(run, work, kind, workers):
    changes = {"data.corpora": f"('{work / kind}1',)", "data.batch_size": 2, "data.segment_seconds": 0.5}
    changes |= {
        "optim.warmup_steps": 0,
        "loop.steps": 2,
        "loop.eval_every": 2,
        "loop.show_every": 2,
        "prompt_seconds": 0.5,
    }
    changes |= {"data.num_workers": workers}
    words = [f"--config={ROOT / 'configs' / 'lm.py'}:debug", f"--workdir={work / f'run {kind} {workers}'}"]
    words += [f"--config.{name}={value}" for name, value in changes.items()]
    assert run(ROOT / "launch" / "train_lm.py", *words) == ""


def test_generating_in_batches(run, work):
    (work / "prompts").write_text("a waltz\na tango\n")
    for form in ("wav", "array_record"):
        words = [f"--prompts={work / 'prompts'}", f"--out={work / form}", f"--format={form}", "--model=debug"]
        words += ["--seconds=0.3", "--batch=2", "--cache=off"]
        assert run(ROOT / "launch" / "generate_batch.py", *words) == ""
