"""What the commands share: messages, progress, numbers on the command line, and care for the files they write."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_LARGEST_CACHE = 2**29  # bytes of compiled programs; those that were not used for longest go first


def say(message: str) -> None:
    """One line to the person at the terminal, apart from the output of the command."""
    print(f"mgjax: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Makes lines of `say` out of warnings and of what mgjax logs, without their places in the code."""
    log, handler = logging.getLogger("mgjax"), _Handler()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)


def status(run: Callable[[], None]) -> int:
    """The exit status of `run`: 0, 2 for an error that the user can mend, or 130 where Ctrl-C ended it.

    Errors are told in one line; with MGJAX_TRACEBACK set, they show where in the code they arose.
    """
    with messages():
        try:
            run()
        except SystemExit as leaving:  # argparse has said why
            return leaving.code
        except KeyboardInterrupt:
            say("stopped; finished files are kept")
            return 130
        except Exception as error:
            advice = explain(error)
            if advice is None or os.environ.get("MGJAX_TRACEBACK"):
                raise
            say(f"error: {advice}")
            return 2
    return 0


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def explain(error: Exception) -> str | None:
    """What to tell the user about `error`; None where it is a fault of the program."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, ImportError) and "pip install" in str(error):  # an extra that is not installed
        return str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "out of memory; make it smaller with --batch-size 1, --dtype bfloat16, or fewer seconds"
    return None


def add_model_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options of every command that loads a model."""
    parser.add_argument(
        "--offline", action="store_true", help="use only what is on this machine already, never the network"
    )
    parser.add_argument(
        "--cache",
        metavar="DIR|off",
        help="where to keep compiled programs, which makes the second start quicker (a folder of your user cache)",
    )


def prepare(args: argparse.Namespace) -> None:
    """Puts --offline and --cache into effect; to be called before a model is loaded."""
    if args.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported
    if args.cache == "off":
        return
    if args.cache is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax
    import platformdirs

    folder = Path(args.cache or Path(platformdirs.user_cache_dir("mgjax")) / "programs")
    try:
        writable_folder(folder)
    except OSError:
        if args.cache:
            raise
        return  # a home that cannot be written to is no reason not to make music
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def writable_folder(folder: Path) -> None:
    """Makes `folder` where it is missing, and makes sure that files can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PermissionError(f"{folder}: this folder cannot be written to ({error.strerror})") from error


def refuse_to_overwrite(paths: Iterable[Path], force: bool) -> None:
    """Raises FileExistsError if one of `paths` is there already, unless `force`."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise FileExistsError(f"{existing[0]}{more} exists already; choose another --out, or replace it with --force")


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def count(text: str) -> int:
    """An argparse type: a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


class Progress:
    """A bar of the seconds of sound that are done; where nobody watches, one line at the end.

    Args:
      what: What is done, as in "generate".
      total_seconds: The seconds of sound of the whole job; None if it is not known.
    """

    def __init__(self, what: str, total_seconds: float | None):
        from tqdm import tqdm

        self._what, self._done, self._start = what, 0.0, time.monotonic()
        self._watched = sys.stderr.isatty()
        total = "" if total_seconds is None else "/{total:.0f} s"
        self._bar = tqdm(
            desc=what,
            total=total_seconds,
            disable=not self._watched,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}" + total + " [{elapsed}<{remaining}{postfix}]",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, error_type: type | None, *_: Any) -> None:
        self._bar.close()
        if error_type is None and not self._watched:
            spent = time.monotonic() - self._start
            say(f"{self._what}: {self._done:.1f} s of sound in {spent:.1f} s ({self._done / spent:.2f} a second)")

    def reach(self, seconds: float) -> None:
        """Says that `seconds` of sound are done by now."""
        spent = time.monotonic() - self._start
        self._bar.set_postfix_str(f"{seconds / spent:.2f} s of sound a second", refresh=False)
        self._bar.update(seconds - self._done)
        self._done = seconds
