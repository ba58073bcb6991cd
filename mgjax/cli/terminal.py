"""The common part of all commands: messages, exit statuses, progress, argument types, and claims on output files."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.preflight import check_writable

try:
    import fcntl
except ImportError:  # Windows, where names are not claimed
    fcntl = None  # type: ignore[assignment] # a module that may be missing

_LARGEST_CACHE = 2**29  # bytes of compiled programs; the least recently used ones are dropped first
_LOCK_SECONDS = 1.0  # of waiting for processes that read or write compiled programs

_EXTRAS = {  # the modules of each
    "train": "apache_beam array_record tensorflow_datasets importlib_resources absl grain ml_collections optax orbax",
    "synthetic": "pretty_midi",
}

_exit_stack = contextlib.ExitStack()  # locks and files that are released when the command ends
_copies: dict[str, Any] = {}  # of pipes, by their names
_program_folders: list[pathlib.Path] = []  # the folder of compiled programs, if `apply_model_options` set it


def say(message: str) -> None:
    """Prints a line to stderr; stdout is for the output of the command."""
    for path, copy in _copies.items():
        message = message.replace(copy.name, path)
    print(f"mgjax: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Shows warnings and mgjax's log as lines of `say`, without file names and line numbers."""
    log, handler = logging.getLogger("mgjax"), _Handler()
    with warnings.catch_warnings():
        warnings.showwarning = _show
        log.addHandler(handler)
        log.propagate = False  # libraries add handlers to the root logger
        try:
            yield
        finally:
            log.propagate = True
            log.removeHandler(handler)


def exit_status(run: Callable[[], None]) -> int:
    """Calls `run`, and returns the exit status: 0, 2 for an error of the user, or 130 after Ctrl-C.

    Errors are shown in one line, or with their traceback if MGJAX_TRACEBACK is set.
    """
    os.environ["JAX_ENABLE_X64"] = "0"  # models have 32 bits
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not closed, and not that of a notebook
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    with messages(), _exit_stack:
        code = 0
        try:
            run()
        except SystemExit as exit:  # argparse has printed why
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        except KeyboardInterrupt:
            say("stopped; finished files are kept")
            code = 130
        except Exception as error:
            advice = explain(error)
            if advice is None or os.environ.get("MGJAX_TRACEBACK"):
                raise
            say(f"error: {advice}")
            code = 2
        try:
            print(end="", flush=True)
        except OSError as error:  # Python would try again when it exits, and show a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):  # which means that the reader has enough
                say(f"error: the output cannot be written ({error.strerror})")
                code = 2
    return code


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """Shows a warning; on one of JAX about broken compiled programs, drops them instead."""
    if _program_folders and "persistent compilation cache entry" in str(message):
        _drop_broken_programs(just_read="reading" in str(message))
    else:
        say(f"warning: {message}")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record as a line of `say`."""
        say(record.getMessage())


def explain(error: Exception) -> str | None:
    """The message about `error` for the user; None if it is a bug."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, ImportError) and "pip install" in str(error):  # a missing extra
        return str(error)
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and isinstance(error, RuntimeError | AssertionError) and "jax" in sys.modules and not _has_device():
        return (
            f"JAX_PLATFORMS={platforms} names a device that is not there, or that JAX was installed without "
            "(for a GPU: pip install 'mgjax[cuda]', for a TPU 'mgjax[tpu]'); JAX_PLATFORMS=cpu is always there"
        )
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory; make it smaller with --batch-size 1, --dtype bfloat16, or fewer seconds"
    return None


def _has_device() -> bool:
    """Whether JAX has a device."""
    with contextlib.suppress(RuntimeError, AssertionError):  # AssertionError: a known platform without its plugin
        return bool(sys.modules["jax"].devices())
    return False


@contextlib.contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Prefixes errors with the origin of a request, such as a line of a file ("" for none)."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{where}{where and ': '}{explain(error) or error}") from error


def apply_model_options(args: argparse.Namespace) -> None:
    """Applies --offline and --cache, and prepares the process; to be called before a model is loaded."""
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported
    from mgjax.kernels import memory  # which needs JAX

    memory.keep_freed_memory()
    keep_programs(args.cache)


def keep_programs(cache: str | None, workdir: str | None = None) -> None:
    """Keeps compiled programs in a folder, on this machine or in a bucket; "off": nowhere.

    None is the user's cache folder or, of several processes, a folder in `workdir`, as JAX lets one of them write.
    """
    if cache == "off" or (cache is None and "JAX_COMPILATION_CACHE_DIR" in os.environ):
        return
    import jax
    import platformdirs

    parent = workdir if workdir and jax.process_count() > 1 else platformdirs.user_cache_dir("mgjax")
    folder = paths.path(cache or os.path.join(parent, "programs"))
    try:
        check_writable(folder)
    except OSError:
        if cache:
            raise
        return  # the default cache is optional
    is_local = isinstance(folder, pathlib.Path)
    if is_local:
        _program_folders[:] = [folder]
        _drop_broken_programs()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE if is_local else -1)  # a bucket has no locks
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _drop_broken_programs(just_read: bool = False) -> None:
    """Deletes cached programs without a time stamp, and with `just_read` the one that JAX read last.

    Interrupted writes leave such files. JAX never replaces them, and would compile these programs at each start.
    """
    from filelock import FileLock, Timeout

    (folder,) = _program_folders
    # JAX holds this lock while it reads or writes.
    with contextlib.suppress(OSError, Timeout), FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):
        names = os.listdir(folder)
        programs, stamped = ({n[: -len(end)] for n in names if n.endswith(end)} for end in ("-cache", "-atime"))
        broken = programs - stamped
        if just_read:
            broken |= set(sorted(stamped, key=lambda key: os.stat(folder / f"{key}-atime").st_mtime_ns)[-1:])
        for key in broken:
            (folder / f"{key}-cache").unlink(missing_ok=True)
            (folder / f"{key}-atime").unlink(missing_ok=True)


def rereadable(path: str | os.PathLike[str]) -> str:
    """A path that can be read more than once: `path`, or of a pipe a copy that is kept until the command ends."""
    path = paths.absolute(path)
    if os.path.isfile(path) or paths.is_remote(path):
        return path
    if path not in _copies:
        with files.opened(path) as pipe:
            copy = _exit_stack.enter_context(tempfile.NamedTemporaryFile(suffix=pathlib.Path(path).suffix))  # noqa: SIM115
            shutil.copyfileobj(pipe, copy)
            copy.flush()
        _exit_stack.callback(_copies.pop, path)
        _copies[path] = copy
    return _copies[path].name


def refuse_to_overwrite(names: Iterable[paths.Path], force: bool) -> None:
    """Raises FileExistsError if one of `names` exists, unless `force`."""
    existing = [str(path) for path in names if path.exists()]
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise FileExistsError(f"{existing[0]}{more} exists already; choose another --out, or replace it with --force")


def claim(names: Sequence[paths.Path], force: bool) -> None:
    """Reserves the names of output files, all in one folder, against other runs until the command ends.

    In a bucket, which has no locks, they are only checked.

    Raises:
      FileExistsError: Another run writes one of them, or, unless `force`, one exists.
      OSError: The folder cannot be created or written to, or a name is not valid.
    """
    check_writable(names[0].parent)
    for path in names:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder; choose another --out")
    local = [path for path in names if isinstance(path, pathlib.Path)]
    if fcntl is not None and local:
        _lock(local, local[0].parent / ".mgjax-names")
    refuse_to_overwrite(names, force)


def _lock(locked: Sequence[pathlib.Path], names: pathlib.Path) -> None:
    """Locks a byte of the file `names` for each path, as a process may not open a file for each."""
    try:
        file = _exit_stack.enter_context(names.open("ab"))
    except PermissionError:  # of another user
        return
    for path in locked:
        byte = int.from_bytes(hashlib.sha256(os.fsencode(path.name)).digest()[:7])
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            raise FileExistsError(f"{path}: another run is writing this file; choose another --out") from None
        except OSError:  # a file system without locks
            break
    if os.fstat(file.fileno()).st_nlink:
        _exit_stack.callback(_remove_unused, file, names)
    else:  # its last user has just deleted it
        _lock(locked, names)


def _remove_unused(file: IO[bytes], path: pathlib.Path) -> None:
    """Deletes an open file unless other processes have locked a part of it."""
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def sound_format(sample_rate: int, channels: int) -> str:
    """A format of audio in words, "32000 Hz, mono"."""
    return f"{sample_rate} Hz, {({1: 'mono', 2: 'stereo'}).get(channels, f'{channels} channels')}"


def print_table(title: Any, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a title, and below it rows of names and values."""
    print(title)
    for name, value in rows:
        print(f"  {name:<16}{value}")


@contextlib.contextmanager
def progress(what: str, total_seconds: float) -> Iterator[Callable[[float], None]]:
    """A progress bar in seconds of audio at a terminal, elsewhere one line at the end; its block gets what sets it."""
    from tqdm import tqdm

    start, done, is_terminal = time.monotonic(), 0.0, sys.stderr.isatty()
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} s [{elapsed}<{remaining}{postfix}]"
    with tqdm(desc=what, total=total_seconds, disable=not is_terminal, bar_format=form) as bar:

        def update(seconds: float) -> None:
            nonlocal done
            bar.set_postfix_str(f"{seconds / (time.monotonic() - start):.2f} s of sound a second", refresh=False)
            bar.update(seconds - done)
            done = seconds

        yield update
    if not is_terminal:
        spent = time.monotonic() - start
        say(f"{what}: {done:.1f} s of sound in {spent:.1f} s ({done / spent:.2f} a second)")


@contextlib.contextmanager
def progress_of_pieces(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of pieces, at a terminal only; its block gets what sets it to so many of so many."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=" pieces", disable=not sys.stderr.isatty()) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def require_extra(extra: str) -> None:
    """Raises ValueError, with how to install them, if packages of an extra are missing."""
    missing = [name for name in _EXTRAS[extra].split() if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"this needs {', '.join(missing)}, not installed here; run: pip install 'mgjax[{extra}]'")
