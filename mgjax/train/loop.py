"""The training loop, one for every task: a task is pure functions over one tree, and the loop runs them.

What a run computes is a function of its settings and its data. Stopped or killed at any moment and started again, it
goes on from its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array
from orbax.checkpoint import multihost

from mgjax.checkpoints.native import check_replaceable
from mgjax.devices import distributed, sharding
from mgjax.errors import ConfigError, NotFiniteError
from mgjax.inputs import files
from mgjax.train.inputs import NONE, Inputs
from mgjax.train.memory import gib
from mgjax.train.programs import ClosableIterator, Programs
from mgjax.train.report import Report
from mgjax.train.state import TrainState
from mgjax.train.task import Batch, LoopConfig, Task
from mgjax.train.training_state import Checkpoints, check_run, write_run
from mgjax.train.watchdog import Watchdog

__all__ = ["DataIterator", "LoopConfig", "NotFiniteError", "Task", "fit"]

# Settings of a run that may be changed before it goes on, because they do not change what it computes; a longer run has
# another schedule, and that is for the user to decide.
MAY_CHANGE = (
    *(f"loop.{name}" for name in ("steps", "log_every", "eval_every", "eval_batches", "show_every", "save_every")),
    *(f"loop.{name}" for name in ("keep_last", "keep_best", "data", "fsdp", "model", "peak_flops")),
    *(f"mesh.{name}" for name in ("data", "fsdp", "model")),
    *(f"loop.{name}" for name in ("max_skipped", "hang_seconds")),
    *(f"data.{name}" for name in ("num_threads", "num_workers", "prefetch", "max_bad", "may_grow")),
    *("prompts", "prompt_seconds", "sampling"),
    *(f"sampling.{name}" for name in ("temperature", "top_k", "top_p", "guidance", "text_guidance")),
)

_COMPILING_SECONDS = 3600  # that the processes of a run may need one after the other


@runtime_checkable
class DataIterator(Protocol):
    """An endless iterator over batches, with a position in them that can be saved."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> Any:
        """The position, as JSON values."""

    def set_state(self, state: Any) -> None:
        """Goes on from the position that `get_state` returned."""


def fit(
    task: Task,
    train_data: DataIterator,
    valid_data: Callable[[], ClosableIterator],
    config: LoopConfig,
    workdir: str | Path,
    *,
    run: Any = None,
    mesh: Mesh | None = None,
    inputs: Inputs = NONE,
) -> TrainState:
    """Trains a task, from the newest checkpoint in `workdir` if there is one, and returns the state after it.

    The directory then holds `model`, and `best` where a validation chose it, as `task.save` writes them;
    `checkpoints`; `metrics.jsonl`; `tensorboard`; and `config.json`. After SIGTERM or SIGINT (Ctrl-C), to any of the
    processes, the loop writes a checkpoint and returns early: `state.step` is below `config.steps`, and there is no
    model yet.

    Args:
      task: The task.
      train_data: Batches of numpy arrays, of each the rows of this process.
      valid_data: Returns an iterator over the batches of the validation split, from the first one.
      config: The length of the run, and what it keeps.
      workdir: The directory of the run.
      run: The dataclass of all settings of the run, `config` as its `loop`; None if there are no others.
      mesh: The device mesh; None for all devices, each with a whole copy.
      inputs: What the run reads besides its settings, which is stored in its checkpoints.

    Raises:
      ConfigError: `workdir` holds a run with other settings, or of other inputs.
      ValueError: `workdir` is not the same folder on all hosts.
      CheckpointError: It holds checkpoints, and none can be read.
      NotFiniteError: A metric is NaN or infinite, in more training steps in a row than `config.max_skipped`.
      OSError: A checkpoint could not be written.
    """
    workdir = Path(workdir).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    distributed.check_shared(workdir)
    programs = Programs(task, config, mesh or sharding.make_mesh())
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_Stop())
        checkpoints = Checkpoints(workdir / "checkpoints", task.best, config.keep_last, config.keep_best, inputs.hashes)
        stack.callback(checkpoints.close)
        _claim(workdir / "config.json", _LoopOnly(config) if run is None else run, bool(checkpoints.steps()))
        watchdog = stack.enter_context(Watchdog(config.hang_seconds))
        with watchdog.waiting("reading the newest checkpoint"):
            restored = checkpoints.latest(programs.like)
        if restored is None:
            with watchdog.waiting("making the first weights", may_last=True):
                done, state = 0, programs.init()
        else:
            remark = inputs.check(restored.inputs, workdir)
            done, state = restored.step, restored.state
            train_data.set_state(restored.position)
            del restored  # the state is donated
        if done > config.steps:
            raise ConfigError(
                f"the run in {workdir} has done {done} updates, loop.steps is {config.steps}: make it more"
            )
        report = Report(task.name, workdir, done, config.steps)
        stack.callback(report.close)
        if done:
            report.say(f"goes on from the checkpoint of step {done}{remark}")
        metrics_reader = _LateMetrics(report, config, checkpoints)
        for step in range(done + 1, config.steps + 1):
            if step == done + 1:
                batch = _first_batch(programs, train_data, report, watchdog)
                watchdog.again()
            else:
                watchdog.again()
                batch = programs.place(next(train_data))
            state, metrics = programs.train_step(state, programs.frozen, batch)
            metrics_reader.push(step, metrics)

            stopping = stop.agreed(step)
            validating = step == config.steps or _due(config.eval_every, step)
            show = task.show if _due(config.show_every, step) and not stopping else None
            saving = validating or stopping or _due(config.save_every, step)
            if show or saving:
                metrics_reader.flush()
                with report.aside():
                    values = {}
                    if validating:
                        watchdog.again()
                        values = programs.validate(state, valid_data)
                        metrics_reader.check(step, _not_finite(values))
                        report.validated(step, values, task.best[0])
                    if show:
                        watchdog.again()
                        report.sounds(step, show(state, programs.example(valid_data)))
                    if saving:
                        watchdog.again()
                        metrics_reader.check(step, programs.not_finite(state))
                        report.sync()
                        checkpoints.save(step, state, train_data.get_state(), values)
            if stopping and step < config.steps:
                report.say(f"stopped after step {step}; the same command goes on from there")
                return state

        watchdog.again()
        checkpoints.wait()
        task.save(state, workdir / "model")
        best = checkpoints.best()
        if best is not None:
            if best != config.steps:
                del state  # there may be no room for two
                state = checkpoints.restore(best, programs.like).state
            task.save(state, workdir / "best")
            if best != config.steps:
                del state
                state = checkpoints.restore(config.steps, programs.like).state
            report.say(f"the model is in {workdir / 'model'}, that of step {best}, the best, in {workdir / 'best'}")
        return state


def _first_batch(programs: Programs, train_data: DataIterator, report: Report, watchdog: Watchdog) -> Batch:
    """The first batch, for whose shapes the training step is compiled, on all processes."""
    with watchdog.waiting("reading the first batch"):
        batch = programs.place(next(train_data))
    with watchdog.waiting("compiling", may_last=True):
        memory = programs.compile(batch)
        report.say(f"a training step needs {gib(memory.total)} of the memory of each device: {memory.parts()}")
        report.work(*programs.work(batch))
        # The fastest process would not wait as long within the step.
        multihost.get_barrier_sync_fn()(key="compiled", timeout_ms=1000 * _COMPILING_SECONDS)
    return batch


@dataclasses.dataclass(frozen=True)
class _LoopOnly:
    """The settings of a run that has no others than the loop's."""

    loop: LoopConfig


class _LateMetrics:
    """Reads the metrics of a training step during the next one, and stops the run if one is not finite.

    So the device never waits, and no state is kept whose metrics are not known.
    """

    def __init__(self, report: Report, config: LoopConfig, checkpoints: Checkpoints):
        self._report, self._config, self._checkpoints = report, config, checkpoints
        self._pending: tuple[int, dict[str, Array]] | None = None
        self._skipped, self._in_a_row = 0, 0

    def push(self, step: int, metrics: dict[str, Array]) -> None:
        """Takes the metrics of `step`, which may not be computed yet, and reads those before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Waits for the metrics that `push` took, and reads them."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        wrong = _not_finite(values)
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        if self._in_a_row > self._config.max_skipped:
            self.check(step, wrong)
        elif wrong:
            self._skipped += 1
            self._report.say(
                f"{', '.join(wrong)}: not finite in update {step}, which is left out: {self._in_a_row} in a row, of "
                f"{self._config.max_skipped} at most, and {self._skipped} in all"
            )
            values = {name: value for name, value in values.items() if name not in wrong}
        self._report.trained(step, values if step % self._config.log_every == 0 else None)

    def check(self, step: int, not_finite: list[str]) -> None:
        """Raises NotFiniteError if `not_finite` is not empty."""
        if not not_finite:
            return
        self._checkpoints.wait()
        good = max(self._checkpoints.steps(), default=None)
        raise NotFiniteError(
            f"{', '.join(not_finite[:6])}: not finite after update {step}. "
            + ("There is no checkpoint yet" if good is None else f"The last good checkpoint is that of step {good}")
            + ". A lower learning rate, a longer warm-up or a lower gradient norm may help, in a new folder"
        )


class _Stop(contextlib.AbstractContextManager):
    """Notes SIGTERM and SIGINT instead of ending the process; a second SIGINT does what it always does.

    Several processes have to stop after the same training step. JAX sees to that, if `jax.distributed` was started: it
    listens for SIGTERM instead of Python, and agrees on the next step that none of them has done yet.
    """

    def __init__(self) -> None:
        self._requested = False
        self._alone = jax.process_count() == 1
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, step: int) -> bool:
        """Whether all processes stop after `step`; to be called after every step."""
        return self._requested if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def _note(self, number: int, _: Any) -> None:
        self._requested = True
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)


def _claim(path: Path, run: Any, has_checkpoints: bool) -> None:
    """Writes the settings of a run to its directory, unless that holds a run with other settings or other files."""
    if has_checkpoints and path.exists():
        check_run(path, run, MAY_CHANGE)
    elif path.exists() and "loop" not in files.read_json(path, error=ConfigError):
        raise FileExistsError(f"{path} is not of a run of mgjax, so it is not replaced: give another folder")
    for name in ("model", "best") if not has_checkpoints else ():  # fails before the training rather than after it
        check_replaceable(path.with_name(name))
    if jax.process_index() == 0:
        write_run(path, run)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _not_finite(values: dict[str, float]) -> list[str]:
    return [name for name, value in values.items() if not math.isfinite(value)]
