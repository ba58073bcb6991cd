"""The cost of a compiled program on each device: memory, operations, memory traffic, and a lower bound of its time.

The bound is a roofline: the times of computing, memory and interconnect at the speeds that makers state, all at once,
so that the longest of the three is the step. No program is as fast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from mgjax.devices.chips import Chip
from mgjax.plan import hlo, interconnect
from mgjax.plan.interconnect import Traffic
from mgjax.train.memory import Memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of one run of a program, on each device."""

    chip: Chip
    mesh: Mapping[str, int]
    memory: Memory
    needed: float  # operations of the model, without recomputed ones
    computed: float  # operations in all
    moved: float  # bytes between memory and chip
    traffic: tuple[Traffic, ...]
    remarks: tuple[str, ...]  # XLA's warnings about rematerialization

    @property
    def seconds(self) -> dict[str, float]:
        """The times of computing, memory and interconnect, each alone."""
        return {
            "computing": self.computed / self.chip.flops,
            "memory": self.moved / self.chip.bandwidth,
            "interconnect": sum(traffic.seconds for traffic in self.traffic),
        }

    @property
    def step(self) -> float:
        """The lower bound of the time in seconds."""
        return max(self.seconds.values())

    @property
    def limit(self) -> str:
        """The longest of the three times: "computing", "memory" or "interconnect"."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def utilization(self) -> float:
        """The upper bound of the share of a device's peak operations that the model needs."""
        return self.needed / self.chip.flops / self.step

    @property
    def free(self) -> float:
        """The share of the memory that is free."""
        return 1 - self.memory.total / self.chip.memory


class DoesNotFitError(ValueError):
    """A program that needs more memory than a device has."""


def of(lowered: Lowered, mesh: Mesh, chip: Chip, *, needed: float, computed: float, open_loops: int = 1) -> Plan:
    """The plan of a program that runs on a mesh of the kind `chip`.

    The model needs `needed` operations on all devices together, and `computed` are computed. Loops whose trip count is
    not constant run `open_loops` times; the plan is of one of these.

    Raises:
      DoesNotFitError: It needs more memory than a device has, and cannot be compiled.
      ValueError: This jax cannot read the compiled program.
    """
    with _captured_stderr() as lines:
        compiled = _compiled(lowered, chip)
    program = hlo.Program(_text(compiled), mesh.size, open_loops)
    return Plan(
        chip=chip,
        mesh=dict(mesh.shape),
        memory=Memory.of(compiled),
        needed=needed / mesh.size,
        computed=computed / mesh.size,
        moved=program.bytes_moved(),
        traffic=tuple(interconnect.traffic(program.collectives(), mesh, chip)),
        remarks=tuple(line for line in lines if "rematerialization" in line),
    )


def _compiled(lowered: Lowered, chip: Chip) -> Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.search(
            r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT])|\(([\d.]+[KMGT])\) exceeds [\w ]+\(([\d.]+[KMGT])\)", str(error)
        )
        needs, has = [size for size in sizes.groups() if size] if sizes else ("more memory", f"{chip.memory:.3g} bytes")
        raise DoesNotFitError(f"it needs {needs} of memory on each device, which has {has}") from None


def _text(compiled: Compiled) -> str:
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:  # seen with a newer libtpu, for v5p
        raise ValueError(
            "this jax cannot read what the compiler has made; install the compiler that belongs to it: "
            f"pip install 'jax[tpu]=={jax.__version__}' ({str(error).splitlines()[0][:200]})"
        ) from None


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """The lines that its block writes to the standard error, in Python or in the compiler."""
    lines: list[str] = []
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
