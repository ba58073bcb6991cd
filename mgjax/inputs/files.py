"""Files: untrusted ones are read once and within one set of limits, and writing is atomic."""

from __future__ import annotations

import contextlib

# Python imports a codec where it is first used, and that may be in a thread.
import encodings.cp437  # of names in a zip file
import encodings.utf_8_sig  # noqa: F401
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Any

from mgjax.storage import paths
from mgjax.storage.paths import Path, PathLike

Error = type[ValueError]

LARGEST_CONFIG = 16 << 20  # bytes of a file of settings
LARGEST_TEXT = 256 << 20  # bytes of a table or of a file of prompts
LARGEST_PIPE = 4 << 30  # bytes that are copied of what cannot be read twice
DEEPEST = 64  # levels of lists and objects in JSON
LARGEST_INTEGER = 2**63  # in JSON; no format here counts beyond it

_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def opened(path: PathLike, error: Error = ValueError, max_bytes: int = LARGEST_PIPE) -> Iterator[IO[bytes]]:
    """A seekable file to read bytes from: of a pipe or an object in a bucket, a temporary copy of `max_bytes` at most.

    Raises:
      OSError: There is no such file, it may not be read, or it is a device.
      ValueError: (as `error`) It is no name of a file, or a pipe or an object holds more than `max_bytes` bytes.
    """
    if paths.is_remote(path):
        from mgjax.storage import buckets

        with tempfile.TemporaryDirectory(prefix="mgjax-") as folder:
            local = pathlib.Path(folder, "copy")
            if not buckets.download(path, local, max_bytes):
                raise error(f"{os.fspath(path)}: is larger than {max_bytes >> 20} MiB, more than such a file needs")
            with local.open("rb") as file:
                yield file
        return
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except ValueError as wrong:
        raise error(f"{os.fspath(path)!r}: is no name of a file ({wrong})") from None
    with file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode):
            yield file
            return
        if not (stat.S_ISFIFO(mode) or file.isatty()):
            raise OSError(f"{os.fspath(path)}: is a device, not a file; give a file or a pipe")
        with tempfile.TemporaryFile() as copy:
            size = 0
            while size <= max_bytes and (block := file.read(1 << 16)):
                size += copy.write(block)
            if size > max_bytes:
                raise error(f"{os.fspath(path)}: gives more than {max_bytes >> 20} MiB; store it in a file first")
            copy.seek(0)
            yield copy


def read_bytes(path: PathLike, max_bytes: int = LARGEST_CONFIG, error: Error = ValueError) -> bytes:
    """The content of a file of at most `max_bytes` bytes; raises as `opened`."""
    with opened(path, error, max_bytes) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise error(f"{os.fspath(path)}: is larger than {max_bytes >> 20} MiB, more than such a file needs")
    return content


def read_text(path: PathLike, max_bytes: int = LARGEST_CONFIG, error: Error = ValueError) -> str:
    """The content of a text file in UTF-8 without its byte order mark; raises as `opened`, also where it is no text."""
    return decoded(read_bytes(path, max_bytes, error), os.fspath(path), error)


def read_json(path: PathLike, max_bytes: int = LARGEST_CONFIG, error: Error = ValueError) -> Any:
    """The value that a JSON file holds; raises as `read_text` and `parse_json`."""
    return parse_json(read_bytes(path, max_bytes, error), os.fspath(path), error)


def decoded(content: bytes, where: str, error: Error = ValueError) -> str:
    """`content` decoded as UTF-8 without its byte order mark; messages call it `where`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(f"{where}: is not text in UTF-8 ({wrong.reason} at byte {wrong.start})") from None


def parse_json(content: str | bytes, where: str, error: Error = ValueError, *, halves: bool = False) -> Any:
    """The value of a JSON text; messages call it `where`.

    Raises:
      ValueError: (as `error`) It is not JSON or not UTF-8, is nested more than `DEEPEST` levels, holds an integer
        beyond 64 bits, or, unless `halves`, a lone surrogate (half of a character, which cannot be encoded).
    """
    text = decoded(content, where, error) if isinstance(content, bytes) else content
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise error(f"{where}: is nested more than {DEEPEST} levels deep") from None
    except ValueError as wrong:
        raise error(f"{where}: is not JSON ({wrong})") from None
    if _is_deeper(value, DEEPEST):
        raise error(f"{where}: is nested more than {DEEPEST} levels deep")
    if not halves and _HALF_A_CHARACTER.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise error(f"{where}: a text in it holds half of a character (a lone surrogate)") from None
    return value


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """A temporary file to write to, which is renamed to `path` when the block ends without an error, and else removed.

    Of a symbolic link, the file that it points to is replaced. To a bucket, the file is written when it is whole.
    """
    if paths.is_remote(path):
        from mgjax.storage import buckets

        with tempfile.TemporaryDirectory(prefix="mgjax-") as folder:
            local = pathlib.Path(folder, "new")
            with local.open("wb") as file:
                yield file
            buckets.upload(local, path)
        return
    target = pathlib.Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copies a file to another place on the local disks, or within a service of buckets; it appears whole."""
    if isinstance(source, pathlib.Path):
        with source.open("rb") as content, replacing(target) as file:
            shutil.copyfileobj(content, file)
    else:
        from mgjax.storage import buckets

        buckets.copy(source, target)


def write_text(path: PathLike, text: str) -> None:
    """Writes `text` in UTF-8 to `path`, atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def create(path: PathLike, text: str) -> bool:
    """Writes `text` to `path` unless there is a file, and returns whether it now holds `text`.

    Of several hosts that do so in a bucket, one writes; of those on a file system, the one that holds the folder's lock
    (`mgjax.inputs.claims`).
    """
    if paths.is_remote(path):
        from mgjax.storage import buckets

        return buckets.create(path, text.encode())
    if not os.path.exists(path):
        write_text(path, text)
    return read_text(path, LARGEST_TEXT) == text


def write_json(path: PathLike, value: Any, indent: int = 2) -> None:
    """Writes `value` as JSON to `path`, atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(number := int(digits)) >= LARGEST_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... does not fit into 64 bits")
    return number


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)
