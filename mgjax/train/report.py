"""What a run tells while it goes on: lines at the terminal, `metrics.jsonl`, and TensorBoard's curves."""

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
    """Everything that a run tells, apart from errors.

    Args:
      name: What is trained.
      workdir: Where `metrics.jsonl` and the folder `tensorboard` are.
      step: The updates that were done before. Lines of later ones, of a process that was killed, are dropped.
      steps: The updates of the whole run.
    """

    def __init__(self, name: str, workdir: Path, step: int, steps: int):
        self._steps, self._rows, self._flops = steps, 0, None
        self._writes = jax.process_index() == 0  # the others know the same
        self._clock = _Clock(step)
        if self._writes:
            self._lines = _Lines(workdir / "metrics.jsonl", step)
            self._board = Board(workdir / "tensorboard", step)
            self._terminal = _Terminal(name, step, steps)

    def work(self, rows: int, flops: tuple[float, float] | None) -> None:
        """Says what an update is.

        Args:
          rows: The rows of its batch, of all processes together.
          flops: The operations that it takes on one device, and that a device can do in a second; None where either is
            not known.
        """
        self._rows, self._flops = rows, flops

    def trained(self, step: int, values: Mapping[str, float] | None) -> None:
        """Says that `step` updates are done, and with which metrics where they are to be written down."""
        self._clock.reach(step)
        if not self._writes:
            return
        told = ""
        if values is not None:
            speed = self._speed()
            self._lines.add(step, "train", values, speed)
            self._board.curves(step, {f"train/{name}": value for name, value in {**values, **speed}.items()})
            told = self._tell(step, values, speed)
        self._terminal.reach(step, told)

    def validated(self, step: int, values: Mapping[str, float], best: str) -> None:
        """Writes down the metrics of a validation, and says that named `best`."""
        if self._writes:
            self._lines.add(step, "valid", values, {})
            self._board.curves(step, {f"valid/{name}": value for name, value in values.items()})
            self._terminal.say(f"step {step}: {best} {values[best]:.4g} on the validation split")

    def sounds(self, step: int, sounds: Mapping[str, Sound]) -> None:
        """Writes sounds for TensorBoard."""
        if self._writes:
            self._board.sounds(step, sounds)

    def say(self, message: str) -> None:
        """One line at the terminal."""
        if self._writes:
            self._terminal.say(message)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in here does not count as time of training."""
        with self._clock.aside():
            yield

    def sync(self) -> None:
        """Puts the lines on the disk, so that a checkpoint that follows is never ahead of them."""
        if self._writes:
            self._lines.sync()

    def close(self) -> None:
        if self._writes:
            self._terminal.close()
            self._lines.close()
            self._board.close()

    def _speed(self) -> dict[str, float]:
        seconds = self._clock.lap()
        if seconds is None:
            return {}
        speed = {"examples_per_second": self._rows / seconds}
        if self._flops is not None:
            speed["utilization"] = self._flops[0] / seconds / self._flops[1]
        return speed

    def _tell(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> str:
        parts = [f"loss {values['loss']:.4g}"] if "loss" in values else []
        if "examples_per_second" in speed:
            parts.append(f"{speed['examples_per_second']:.4g} examples/s")
        if "utilization" in speed:
            parts.append(f"{100 * speed['utilization']:.0f} % of peak")
        seconds = self._clock.average()
        if seconds is not None:
            parts.append(f"{_duration(seconds * (self._steps - step))} left")
        return ", ".join(parts)


class _Clock:
    """Seconds per update, apart from what is done aside. The first update counts for nothing: it compiles."""

    def __init__(self, step: int):
        self._step, self._first, self._lap = step, None, None

    def reach(self, step: int) -> None:
        self._step = step
        if self._first is None:
            self._first = self._lap = (step, time.monotonic())

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        before = time.monotonic()
        try:
            yield
        finally:
            if self._lap is not None:
                self._lap = (self._lap[0], self._lap[1] + time.monotonic() - before)

    def lap(self) -> float | None:
        """Seconds per update since the last call; None where there was none since."""
        seconds, self._lap = _each(self._lap, self._step), (self._step, time.monotonic())
        return seconds

    def average(self) -> float | None:
        """Seconds per update since the beginning, all that is done aside included."""
        return _each(self._first, self._step)


def _each(since: tuple[int, float], step: int) -> float | None:
    return (time.monotonic() - since[1]) / (step - since[0]) if step > since[0] else None


class _Lines:
    """`metrics.jsonl`: one object a line, with step, split, values, and apart from them whatever depends on time."""

    def __init__(self, path: Path, step: int):
        self._file = path.open("a+b")
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:  # torn, or of a time that is lived again
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
    """A bar where somebody watches, else a line for each report."""

    def __init__(self, name: str, step: int, steps: int):
        from tqdm import tqdm

        self._name, self._steps, self._watched = name, steps, sys.stderr.isatty()
        form = "{desc}: {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}{postfix}]"
        self._bar = tqdm(desc=name, initial=step, total=steps, disable=not self._watched, bar_format=form)

    def reach(self, step: int, told: str) -> None:
        if told and self._watched:
            self._bar.set_postfix_str(told, refresh=False)
        elif told:
            self.say(f"{self._name}: step {step} of {self._steps}, {told}")
        self._bar.update(step - self._bar.n)

    def say(self, message: str) -> None:
        self._bar.write(f"mgjax: {message}", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
