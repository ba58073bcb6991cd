import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from toy_task import arrays

from mgjax.checkpoints.files.torch_file import CheckpointError
from mgjax.config.serialization import ConfigError
from mgjax.devices import sharding
from mgjax.train.checkpoints import Checkpoints
from mgjax.train.state import TrainState


def state(step, size=4096):
    """A state whose numbers depend on the step, with an optimiser of which the first part has none."""
    noise = np.random.default_rng(step).standard_normal(size).astype(np.float32)
    optimizer = (optax.EmptyState(), optax.ScaleByScheduleState(jnp.int32(step)))
    return TrainState(jnp.int32(step), {"lm": {"w": jnp.asarray(noise)}}, optimizer, None, {"seen": jnp.ones(3, bool)})


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", ("loss", "min"), keep_last=2, keep_best=1)
    yield opened
    opened.close()


def like(mesh=None):
    shapes = jax.eval_shape(lambda: state(0))
    placed = sharding.shardings(shapes, mesh or sharding.make_mesh())
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, placed
    )


def same(one, other):
    one, other = arrays(one), arrays(other)
    return one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


def fill(directory, steps=(1, 2, 3), losses=(0.1, 0.2, 0.3)):
    opened = Checkpoints(directory, ("loss", "min"), keep_last=2, keep_best=1)
    for step, loss in zip(steps, losses, strict=True):
        opened.save(step, state(step), {"num_batches": 10 * step}, {} if loss is None else {"loss": loss})
    opened.close()


def test_state_and_position_come_back_together(checkpoints):
    assert checkpoints.latest(like()) is None
    checkpoints.save(7, state(7), {"num_batches": 9}, {})
    checkpoints.wait()
    found = checkpoints.latest(like())
    assert (found.step, found.position) == (7, {"num_batches": 9})
    assert same(found.state, state(7))


def test_the_last_and_the_best_are_kept(tmp_path):
    fill(tmp_path, steps=(1, 2, 3, 4, 5, 6, 7), losses=(0.5, 0.1, None, 0.1, 0.4, 0.3, None))
    opened = Checkpoints(tmp_path, ("loss", "min"), keep_last=2, keep_best=1)
    assert (opened.steps(), opened.best()) == ([2, 6, 7], 2)
    opened.save(8, state(8), {}, {"loss": 0.05})
    opened.close()
    assert (opened.steps(), opened.best()) == ([7, 8], 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "8"]


def test_the_best_may_be_the_largest(tmp_path):
    fill(tmp_path, losses=(0.1, 0.3, 0.2))
    opened = Checkpoints(tmp_path, ("loss", "max"), keep_last=1, keep_best=1)
    assert opened.best() == 2
    opened.close()


def test_buffers_may_be_donated_while_they_are_written(checkpoints):
    size = 2**20
    flip = jax.jit(lambda now: jax.tree.map(lambda leaf: ~leaf if leaf.dtype == bool else -leaf, now), donate_argnums=0)
    now, before = state(1, size), arrays(state(1, size))
    checkpoints.save(1, now, {}, {})
    for _ in range(21):
        now = flip(now)
    checkpoints.wait()
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), now)
    after = arrays(checkpoints.restore(1, shapes).state)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(folder):
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def no_record(folder):
    shutil.rmtree(folder / "record")


def zeros(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, no_record, zeros])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage):
    fill(tmp_path)
    damage(tmp_path / "3")
    opened = Checkpoints(tmp_path, ("loss", "min"), keep_last=2, keep_best=1)
    found = opened.latest(like())
    assert (found.step, found.position) == (2, {"num_batches": 20})
    assert same(found.state, state(2))
    assert [
        record.getMessage() for record in caplog.records if f"{tmp_path / '3'} cannot be read" in record.getMessage()
    ]
    opened.save(3, state(3), {}, {})  # its place is free again
    opened.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3", "broken-3"]


def test_what_another_process_cannot_read_gives_way_too(tmp_path, monkeypatch, caplog):
    fill(tmp_path)
    opened = Checkpoints(tmp_path, ("loss", "min"), keep_last=2, keep_best=1)
    answers = iter([[False, True], [False, False]])  # of two processes, about 3 and about 2
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: next(answers))
    monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: None)
    assert opened.latest(like()).step == 2
    opened.close()
    assert "3: process 1 cannot read its part" in caplog.text
    assert (tmp_path / "broken-3").is_dir()


def test_what_is_half_written_or_half_deleted_is_not_in_the_way(tmp_path):
    fill(tmp_path, steps=(1, 2, 3), losses=(0.1, 0.3, 0.2))
    shutil.rmtree(tmp_path / "1" / "state")  # killed while it was deleted
    shutil.rmtree(tmp_path / "1" / "record")
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp")  # killed while it was written
    opened = Checkpoints(tmp_path, ("loss", "min"), keep_last=2, keep_best=1)
    assert opened.latest(like()).step == 3
    assert opened.best() == 3
    opened.save(4, state(4), {}, {})
    opened.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_where_nothing_can_be_read_nothing_is_started_anew(tmp_path, caplog):
    fill(tmp_path)
    for step in (1, 2, 3):
        truncate(tmp_path / str(step))
    opened = Checkpoints(tmp_path, ("loss", "min"), keep_last=2, keep_best=1)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints \[3, 2, 1\] can be read"):
        opened.latest(like())
    opened.close()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) >= 3


def test_a_checkpoint_of_another_model_is_no_damage(tmp_path):
    fill(tmp_path)
    opened = Checkpoints(tmp_path, ("loss", "min"), keep_last=2, keep_best=1)
    wanted = like()
    with pytest.raises(ConfigError, match=r"has other arrays .* different are extra/new"):
        opened.latest(wanted.replace(extra={**wanted.extra, "new": wanted.step}))
    opened.close()
    assert (tmp_path / "3").is_dir()
