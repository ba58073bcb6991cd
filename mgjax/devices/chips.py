"""What accelerators can do, as their makers state it: the one table that utilisation and plans are counted by."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      kind: What its `device_kind` holds. The first chip of the table of which that is true counts.
      flops: bfloat16 operations a second, dense.
      memory: Bytes that a program can have. Of TPUs, what is left of the memory by their own programs.
      bandwidth: Bytes a second between memory and chip.
      link: Bytes a second that one link to a neighbour in the torus carries one way; of GPUs, all that a GPU sends to
        the others of its node.
      torus: How long a row of chips must be for its ends to be joined; 0 for GPUs, whose network has no rows.
      network: Bytes a second that a chip can send beyond its slice or node.
    """

    kind: str
    flops: float
    memory: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    torus: int = 0
    network: float = 0.0


# TPUs: docs.cloud.google.com/tpu/docs (bidirectional bandwidth of a chip, over its links and both ways); the memory is
# what libtpu names when a program does not fit. GPUs: NVIDIA's data sheets, and 400 Gbit/s of network for each.
CHIPS = (
    Chip("TPU v2", 22.5e12),
    Chip("TPU v3", 61.5e12),
    Chip("TPU v4", 275e12, 31.75 * GIB, 1228e9, 50e9, 4, 3.1e9),
    Chip("TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 50e9, 16, 3.1e9),
    Chip("TPU v5e", 197e12, 15.75 * GIB, 819e9, 50e9, 16, 3.1e9),
    Chip("TPU v5", 459e12, 95.74 * GIB, 2765e9, 100e9, 4, 6.2e9),
    Chip("TPU v6", 918e12, 31.25 * GIB, 1638e9, 100e9, 16, 12.5e9),
    Chip("B200", 2250e12, 180e9, 8000e9, 900e9, 0, 50e9),
    Chip("H100 PCIe", 756e12, 80e9, 2039e9, 64e9, 0, 50e9),
    Chip("H100 NVL", 835e12, 94e9, 3938e9, 300e9, 0, 50e9),
    Chip("H100", 989e12, 80e9, 3352e9, 450e9, 0, 50e9),
    Chip("H200", 989e12, 141e9, 4800e9, 450e9, 0, 50e9),
    Chip("A100", 312e12, 80e9, 2039e9, 300e9, 0, 25e9),
    Chip("L40S", 362e12, 48e9, 864e9, 32e9, 0, 25e9),
    Chip("L4", 121e12, 24e9, 300e9, 32e9, 0, 12.5e9),
    Chip("A10G", 70e12, 24e9, 600e9, 32e9, 0, 12.5e9),
    Chip("A10", 125e12, 24e9, 600e9, 32e9, 0, 12.5e9),
)


def find(kind: str) -> Chip | None:
    """The chip of that `device_kind`, upper case or lower; None where it is not in the table."""
    return next((chip for chip in CHIPS if chip.kind.lower() in kind.lower()), None)
