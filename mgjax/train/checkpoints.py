"""Checkpoints of a run: the training state with the position in the data, on any mesh.

A run's directory holds `config.json`, the settings of the run, and `checkpoints/<step>/`, each written to a temporary
folder and renamed once it is complete, so that a killed process leaves the earlier checkpoints intact.

All hosts write their own shards of a checkpoint, and read those of their devices, in one shared directory. Process 0
decides which checkpoint is read, as others may see an older listing of the directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
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
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.train.state import TrainState
from mgjax.train.trainable import Filter

log = logging.getLogger("mgjax")

# Errors that an older checkpoint would not help against. For damaged ones, orbax raises errors of any kind, bare
# `Exception` among them.
_NOT_DAMAGE = (ConfigError, ImportError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True)
class Restored:
    """The content of a checkpoint."""

    step: int
    state: TrainState
    position: Any  # `get_state` of the data iterator
    inputs: dict[str, Any] | None = None  # that the run started with; None in checkpoints of older versions


class Checkpoints:
    """The checkpoints in a directory, which are written in the background.

    The newest `keep_last` are kept, and in addition the `keep_best` best by the validation metric that `best` names, of
    which "min" or "max" is best. `inputs` are JSON values that are stored in each.
    """

    def __init__(
        self,
        directory: Path,
        best: tuple[str, Literal["min", "max"]],
        keep_last: int,
        keep_best: int,
        inputs: Mapping[str, Any] | None = None,
    ):
        self._inputs = dict(inputs or {})
        self._directory = paths.resolved(directory)
        self._metric, self._sign = best[0], {"min": -1.0, "max": 1.0}[best[1]]
        self._keep_last, self._keep_best = keep_last, keep_best
        self._open()
        self._scores: dict[int, float] = {}  # of the validated steps; the higher, the better
        for step in self.steps():
            with contextlib.suppress(LookupError, OSError, TypeError, ValueError):  # damaged, or half deleted by a kill
                self._score(step, self._record.restore(self._directory / str(step) / "record")["metrics"])

    def save(self, step: int, state: TrainState, position: Any, metrics: Mapping[str, float]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied, so that they may be donated.

        There must be no checkpoint of this `step` yet. `position` is `get_state` of the data iterator, as JSON values;
        `metrics` are those of a validation of this state, empty where there was none.

        Raises OSError if this checkpoint, or the previous one in the background, could not be written.
        """
        record = {"position": position, "metrics": dict(metrics), "checksum": int(_checksum(state))}
        record["inputs"] = self._inputs
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(record))
        self._score(step, metrics)
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Waits until all checkpoints are written; raises OSError if one could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints on disk, in order."""
        return sorted(ocp.path.step.checkpoint_steps(self._directory))

    def best(self) -> int | None:
        """The step of the best checkpoint, the first of equals; None where none was validated."""
        return next(iter(_of_process_0(self._best_first(self.steps())[:1])), None)

    def latest(self, like: TrainState) -> Restored | None:
        """Restores the newest checkpoint that can be read; None where there are no checkpoints.

        Newer ones that cannot be read are logged, and renamed to "broken-<step>". `like` is the state as
        `jax.ShapeDtypeStruct` with shardings.

        Raises:
          ConfigError: They are of another model.
          CheckpointError: None can be read.
        """
        broken = []
        for step in reversed(_of_process_0(self.steps())):
            try:
                restored = self.restore(step, like)
            except _NOT_DAMAGE:
                raise
            except Exception as error:  # damaged files raise errors of many kinds
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
        """Restores the checkpoint of `step`; the arguments are those of `latest`.

        Raises ConfigError if it is of another model, and any exception if it is damaged.
        """
        content: tuple[TrainState, dict[str, Any]] | Exception
        try:
            content = self._read(step, like)
        except Exception as error:
            content = error
        # If one process cannot read it, all fail. Orbax's manager would wait here for the one that failed.
        failures = multihost_utils.process_allgather(np.array(isinstance(content, Exception)))
        if isinstance(content, Exception):
            raise content
        if np.any(failures):
            raise CheckpointError(f"{self._directory / str(step)}: process {np.argmax(failures)} cannot read its part")
        state, record = content
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
        self._manager = ocp.CheckpointManager(self._directory, options=options, handler_registry=handlers)

    def _keep(self, steps: Sequence[int]) -> set[int]:
        """Of these steps, the ones whose checkpoints are kept."""
        return {*sorted(steps)[-self._keep_last :], *self._best_first(steps)[: self._keep_best]}

    def _best_first(self, steps: Sequence[int]) -> list[int]:
        """The validated ones of `steps`, the best first."""
        return sorted((step for step in steps if step in self._scores), key=lambda step: -self._scores[step])

    def _score(self, step: int, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._scores[step] = self._sign * metrics[self._metric]

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The arrays and the record of a checkpoint, without communication between processes."""
        self._check(step, like)
        arrays = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        folder = self._directory / str(step)
        return self._state.restore(folder / "state", args=arrays), self._record.restore(folder / "record")

    def _check(self, step: int, like: TrainState) -> None:
        """Raises ConfigError unless the checkpoint has the arrays of `like`."""
        stored, expected = _shapes(self._manager.item_metadata(step)["state"].tree), _shapes(like)
        if stored != expected:
            differing = sorted(path for path in stored | expected if stored.get(path) != expected.get(path))
            raise ConfigError(
                f"{self._directory / str(step)}: has other arrays than this model and optimiser; different are "
                f"{', '.join(differing[:6])}. Give another folder, or the settings and the version that it began with"
            )

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames unreadable checkpoints, so that new ones can have their names."""
        if not steps:
            return
        self._manager.close()
        if jax.process_index() == 0:
            for step in steps:
                (self._directory / str(step)).rename(self._directory / f"broken-{step}")
        multihost_utils.sync_global_devices("broken checkpoints are renamed")
        self._open()

    def _not_written(self, error: Exception) -> OSError:
        step = max(self.steps(), default=None)
        last = "there is no earlier one" if step is None else f"the last good one is that of step {step}"
        return OSError(
            f"{self._directory}: a checkpoint could not be written ({_first_line(error)}); {last}. Once that is "
            "mended, the same command goes on from there"
        )


@dataclasses.dataclass(frozen=True)
class _Policy(PreservationPolicy):
    """The policy of orbax by which checkpoints are deleted unless their steps are in `keep(steps)`."""

    keep: Callable[[Sequence[int]], set[int]]

    @typing.no_type_check  # orbax's protocol cannot be checked while a program runs
    def should_preserve(self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        """Whether each of the checkpoints is kept."""
        kept = self.keep([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _of_process_0(steps: list[int]) -> list[int]:
    """The `steps` of process 0, on all processes."""
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    own = np.array(steps if jax.process_index() == 0 else [0] * count, np.int32)
    return multihost_utils.broadcast_one_to_all(own).tolist()


def check_run(path: Path, run: Any, may_change: Filter) -> None:
    """Raises ConfigError if `write_run` stored other settings at `path`, apart from those that `may_change` accepts."""
    current = _flat(json.loads(_to_json(run)))  # tuples become lists, as they are stored
    stored = _flat(files.read_json(path, error=ConfigError))
    differing = sorted(key for key in stored | current if stored.get(key) != current.get(key) and not may_change(key))
    if differing:
        listed = ", ".join(f"{key} is {stored.get(key)!r} there and {current.get(key)!r} here" for key in differing[:6])
        raise ConfigError(
            f"{path.parent} holds a run with other settings: {listed}. Give another folder, or the settings in {path}"
        )


def write_run(path: Path, run: Any) -> None:
    """Writes the settings of a run, a dataclass or a dict of them, as JSON."""
    files.write_text(path, _to_json(run))


def _to_json(run: Any) -> str:
    return json.dumps(run, default=dataclasses.asdict, indent=2) + "\n"


def _flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Settings by their paths."""
    if not isinstance(settings, dict):
        return {path: settings}
    below = [_flat(value, f"{path}.{name}" if path else name) for name, value in settings.items()]
    return {key: value for part in below for key, value in part.items()}


@jax.jit
def _checksum(state: TrainState) -> UInt32[Array, ""]:
    """The sum of all arrays as unsigned integers, which does not depend on their sharding."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * bits.dtype.itemsize}"))
        total += jnp.sum(bits, dtype=jnp.uint32)
    return total


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shapes and dtypes of a tree's arrays (or of their metadata) by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
