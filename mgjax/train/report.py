"""Reports a run at the terminal, in `metrics.jsonl` and in TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from tqdm import tqdm

from mgjax.storage import buckets
from mgjax.storage.paths import Path
from mgjax.train import lines
from mgjax.train.board import Board
from mgjax.train.metrics import Sound

log = logging.getLogger("mgjax")

_UPLOAD_SECONDS = 60.0  # between two uploads of curves to a bucket


class Report:
    """The report of a run of `steps` training steps that goes on after `step`; process 0 writes it.

    It goes to `metrics.jsonl` and the folder `tensorboard` in `workdir`. Lines of a killed process about later steps
    are dropped. To a bucket, both are written as numbered parts: every minute, at checkpoints and at the end.
    """

    def __init__(self, name: str, workdir: Path, step: int, steps: int):
        self._name, self._steps = name, steps
        self.rows = 0  # the global batch size
        # The operations of a step on one device, and those that it can do per second; None if either is unknown.
        self.flops: tuple[float, float] | None = None
        self.clock = _Clock(step)
        self._writes = jax.process_index() == 0
        self._uploads: _Uploads | None = None
        if self._writes:
            self._lines = lines.writer(workdir, step)
            self._board = Board(workdir / "tensorboard", step)
            if not isinstance(workdir, pathlib.Path):
                self._uploads = _Uploads(self._sync)
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
        if self._uploads is not None:
            self._uploads.soon()

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
        """Keeps all curves so far, so that no checkpoint is ahead of them; raises OSError if that fails."""
        if self._uploads is not None:
            self._uploads.now()
        elif self._writes:
            self._sync()

    def close(self) -> None:
        """Closes the bar and all files."""
        if self._writes:
            if (traffic := buckets.traffic()).requests:
                self.say(
                    f"this process made {traffic.requests} requests to buckets, read {traffic.bytes_read / 1e6:.1f} MB "
                    f"there and wrote {traffic.bytes_written / 1e6:.1f} MB, without the arrays of checkpoints"
                )
            self._bar.close()
            with contextlib.ExitStack() as stack:  # all are closed, also where one cannot be written
                stack.callback(self._board.close)
                stack.callback(self._lines.close)
                if self._uploads is not None:
                    stack.callback(self._uploads.close)

    def _sync(self) -> None:
        self._lines.sync()
        self._board.sync()

    def _write(self, step: int, split: str, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Writes a line of metrics.jsonl, in whose "clock" is all that depends on time, and the points of curves."""
        traffic = buckets.traffic()
        asked = {f"bucket_{name}": count for name, count in traffic._asdict().items() if traffic.requests}
        line = {"step": step, "split": split, "values": dict(values), "clock": {"time": time.time(), **speed, **asked}}
        self._lines.write(line)
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


class _Uploads:
    """Calls `upload` every minute in a thread of its own, one call at a time."""

    def __init__(self, upload: Callable[[], None]):
        self._upload = upload
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self._running: Future[None] | None = None
        self._last = time.monotonic()

    def soon(self) -> None:
        """Begins an upload if the last one began a minute ago; what fails is tried again with the next one."""
        if time.monotonic() - self._last < _UPLOAD_SECONDS or (self._running and not self._running.done()):
            return
        if self._running and (error := self._running.exception()):
            log.warning("the curves could not be written (%s); they are kept, and tried again", error)
        self._last = time.monotonic()
        self._running = self._thread.submit(self._upload)

    def now(self) -> None:
        """Uploads all there is, and waits for it; raises OSError if that fails."""
        self._last = time.monotonic()
        self._thread.submit(self._upload).result()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()


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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
