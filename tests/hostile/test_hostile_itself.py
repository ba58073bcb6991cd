"""That the cases find what they are to find, with a door that does all that a reader should not do."""

import os
import time

import fuzzing
import numpy as np

from mgjax.config.serialization import ConfigError
from mgjax.inputs.files import read_json


def raw(path):
    return {}[path]


def unnamed(path):
    raise ConfigError("something is wrong")


def works(path):
    while True:
        pass


def waits(path):
    time.sleep(60)


def keeps(path):
    kept = []
    while True:
        kept.append(np.ones(1 << 20))


def takes(path):
    np.ones(16 << 20)  # for a moment


def aborts(path):
    os.abort()


WHOLE = "1\n" * 500
DEEDS = {deed.__name__: deed for deed in (read_json, raw, unnamed, works, waits, keeps, takes, aborts)}


def write(folder):
    for name in DEEDS:
        (folder / name).mkdir()
        (folder / name / "file.txt").write_text(WHOLE)


def read(folder):
    path = folder / "file.txt"
    if not path.is_file() or path.read_bytes() != WHOLE.encode():
        DEEDS[folder.name](path)


DOOR = fuzzing.Door(write, read)


def test_every_fault_is_found():
    cases = [3, 4, 6, 8, 10, 11, 17, 46]  # one of each deed, the first that takes memory for a moment
    with fuzzing.Pool(1, fuzzing.Limits(4.0, 2.0, 100 * fuzzing.MIB)) as pool:
        results = pool.run("itself", cases)
    moment, *others = results  # which may be over before the memory is looked at; fresh memory can cost seconds of work
    assert moment.kind.startswith("more than 100 MiB of memory")
    found = {result.kind for result in others if result.verdict == "fault"}
    assert found == {
        "KeyError in no file of mgjax: raw",
        "ConfigError in no file of mgjax: names no file",
        "more than 4 s of work in no file of mgjax",
        "waits for more than 2 s in no file of mgjax",
        "more than 100 MiB of memory in no file of mgjax",
        "ended with status -6 in no file of mgjax",
    }
    assert [result.verdict for result in results].count("clear") == 1
    assert "python tests/hostile itself --seed 0 --case 8\n" in fuzzing.report("itself", results)
