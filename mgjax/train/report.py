"""Reports a run at the terminal, in `metrics.jsonl` and in TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import jax
from tqdm import tqdm

from mgjax.train.board import Board
from mgjax.train.metrics import Sound


class Report:
    """The report of a run of `steps` training steps that goes on after `step`; process 0 writes it.

    It goes to `metrics.jsonl` and the folder `tensorboard` in `workdir`. Lines of a killed process about later steps
    are dropped.
    """

    def __init__(self, name: str, workdir: Path, step: int, steps: int):
        self._name, self._steps = name, steps
        self.rows = 0  # the global batch size
        # The operations of a step on one device, and those that it can do per second; None if either is unknown.
        self.flops: tuple[float, float] | None = None
        self.clock = _Clock(step)
        self._writes = jax.process_index() == 0
        if self._writes:
            self._file = _continued(workdir / "metrics.jsonl", step)
            self._board = Board(workdir / "tensorboard", step)
            self._is_terminal = sys.stderr.isatty()  # a progress bar there, and lines elsewhere
            form = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}{postfix}]"
            self._bar = tqdm(desc=name, initial=step, total=steps, disable=not self._is_terminal, bar_format=form)

    def trained(self, step: int, values: Mapping[str, float] | None) -> None:
        """Reports `step` finished training steps, and writes `values` if they are to be logged."""
        self.clock.advance(step)
        if not self._writes:
            return
        if values is not None:
            speed = self._speed()
            self._write(step, "train", values, speed)
            summary = self._summary(step, values, speed)
            if summary and self._is_terminal:
                self._bar.set_postfix_str(summary, refresh=False)
            elif summary:
                self.say(f"{self._name}: step {step} of {self._steps}, {summary}")
        self._bar.update(step - self._bar.n)

    def validated(self, step: int, values: Mapping[str, float], best: str) -> None:
        """Writes the metrics of a validation, and prints the one named `best`."""
        if self._writes:
            self._write(step, "valid", values, {})
            self.say(f"step {step}: {best} {values[best]:.4g} on the validation split")

    def sounds(self, step: int, sounds: Mapping[str, Sound]) -> None:
        """Writes sounds to TensorBoard."""
        if self._writes:
            self._board.sounds(step, sounds)

    def say(self, message: str) -> None:
        """Prints a line at the terminal."""
        if self._writes:
            self._bar.write(f"mgjax: {message}", file=sys.stderr)

    def sync(self) -> None:
        """Flushes `metrics.jsonl` to disk, so that no checkpoint is ahead of it."""
        if self._writes:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the bar and all files."""
        if self._writes:
            self._bar.close()
            self._file.close()
            self._board.close()

    def _write(self, step: int, split: str, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Writes a line of metrics.jsonl, in whose "clock" is all that depends on time, and the points of curves."""
        line = {"step": step, "split": split, "values": dict(values), "clock": {"time": time.time(), **speed}}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self._board.curves(step, {f"{split}/{name}": value for name, value in {**values, **speed}.items()})

    def _speed(self) -> dict[str, float]:
        seconds = self.clock.lap()
        if seconds is None:
            return {}
        speed = {"examples_per_second": self.rows / seconds}
        if self.flops is not None:
            speed["utilization"] = self.flops[0] / seconds / self.flops[1]
        return speed

    def _summary(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> str:
        parts = [f"loss {values['loss']:.4g}"] if "loss" in values else []
        if "examples_per_second" in speed:
            parts.append(f"{speed['examples_per_second']:.4g} examples/s")
        if "utilization" in speed:
            parts.append(f"{100 * speed['utilization']:.0f} % of peak")
        seconds = self.clock.average()
        if seconds is not None:
            parts.append(f"{_duration(seconds * (self._steps - step))} left")
        return ", ".join(parts)


class _Clock:
    """Measures seconds per training step. The first step of the process, which compiles, does not count."""

    def __init__(self, step: int):
        self._step = step
        self._first: tuple[int, float] | None = None  # step and time
        self._lap: tuple[int, float] | None = None

    def advance(self, step: int) -> None:
        self._step = step
        if self._first is None:
            self._first = self._lap = (step, time.monotonic())

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Excludes its block from the time of training."""
        before = time.monotonic()
        try:
            yield
        finally:
            if self._lap is not None:
                self._lap = (self._lap[0], self._lap[1] + time.monotonic() - before)

    def lap(self) -> float | None:
        """Seconds per step since the last call; None if there was no step since."""
        seconds, self._lap = self._seconds_since(self._lap), (self._step, time.monotonic())
        return seconds

    def average(self) -> float | None:
        """Seconds per step since the first one, validations and checkpoints included."""
        return self._seconds_since(self._first)

    def _seconds_since(self, start: tuple[int, float] | None) -> float | None:
        if start is None or self._step <= start[0]:
            return None
        return (time.monotonic() - start[1]) / (self._step - start[0])


def _continued(path: Path, step: int) -> IO[bytes]:
    """The file of lines at `path` without those after `step`, to append to."""
    file = path.open("a+b")
    file.seek(0)
    end = 0
    for line in file:
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:  # incomplete, or about to be repeated
            break
        end += len(line)
    file.truncate(end)
    return file


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
