"""Checkpoints as files of shards: on local disks beside a shared directory, and on any mesh."""

import logging

import jax
import numpy as np
import pytest
from test_checkpoints import like, same, state

from mgjax.devices import sharding
from mgjax.errors import CheckpointError, ConfigError
from mgjax.train import shards
from mgjax.train.checkpoints import Checkpoints
from mgjax.train.stores import ShardStore


def placed(step, mesh):
    return jax.tree.map(lambda leaf, where: jax.device_put(leaf, where.sharding), state(step), like(mesh))


@pytest.fixture
def store(tmp_path):
    opened = ShardStore(tmp_path / "checkpoints", lambda steps: set(steps), of_host=False)
    yield opened
    opened.close()


@pytest.mark.parametrize(("before", "after"), [((1, 8, 1), (1, 8, 1)), ((1, 8, 1), (2, 2, 1)), ((2, 2, 1), (1, 8, 1))])
def test_any_mesh_reads_what_another_wrote(store, before, after):
    """With the shards of all devices, or of some; equal shards are written once."""
    devices = jax.devices()
    first, second = (sharding.make_mesh(*sizes, devices[: int(np.prod(sizes))]) for sizes in (before, after))
    store.save(3, placed(3, first), {"position": 5})
    store.wait()
    assert (store.steps(), store.record(3)) == ([3], {"position": 5})
    found = store.state(3, like(second))
    assert same(found, state(3))
    assert found.params["lm"]["w"].sharding == like(second).params["lm"]["w"].sharding
    (file,) = (store.directory / "3").glob("*.bin")
    assert file.stat().st_size == sum(leaf.nbytes for leaf in jax.tree.leaves(state(3)))


def test_another_model_or_missing_parts_are_refused(store):
    store.save(1, state(1), {})
    store.wait()
    wanted = like()
    with pytest.raises(ConfigError, match=r"has other arrays .* different are extra/new"):
        store.state(1, wanted.replace(extra={**wanted.extra, "new": wanted.step}))
    stem = shards.name(0, 1)
    half = [
        part._replace(bounds=((0, 1000),), values=part.values[:1000]) if part.path == "params/lm/w" else part
        for part in shards.of_process(state(1), every_replica=False)
    ]
    shards.write(store.directory / "1", stem, half)
    with pytest.raises(CheckpointError, match="parts of params/lm/w are missing"):
        store.state(1, wanted)


def test_what_was_interrupted_is_not_counted_and_removed(tmp_path):
    folder = tmp_path / "checkpoints" / "4"
    folder.mkdir(parents=True)
    shards.write(folder, shards.name(0, 1), shards.of_process(state(4), every_replica=True))  # and no record
    store = ShardStore(tmp_path / "checkpoints", lambda steps: set(steps), of_host=False)
    assert store.steps() == []
    assert not folder.exists()
    store.close()


def two_tiers(tmp_path):
    return Checkpoints(tmp_path / "shared", ("loss", "min"), keep_last=2, keep_best=1, local=tmp_path / "local")


def fill(tmp_path):
    """Shared checkpoints of 2 and 4, local ones of 5 and 6."""
    opened = two_tiers(tmp_path)
    for step in range(1, 7):
        if step in (2, 4):
            opened.save(step, state(step), {"row": step}, {})
        else:
            opened.save_locally(step, state(step), {"row": step})
    opened.close()


def test_the_newest_of_both_is_read(tmp_path):
    fill(tmp_path)
    opened = two_tiers(tmp_path)
    found = opened.latest(like())
    assert (found.step, found.position) == (6, {"row": 6})
    assert same(found.state, state(6))
    assert opened.steps() == [2, 4]
    opened.close()
    names = sorted(path.name for path in (tmp_path / "local" / "process-00000").iterdir())
    assert names == ["5", "6"]


def test_a_lost_disk_costs_the_steps_since_the_shared_one(tmp_path):
    fill(tmp_path)
    (tmp_path / "local").rename(tmp_path / "gone")
    opened = two_tiers(tmp_path)
    assert opened.latest(like()).step == 4
    opened.close()


def test_a_damaged_local_one_gives_way(tmp_path, caplog):
    fill(tmp_path)
    (file,) = (tmp_path / "local" / "process-00000" / "6").glob("*.bin")
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "mgjax"):
        opened = two_tiers(tmp_path)
        found = opened.latest(like())
    assert found.step == 5
    assert same(found.state, state(5))
    assert "6 cannot be read" in caplog.text
    opened.close()
    assert not (tmp_path / "local" / "process-00000" / "6").exists()  # it is written again
    assert not [path for path in (tmp_path / "shared").iterdir() if "broken" in path.name]


def test_without_a_local_folder_there_are_none(tmp_path):
    fill(tmp_path)
    opened = Checkpoints(tmp_path / "shared", ("loss", "min"), keep_last=2, keep_best=1)
    assert opened.latest(like()).step == 4
    opened.close()
