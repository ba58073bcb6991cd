"""The table of accelerators' specifications, by their makers, which utilisation and plans are computed from."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator."""

    kind: str  # a part of its `device_kind`; the first chip of the table that matches counts
    flops: float  # dense bfloat16 operations per second
    memory: float = 0.0  # bytes that a program can use; on TPUs, the runtime's own programs take the rest
    bandwidth: float = 0.0  # bytes per second between memory and chip
    # Bytes per second that one link to a neighbour in the torus carries one way; that a GPU sends within its node.
    link: float = 0.0
    torus: int = 0  # the shortest row of chips whose ends are connected; 0 for GPUs, which have no torus
    network: float = 0.0  # bytes per second that a chip can send beyond its slice or node


# TPUs: docs.cloud.google.com/tpu/docs (bidirectional bandwidth of a chip, divided by its links and by two); the memory
# is that of libtpu's error where a program does not fit. GPUs: NVIDIA's data sheets, and a network of 400 Gbit/s each.
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
    """The chip of a `device_kind`, whatever its case; None where it is not in the table."""
    return next((chip for chip in CHIPS if chip.kind.lower() in kind.lower()), None)
