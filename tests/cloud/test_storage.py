"""Buckets through mgjax.storage: what is written is there whole, weather is waited out, and trouble is named."""

import concurrent.futures
import os
import pathlib
import time

import pytest
from proxy import Cut, Status

from mgjax.inputs import files
from mgjax.storage import buckets, cache, paths, preflight


@pytest.fixture(params=["gcs", "s3"])
def bucket(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MGJAX_BUCKET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(buckets, "_LONGEST_PAUSE", 0.2)


def test_files_are_written_and_read(bucket):
    path = paths.path(bucket.url, "folder", "a.json")
    assert (paths.size(path), path.exists()) == (None, False)
    files.write_json(path, {"a": [1, 2]})
    assert files.read_json(path) == {"a": [1, 2]}
    assert bucket.objects() == {"folder/a.json": b'{\n  "a": [\n    1,\n    2\n  ]\n}\n'}
    files.copy(path, path.with_name("b.json"))
    files.write_text(path.parent / "deeper" / "c", "c")
    assert paths.sizes(path.parent) == {"a.json": paths.size(path), "b.json": paths.size(path)}
    assert [found.name for found in paths.below(path.parent)] == ["a.json", "b.json", "c"]
    assert files.read_bytes(path)[5:8] == paths.read_range(path, 5, 3)
    paths.remove(path.parent)
    assert bucket.objects() == {}
    assert paths.sizes(path.parent) == {}


def test_a_missing_object_is_a_missing_file(bucket):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        files.read_json(f"{bucket.url}/nothing.json")


def test_limits_hold_before_anything_is_fetched(bucket):
    files.write_text(f"{bucket.url}/big", "x" * 1000)
    bucket.proxy.reset()
    with pytest.raises(ValueError, match="big: is larger than"):
        files.read_bytes(f"{bucket.url}/big", 999)
    assert bucket.proxy.counts()["requests"]["read"] == 0


def test_one_of_many_creates(bucket):
    """Of writers who race for an object, one wins, and all know."""
    address, winners = f"{bucket.url}/marker", []
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        winners = list(pool.map(lambda i: files.create(address, str(i)), range(6)))
    assert winners.count(True) == 1
    assert files.read_text(address) == str(winners.index(True))
    assert files.create(address, files.read_text(address))  # who finds its own text has it


def test_a_lost_answer_does_not_lose_the_race(bucket):
    """The object is created, but the answer is cut: the next try finds its own text."""
    bucket.proxy.fault(Cut("answer"), lambda request: request.kind == "write")
    assert files.create(f"{bucket.url}/marker", "mine")
    assert bucket.objects() == {"marker": b"mine"}


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_an_overloaded_service_is_asked_again(bucket, code):
    rule = bucket.proxy.fault(Status(code), times=4)
    files.write_text(f"{bucket.url}/a", "text")
    assert files.read_text(f"{bucket.url}/a") == "text"
    assert rule.hits == 4


@pytest.mark.parametrize("where", ["request", "answer", "body"])
def test_cut_connections_are_made_again(bucket, where):
    files.write_text(f"{bucket.url}/a", "text" * 100_000)
    rule = bucket.proxy.fault(Cut(where), lambda request: request.method == "GET", times=3)
    assert files.read_text(f"{bucket.url}/a") == "text" * 100_000
    assert rule.hits == 3


def test_a_network_that_is_gone_comes_back(bucket, caplog):
    files.write_text(f"{bucket.url}/a", "text")
    bucket.proxy.network_gone(4.0)
    begun = time.monotonic()
    assert files.read_text(f"{bucket.url}/a") == "text"
    assert time.monotonic() - begun > 2.0
    assert "is tried again for up to" in caplog.text


def test_one_that_stays_away_ends_in_one_sentence(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 1.0)
    files.write_text(f"{bucket.url}/a", "text")
    bucket.proxy.network_gone(60.0)
    with pytest.raises(buckets.BucketError, match=rf"{bucket.url}.*: no answer for \d+ s"):
        files.read_text(f"{bucket.url}/a")


def test_a_service_that_never_answered_is_given_up_sooner(bucket, monkeypatch):
    monkeypatch.setattr(buckets, "_FIRST", 0.5)
    monkeypatch.setattr(buckets, "_answered", set())
    bucket.proxy.network_gone(2.0)
    with pytest.raises(buckets.BucketError, match=rf"{bucket.url}.*: no answer for \d s"):
        files.write_text(f"{bucket.url}/a", "text")
    time.sleep(2.0)
    files.write_text(f"{bucket.url}/a", "text")
    bucket.proxy.network_gone(1.5)
    assert files.read_text(f"{bucket.url}/a") == "text"


def test_what_is_not_allowed_is_named(bucket):
    bucket.proxy.fault(Status(403), lambda request: request.kind == "write", times=None)
    with pytest.raises(PermissionError, match="may not do that"):
        files.write_text(f"{bucket.url}/a", "text")


@pytest.mark.parametrize("kind", ["write", "list", "read", "delete"])
def test_preflight_names_bucket_and_permission(bucket, kind):
    permission = {
        "write": "create|PutObject",
        "list": "list|ListBucket",
        "read": "get|GetObject",
        "delete": "delete|Delete",
    }
    bucket.proxy.fault(Status(403), lambda request: request.kind == kind, times=None)
    with pytest.raises(PermissionError, match=rf"{bucket.url}: this account may not {kind} .*({permission[kind]})"):
        preflight.check_writable(f"{bucket.url}/run")


def test_preflight_leaves_nothing(bucket):
    preflight.check_writable(f"{bucket.url}/run")
    assert bucket.objects() == {}


def test_a_missing_bucket_is_named(bucket):
    address = bucket.url + "-that-is-not-there"
    with pytest.raises(OSError, match=f"{address}: there is no such bucket"):
        preflight.check_writable(f"{address}/run")
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        preflight.check_readable(f"{address}/corpus", "corpus.json")


def test_other_addresses_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"az://x/y: of addresses, only gs:// and s3:// are known"):
        paths.path("az://x/y")
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://b/c: this needs gcsfs, .* pip install 'mgjax\[cloud\]'"):
        paths.path("gs://b/c")


def test_a_copy_is_fetched_once_and_when_it_has_changed(bucket):
    address = f"{bucket.url}/folder/shard"
    files.write_text(address, "one")
    first = cache.local_file(address)
    assert (first.name, first.read_text()) == ("shard", "one")
    bucket.proxy.reset()
    assert cache.local_file(address) == first
    assert bucket.proxy.counts()["requests"]["read"] == 0
    files.write_text(address, "two")
    assert cache.local_file(address).read_text() == "two"


def test_the_cache_is_bounded(bucket, monkeypatch, tmp_path):
    """What was not needed for longest goes; what this process reads from stays."""
    monkeypatch.setenv("MGJAX_BUCKET_CACHE_GB", "0.0000025")  # 2500 bytes
    copies = []
    for number in range(4):
        files.write_text(f"{bucket.url}/{number}", str(number) * 1000)
        copies.append(cache.local_file(f"{bucket.url}/{number}"))
        if number:
            cache.unpin(copies[-1])
        os.utime(copies[-1].parent, (number, number))
    assert [copy.exists() for copy in copies] == [True, False, False, True]
    cache.unpin(copies[0])
    cache.fetch(f"{bucket.url}/1")
    assert not copies[0].exists()
    files.write_text(f"{bucket.url}/large", "x" * 3000)
    with pytest.raises(OSError, match=r"do not fit into this cache .*MGJAX_BUCKET_CACHE_GB"):
        cache.fetch(f"{bucket.url}/large")


def test_what_came_damaged_is_fetched_again(bucket, monkeypatch):
    files.write_text(f"{bucket.url}/a", "text")
    system = buckets.system(f"{bucket.url}/a")
    whole, calls = system.get_file, []

    def damaged(address, file, **options):
        whole(address, file, **options)
        calls.append(address)
        if len(calls) < damage:
            pathlib.Path(file).write_text("texu")

    monkeypatch.setattr(system, "get_file", damaged)
    damage = 3
    assert files.read_text(f"{bucket.url}/a") == "text"
    assert len(calls) == 3
    damage = 99
    with pytest.raises(buckets.BucketError, match="what came is not what is stored there"):
        files.read_text(f"{bucket.url}/a")
