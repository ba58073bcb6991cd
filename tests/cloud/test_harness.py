"""The emulators, the proxy and the fixtures that the tests of buckets use."""

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import emulators
import fsspec
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from etils import epath
from proxy import Crash, Cut, Delay, Status

BINARY = bytes(range(256)) * 5 + b"\r"


def filesystem(bucket):
    return fsspec.filesystem(bucket.url.partition(":")[0])


@pytest.mark.parametrize("provider", ["gcs", "s3"])
def test_epath_writes_lists_reads_and_deletes(provider, request):
    bucket = request.getfixturevalue(provider)
    root = epath.Path(bucket.url)
    (root / "a/b c.bin").write_bytes(BINARY)
    (root / "a/d.txt").write_text("d")
    assert bucket.objects() == {"a/b c.bin": BINARY, "a/d.txt": b"d"}
    assert sorted(path.name for path in (root / "a").iterdir()) == ["b c.bin", "d.txt"]
    assert [path.name for path in (root / "a").glob("*.txt")] == ["d.txt"]
    assert (root / "a/b c.bin").read_bytes() == BINARY
    assert (root / "a/b c.bin").stat().length == len(BINARY)
    (root / "a/d.txt").rename(root / "a/e.txt")
    (root / "a/b c.bin").unlink()
    assert bucket.objects() == {"a/e.txt": b"d"}
    (root / "a").rmtree()
    assert bucket.objects() == {}


def test_lists_have_pages_and_bounds(gcs):
    for name in ["a/1", "a/2", "b/1", "b/2/3"]:
        filesystem(gcs).pipe_file(f"{gcs.url}/{name}", b"")
    assert tensorstore.KvStore.open(f"{gcs.url}/a/").result().list().result() == [b"1", b"2"]
    assert filesystem(gcs).ls(f"{gcs.url}/b") == [f"{gcs.url[5:]}/b/{name}" for name in ("1", "2")]
    objects = f"/storage/v1/b/{gcs.url[5:]}/o?maxResults=3"
    page = json.loads(send(gcs.proxy, "GET", objects)[1])
    rest = json.loads(send(gcs.proxy, "GET", f"{objects}&pageToken={page['nextPageToken']}")[1])
    assert [item["name"] for item in page["items"] + rest["items"]] == ["a/1", "a/2", "b/1", "b/2/3"]
    assert "nextPageToken" not in rest


def test_what_is_large_is_uploaded_in_pieces(gcs, s3):
    large = os.urandom(11 << 20)
    for bucket in gcs, s3:
        with filesystem(bucket).open(f"{bucket.url}/large", "wb", block_size=5 << 20) as file:
            file.write(large[: 6 << 20])
            file.write(large[6 << 20 :])
        assert bucket.objects() == {"large": large}
        assert bucket.proxy.counts()["requests"]["write"] >= 3


def test_tensorstore(gcs):
    store = tensorstore.KvStore.open(f"{gcs.url}/folder/").result()
    store.write(b"a", BINARY).result()
    assert gcs.objects() == {"folder/a": BINARY}
    assert store.list().result() == [b"a"]
    read = store.read(b"a").result()
    assert read.value == BINARY
    current = store.write(b"a", b"1").result().generation
    assert store.write(b"a", b"2", if_equal=read.stamp.generation).result().generation == b""  # refused
    assert store.write(b"a", b"3", if_equal=current).result().generation
    absent = store.read(b"b").result().stamp.generation
    assert store.write(b"a", b"4", if_equal=absent).result().generation == b""
    assert store.write(b"b", b"4", if_equal=absent).result().generation
    assert gcs.objects() == {"folder/a": b"3", "folder/b": b"4"}
    del store[b"a"]
    store.delete_range(tensorstore.KvStore.KeyRange()).result()
    assert gcs.objects() == {}


def test_orbax(gcs):
    state = {"w": jnp.arange(8.0), "b": jnp.ones((2, 3))}
    with ocp.CheckpointManager(epath.Path(gcs.url) / "checkpoints") as manager:
        manager.save(1, args=ocp.args.StandardSave(state))
        manager.save(2, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        manager.delete(1)
        assert manager.all_steps() == [2]
        restored = manager.restore(2, args=ocp.args.StandardRestore(state))
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert not any(name.startswith("checkpoints/1/") for name in gcs.objects())


def creators_that_win(url: str, count: int) -> int:
    """How many of `count` that create one object at once, through gcsfs, are told that they did."""
    barrier = threading.Barrier(count)

    def create(index: int) -> bool:
        # An instance each, as on hosts.
        storage = fsspec.filesystem("gs", skip_instance_cache=True)
        barrier.wait()
        try:
            storage.pipe_file(f"{url}/object", b"%d" % index, mode="create")
        except FileExistsError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return sum(pool.map(create, range(count)))


def test_of_creators_one_wins_behind_the_proxy_alone(gcs, monkeypatch):
    assert creators_that_win(gcs.url, 4) == 1
    assert gcs.proxy.counts()["requests"]["write"] == 4
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.upstream)
    assert creators_that_win(gcs.url + "/other", 4) == 4


@pytest.mark.parametrize("provider", ["gcs", "s3"])
def test_create_if_absent(provider, request):
    bucket = request.getfixturevalue(provider)
    storage = filesystem(bucket)
    storage.pipe_file(f"{bucket.url}/a", b"1", mode="create")
    with pytest.raises(FileExistsError):
        storage.pipe_file(f"{bucket.url}/a", b"2", mode="create")
    with pytest.raises(FileExistsError), storage.open(f"{bucket.url}/a", "xb") as file:
        file.write(b"3")
    assert bucket.objects() == {"a": b"1"}
    with storage.open(f"{bucket.url}/b", "xb") as file:
        file.write(b"4")
    assert bucket.objects() == {"a": b"1", "b": b"4"}


def test_large_objects_are_created_once(gcs):
    storage = filesystem(gcs)
    first, second = (storage.open(f"{gcs.url}/a", "xb") for _ in range(2))
    piece = os.urandom(6 << 20)
    for file in first, second:  # both find nothing there, and begin
        file.write(piece)
    first.close()
    with pytest.raises(FileExistsError):
        second.close()
    second.discard()
    assert gcs.objects() == {"a": piece}


def test_generations(gcs):
    path, proxy = epath.Path(gcs.url) / "a b/c", gcs.proxy
    path.write_bytes(b"1")
    generation = filesystem(gcs).info(str(path))["generation"]
    name = f"{gcs.url.removeprefix('gs://')}/o/a%20b%2Fc"
    objects, xml = f"/storage/v1/b/{name}", f"/{gcs.url.removeprefix('gs://')}/a%20b/c"
    assert send(proxy, "GET", f"{objects}?alt=media&generation={generation}")[0] == 200
    assert send(proxy, "GET", f"{objects}?alt=media&ifGenerationNotMatch={generation}")[0] == 304
    assert send(proxy, "PUT", xml, b"2", {"x-goog-if-generation-match": "0"})[0] == 412
    assert send(proxy, "PUT", xml, b"2", {"x-goog-if-generation-match": generation})[0] == 200
    assert send(proxy, "GET", f"{objects}?alt=media&generation={generation}")[0] == 404
    assert send(proxy, "GET", f"{objects}?alt=media&ifGenerationMatch={generation}")[0] == 412
    assert send(proxy, "DELETE", f"{objects}?ifGenerationMatch={generation}")[0] == 412
    assert gcs.objects() == {"a b/c": b"2"}


def send(proxy, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
    """Status and content, in a connection of its own; raises what http.client raises."""
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_write(request) -> bool:
    return request.kind == "write"


def test_counts(gcs, s3):
    for bucket in gcs, s3:
        storage = filesystem(bucket)
        storage.pipe_file(f"{bucket.url}/a", BINARY)
        storage.cat_file(f"{bucket.url}/a")
        storage.ls(bucket.url)
        storage.info(f"{bucket.url}/a")
        storage.rm_file(f"{bucket.url}/a")
        counts = bucket.proxy.counts()
        requests = {kind: counts["requests"][kind] for kind in ("write", "read", "list", "delete")}
        assert requests == {"write": 1, "read": 1, "list": requests["list"], "delete": 1}
        assert requests["list"] > 0
        assert counts["bytes_sent"]["write"] >= len(BINARY)
        assert counts["bytes_received"]["read"] == len(BINARY)
        assert counts["requests"]["GET"] >= 2
        assert counts["requests"]["DELETE"] == 1


@pytest.mark.parametrize("code", [403, 404, 408, 412, 429, 503])
def test_status(gcs, code):
    rule = gcs.proxy.fault(Status(code), is_write)
    path = f"/upload/storage/v1/b/{gcs.url.removeprefix('gs://')}/o?uploadType=media&name=a"
    assert send(gcs.proxy, "POST", path, b"1")[0] == code
    assert (rule.hits, gcs.objects()) == (1, {})
    assert send(gcs.proxy, "POST", path, b"1")[0] == 200
    assert (rule.hits, gcs.objects()) == (1, {"a": b"1"})


def test_gcsfs_tries_again(gcs):
    rule = gcs.proxy.fault(Status(503), is_write)
    (epath.Path(gcs.url) / "a").write_bytes(b"1")
    assert (rule.hits, gcs.objects()) == (1, {"a": b"1"})


def test_delay(gcs):
    gcs.proxy.fault(Delay(0.3), lambda request: request.kind == "list")
    start = time.monotonic()
    filesystem(gcs).ls(gcs.url)
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize("where", ["request", "answer"])
def test_cut_before_the_answer(gcs, where):
    gcs.proxy.fault(Cut(where), is_write)
    path = f"/upload/storage/v1/b/{gcs.url.removeprefix('gs://')}/o?uploadType=media&name=a"
    with pytest.raises(ConnectionError):
        send(gcs.proxy, "POST", path, b"1")
    assert gcs.objects() == ({} if where == "request" else {"a": b"1"})


def test_cut_within_the_answer(gcs):
    (epath.Path(gcs.url) / "a").write_bytes(BINARY)
    gcs.proxy.fault(Cut("body"), lambda request: request.kind == "read")
    path = f"/storage/v1/b/{gcs.url.removeprefix('gs://')}/o/a?alt=media"
    with pytest.raises(http.client.IncompleteRead) as error:
        send(gcs.proxy, "GET", path)
    assert error.value.partial == BINARY[: len(BINARY) // 2]
    assert send(gcs.proxy, "GET", path) == (200, BINARY)


def test_network_gone(gcs):
    path = f"/storage/v1/b/{gcs.url.removeprefix('gs://')}"
    kept = http.client.HTTPConnection(gcs.proxy.url.removeprefix("http://"), timeout=10)
    kept.request("GET", path)
    kept.getresponse().read()
    gcs.proxy.network_gone(0.5)
    assert kept.sock.recv(1) == b""  # ended from the other side
    kept.close()
    with pytest.raises(ConnectionError):
        send(gcs.proxy, "GET", path)
    time.sleep(0.5)
    assert send(gcs.proxy, "GET", path)[0] == 200


def test_crash_between_data_and_marker(gcs):
    code = (
        "import fsspec, sys\n"
        "storage = fsspec.filesystem('gs')\n"
        "storage.pipe_file(sys.argv[1] + '/data', b'1')\n"
        "print('data', flush=True)\n"
        "storage.pipe_file(sys.argv[1] + '/marker', b'1')\n"
        "print('marker', flush=True)\n"
    )
    command = [sys.executable, "-c", code, gcs.url]
    process = subprocess.Popen(command, env={**os.environ, **gcs.environ}, stdout=subprocess.PIPE, text=True)
    gcs.proxy.fault(Crash(process.kill), lambda request: request.name == "marker")
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("data\n", -signal.SIGKILL)
    assert gcs.objects() == {"data": b"1"}


def test_an_emulator_ends_with_its_process():
    code = "import emulators, os; print(emulators.gcs().__enter__(), flush=True); os._exit(0)"
    environ = {**os.environ, "PYTHONPATH": str(Path(emulators.__file__).parent)}
    result = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    host, _, port = result.stdout.strip().removeprefix("http://").partition(":")
    deadline = time.monotonic() + 5
    with socket.socket() as probe:
        while probe.connect_ex((host, int(port))) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            probe = socket.socket()
