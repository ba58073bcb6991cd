"""The functions of a task as compiled programs over a mesh, and what goes into them and out of them."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled, Lowered
from jaxtyping import Array

from mgjax.devices import chips, sharding
from mgjax.errors import ConfigError
from mgjax.train.memory import Memory
from mgjax.train.state import TrainState
from mgjax.train.task import Batch, LoopConfig, Task


class ClosableIterator(Iterator[dict[str, np.ndarray]], Protocol):
    """An iterator over batches of numpy arrays that can be closed."""

    def close(self) -> None:
        """Frees what the iterator holds."""


class Programs:
    """The functions of a task, jitted and placed on a mesh.

    Programs are lowered from shapes. Weights are placed when they are first needed, and may be shapes if the programs
    are compiled and not run.
    """

    def __init__(self, task: Task, config: LoopConfig, mesh: Mesh):
        self._task, self._config, self._mesh = task, config, mesh
        self._key = jax.random.key(config.seed)
        pretrained = () if task.pretrained is None else (task.pretrained,)
        self.state_shapes = self._placed(jax.eval_shape(task.init, self._key, *pretrained))
        self.frozen_shapes = self._placed(task.frozen)
        placed, everywhere = _shardings(self.state_shapes), NamedSharding(mesh, P())
        inputs = (placed, _shardings(self.frozen_shapes), None)
        step = _skipping(task.train_step) if config.max_skipped else task.train_step
        self._compiled: Compiled | None = None
        self._train_step = jax.jit(
            sharding.on_mesh(mesh, step), donate_argnums=0, in_shardings=inputs, out_shardings=(placed, everywhere)
        )
        self._eval_step = jax.jit(sharding.on_mesh(mesh, task.eval_step), in_shardings=inputs, out_shardings=everywhere)
        self._all_finite = jax.jit(
            lambda state: jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), state), out_shardings=everywhere
        )

    @functools.cached_property
    def frozen(self) -> Any:
        """The task's frozen weights, placed on the mesh."""
        return sharding.place(self._task.frozen, self._mesh)

    def init(self) -> TrainState:
        """The state before the first training step."""
        weights = self._task.pretrained
        pretrained = () if weights is None else (sharding.place(weights, self._mesh),)
        return jax.jit(self._task.init, out_shardings=_shardings(self.state_shapes))(self._key, *pretrained)

    def train_step(self, state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One training step: the state after it, and its metrics; `state` is donated."""
        return (self._compiled or self._train_step)(state, frozen, batch)

    def compile(self, batch: Batch) -> Memory:
        """Compiles `train_step` for batches of such shapes, and no others from then on; the memory that it needs."""
        self._compiled = self.lowered(batch).compile()
        return Memory.of(self._compiled)

    def lowered(self, batch: Mapping[str, Array | jax.ShapeDtypeStruct]) -> Lowered:
        """The training step for global batches of such shapes, ready to be compiled; no weight is needed."""
        rows = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.rows(leaf.shape[0], self._mesh))
            for name, leaf in batch.items()
        }
        return self._train_step.lower(self.state_shapes, self.frozen_shapes, rows)

    def place(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """The global batch, of which this process has some rows, spread over the mesh."""
        return {name: sharding.place_rows(rows, self._mesh) for name, rows in batch.items()}

    def rows_and_flops(self, batch: Batch) -> tuple[int, tuple[float, float] | None]:
        """Rows of a batch; and the operations of a step on one device and its peak, None if either is unknown."""
        rows = len(next(iter(batch.values())))
        chip = chips.find(self._mesh.devices.flat[0].device_kind)
        peak = self._config.peak_flops or (None if chip is None else chip.flops)
        if self._task.flops is None or peak is None:
            return rows, None
        return rows, (self._task.flops(batch) / self._mesh.size, peak)

    def validate(self, state: TrainState, valid_data: Callable[[], ClosableIterator]) -> dict[str, float]:
        """The metrics over the validation split, without those whose count is 0."""
        sums: Any = None
        pending: Any = None
        with contextlib.closing(valid_data()) as batches:
            for batch in itertools.islice(batches, self._config.eval_batches):
                ready, pending = pending, self._eval_step(state, self.frozen, self.place(batch))
                sums = _sum_trees(sums, ready)
        sums = _sum_trees(sums, pending)
        if sums is None:
            raise ConfigError("the validation split has no batch")
        values = {name: sum.value() for name, sum in sums.items()}
        values = {name: float(value) for name, value in values.items() if value is not None}
        if self._task.best[0] not in values:
            raise ConfigError(f"the validation gave {sorted(values)}, not {self._task.best[0]}, which names the best")
        return values

    def example(self, valid_data: Callable[[], ClosableIterator]) -> Batch:
        """The first batch of the validation split."""
        with contextlib.closing(valid_data()) as batches:
            return self.place(next(batches))

    def not_finite(self, state: TrainState) -> list[str]:
        """The paths of the arrays of `state` in which a number is NaN or infinite."""
        flags = jax.tree_util.tree_leaves_with_path(jax.device_get(self._all_finite(state)))
        return [sharding.path_of(path) for path, all_finite in flags if not all_finite]

    def _placed(self, tree: Any) -> Any:
        """The shapes of `tree`, with the shardings of the table."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            tree,
            sharding.shardings(tree, self._mesh),
        )


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _skipping(train_step: Callable) -> Callable:
    """`train_step` that skips its update if a metric is not finite.

    Then all but the number of the step stays as it was, and the metric "skipped" is 1, else 0.
    """

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        new, metrics = train_step(state, frozen, batch)
        finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        kept = jax.tree.map(lambda new, old: jax.lax.select(jnp.broadcast_to(finite, new.shape), new, old), new, state)
        return kept.replace(step=new.step), {**metrics, "skipped": 1.0 - finite.astype(jnp.float32)}

    return step


def _sum_trees(sums: Any, more: Any) -> Any:
    """The sum of two trees, in double precision; None is an empty one."""
    if more is None:
        return sums
    more = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(more))
    return more if sums is None else jax.tree.map(np.add, sums, more)
