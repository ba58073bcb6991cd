"""Many fresh processes that read a corpus from several threads at once: none hangs, none fails.

    MGJAX_STARTS=200 pytest -n 0 tests/data/test_starts.py

starts 200 of them, sixteen at a time; three are enough to see that the test itself works. Imports in threads, which
hung one of about fifteen starts, are looked for in tests/test_threads.py.
"""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("array_record")

import tiny_corpora

from mgjax.audio.metadata import Metadata
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import describe_audio

STARTS = int(os.environ.get("MGJAX_STARTS", 3))
AT_ONCE = 16
SECONDS = 300  # that a start may take

START = """
import random, sys, threading, time
from mgjax.data.corpus import Corpus
corpus = Corpus.open(sys.argv[1], "train")
read = []
def work(number):
    time.sleep(random.random())
    assert corpus.metadata(number).title == f"song {number}"
    read.append(len(corpus.read(number)))
threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert sorted(read) == sorted(corpus.lengths), read
"""


def test_starts(tmp_path):
    sound = np.zeros((3000, 1), np.float32)
    pieces = [Piece(f"{i}", Metadata(title=f"song {i}"), [sound[: 2000 + i]]) for i in range(6)]
    tiny_corpora.write(tmp_path / "corpus", describe_audio(1000, 1), {"train": pieces})
    waiting, running, hung, failed = STARTS, {}, [], []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            process = subprocess.Popen(
                [sys.executable, "-c", START, tmp_path / "corpus"], stderr=subprocess.PIPE, text=True
            )
            running[process] = time.monotonic()
            waiting -= 1
        time.sleep(0.05)
        for process, start in list(running.items()):
            if process.poll() is not None:
                failed += [process.stderr.read()] if process.returncode else []
            elif time.monotonic() - start > SECONDS:
                process.kill()
                hung.append(process.wait())
            else:
                continue
            process.stderr.close()
            del running[process]
    assert (len(hung), failed) == (0, [])
