"""The training loop, one for every task: a task is pure functions over one tree, and the loop runs them.

What a run computes is a function of its settings and its data. Stopped or killed at any moment and started again, it
goes on from its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import platformdirs
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array
from orbax.checkpoint import multihost

from mgjax.checkpoints.native import check_replaceable
from mgjax.devices import distributed, sharding
from mgjax.errors import ConfigError, NotFiniteError
from mgjax.inputs import files
from mgjax.storage import paths, preflight
from mgjax.storage.paths import Path
from mgjax.train.checkpoints import Checkpoints
from mgjax.train.inputs import NO_INPUTS, InputHashes
from mgjax.train.memory import gib
from mgjax.train.programs import ClosableIterator, Programs
from mgjax.train.pulse import Pulse
from mgjax.train.report import Report
from mgjax.train.settings import check_run, write_run
from mgjax.train.state import TrainState
from mgjax.train.task import Batch, LoopConfig, Task
from mgjax.train.trainable import path_filter
from mgjax.train.watchdog import Watchdog

__all__ = ["DataIterator", "LoopConfig", "NotFiniteError", "Task", "fit"]

# Accepts the settings of a run that may be changed before it goes on, because they do not change what it computes; a
# longer run has another schedule, and that is for the user to decide.
MAY_CHANGE = path_filter(
    r"loop\.(?!seed$)",
    r"mesh\.",
    r"data\.(num_threads|num_workers|prefetch|max_bad|may_grow)$",
    r"(prompts|prompt_seconds)$",
    r"sampling(\.|$)",
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
    workdir: paths.PathLike,
    *,
    run: Any = None,
    mesh: Mesh | None = None,
    inputs: InputHashes = NO_INPUTS,
) -> TrainState:
    """Trains a task, from the newest checkpoint in `workdir` if there is one, and returns the state after it.

    The directory then holds `model`, and `best` where a validation chose it, as `task.save` writes them; `checkpoints`;
    `metrics.jsonl`; `tensorboard`; and `config.json`. After SIGTERM or SIGINT (Ctrl-C), to any of the processes, the
    loop writes a checkpoint and returns early: `state.step` is below `config.steps`, and there is no model yet.

    `train_data` gives batches of numpy arrays, of each the rows of this process, and `valid_data` returns an iterator
    over those of the validation split, from the first one. `run` is the dataclass of all settings of the run, `config`
    as its `loop`; None if there are no others. Without a `mesh`, every device has a whole copy. The `inputs` are what
    the run reads besides its settings, which is stored in its checkpoints.

    Raises:
      ConfigError: `workdir` holds a run with other settings, or of other inputs.
      ValueError: `workdir` is not the same folder on all hosts.
      CheckpointError: It holds checkpoints, and none can be read.
      NotFiniteError: A metric is NaN or infinite, in more training steps in a row than `config.max_skipped`.
      OSError: A checkpoint could not be written.
    """
    workdir = paths.resolved(workdir)
    distributed.on_all(lambda: preflight.check_writable(workdir))
    distributed.check_shared(workdir)
    programs = Programs(task, config, mesh or sharding.make_mesh())
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_Stop())
        checkpoints = Checkpoints(
            workdir / "checkpoints",
            task.best,
            config.keep_last,
            config.keep_best,
            inputs.hashes,
            _local_folder(config, workdir),
        )
        stack.callback(checkpoints.close)
        _claim(workdir / "config.json", {"loop": config} if run is None else run, bool(checkpoints.steps()))
        watchdog = stack.enter_context(Watchdog(config.hang_seconds))
        pulse = stack.enter_context(Pulse())
        training = _Training(task, config, workdir, programs, train_data, valid_data, checkpoints, watchdog, pulse)
        remark = training.restore(inputs)
        training.report = stack.enter_context(
            contextlib.closing(Report(task.name, workdir, training.step, config.steps))
        )
        if training.step:
            training.report.say(f"goes on from the checkpoint of step {training.step}{remark}")
        while training.step < config.steps:
            training.update(training.next_batch())
            stopping = stop.agreed(training.step)
            training.validate_and_save(stopping)
            if stopping and training.step < config.steps:
                training.report.say(f"stopped after step {training.step}; the same command goes on from there")
                return training.state
        training.write_models()
        return training.state


@dataclasses.dataclass
class _Training:
    """A run at a training step.

    The metrics of a step are read during the next one, so that the device never waits; but no state is kept whose
    metrics are not known.
    """

    task: Task
    config: LoopConfig
    workdir: Path
    programs: Programs
    train_data: DataIterator
    valid_data: Callable[[], ClosableIterator]
    checkpoints: Checkpoints
    watchdog: Watchdog
    pulse: Pulse
    report: Report = dataclasses.field(init=False)
    state: TrainState = dataclasses.field(init=False)
    step: int = 0
    _pending: dict[str, Array] | None = None  # metrics of the step, which may not be computed yet
    _num_skipped: int = 0
    _skips_in_a_row: int = 0
    _is_compiled: bool = False

    def restore(self, inputs: InputHashes) -> str:
        """Reads the newest checkpoint, or makes the first state; returns a remark about the inputs."""
        with self.watchdog.waiting("reading the newest checkpoint"):
            restored = self.checkpoints.latest(self.programs.state_shapes)
        if restored is None:
            with self.watchdog.waiting("making the first weights", may_last=True):
                self.state = self.programs.init()
            return ""
        remark = inputs.check(restored.inputs, self.workdir)
        self.step, self.state = restored.step, restored.state
        self.train_data.set_state(restored.position)
        if self.step > self.config.steps:
            raise ConfigError(
                f"the run in {self.workdir} has done {self.step} updates, loop.steps is {self.config.steps}: make it "
                "more"
            )
        return remark

    def next_batch(self) -> Batch:
        """The next batch; for the shapes of the first, the training step is compiled on all processes."""
        if self._is_compiled:
            self.watchdog.restart()
            self.pulse.begin(self.step)
            with self.pulse.reading():
                rows = next(self.train_data)
            return self.programs.place(rows)
        with self.watchdog.waiting("reading the first batch"):
            batch = self.programs.place(next(self.train_data))
        with self.watchdog.waiting("compiling", may_last=True):
            memory = self.programs.compile(batch)
            self.report.say(f"a training step needs {gib(memory.total)} of the memory of each device: {memory.parts()}")
            self.report.rows, self.report.flops = self.programs.rows_and_flops(batch)
            # The fastest process would not wait as long within the step.
            multihost.get_barrier_sync_fn()(key="compiled", timeout_ms=1000 * _COMPILING_SECONDS)
        self._is_compiled = True
        self.watchdog.restart()
        return batch

    def update(self, batch: Batch) -> None:
        """One training step; reads the metrics of the one before."""
        self.state, metrics = self.programs.train_step(self.state, self.programs.frozen, batch)
        self._read_metrics()
        self.step, self._pending = self.step + 1, metrics

    def validate_and_save(self, stopping: bool) -> None:
        """Validates, shows sounds and writes a checkpoint, each if it is due after this step."""
        validating = self.step == self.config.steps or self._is_due(self.config.eval_every)
        show = self.task.show if self._is_due(self.config.show_every) and not stopping else None
        saving = validating or stopping or self._is_due(self.config.save_every)
        saving_locally = self._is_due(self.config.local_every)  # also then, as it is whole sooner
        if not (show or saving or saving_locally):
            return
        self._read_metrics()
        values: dict[str, float] = {}
        with self.report.clock.aside():
            if validating:
                self.watchdog.restart()
                values = self.programs.validate(self.state, self.valid_data)
                self._check_finite(_not_finite(values))
                self.report.validated(self.step, values, self.task.best[0])
            if show:
                self.watchdog.restart()
                self.report.sounds(self.step, show(self.state, self.programs.example(self.valid_data)))
            if saving:
                self.watchdog.restart()
                self._check_finite(self.programs.not_finite(self.state))
                self.report.sync()
                self.checkpoints.save(self.step, self.state, self.train_data.get_state(), values)
            if saving_locally:
                self._check_finite(self.programs.not_finite(self.state))
                self.checkpoints.save_locally(self.step, self.state, self.train_data.get_state())

    def write_models(self) -> None:
        """Writes the last model, and the best one where a validation chose it."""
        self.watchdog.restart()
        self.checkpoints.wait()
        model, best = self.workdir / "model", self.workdir / "best"
        self.task.save(self.state, model)
        best_step = self.checkpoints.best()
        if best_step is None:
            return
        if best_step == self.step:
            self.task.save(self.state, best)
        else:
            self._load(best_step)
            self.task.save(self.state, best)
            self._load(self.step)
        self.report.say(f"the model is in {model}, that of step {best_step}, the best, in {best}")

    def _load(self, step: int) -> None:
        del self.state  # there may be no room for two
        self.state = self.checkpoints.restore(step, self.programs.state_shapes).state

    def _read_metrics(self) -> None:
        """Waits for the metrics of the last step, and reports them; raises NotFiniteError after too many bad steps."""
        if self._pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(self._pending).items()}
        self._pending, not_finite = None, _not_finite(values)
        self._skips_in_a_row = self._skips_in_a_row + 1 if not_finite else 0
        if self._skips_in_a_row > self.config.max_skipped:
            self._check_finite(not_finite)
        elif not_finite:
            self._num_skipped += 1
            self.report.say(
                f"{', '.join(not_finite)}: not finite in update {self.step}, which is left out: "
                f"{self._skips_in_a_row} in a row, of {self.config.max_skipped} at most, and {self._num_skipped} in all"
            )
            values = {name: value for name, value in values.items() if name not in not_finite}
        self.report.trained(self.step, values if self._is_due(self.config.log_every) else None)

    def _check_finite(self, not_finite: list[str]) -> None:
        if not not_finite:
            return
        self.checkpoints.wait()
        last = max(self.checkpoints.steps(), default=None)
        raise NotFiniteError(
            f"{', '.join(not_finite[:6])}: not finite after update {self.step}. "
            + ("There is no checkpoint yet" if last is None else f"The last good checkpoint is that of step {last}")
            + ". A lower learning rate, a longer warm-up or a lower gradient norm may help, in a new folder"
        )

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0


class _Stop(contextlib.AbstractContextManager):
    """Notes SIGTERM and SIGINT instead of ending the process; a second SIGINT does what it always does.

    Several processes have to stop after the same training step. JAX sees to that, if `jax.distributed` was started: it
    listens for SIGTERM instead of Python, and agrees on the next step that none of them has done yet.
    """

    def __init__(self) -> None:
        self._requested = False
        self._alone = jax.process_count() == 1
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
            self._handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self, step: int) -> bool:
        """Whether all processes stop after `step`; to be called after every step."""
        return self._requested if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def _note(self, number: int, _: Any) -> None:
        self._requested = True
        if number == signal.SIGINT:
            signal.signal(number, self._handlers[number])
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)


def _local_folder(config: LoopConfig, workdir: Path) -> pathlib.Path | None:
    """The folder of checkpoints on the local disk of this host; None if there are to be none."""
    if not config.local_every:
        return None
    run = hashlib.sha256(os.fspath(workdir).encode()).hexdigest()[:12]
    return pathlib.Path(config.local_folder or platformdirs.user_cache_dir("mgjax"), "checkpoints", run)


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


def _not_finite(values: dict[str, float]) -> list[str]:
    return [name for name, value in values.items() if not math.isfinite(value)]
