"""Buckets for tests: an emulator for each worker, behind the proxy of the tests, and a new bucket for each test."""

import dataclasses
import json
import os
import urllib.parse
import urllib.request
import uuid
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path

import emulators
import fsspec
import fsspec.asyn
import fsspec.config
import pytest
from etils.epath import backend
from proxy import GCSProxy, Proxy

from mgjax.storage import buckets


def pytest_collection_modifyitems(items):
    """What gcsfs does with more than a megabyte is no news."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"))


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket of a test."""

    url: str  # "gs://NAME" or "s3://NAME"
    proxy: Proxy
    upstream: str  # the emulator itself
    environ: dict[str, str]  # what a process needs to find it, and no other

    def objects(self) -> dict[str, bytes]:
        """All objects by name, as the emulator holds them: these requests are not counted and meet no faults."""
        name = self.url.partition("://")[2]
        if self.url.startswith("gs:"):
            items = json.loads(_fetch(f"{self.upstream}/storage/v1/b/{name}/o"))["items"]
            keys = [item["name"] for item in items]
            folder = f"{self.upstream}/download/storage/v1/b/{name}/o"
        else:
            keys = _s3_keys(self.upstream, name)
            folder = f"{self.upstream}/{name}"
        return {key: _fetch(f"{folder}/{urllib.parse.quote(key, safe='')}") for key in keys}


def _fetch(url: str, method: str = "GET", data: bytes | None = None) -> bytes:
    # moto wants to be told who asks, and believes it.
    signature = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Content-Type": "application/json", "Authorization": signature}
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return response.read()


def _s3_keys(upstream: str, bucket: str) -> list[str]:
    keys, token = [], ""
    while True:
        page = xml.fromstring(_fetch(f"{upstream}/{bucket}?list-type=2{token}"))
        keys += [element.text for element in page.iterfind("{*}Contents/{*}Key")]
        if page.findtext("{*}IsTruncated") != "true":
            return keys
        token = "&continuation-token=" + urllib.parse.quote(page.findtext("{*}NextContinuationToken"), safe="")


def _forget_filesystems() -> None:
    """Closes the connections of all file systems of fsspec, and forgets these and what they have listed."""
    for protocol in ("gs", "s3"):
        for filesystem in list(fsspec.get_filesystem_class(protocol)._cache.values()):
            if protocol == "gs" and filesystem._session is not None:
                fsspec.asyn.sync(filesystem.loop, filesystem._session.close)
                filesystem._session = None
            if protocol == "s3" and filesystem._s3creator is not None:
                fsspec.asyn.sync(filesystem.loop, filesystem._s3creator.__aexit__, None, None, None)
                filesystem._s3 = filesystem._s3creator = None
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    type(backend.fsspec_backend)._get_filesystem.cache_clear()


@pytest.fixture(scope="session")
def _gcs_emulator() -> Iterator[str]:
    with emulators.gcs() as url:
        yield url


@pytest.fixture(scope="session")
def _gcs_proxy(_gcs_emulator) -> Iterator[Proxy]:
    # gcsfs's other class first asks by gRPC what kind a bucket is, for a minute: no emulator speaks it.
    buckets.register("gs://")
    # One for all tests: tensorstore keeps the URL that it finds first.
    with GCSProxy(_gcs_emulator) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _s3_emulator() -> Iterator[str]:
    with emulators.s3() as url:
        yield url


@pytest.fixture(scope="session")
def _s3_proxy(_s3_emulator) -> Iterator[Proxy]:
    with Proxy(_s3_emulator) as proxy:
        yield proxy


def _bucket(scheme: str, proxy: Proxy, upstream: str, environ: dict[str, str], monkeypatch) -> Iterator[Bucket]:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    if scheme == "gs":
        _fetch(f"{upstream}/storage/v1/b", "POST", json.dumps({"name": name}).encode())
    else:
        _fetch(f"{upstream}/{name}", "PUT")
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    # fsspec reads the variables when it is imported.
    config = {}
    fsspec.config.set_conf_env(config, {key: value for key, value in environ.items() if key.startswith("FSSPEC_")})
    for protocol, options in config.items():
        monkeypatch.setitem(fsspec.config.conf, protocol, options)
    _forget_filesystems()
    proxy.reset()
    yield Bucket(f"{scheme}://{name}", proxy, upstream, environ)
    proxy.clear_faults()
    _forget_filesystems()


@pytest.fixture
def gcs(_gcs_proxy, _gcs_emulator, monkeypatch) -> Iterator[Bucket]:
    """A new bucket of Google's, which this process and those with `gcs.environ` find."""
    environ = {
        "STORAGE_EMULATOR_HOST": _gcs_proxy.url,
        "TENSORSTORE_GCS_HTTP_URL": _gcs_proxy.url,
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        # tensorstore takes these, and looks neither for files nor for a metadata server, which is at a dead address.
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
        "GCE_METADATA_ROOT": "127.0.0.1:9",
        "NO_GCE_CHECK": "true",
        "NO_PROXY": "127.0.0.1",
    }
    yield from _bucket("gs", _gcs_proxy, _gcs_emulator, environ, monkeypatch)


@pytest.fixture
def s3(_s3_proxy, _s3_emulator, monkeypatch) -> Iterator[Bucket]:
    """A new bucket of Amazon's, which this process and those with `s3.environ` find."""
    environ = {
        "AWS_ENDPOINT_URL": _s3_proxy.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
    }
    yield from _bucket("s3", _s3_proxy, _s3_emulator, environ, monkeypatch)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What is wrong in a test is known soon."""
    monkeypatch.setattr(buckets, "PATIENCE", 20.0)
