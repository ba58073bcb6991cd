"""Buckets: fsspec's file systems for gs:// and s3://, patient with the network and clear about what is not allowed.

`epath.Path` finds them by the names that `register` gives them. Listings are never cached, as other hosts write too.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import logging
import math
import os
import pathlib
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

log = logging.getLogger("mgjax")

PATIENCE = 300.0  # seconds that a request is tried again where the network is gone or the service overloaded
_FIRST = 60.0  # the same until this process has had a first answer: there may be no way to the service at all
_LONGEST_PAUSE = 20.0  # seconds between two tries
_TRIES = 3  # to read what is stored
_LARGE_BODY = 1 << 20  # bytes
_SILENCE = 60.0  # seconds in which a connection that is alive brings something

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_AGAIN = (408, 429, 500, 502, 503, 504)  # HTTP's answers for which a request is worth trying again

_answered: set[str] = set()  # the schemes whose service has answered this process
_counts: Counter[str] = Counter()  # of this process: requests by kind, bytes read and written


class BucketError(OSError):
    """A bucket that does not exist, may not be used, or cannot be reached."""


class NotAllowedError(BucketError, PermissionError):
    """A request that the account of this process may not make."""


def register(address: str) -> None:
    """Makes the file systems of this module those of fsspec; raises ValueError if one for `address` is missing."""
    scheme = address.partition("://")[0]
    if importlib.util.find_spec(_PACKAGES[scheme]) is None:
        raise ValueError(
            f"{address}: this needs {_PACKAGES[scheme]}, not installed here; run: pip install 'mgjax[cloud]'"
        )
    _register(scheme)


@functools.cache
def _register(scheme: str) -> None:
    import fsspec

    # What these import by themselves is imported here, and not for the first time in their thread.
    for name in {"gs": ("gcsfs.core", "google.auth.transport.requests"), "s3": ("s3fs", "aiobotocore.session")}[scheme]:
        importlib.import_module(name)
    cls = _google() if scheme == "gs" else _amazon()
    for name in {"gs": ("gs", "gcs"), "s3": ("s3", "s3a")}[scheme]:
        fsspec.register_implementation(name, cls, clobber=True)


def system(address: os.PathLike[str] | str) -> Any:
    """The file system of an address."""
    import fsspec

    scheme = os.fspath(address).partition("://")[0]
    register(os.fspath(address))
    return fsspec.filesystem(
        {"gs": "gcs"}.get(scheme, scheme), **({"finalize_on_close": True} if scheme == "gs" else {})
    )


def bucket(address: os.PathLike[str] | str) -> str:
    """The address of the bucket: "gs://name"."""
    scheme, _, rest = os.fspath(address).partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def size(address: os.PathLike[str] | str) -> int | None:
    """The bytes of an object; None where there is none."""
    return None if (info := _info(address)) is None else int(info["size"])


def version(address: os.PathLike[str] | str) -> str | None:
    """What changes whenever an object is written again; None where there is none."""
    info = _info(address)
    return None if info is None else _version(info)


def _version(info: dict[str, Any]) -> str:
    return str(info.get("generation") or info.get("etag") or info.get("ETag"))


def _info(address: os.PathLike[str] | str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = system(address).info(os.fspath(address))
    except FileNotFoundError:
        return None
    return info if info.get("type") == "file" else None


class Object(NamedTuple):
    """What a listing tells of an object: its bytes, and what changes whenever it is written again."""

    size: int
    version: str


def objects(folder: os.PathLike[str] | str) -> dict[str, Object]:
    """All objects below a folder by address, in order."""
    scheme = os.fspath(folder).partition("://")[0]
    found = system(folder).find(os.fspath(folder), detail=True)
    return {f"{scheme}://{name}": Object(int(info["size"]), _version(info)) for name, info in sorted(found.items())}


def remove(folder: os.PathLike[str] | str) -> None:
    """Removes all objects below a folder."""
    names = list(objects(folder))
    if names:
        system(folder).rm(names)


def upload(file: str | os.PathLike[str], address: os.PathLike[str] | str) -> None:
    """Writes a local file to a bucket; the object appears whole or not at all."""
    is_google = os.fspath(address).startswith("gs://")
    # Not by the name of the local file, which need not be that of the object.
    kind = {"content_type" if is_google else "ContentType": "application/octet-stream"}
    system(address).put_file(os.fspath(file), os.fspath(address), **kind)
    _counts["bytes written"] += os.path.getsize(file)


def copy(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    """Copies an object within the service, without moving its bytes through this machine."""
    system(source).cp_file(os.fspath(source), os.fspath(target))


def create(address: os.PathLike[str] | str, content: bytes) -> bool:
    """Writes an object unless there is one; returns whether this call wrote it. Of several hosts, one does."""
    try:
        system(address).pipe_file(os.fspath(address), content, mode="create")
    except FileExistsError:
        # A try whose answer was lost may have written it.
        return bool(system(address).cat_file(os.fspath(address)) == content)
    _counts["bytes written"] += len(content)
    return True


def download(address: os.PathLike[str] | str, file: pathlib.Path, max_bytes: float = math.inf) -> bool:
    """Reads an object into a local file, and compares size and, where the service tells it, MD5.

    Returns False, and reads nothing, where it has more than `max_bytes` bytes.

    Raises:
      FileNotFoundError: There is no such object.
      OSError: What came is not what is stored, several times.
    """
    for _ in range(_TRIES):
        info = _info(address)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", os.fspath(address))
        if info["size"] > max_bytes:
            return False
        system(address).get_file(os.fspath(address), os.fspath(file))
        _counts["bytes read"] += file.stat().st_size
        if file.stat().st_size == info["size"] and _is_whole(file, info):
            return True
    raise BucketError(f"{os.fspath(address)}: {_TRIES} times, what came is not what is stored there")


def read_range(address: os.PathLike[str] | str, start: int, count: int) -> bytes:
    """`count` bytes of an object from `start` on."""
    content: bytes = system(address).cat_file(os.fspath(address), start=start, end=start + count)
    _counts["bytes read"] += len(content)
    return content


def _is_whole(file: pathlib.Path, info: dict[str, Any]) -> bool:
    """Whether a file has the MD5 that the service tells of an object; objects in parts have none."""
    expected = None
    if "md5Hash" in info:
        expected = base64.b64decode(info["md5Hash"]).hex()
    elif len(tag := str(info.get("ETag", "")).strip('"')) == 32 and "SSEKMSKeyId" not in info:
        expected = tag
    if expected is None:
        return True
    with file.open("rb") as content:
        return (
            hashlib.file_digest(content, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest() == expected
        )


class Traffic(NamedTuple):
    """What this process has asked of buckets so far; the arrays of orbax's checkpoints go another way."""

    requests: int
    bytes_read: int
    bytes_written: int


def traffic() -> Traffic:
    """The traffic of this process so far."""
    requests = sum(count for kind, count in _counts.items() if kind.startswith("requests"))
    return Traffic(requests, _counts["bytes read"], _counts["bytes written"])


# Trying again


async def _patiently(where: str, attempt: Callable[[], Awaitable[Any]], classify: Callable[[Exception], Any]) -> Any:
    """The result of `attempt`, which is made again for `PATIENCE` seconds where it may help.

    Before the service has answered for the first time, it is `_FIRST` seconds. `classify` returns the exception to
    raise, or None where trying again may help.
    """
    begun, tries = time.monotonic(), 0
    while True:
        try:
            result = await attempt()
            _answered.add(where[:5])
            return result
        except asyncio.CancelledError:
            raise
        except Exception as error:
            final = classify(error)
            if final is not None:
                raise final from (None if final is error else error)
            spent = time.monotonic() - begun
            pause = min(0.5 * 2**tries, _LONGEST_PAUSE) * random.uniform(0.8, 1.2)
            patience = PATIENCE if where[:5] in _answered else min(PATIENCE, _FIRST)
            if spent + pause > patience:
                raise BucketError(f"{where}: no answer for {spent:.0f} s ({_line(error)})") from error
            if tries == 3:
                log.warning("%s: no answer (%s); it is tried again for up to %.0f s", where, _line(error), patience)
            tries += 1
            await asyncio.sleep(pause)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ").splitlines()[0][:200]


def _network(error: Exception) -> bool:
    """Whether an error is one of the way to the service."""
    import aiohttp

    return isinstance(error, aiohttp.ClientError | TimeoutError | asyncio.TimeoutError | ConnectionError)


def _forbidden(where: str, message: str) -> NotAllowedError:
    return NotAllowedError(f"{where}: this account may not do that ({message[:300]}); give it the permission")


def _google() -> Any:
    import aiohttp
    import fsspec.asyn
    from gcsfs import core, retry

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints each error that it raises
    # It tries six times by itself, at most for half a minute; without that, `_patiently` alone decides.
    once = {name: inspect.unwrap(getattr(core.GCSFileSystem, name)) for name in ("_request", "_get_file_request")}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)

    def classify(where: str, error: Exception) -> Exception | None:
        if isinstance(error, retry.HttpError):
            if error.code in (401, 403):
                return _forbidden(where, str(error.message))
            return None if int(error.code or 0) in _AGAIN else BucketError(f"{where}: {_line(error)}")
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, "there is no such object, or no such bucket", where)
        if isinstance(error, FileExistsError | PermissionError):
            return error
        if isinstance(error, OSError) and str(error).startswith("Forbidden"):
            return _forbidden(where, str(error).partition("\n")[2] or str(error))
        if retry.is_retriable(error) or _network(error):
            return None
        return error

    class PatientGCSFileSystem(core.GCSFileSystem):
        """Google Cloud Storage."""

        _request = once["_request"]

        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{"use_listings_cache": False, "requests_timeout": timeout, **options})

        async def _call(self, method: str, path: str, *args: Any, **options: Any) -> Any:
            where, data = _where(path, args), options.pop("data", None)
            _counts[f"requests {method.upper()}"] += 1

            async def attempt() -> Any:
                # aiohttp wants large bodies as files, and closes them.
                body = io.BytesIO(data) if isinstance(data, bytes) and len(data) > _LARGE_BODY else data
                return await super(PatientGCSFileSystem, self)._call(method, path, *args, data=body, **options)

            return await _patiently(where, attempt, functools.partial(classify, where))

        call = fsspec.asyn.sync_wrapper(_call)  # files that are open for writing use it

        async def _get_file_request(self, rpath: str, lpath: str, *args: Any, **options: Any) -> Any:
            where = f"gs://{'/'.join(self.split_path(rpath)[:2])}"
            _counts["requests GET"] += 1
            return await _patiently(
                where,
                functools.partial(once["_get_file_request"], self, rpath, lpath, *args, **options),
                functools.partial(classify, where),
            )

    return PatientGCSFileSystem


def _where(path: str, args: tuple[Any, ...]) -> str:
    """The address that a request to Google is about, for messages."""
    if args:
        return f"gs://{'/'.join(str(name) for name in args)}"
    uploaded = re.search(r"/b/([^/?]+)/o(?:\?(?:.*&)?name=([^&]+))?", path)
    return f"gs://{uploaded[1]}/{unquote(uploaded[2] or '')}" if uploaded else f"gs:// ({path[:200]})"


def _amazon() -> Any:
    import botocore.exceptions
    import s3fs

    network = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)

    def classify(where: str, error: Exception) -> Exception | None:
        cause = error.__cause__ if isinstance(error.__cause__, botocore.exceptions.ClientError) else error
        if isinstance(cause, botocore.exceptions.ClientError):
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            message = cause.response.get("Error", {}).get("Message", "")
            if status in (401, 403):
                return _forbidden(where, str(message))
            if status in (301, 307):
                return BucketError(f"{where}: the bucket is in another region; set AWS_DEFAULT_REGION ({message})")
            if status == 412:
                return FileExistsError(errno.EEXIST, "there is one already", where)
            return None if status in _AGAIN else error
        if isinstance(error, botocore.exceptions.NoCredentialsError):
            return BucketError(f"{where}: no credentials for S3 are found here; set AWS_ACCESS_KEY_ID or log in")
        return None if isinstance(error, network) or _network(error) else error

    class PatientS3FileSystem(s3fs.S3FileSystem):
        """Amazon S3, and whatever speaks its protocol."""

        retries = 1  # by itself

        def __init__(self, *args: Any, **options: Any):
            once = {"retries": {"total_max_attempts": 1}}
            super().__init__(*args, **{"use_listings_cache": False, "config_kwargs": once, **options})

        async def _call_s3(self, method: str, *args: Any, **options: Any) -> Any:
            where = f"s3://{options.get('Bucket', '')}/{options.get('Key', '')}"
            _counts[f"requests {method}"] += 1
            return await _patiently(
                where,
                functools.partial(super()._call_s3, method, *args, **options),
                functools.partial(classify, where),
            )

        async def _get_file(self, rpath: str, lpath: str, *args: Any, **options: Any) -> Any:
            return await _patiently(
                f"s3://{rpath}",
                functools.partial(super()._get_file, rpath, lpath, *args, **options),
                functools.partial(classify, f"s3://{rpath}"),
            )

    return PatientS3FileSystem
