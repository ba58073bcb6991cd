"""Devices by name, to compile for: TPU slices by libtpu, GPUs by their number, or those of this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from mgjax.devices import chips
from mgjax.devices.chips import Chip
from mgjax.errors import ConfigError

_TPU = re.compile(r"(?:(\d+)\*)?(v\d+\w?:\d+x\d+(?:x\d+)?)")
_GPUS = re.compile(r"(\w+):(\d+)")


def find(name: str) -> tuple[Sequence[Any], Chip]:
    """The devices of that name, to compile for, and their chip.

    Names are "v5e:16x16", a TPU slice by its generation and shape, or "2*v5e:16x16", two of them; "h100:8", 8 GPUs; or
    "here". It changes the platforms of jax, so a process should use one name only.

    Raises:
      ConfigError: There are no such devices, or the chip's memory and speed are unknown.
      ImportError: libtpu is not installed.
    """
    if name == "here":
        devices = jax.devices()
        return devices, _known(devices[0].device_kind)
    tpu, gpus = _TPU.fullmatch(name), _GPUS.fullmatch(name)
    if tpu:
        return _tpus(tpu[2], int(tpu[1] or 1))
    if gpus:
        return _gpus(gpus[1], int(gpus[2]))
    raise ConfigError(
        f"{name!r} names no devices: give a TPU slice such as v5e:16x16, v5p:8x8x8 or 2*v6e:16x16, GPUs such as "
        "h100:8, or here"
    )


def _tpus(name: str, num_slices: int) -> tuple[Sequence[Any], Chip]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "compiling for TPUs needs libtpu, their compiler, which also runs where there is no TPU: "
            "pip install 'mgjax[tpu]'"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a TPU of this machine, for minutes
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # this and the next: else it fails without a TPU
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "1")  # warnings, such as those of inefficient shardings
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "1")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=num_slices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"libtpu knows no slice {name} ({str(error).splitlines()[0]}): shapes are multiples of 2x2 (v5p: 2x2x1), "
            "such as v5e:16x16, v5p:8x8x8 or v6e:16x16"
        ) from None
    devices: Sequence[Any] = topology.devices
    return devices, _known(devices[0].device_kind)


def _gpus(name: str, count: int) -> tuple[Sequence[Any], Chip]:
    """Devices of the CPU instead of GPUs, whose compiler needs a GPU."""
    chip = _known(name)
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # the platforms of jax are initialised
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(f"this process has {len(devices)} devices of the CPU to stand for {count} of {name}")
    return devices[:count], chip


def _known(name: str) -> Chip:
    chip = chips.find(name)
    if chip is None or not chip.memory:
        known = ", ".join(chip.kind for chip in chips.CHIPS if chip.memory)
        raise ConfigError(f"memory and speed of {name} are not known here; known are {known}")
    return chip
