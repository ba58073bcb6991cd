"""The checkpoints of a run: the whole state and the position in the data, kept together, on any mesh.

A run's directory holds `config.json`, what the run is, and `checkpoints/<step>/`, each written beside its place and
renamed to it once it is complete. A process that is killed at any moment leaves the checkpoints before it as they were.

All hosts write their own parts of a checkpoint at once, and read what their devices hold, into and out of one directory
that all of them see. Which checkpoint is read is for the first of them to say: the others may see an older listing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationPolicy

from mgjax.devices.sharding import path_of
from mgjax.errors import CheckpointError, ConfigError
from mgjax.inputs import files
from mgjax.train.state import TrainState

log = logging.getLogger("mgjax")

# What went wrong with the machine, not with a checkpoint: an older checkpoint would not help. Of damaged ones, orbax
# makes errors of any kind, bare `Exception` among them.
_NOT_DAMAGE = (ConfigError, ImportError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held: the state after `step` updates, and what `get_state` of the data said then; and what the
    run was begun with, None where an older version wrote it."""

    step: int
    state: TrainState
    position: Any
    inputs: dict[str, Any] | None = None


class Checkpoints:
    """The checkpoints in a directory, written in the background while training goes on.

    Args:
      directory: Where they are; it is made where it is missing.
      best: The validation metric that says which checkpoint is best, and whether its "min" or its "max" is.
      keep_last: The newest ones that are kept.
      keep_best: The best ones that are kept besides.
      inputs: Is kept in each, as JSON can hold it.
    """

    def __init__(
        self,
        directory: Path,
        best: tuple[str, Literal["min", "max"]],
        keep_last: int,
        keep_best: int,
        inputs: dict[str, Any] | None = None,
    ):
        self._inputs = inputs or {}
        self._directory = Path(directory).resolve()
        self._metric, self._sign = best[0], {"min": -1.0, "max": 1.0}[best[1]]
        self._keep_last, self._keep_best = keep_last, keep_best
        self._open()
        self._merits = {step: self._read_merit(step) for step in self.steps()}

    def save(self, step: int, state: TrainState, position: Any, metrics: Mapping[str, float]) -> None:
        """Begins to write a checkpoint; returns once the arrays are copied, so that they may be donated.

        Args:
          step: The updates that are done; there is no checkpoint of it yet.
          state: The state after them.
          position: What `get_state` of the data says after the last batch of them, as JSON can hold it.
          metrics: Of the validation of this very state; empty where there was none.

        Raises:
          OSError: This checkpoint, or the one before in the background, could not be written.
        """
        record = {"position": position, "metrics": dict(metrics), "checksum": int(_checksum(state))}
        record["inputs"] = self._inputs
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))
        self._merits[step] = self._merit(metrics)
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Returns when all checkpoints are written.

        Raises:
          OSError: One could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are on the disk, complete, in order."""
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdecimal())

    def best(self) -> int | None:
        """The step of the best checkpoint, the first of equals; None where none was validated."""
        validated = [step for step in self.steps() if self._merits[step] > -math.inf]
        return next(iter(_as_the_first_has(sorted(validated, key=self._merits.get, reverse=True)[:1])), None)

    def latest(self, like: TrainState) -> Restored | None:
        """What the newest checkpoint that can be read holds; None where there are no checkpoints.

        Newer ones that cannot be read are told of and renamed to "broken-<step>".

        Args:
          like: The shapes, types and shardings (`jax.ShapeDtypeStruct`) that the state is to have.

        Raises:
          ConfigError: They are of another model.
          CheckpointError: None can be read.
        """
        broken = []
        for step in reversed(_as_the_first_has(self.steps())):
            try:
                restored = self.restore(step, like)
            except _NOT_DAMAGE:
                raise
            except Exception as error:  # what a damaged file makes of its reader, which has many kinds of errors
                log.warning("%s cannot be read (%s)", self._directory / str(step), _first_line(error))
                broken.append(step)
            else:
                self._set_aside(broken)
                return restored
        if broken:
            raise CheckpointError(
                f"{self._directory}: none of the checkpoints {broken} can be read; move them away to begin anew"
            )
        return None

    def restore(self, step: int, like: TrainState) -> Restored:
        """What the checkpoint of `step` holds; see `latest`.

        Raises:
          ConfigError: It is of another model.
          Exception: It is damaged.
        """
        failure, state, record = None, None, None
        try:
            state, record = self._read(step, like)
        except Exception as error:
            failure = error
        # What one process cannot read, none goes on from. Orbax's manager would wait here for the one that failed.
        failures = multihost_utils.process_allgather(np.array(failure is not None))
        if failure is not None:
            raise failure
        if np.any(failures):
            raise CheckpointError(f"{self._directory / str(step)}: process {np.argmax(failures)} cannot read its part")
        if int(_checksum(state)) != record["checksum"]:
            raise CheckpointError(f"{self._directory / str(step)}: the numbers are not those that were written")
        return Restored(step, state, record["position"], record.get("inputs"))

    def close(self) -> None:
        """Waits, as `wait` does, and ends the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _open(self) -> None:
        # Cutting replicated arrays up among their devices compiles a program for each; only large ones are worth it.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**24)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self._state = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        self._record = ocp.JsonCheckpointHandler()
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add("state", ocp.args.PyTreeSave, self._state)
        handlers.add("state", ocp.args.PyTreeRestore, self._state)
        handlers.add("record", ocp.args.JsonSave, self._record)
        handlers.add("record", ocp.args.JsonRestore, self._record)
        options = ocp.CheckpointManagerOptions(preservation_policy=_Kept(self._keep), cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=handlers)

    def _keep(self, steps: Sequence[int]) -> set[int]:
        best = sorted((step for step in steps if self._merits[step] > -math.inf), key=lambda step: -self._merits[step])
        return {*sorted(steps)[-self._keep_last :], *best[: self._keep_best]}

    def _merit(self, metrics: Mapping[str, float]) -> float:
        return self._sign * metrics[self._metric] if metrics else -math.inf

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The arrays of a checkpoint, and what is recorded of it, without a word to other processes."""
        self._check(step, like)
        arrays = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        folder = self._directory / str(step)
        return self._state.restore(folder / "state", args=arrays), self._record.restore(folder / "record")

    def _read_merit(self, step: int) -> float:
        try:
            return self._merit(self._record.restore(self._directory / str(step) / "record")["metrics"])
        except (LookupError, OSError, TypeError, ValueError):  # damaged, or half deleted when the process was killed
            return -math.inf

    def _check(self, step: int, like: TrainState) -> None:
        """Whether the checkpoint has the arrays of `like`."""
        found = _shapes(self._manager.item_metadata(step)["state"].tree)
        wanted = _shapes(like)
        if found != wanted:
            differing = sorted(path for path in found | wanted if found.get(path) != wanted.get(path))
            raise ConfigError(
                f"{self._directory / str(step)}: has other arrays than this model and optimiser; different are "
                f"{', '.join(differing[:6])}. Give another folder, or the settings and the version that it began with"
            )

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames checkpoints that cannot be read, so that new ones can take their places."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                (self._directory / str(step)).rename(self._directory / f"broken-{step}")
        multihost_utils.sync_global_devices("broken checkpoints are renamed")
        self._open()

    def _not_written(self, error: Exception) -> OSError:
        good = max(self.steps(), default=None)
        last = "there is no earlier one" if good is None else f"the last good one is that of step {good}"
        return OSError(
            f"{self._directory}: a checkpoint could not be written ({_first_line(error)}); {last}. Once that is "
            "mended, the same command goes on from there"
        )


@dataclasses.dataclass(frozen=True)
class _Kept(PreservationPolicy):
    """Which checkpoints orbax does not delete: those whose steps `keep` gives of all steps."""

    keep: Callable[[Sequence[int]], set[int]]

    @typing.no_type_check  # orbax's protocol cannot be checked while a program runs
    def should_preserve(self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        kept = self.keep([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _as_the_first_has(steps: list[int]) -> list[int]:
    """What the first process calls this with, on all of them."""
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.array(steps if jax.process_index() == 0 else [0] * count, np.int32)
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def check_run(path: Path, run: Any, may_change: Sequence[str]) -> None:
    """Raises ConfigError where `write_run` has written other settings to `path` than those of the dataclass `run`.

    Settings whose paths, such as "loop.log_every", are in `may_change` may differ.
    """
    theirs, ours = _flat(files.read_json(path, error=ConfigError)), _flat(_plain(run))
    differing = sorted(key for key in theirs | ours if theirs.get(key) != ours.get(key) and key not in may_change)
    if differing:
        said = ", ".join(f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differing[:6])
        raise ConfigError(
            f"{path.parent} holds a run with other settings: {said}. Give another folder, or the settings in {path}"
        )


def write_run(path: Path, run: Any) -> None:
    """Writes the settings of a run, the dataclass `run`, as JSON."""
    files.write_json(path, _plain(run))


def _plain(run: Any) -> Any:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(run)))


def _flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Settings by their paths."""
    if not isinstance(settings, dict):
        return {path: settings}
    below = [_flat(value, f"{path}.{name}" if path else name) for name, value in settings.items()]
    return {key: value for part in below for key, value in part.items()}


@jax.jit
def _checksum(state: TrainState) -> UInt32[Array, ""]:
    """The sum of all bits of all numbers, by words: the same however the arrays lie on devices."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * bits.dtype.itemsize}"))
        total += jnp.sum(bits, dtype=jnp.uint32)
    return total


def _shapes(tree: Any) -> dict[str, tuple]:
    """The shapes and types of a tree's arrays by their paths, of metadata and of arrays alike."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
