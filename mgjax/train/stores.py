"""Where checkpoints are kept: in a folder that all hosts share, in S3, or on the local disk of each host."""

from __future__ import annotations

import json
import logging
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationPolicy

from mgjax.devices.sharding import path_of
from mgjax.errors import CheckpointError, ConfigError
from mgjax.inputs import files
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.train import shards
from mgjax.train.state import TrainState

log = logging.getLogger("mgjax")

Keep = Callable[[Sequence[int]], set[int]]  # of the steps of checkpoints, those that are kept
Record = Mapping[str, Any]  # JSON values beside the arrays

_RECORD = "record.json"
_SLOWEST = 3600.0  # seconds that the slowest host may write for


@runtime_checkable
class Store(Protocol):
    """Checkpoints by their steps, in `directory`.

    Of damaged ones, `record` and `state` raise exceptions of any kind; ConfigError, where they are of another model.
    """

    directory: Path

    def save(self, step: int, state: TrainState, record: Record) -> None:
        """Starts to write; returns once the arrays are copied, so that they may be donated."""

    def wait(self) -> None:
        """Waits until all is written; raises the errors of that."""

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, in order."""

    def record(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint."""

    def state(self, step: int, like: TrainState) -> TrainState:
        """The arrays of a checkpoint, without communication between processes."""

    def set_aside(self, steps: Sequence[int]) -> None:
        """Renames checkpoints to "broken-<step>", so that new ones can have their names."""

    def close(self) -> None:
        """Ends the threads."""


def shared(directory: Path, keep: Keep) -> Store:
    """The checkpoints in a directory that all hosts share, on a file system, in gs:// or in s3://."""
    if str(directory).startswith("s3://"):  # to which orbax does not write
        return ShardStore(directory, keep, of_host=False)
    return OrbaxStore(directory, keep)


class OrbaxStore:
    """Orbax's checkpoints: each host writes its shards into the shared directory."""

    def __init__(self, directory: Path, keep: Keep):
        self.directory, self._keep = directory, keep
        self._open()

    def save(self, step: int, state: TrainState, record: Record) -> None:
        """As `Store.save`."""
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(dict(record)))
        self._manager.save(step, args=items)

    def wait(self) -> None:
        """As `Store.wait`."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """As `Store.steps`."""
        return sorted(ocp.path.step.checkpoint_steps(self.directory))

    def record(self, step: int) -> dict[str, Any]:
        """As `Store.record`."""
        content: dict[str, Any] = self._record.restore(self.directory / str(step) / "record")
        return content

    def state(self, step: int, like: TrainState) -> TrainState:
        """As `Store.state`."""
        stored, expected = _shapes(self._manager.item_metadata(step)["state"].tree), _shapes(like)
        if stored != expected:
            differing = sorted(path for path in stored | expected if stored.get(path) != expected.get(path))
            raise ConfigError(
                f"{self.directory / str(step)}: has other arrays than this model and optimiser; different are "
                f"{', '.join(differing[:6])}. Give another folder, or the settings and the version that it began with"
            )
        arrays = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        state: TrainState = self._state.restore(self.directory / str(step) / "state", args=arrays)
        return state

    def set_aside(self, steps: Sequence[int]) -> None:
        """As `Store.set_aside`."""
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                paths.rename(self.directory / str(step), self.directory / f"broken-{step}")
        multihost_utils.sync_global_devices("broken checkpoints are renamed")
        self._open()

    def close(self) -> None:
        """As `Store.close`."""
        self._manager.close()

    def _open(self) -> None:
        # Splitting the writing of a replicated array compiles a program for it, which only large ones are worth.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**24)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self._state = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        self._record = ocp.JsonCheckpointHandler()
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add("state", ocp.args.PyTreeSave, self._state)
        handlers.add("state", ocp.args.PyTreeRestore, self._state)
        handlers.add("record", ocp.args.JsonSave, self._record)
        handlers.add("record", ocp.args.JsonRestore, self._record)
        options = ocp.CheckpointManagerOptions(preservation_policy=_Policy(self._keep), cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=handlers)


class _Policy(PreservationPolicy):
    """The policy of orbax by which checkpoints are deleted unless their steps are in `keep(steps)`."""

    def __init__(self, keep: Keep):
        self._keep = keep

    @typing.no_type_check  # orbax's protocol cannot be checked while a program runs
    def should_preserve(self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        """Whether each of the checkpoints is kept."""
        kept = self._keep([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class ShardStore:
    """Checkpoints as files of shards, by `mgjax.train.shards`: `<step>/` with a pair of files of each process.

    The record in it is written last, when the files of all processes are there. The directory is one for all hosts, or
    of this host alone (`of_host`); then it holds all that the devices of this host need.
    """

    def __init__(self, directory: Path, keep: Keep, *, of_host: bool):
        self.directory, self._keep, self._of_host = directory, keep, of_host
        self._process, self._count = jax.process_index(), jax.process_count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._writes_record = of_host or self._process == 0
        if self._writes_record:
            for step in self._found(whole=False):  # of a process that was killed
                paths.remove(directory / str(step))

    def save(self, step: int, state: TrainState, record: Record) -> None:
        """As `Store.save`."""
        self.wait()
        copies = shards.of_process(state, every_replica=self._of_host)
        self._writing = self._thread.submit(self._write, step, copies, dict(record))

    def wait(self) -> None:
        """As `Store.wait`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def steps(self) -> list[int]:
        """As `Store.steps`."""
        return self._found(whole=True)

    def record(self, step: int) -> dict[str, Any]:
        """As `Store.record`."""
        content = files.read_json(self.directory / str(step) / _RECORD, files.LARGEST_TEXT, CheckpointError)
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.directory / str(step) / _RECORD}: is damaged")
        return content

    def state(self, step: int, like: TrainState) -> TrainState:
        """As `Store.state`."""
        return shards.read(self.directory / str(step), like)

    def set_aside(self, steps: Sequence[int]) -> None:
        """As `Store.set_aside`."""
        for step in steps if self._writes_record else ():
            paths.rename(self.directory / str(step), self.directory / f"broken-{step}")
        if not self._of_host:
            multihost_utils.sync_global_devices("broken checkpoints are renamed")

    def remove(self, steps: Sequence[int]) -> None:
        """Deletes checkpoints; the record goes first, so that none is seen in part."""
        for step in steps:
            (self.directory / str(step) / _RECORD).unlink(missing_ok=True)
            paths.remove(self.directory / str(step))

    def close(self) -> None:
        """As `Store.close`."""
        self._thread.shutdown()

    def _found(self, *, whole: bool) -> list[int]:
        """The steps of which there are files, and (`whole`) a record, or none."""
        prefix = f"{self.directory}/"
        found: dict[int, set[str]] = {}
        for path in paths.below(self.directory):
            step, _, name = str(path).removeprefix(prefix).partition("/")
            if step.isdecimal():
                found.setdefault(int(step), set()).add(name)
        return sorted(step for step, names in found.items() if (_RECORD in names) == whole)

    def _write(self, step: int, copies: list[shards.Shard], record: dict[str, Any]) -> None:
        folder = self.directory / str(step)
        paths.make_folder(folder)
        shards.write(folder, shards.name(self._process, self._count), copies)
        if not self._writes_record:
            return
        needed = {shards.name(process, self._count) for process in range(self._count)}
        deadline = time.monotonic() + _SLOWEST
        while not self._of_host and not needed <= set(shards.stems(paths.sizes(folder))):
            if time.monotonic() > deadline:
                absent = sorted(needed - set(shards.stems(paths.sizes(folder))))
                raise CheckpointError(f"{folder}: {', '.join(absent[:6])} did not come within {_SLOWEST:.0f} s")
            time.sleep(0.5)
        files.write_text(folder / _RECORD, json.dumps(record) + "\n")
        steps = self.steps()
        self.remove(sorted(set(steps) - self._keep(steps)))


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shapes and dtypes of a tree's arrays (or of their metadata) by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}
