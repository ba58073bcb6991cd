"""Runs in a bucket: they end as one on a disk does, whatever happens on the way, and write nothing beside it."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from proxy import Cut, Status

sys.path.append(str(Path(__file__).parents[1] / "train"))

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from toy_task import Batches, arrays, task, valid

from mgjax.inputs import files
from mgjax.storage import buckets, paths
from mgjax.train import lines
from mgjax.train.loop import LoopConfig, fit

CONFIG = LoopConfig(steps=8, log_every=2, eval_every=4, save_every=2, show_every=4, keep_last=2, keep_best=1)


@pytest.fixture(params=["gcs", "s3"])
def bucket(request, tmp_path, monkeypatch):
    """A bucket, and a working folder in which nothing must be written."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MGJAX_BUCKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "_LONGEST_PAUSE", 0.2)
    yield request.getfixturevalue(request.param)
    assert not list(Path.cwd().iterdir())


def save(state, directory):
    with files.replacing(paths.path(directory, "state.npz")) as file:
        np.savez(file, **arrays(state))


TOY = dataclasses.replace(task(), save=save)


def run(workdir, **changes):
    return fit(TOY, Batches(seed=0), valid, dataclasses.replace(CONFIG, **changes), workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of the same run on a disk."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "model").mkdir()
    (folder / "best").mkdir()
    fit(TOY, Batches(seed=0), valid, CONFIG, folder)
    return folder


def without_clock(workdir):
    return [{name: line[name] for name in ("step", "split", "values")} for line in lines.read(workdir)]


def check_whole(workdir, whole):
    """The same bits, metrics and checkpoints as on a disk, and all events for TensorBoard."""
    for name in ("model", "best"):
        with files.opened(f"{workdir}/{name}/state.npz") as file:
            found, expected = dict(np.load(file)), dict(np.load(whole / name / "state.npz"))
        assert found.keys() == expected.keys()
        assert all(found[path].tobytes() == expected[path].tobytes() for path in expected)
    assert without_clock(workdir) == without_clock(whole)
    kept = {name.split("/")[-2] for name in map(str, paths.below(f"{workdir}/checkpoints")) if "broken" not in name}
    assert {name for name in kept if name.isdecimal()} == {path.name for path in (whole / "checkpoints").iterdir()}


def test_a_run_in_a_bucket_is_that_on_a_disk(bucket, whole, tmp_path):
    run(f"{bucket.url}/run")
    check_whole(f"{bucket.url}/run", whole)
    events = [name for name in bucket.objects() if name.startswith("run/tensorboard/")]
    assert len(events) > 1  # parts, each of them whole
    steps = []
    for name in sorted(events):
        (tmp_path / "event").write_bytes(bucket.objects()[name])
        steps += [event.step for event in EventFileLoader(str(tmp_path / "event")).Load() if event.HasField("summary")]
    assert sorted({*steps}) == [2, 4, 6, 8]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves what it had begun
def test_it_goes_on_where_it_was_cut_off(bucket, whole):
    """By a service that refuses: at whatever write it does, the next run goes on to the same bits."""
    workdir, failures = f"{bucket.url}/run", 0
    for first in (6, 14, 25, 40):
        bucket.proxy.reset()
        writes = iter(range(10_000))
        bucket.proxy.fault(
            Status(403), lambda request, w=writes, n=first: request.kind == "write" and next(w) >= n, times=None
        )
        try:
            run(workdir)
        except OSError:
            failures += 1
        bucket.proxy.reset()
    assert failures >= 2
    run(workdir)
    check_whole(workdir, whole)


def test_weather_is_waited_out(bucket, whole):
    bucket.proxy.fault(Status(503), lambda request: request.number % 7 == 0, times=20)
    bucket.proxy.fault(Cut("answer"), lambda request: request.number % 11 == 0, times=5)
    run(f"{bucket.url}/run")
    check_whole(f"{bucket.url}/run", whole)


def test_nothing_is_compiled_before_the_bucket_was_tried(bucket, monkeypatch):
    bucket.proxy.fault(Status(403), lambda request: request.kind == "delete", times=None)
    monkeypatch.setattr("mgjax.train.loop.Programs", None)
    with pytest.raises(PermissionError, match=rf"{bucket.url}: this account may not delete objects"):
        run(f"{bucket.url}/run")


def test_a_run_of_others_in_the_bucket_stays(bucket):
    files.write_text(f"{bucket.url}/run/config.json", "{}")
    with pytest.raises(FileExistsError, match="is not of a run of mgjax"):
        run(f"{bucket.url}/run")
    assert bucket.objects() == {"run/config.json": b"{}"}


def test_local_checkpoints_beside_those_in_the_bucket(bucket, whole, tmp_path):
    """The disk of the host is enough to go on from; without it, the bucket is."""
    workdir, local = f"{bucket.url}/run", {"local_every": 1, "local_folder": str(tmp_path / "local"), "save_every": 4}

    class Stopped(Exception):
        pass

    class Until(Batches):
        def __next__(self):
            if self.position == 7:
                raise Stopped
            return super().__next__()

    for lost in (False, True):
        with pytest.raises(Stopped):
            fit(TOY, Until(seed=0), valid, dataclasses.replace(CONFIG, **local), workdir)
        (own,) = (tmp_path / "local" / "checkpoints").glob("*/process-00000")
        assert sorted(path.name for path in own.iterdir()) == ["6", "7"]
        if lost:
            own.rename(tmp_path / "gone")
    state = run(workdir, **local)
    assert int(state.step) == 8
    with files.opened(f"{workdir}/model/state.npz") as file:
        found, expected = dict(np.load(file)), dict(np.load(whole / "model" / "state.npz"))
    assert all(found[path].tobytes() == expected[path].tobytes() for path in expected)
    assert without_clock(workdir) == without_clock(whole)
