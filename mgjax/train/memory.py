"""The memory of a device that a compiled program needs, as the compiler counts it."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.stages import Compiled


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of memory of one device."""

    arguments: float  # weights, the state of the optimiser, the batch
    outputs: float  # results that do not take the place of an argument
    temporaries: float  # arrays that exist while the program runs
    code: float  # the program itself
    beside: float = 0.0  # weights that this program does not read, but others do

    @staticmethod
    def of(compiled: Compiled) -> Memory:
        """The memory that a compiled program needs on each device."""
        sizes: Any = compiled.memory_analysis()
        return Memory(
            arguments=sizes.argument_size_in_bytes,
            outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
            temporaries=sizes.temp_size_in_bytes,
            code=sizes.generated_code_size_in_bytes,
        )

    @property
    def total(self) -> float:
        """All of it."""
        return self.arguments + self.outputs + self.temporaries + self.code + self.beside

    def parts(self) -> str:
        """The sizes of its parts as text, without those below 1 MB."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ", ".join(f"{name} {gib(size)}" for name, size in sizes.items() if size >= 1e6)


def gib(size: float) -> str:
    """A number of bytes as text, in GiB."""
    return f"{size / 2**30:.3g} GiB"
