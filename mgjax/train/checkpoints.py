"""Checkpoints of a run: the training state with the position in the data, on any mesh.

A run's directory holds `config.json`, the settings of the run, and `checkpoints/<step>/`, each complete or not counted,
so that a killed process leaves the earlier checkpoints intact.

All hosts write their own shards of a checkpoint, and read those of their devices, in one shared directory. Process 0
decides which checkpoint is read, as others may see an older listing of the directory. Between them, each host may keep
others on its local disk, which are quick to write, and of use as long as all hosts have theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from mgjax.errors import CheckpointError, ConfigError
from mgjax.storage import paths
from mgjax.storage.paths import Path
from mgjax.train import stores
from mgjax.train.state import TrainState

log = logging.getLogger("mgjax")

# Errors that an older checkpoint would not help against. For damaged ones, orbax raises errors of any kind, bare
# `Exception` among them.
_NOT_DAMAGE = (ConfigError, ImportError, MemoryError, PermissionError, jax.errors.JaxRuntimeError)

_KEPT_LOCALLY = 2  # checkpoints: one is whole while the next is written


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
    which "min" or "max" is best. `inputs` are JSON values that are stored in each. `local` is a folder on a disk of
    this host for `save_locally`.
    """

    def __init__(
        self,
        directory: Path,
        best: tuple[str, Literal["min", "max"]],
        keep_last: int,
        keep_best: int,
        inputs: Mapping[str, Any] | None = None,
        local: pathlib.Path | None = None,
    ):
        self._inputs = dict(inputs or {})
        self._directory = paths.resolved(directory)
        self._metric, self._sign = best[0], {"min": -1.0, "max": 1.0}[best[1]]
        self._keep_last, self._keep_best = keep_last, keep_best
        self._store = stores.shared(self._directory, self._keep)
        self._local = None
        if local is not None:
            own = local / f"process-{jax.process_index():05d}"  # several may share a host
            self._local = stores.ShardStore(own, lambda steps: {*sorted(steps)[-_KEPT_LOCALLY:]}, of_host=True)
        self._scores: dict[int, float] = {}  # of the validated steps; the higher, the better
        for step in self.steps():
            with contextlib.suppress(LookupError, OSError, TypeError, ValueError):  # damaged, or half deleted by a kill
                self._score(step, self._store.record(step)["metrics"])

    def save(self, step: int, state: TrainState, position: Any, metrics: Mapping[str, float]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied, so that they may be donated.

        There must be no checkpoint of this `step` yet. `position` is `get_state` of the data iterator, as JSON values;
        `metrics` are those of a validation of this state, empty where there was none.

        Raises OSError if this checkpoint, or the previous one in the background, could not be written.
        """
        self._score(step, metrics)
        self._save(self._store, step, state, position, metrics)

    def save_locally(self, step: int, state: TrainState, position: Any) -> None:
        """As `save`, onto the local disk of each host, where the newest two are kept."""
        assert self._local is not None, "there is no local folder"
        self._save(self._local, step, state, position, {})

    def wait(self) -> None:
        """Waits until all checkpoints are written; raises OSError if one could not be."""
        try:
            self._store.wait()
            if self._local is not None:
                self._local.wait()
        except Exception as error:
            raise self._not_written(error) from error

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints in the shared directory, in order."""
        return self._store.steps()

    def best(self) -> int | None:
        """The step of the best checkpoint, the first of equals; None where none was validated."""
        return next(iter(_of_process_0(self._best_first(self.steps())[:1])), None)

    def latest(self, like: TrainState) -> Restored | None:
        """Restores the newest checkpoint that can be read; None where there are no checkpoints.

        Newer ones that cannot be read are logged, and renamed to "broken-<step>". Those on local disks count where all
        hosts have theirs. `like` is the state as `jax.ShapeDtypeStruct` with shardings.

        Raises:
          ConfigError: They are of another model.
          CheckpointError: None can be read.
        """
        shared, local = _of_process_0(self.steps()), _of_all([] if self._local is None else self._local.steps())
        places: list[tuple[int, stores.Store]] = [(step, self._store) for step in shared]
        if self._local is not None:
            places += [(step, self._local) for step in local]
        broken, restored = [], None
        for step, store in sorted(places, key=lambda place: (place[0], place[1] is self._local), reverse=True):
            try:
                restored = self._restore(store, step, like)
                break
            except _NOT_DAMAGE:
                raise
            except Exception as error:  # damaged files raise errors of many kinds
                log.warning("%s cannot be read (%s)", store.directory / str(step), _first_line(error))
                if store is self._store:
                    broken.append(step)
        if broken and restored is None:
            raise CheckpointError(
                f"{self._directory}: none of the checkpoints {broken} can be read; move them away to begin anew"
            )
        if broken:
            self._store.set_aside(broken)
        if self._local is not None:  # what is newer than where the run goes on is written again
            done = 0 if restored is None else restored.step
            self._local.remove([step for step in self._local.steps() if step > done])
        return restored

    def restore(self, step: int, like: TrainState) -> Restored:
        """Restores the checkpoint of `step` in the shared directory; the arguments are those of `latest`.

        Raises ConfigError if it is of another model, and any exception if it is damaged.
        """
        return self._restore(self._store, step, like)

    def close(self) -> None:
        """Waits, as `wait` does, and ends the threads."""
        try:
            self.wait()
        finally:
            self._store.close()
            if self._local is not None:
                self._local.close()

    def _save(
        self, store: stores.Store, step: int, state: TrainState, position: Any, metrics: Mapping[str, float]
    ) -> None:
        record = {"position": position, "metrics": dict(metrics), "checksum": int(_checksum(state))}
        try:
            store.save(step, state, record | {"inputs": self._inputs})
        except Exception as error:
            raise self._not_written(error) from error

    def _restore(self, store: stores.Store, step: int, like: TrainState) -> Restored:
        content: tuple[TrainState, dict[str, Any]] | Exception
        try:
            content = store.state(step, like), store.record(step)
        except Exception as error:
            content = error
        # If one process cannot read it, all fail. Orbax's manager would wait here for the one that failed.
        failures = multihost_utils.process_allgather(np.array(isinstance(content, Exception)))
        if isinstance(content, Exception):
            raise content
        if np.any(failures):
            raise CheckpointError(f"{store.directory / str(step)}: process {np.argmax(failures)} cannot read its part")
        state, record = content
        if int(_checksum(state)) != record["checksum"]:
            raise CheckpointError(f"{store.directory / str(step)}: the numbers are not those that were written")
        return Restored(step, state, record["position"], record.get("inputs"))

    def _keep(self, steps: Sequence[int]) -> set[int]:
        """Of these steps, the ones whose checkpoints are kept."""
        return {*sorted(steps)[-self._keep_last :], *self._best_first(steps)[: self._keep_best]}

    def _best_first(self, steps: Sequence[int]) -> list[int]:
        """The validated ones of `steps`, the best first."""
        return sorted((step for step in steps if step in self._scores), key=lambda step: -self._scores[step])

    def _score(self, step: int, metrics: Mapping[str, float]) -> None:
        if metrics:
            self._scores[step] = self._sign * metrics[self._metric]

    def _not_written(self, error: Exception) -> OSError:
        step = max(self.steps(), default=None)
        last = "there is no earlier one" if step is None else f"the last good one is that of step {step}"
        return OSError(
            f"{self._directory}: a checkpoint could not be written ({_first_line(error)}); {last}. Once that is "
            "mended, the same command goes on from there"
        )


def _of_process_0(steps: list[int]) -> list[int]:
    """The `steps` of process 0, on all processes."""
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    own = np.array(steps if jax.process_index() == 0 else [0] * count, np.int32)
    return multihost_utils.broadcast_one_to_all(own).tolist()


def _of_all(steps: list[int]) -> list[int]:
    """Those of the newest `steps` that all processes have."""
    if jax.process_count() == 1:
        return steps
    own = np.full(_KEPT_LOCALLY + 1, -1, np.int32)
    newest = steps[-len(own) :]
    own[: len(newest)] = newest
    rows = multihost_utils.process_allgather(own)
    return sorted(set.intersection(*(set(row.tolist()) for row in rows)) - {-1})


@jax.jit
def _checksum(state: TrainState) -> UInt32[Array, ""]:
    """The sum of all arrays as unsigned integers, which does not depend on their sharding."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(state):
        bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * bits.dtype.itemsize}"))
        total += jnp.sum(bits, dtype=jnp.uint32)
    return total


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
