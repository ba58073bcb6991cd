"""Reports a run at the terminal, in `metrics.jsonl` and in TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from mgjax.train.board import Board
from mgjax.train.metrics import Sound


class Report:
    """The report of a run of `steps` training steps that goes on after `step`; process 0 writes it.

    It goes to `metrics.jsonl` and the folder `tensorboard` in `workdir`. Lines of a killed process about later steps
    are dropped.
    """

    def __init__(self, name: str, workdir: Path, step: int, steps: int):
        self._steps, self._rows = steps, 0
        self._flops: tuple[float, float] | None = None
        self._writes = jax.process_index() == 0
        self.clock = _Clock(step)
        if self._writes:
            self._lines = _Lines(workdir / "metrics.jsonl", step)
            self._board = Board(workdir / "tensorboard", step)
            self._terminal = _Terminal(name, step, steps)

    def work(self, rows: int, flops: tuple[float, float] | None) -> None:
        """Sets the global batch size, and the operations of a step on one device and those that it can do per second.

        Speed and utilisation are computed from them; `flops` is None if either is unknown.
        """
        self._rows, self._flops = rows, flops

    def trained(self, step: int, values: Mapping[str, float] | None) -> None:
        """Reports `step` finished training steps, and writes `values` if they are to be logged."""
        self.clock.reach(step)
        if not self._writes:
            return
        summary = ""
        if values is not None:
            speed = self._speed()
            self._lines.add(step, "train", values, speed)
            self._board.curves(step, {f"train/{name}": value for name, value in {**values, **speed}.items()})
            summary = self._summary(step, values, speed)
        self._terminal.reach(step, summary)

    def validated(self, step: int, values: Mapping[str, float], best: str) -> None:
        """Writes the metrics of a validation, and prints the one named `best`."""
        if self._writes:
            self._lines.add(step, "valid", values, {})
            self._board.curves(step, {f"valid/{name}": value for name, value in values.items()})
            self._terminal.say(f"step {step}: {best} {values[best]:.4g} on the validation split")

    def sounds(self, step: int, sounds: Mapping[str, Sound]) -> None:
        """Writes sounds to TensorBoard."""
        if self._writes:
            self._board.sounds(step, sounds)

    def say(self, message: str) -> None:
        """Prints a line at the terminal."""
        if self._writes:
            self._terminal.say(message)

    def sync(self) -> None:
        """Flushes `metrics.jsonl` to disk, so that no checkpoint is ahead of it."""
        if self._writes:
            self._lines.sync()

    def close(self) -> None:
        """Closes the bar and all files."""
        if self._writes:
            self._terminal.close()
            self._lines.close()
            self._board.close()

    def _speed(self) -> dict[str, float]:
        seconds = self.clock.lap()
        if seconds is None:
            return {}
        speed = {"examples_per_second": self._rows / seconds}
        if self._flops is not None:
            speed["utilization"] = self._flops[0] / seconds / self._flops[1]
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

    def reach(self, step: int) -> None:
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


class _Lines:
    """`metrics.jsonl`: an object per line, with step, split and values, and in "clock" all that depends on time."""

    def __init__(self, path: Path, step: int):
        self._file = path.open("a+b")
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:  # incomplete, or about to be repeated
                break
            end += len(line)
        self._file.truncate(end)

    def add(self, step: int, split: str, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        line = {"step": step, "split": split, "values": dict(values), "clock": {"time": time.time(), **speed}}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Terminal:
    """A progress bar at a terminal, and lines elsewhere."""

    def __init__(self, name: str, step: int, steps: int):
        from tqdm import tqdm

        self._name, self._steps, self._is_terminal = name, steps, sys.stderr.isatty()
        form = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}{postfix}]"
        self._bar = tqdm(desc=name, initial=step, total=steps, disable=not self._is_terminal, bar_format=form)

    def reach(self, step: int, summary: str) -> None:
        if summary and self._is_terminal:
            self._bar.set_postfix_str(summary, refresh=False)
        elif summary:
            self.say(f"{self._name}: step {step} of {self._steps}, {summary}")
        self._bar.update(step - self._bar.n)

    def say(self, message: str) -> None:
        self._bar.write(f"mgjax: {message}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
