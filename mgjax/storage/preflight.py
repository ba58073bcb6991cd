"""Whether a folder can be used as it will be, found out before the work begins."""

from __future__ import annotations

import os
import pathlib
import tempfile
import uuid
from collections.abc import Callable

from mgjax.storage import paths

# What a request needs, by the names of the two services.
_PERMISSIONS = {
    "write": {"gs": "storage.objects.create", "s3": "s3:PutObject"},
    "list": {"gs": "storage.objects.list", "s3": "s3:ListBucket"},
    "delete": {"gs": "storage.objects.delete", "s3": "s3:DeleteObject"},
    "read": {"gs": "storage.objects.get", "s3": "s3:GetObject"},
}


def check_writable(folder: paths.PathLike) -> None:
    """Creates `folder` if it is missing, and writes, lists, reads and deletes a file in it.

    Raises OSError, with the bucket and the missing permission in its message, where one of these is not possible.
    """
    there = paths.path(folder)
    if isinstance(there, pathlib.Path):
        there.mkdir(parents=True, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise PermissionError(f"{there}: this folder cannot be written to ({error.strerror})") from error
        return
    from mgjax.storage import buckets

    system, address = buckets.system(there), f"{there}/.mgjax-{uuid.uuid4().hex[:12]}"
    _try("write", address, lambda: system.pipe_file(address, b"mgjax"))
    try:
        _try("list", address, lambda: buckets.objects(there))
        _try("read", address, lambda: system.cat_file(address))
    finally:
        _try("delete", address, lambda: system.rm_file(address))


def check_readable(folder: paths.PathLike, name: str) -> None:
    """Reads the first byte of the file `name` in a bucket's folder; does nothing for a local one.

    Raises OSError, with the bucket and the missing permission in its message, where that is not possible.
    """
    if not paths.is_remote(folder):
        return
    from mgjax.storage import buckets

    address = os.fspath(paths.path(folder, name))
    _try("read", address, lambda: buckets.system(address).cat_file(address, start=0, end=1))


def _try(what: str, address: str, request: Callable[[], object]) -> None:
    """Makes a request; an error names the bucket and what is missing."""
    from mgjax.storage import buckets

    scheme, bucket = address.partition("://")[0], buckets.bucket(address)
    try:
        request()
    except PermissionError as error:
        raise PermissionError(
            f"{bucket}: this account may not {what} objects there; give it {_PERMISSIONS[what][scheme]} ({error})"
        ) from error
    except FileNotFoundError:
        if what != "read":
            raise FileNotFoundError(f"{bucket}: there is no such bucket; create it, or check its name") from None
        raise FileNotFoundError(f"{address}: there is no such object, or no such bucket") from None
