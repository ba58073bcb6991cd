"""The lines of metrics of a run: in one file on a disk, or in a bucket, where nothing is appended to, in parts."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import IO, Any, Protocol

from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.paths import Path

_NAME, _FOLDER = "metrics.jsonl", "metrics"
_PART = re.compile(r"(\d{6,})(?:-from-(\d+))?\.jsonl")


class Lines(Protocol):
    """Where the lines of a run are written."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line, which has a "step"."""

    def sync(self) -> None:
        """Makes sure that all lines so far are kept, whatever happens to this machine."""

    def close(self) -> None:
        """Ends the writing."""


def writer(workdir: Path, step: int) -> Lines:
    """Writes the lines of the run in `workdir`, which goes on after the training step `step`."""
    if isinstance(workdir, pathlib.Path):
        return _OneFile(workdir / _NAME, step)
    return _Parts(workdir / _FOLDER, step)


def read(workdir: paths.PathLike) -> list[dict[str, Any]]:
    """The lines of the run in `workdir`, without those of a process that was killed about steps that were done again.

    Raises ValueError if a file is damaged.
    """
    workdir = paths.path(workdir)
    if isinstance(workdir, pathlib.Path):
        return _parsed(workdir / _NAME) if (workdir / _NAME).is_file() else []
    lines: list[dict[str, Any]] = []
    for name, match in _parts(workdir / _FOLDER):
        if match[2] is not None:
            lines = [line for line in lines if line["step"] <= int(match[2])]
        lines += _parsed(workdir / _FOLDER / name)
    return lines


def _parts(folder: Path) -> list[tuple[str, re.Match[str]]]:
    """The names of the parts in order, each with its number and, of the first of a process, the step before it."""
    found = [(name, match) for name in paths.sizes(folder) if (match := _PART.fullmatch(name))]
    return sorted(found, key=lambda part: int(part[1][1]))


def _parsed(path: Path) -> list[dict[str, Any]]:
    lines = files.read_text(path, files.LARGEST_TEXT).split("\n")
    return [files.parse_json(line, os.fspath(path)) for line in lines if line]


class _OneFile:
    """A file that grows. Lines of a killed process about later steps are dropped."""

    def __init__(self, path: pathlib.Path, step: int):
        self._file = _continued(path, step)

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Parts:
    """A folder of files, each with the lines since the one before; the first of a process says after which step."""

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self._number = max((int(match[1]) for _, match in _parts(folder)), default=-1) + 1
        self._from: int | None = step
        self._lines: list[Mapping[str, Any]] = []

    def write(self, line: Mapping[str, Any]) -> None:
        self._lines.append(line)

    def sync(self) -> None:
        lines = self._lines[:]
        if not lines:
            return
        start = "" if self._from is None else f"-from-{self._from}"
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(self._folder / f"{self._number:06d}{start}.jsonl", text)
        del self._lines[: len(lines)]  # others may have come meanwhile
        self._from, self._number = None, self._number + 1

    def close(self) -> None:
        self.sync()


def _continued(path: pathlib.Path, step: int) -> IO[bytes]:
    """The file of lines at `path` without those after `step`, to append to."""
    file = path.open("a+b")
    file.seek(0)
    end = 0
    for line in file:
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:  # incomplete, or about to be repeated
            break
        end += len(line)
    file.truncate(end)
    return file
