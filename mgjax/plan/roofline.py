"""What one run of a compiled program takes on each device: memory, operations, bytes, and the least time for them.

The times are a roofline: what computing, memory and interconnect would each take at the speeds that makers state, all
at once, so that the longest of the three is the step. Nothing runs as fast as that; what is slow here is slow anywhere.
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
    """What one run of a program takes, on each device.

    Attributes:
      chip: The device.
      mesh: The sizes of the mesh.
      memory: Of a device.
      needed: Operations of the model, whatever is computed twice not counted.
      computed: Operations that are done.
      moved: Bytes between memory and chip.
      traffic: What devices send each other.
      remarks: What XLA said about ways that it had to go.
    """

    chip: Chip
    mesh: Mapping[str, int]
    memory: Memory
    needed: float
    computed: float
    moved: float
    traffic: tuple[Traffic, ...]
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> dict[str, float]:
        """What computing, memory and interconnect take, each for itself."""
        return {
            "computing": self.computed / self.chip.flops,
            "memory": self.moved / self.chip.bandwidth,
            "interconnect": sum(one.seconds for one in self.traffic),
        }

    @property
    def step(self) -> float:
        """The shortest time that it can take."""
        return max(self.seconds.values())

    @property
    def limit(self) -> str:
        """What takes that time."""
        return max(self.seconds, key=self.seconds.get)

    @property
    def utilization(self) -> float:
        """The largest share of a device's operations that can be of use to the model."""
        return self.needed / self.chip.flops / self.step

    @property
    def free(self) -> float:
        """The share of the memory that is left."""
        return 1 - self.memory.total / self.chip.memory


class DoesNotFitError(ValueError):
    """A program that needs more memory than a device has."""


def of(
    lowered: Lowered,
    mesh: Mesh,
    chip: Chip,
    *,
    needed: float,
    computed: float,
    open_loops: int = 1,
) -> Plan:
    """The plan of a program.

    Args:
      lowered: The program.
      mesh: What it runs on.
      chip: What the mesh is made of.
      needed: Operations of the model, on all devices together.
      computed: Operations that are done, on all devices together.
      open_loops: How often loops run whose end is not written in the program.

    Raises:
      DoesNotFitError: It needs more memory than a device has, and cannot be compiled.
      ValueError: It cannot be read once it is compiled.
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
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:  # seen with a newer libtpu, for v5p
        raise ValueError(
            "this jax cannot read what the compiler has made; install the compiler that belongs to it: "
            f"pip install 'jax[tpu]=={jax.__version__}' ({str(error).splitlines()[0][:200]})"
        ) from None


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """The lines that are written to the standard error meanwhile, by the compiler too; Python is not the only one."""
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
