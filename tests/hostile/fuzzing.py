"""Cases of damage to the files of a door, each tried in a process that is ended when it takes too long or too much.

A door is a way into mgjax for files of strangers: how valid ones are written, and what reads them. A case is the name
of a door, a seed and a number, from which the damage follows. What comes of it is accepted, a clear error, or a fault.
"""

import dataclasses
import faulthandler
import importlib
import json
import os
import queue
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from random import Random

from damage import MIB, damaged

HERE = Path(__file__).parent
PACKAGE = str(HERE.parents[1] / "mgjax") + "/"
MEMORY = "/dev/shm"  # a file system in memory, where there is one
LONGEST_MESSAGE = 10_000  # characters; a list of tensors takes some, and what is longer nobody reads


@dataclasses.dataclass(frozen=True)
class Door:
    """A way into mgjax.

    Attributes:
      write: Writes valid files into an empty folder, each variant of them in a folder of its own.
      read: Reads the files in a variant's folder.
      targets: Patterns of the files that are damaged, which begin with the variant's name.
      unnamed: Errors whose file is named by the caller.
      cases: How many are tried where nobody says how many.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], None]
    targets: tuple[str, ...] = ("*",)
    unnamed: tuple[type[Exception], ...] = ()
    cases: int = 250


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of a case: seconds of work of the processor, seconds without any, and bytes of memory."""

    work: float = 5.0
    idle: float = 30.0
    memory: int = 1024 * MIB


PREPARING = Limits(300.0, 300.0, 8 << 30)  # to import a door, and to write its valid files


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case: "accepted", "clear" or "fault"; of what kind the error is, and all that is known of it."""

    number: int | None
    verdict: str
    kind: str = ""
    text: str = ""
    peak: int = dataclasses.field(default=0, compare=False)  # bytes of memory that its process had at most


def names():
    """All doors of mgjax."""
    found = [path.stem.removeprefix("test_hostile_") for path in sorted(HERE.glob("test_hostile_*.py"))]
    return [name for name in found if name != "itself"]


def door(name):
    return importlib.import_module(f"test_hostile_{name}").DOOR


# In a process of its own


def work(root):
    """Answers the requests on the standard input, a line each: a case, or a door without a number to prepare it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    for line in sys.stdin:
        # Where nobody watches any more, it ends nevertheless.
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 600, resource.RLIM_INFINITY))
        name, seed, number = json.loads(line)
        result = prepare(root, name) if number is None else attempt(root, name, seed, number)
        print(json.dumps(dataclasses.asdict(result) | {"peak": _peak()}), file=answers, flush=True)


def prepare(root, name):
    """Writes the valid files of a door, unless they are there, and makes sure that they are read."""
    files, new, scratch = root / name, root / f"new-{os.getpid()}", root / f"case-{os.getpid()}"
    if not files.exists():
        new.mkdir()
        door(name).write(new)
        new.rename(files)
    for variant in sorted(files.iterdir()):
        shutil.rmtree(scratch, ignore_errors=True)
        door(name).read(shutil.copytree(variant, scratch / variant.name))
    return Result(None, "accepted")


def attempt(root, name, seed, number):
    """Damages a file of a door and has it read."""
    folder = damage(root / name, root / f"case-{os.getpid()}", door(name).targets, Random(f"{name} {seed} {number}"))
    try:
        door(name).read(folder)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [
            f"{frame.filename.removeprefix(PACKAGE)}:{frame.name}" for frame in frames if PACKAGE in frame.filename
        ]
        trouble = unclear(error, frames[-1].filename, folder, door(name).unnamed)
        kind = f"{type(error).__name__} in {(inside or ['no file of mgjax'])[-1]}{trouble and ': ' + trouble}"
        return Result(number, "fault" if trouble else "clear", kind, "".join(traceback.format_exception(error)))
    return Result(number, "accepted")


def damage(files, scratch, targets, rng):
    """A copy in `scratch` of one of the variants in `files`, in which a file is damaged."""
    variant = rng.choice(sorted(files.iterdir()))
    shutil.rmtree(scratch, ignore_errors=True)
    folder = shutil.copytree(variant, scratch / variant.name)
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice([path for path in found if any(fnmatch(path.relative_to(scratch), target) for target in targets)])
    content = path.read_bytes()
    path.unlink()
    others = (lambda: None, path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to("nowhere"))
    rng.choice(others)() if rng.random() < 0.02 else path.write_bytes(damaged(path.name, content, rng))
    return folder


def unclear(error, file, folder, unnamed=()):
    """What keeps an error, raised in `file`, from being a clear answer to what is in `folder`; "" for nothing."""
    kind, text = type(error), str(error)
    own = kind.__module__.startswith("mgjax.") or (kind is ValueError and file.startswith(PACKAGE))
    if not own and not (isinstance(error, OSError) and kind.__module__ == "builtins"):
        return "raw"
    files = (path.name for path in folder.rglob("*.*"))
    if not isinstance(error, unnamed) and not any(name in text for name in (str(folder), *files)):
        return "names no file"
    if len(text) > LONGEST_MESSAGE:
        return "a message without end"
    return "a message that cannot be printed" if re.search(r"[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text) else ""


# In the process that watches


class Worker:
    """A process that tries one case after the other, and is replaced when one of them ends it."""

    def __init__(self, root, limits, preparing):
        self.root, self.limits, self.preparing, self.process = root, limits, preparing, None

    def attempt(self, name, seed, number):
        """What comes of a case."""
        if self.process is None:
            self._start()
        if name not in self.prepared:
            with self.preparing:
                result = self._ask((name, seed, None), PREPARING)
            if result.verdict != "accepted":
                raise RuntimeError(f"the door {name} does not open with valid files: {result.kind}\n{result.text}")
            self.prepared.add(name)
        return self._ask((name, seed, number), self.limits)

    def end(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for file in (self.process.stdin, self.process.stdout, self.notes):
                file.close()
            self.process = None

    def _start(self):
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
        flags["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
        self.notes = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.notes}
        command = [sys.executable, "-W", "ignore", HERE, "--work", self.root]
        self.process = subprocess.Popen(command, env=os.environ | flags, **streams)
        self.prepared, self.peak = set(), 0

    def _ask(self, request, limits):
        begun, memory = _usage(self.process.pid)
        worked, since = begun, time.monotonic()
        self.notes.truncate(0)
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        while not select.select([self.process.stdout], [], [], 0.05)[0]:
            now, rss = _usage(self.process.pid)
            if now != worked:
                worked, since = now, time.monotonic()
            if now - begun > limits.work:
                return self._fault(request, f"more than {limits.work:g} s of work")
            if time.monotonic() - since > limits.idle:
                return self._fault(request, f"waits for more than {limits.idle:g} s")
            if rss - memory > limits.memory:
                return self._fault(request, f"more than {limits.memory // MIB} MiB of memory")
        line = self.process.stdout.readline()
        if not line:
            return self._fault(request, f"ended with status {self.process.wait()}")
        result, earlier = Result(**json.loads(line)), self.peak
        self.peak = result.peak
        if self.peak > max(earlier, memory + limits.memory):  # for less time than there is between two looks
            self.end()
            kind = f"more than {limits.memory // MIB} MiB of memory, then {result.kind or 'accepted'}"
            return dataclasses.replace(result, verdict="fault", kind=kind)
        return result

    def _fault(self, request, trouble):
        """The fault of a case that ended the process, or for which it has to be ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)  # it writes down where it is
            time.sleep(0.5)
        self.notes.seek(0)
        text = self.notes.read().decode(errors="replace").strip("\0")
        self.end()
        place = re.search(rf'File "{re.escape(PACKAGE)}(.*)", line \d+ in (\S+)', text)
        kind = f"{trouble} in {':'.join(place.groups()) if place else 'no file of mgjax'}"
        return Result(request[2], "fault", kind, text[:4000])


def _peak():
    """Bytes of memory that this process had at most. `getrusage` counts that of its parent too, before it was this."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def _usage(pid):
    """Seconds that a process has worked, and bytes of memory that it has."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * resource.getpagesize()


class Pool:
    """Some workers and their scratch folder, to be used in a `with` block."""

    def __init__(self, size, limits=Limits()):
        self.root = Path(tempfile.mkdtemp(prefix="mgjax-hostile-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        preparing = threading.Lock()  # the files of a door are written once
        self.workers = [Worker(self.root, limits, preparing) for _ in range(size)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.end()
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, name, numbers, seed=0):
        """What comes of each case of a door."""
        free = queue.SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def attempt(number):
            worker = free.get()
            try:
                return worker.attempt(name, seed, number)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as threads:
            return list(threads.map(attempt, numbers))


def report(name, results, seed=0, details=True):
    """The faults of a door by their kinds, with how to see one of each again, and all about it."""
    faults = [result for result in results if result.verdict == "fault"]
    said = []
    for kind, count in Counter(result.kind for result in faults).most_common():
        first = next(result for result in faults if result.kind == kind)
        said.append(f"{count} x {kind}\n  python tests/hostile {name} --seed {seed} --case {first.number}")
        said += [first.text] * details
    return "\n".join(said)
