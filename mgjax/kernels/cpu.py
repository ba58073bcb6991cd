"""Kernels of the decode step for the CPU (cpu.cc): compiled at first use where there is a compiler, called through XLA.

The library is kept in the user's cache under the hash of its source, compiler and CPU. Without a compiler, or with
`MGJAX_CPU_KERNELS=off` in the environment, `available` is False and callers write the same in XLA's operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import platformdirs
from jaxtyping import Array, Bool, Float, Int, Shaped

log = logging.getLogger("mgjax")

SOURCE = Path(__file__).with_name("cpu.cc")
NAMES = ("mgjax_product", "mgjax_attend")

_SECONDS = 120  # that compiling may take


def product(
    x: Float[Array, "n i"], weights: Float[Array, "o i"] | Int[Array, "o i"], scale: Float[Array, " o"] | None
) -> Float[Array, "n o"]:
    """`x` times the transposed weights, of float32, bfloat16 or int8, each output times its scale; sums are float32."""
    scale = jnp.zeros(0, jnp.float32) if scale is None else scale
    result = jax.ShapeDtypeStruct((x.shape[0], weights.shape[0]), jnp.float32)
    return jax.ffi.ffi_call("mgjax_product", result)(x.astype(jnp.float32), weights, scale)


def attend(
    query: Float[Array, "b h e"],
    key: Shaped[Array, "b h m e"],
    value: Shaped[Array, "b h m e"],
    key_scale: Float[Array, "b h m 1"] | None,
    value_scale: Float[Array, "b h m 1"] | None,
    valid: Bool[Array, "b m"] | None,
    filled: Int[Array, ""] | int,
) -> Float[Array, "b h e"]:
    """Attention of one step to the first `filled` slots that are valid; zeros for a row with none.

    Slots after those are not read: a step takes as long as there are steps before it, whatever the cache's capacity.
    Keys and values are float32, bfloat16, its bits as uint16, or int8 with a scale for each slot.
    """
    valid = jnp.zeros((0, 0), bool) if valid is None else valid
    result = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    call = jax.ffi.ffi_call("mgjax_attend", result)
    scales = [jnp.zeros(0, jnp.float32) if scale is None else scale for scale in (key_scale, value_scale)]
    return call(query.astype(jnp.float32), key, value, *scales, valid, jnp.asarray(filled, jnp.int32))


@functools.cache
def available() -> bool:
    """Whether the kernels can be called; the first call compiles and loads them."""
    if os.environ.get("MGJAX_CPU_KERNELS", "on").lower() == "off" or jax.default_backend() != "cpu":
        return False
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    folder = Path(platformdirs.user_cache_dir("mgjax")) / "kernels"
    try:
        library = _compiled(compiler, folder)
        for name in NAMES if library else ():
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        log.warning(
            "The CPU kernels in %s could not be loaded, so decoding is slower: %s. Delete that folder; if it cannot be "
            "written to, name another by XDG_CACHE_HOME",
            *(folder, error),
        )
        return False
    return library is not None


def _compiled(compiler: str | None, folder: Path) -> ctypes.CDLL | None:
    """The library, from the folder or compiled into it; None without a compiler that can, which is said once."""
    command = [compiler or "none", *_flags(), f"-isystem{jax.ffi.include_dir()}"]
    parts = [
        SOURCE.read_bytes(),
        " ".join(command).encode(),
        importlib.metadata.version("jaxlib").encode(),
        _cpu().encode(),
    ]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
    path, failed = folder / f"{name}.so", folder / f"{name}.failed"
    if not path.exists():
        if failed.exists():
            return None
        folder.mkdir(parents=True, exist_ok=True)
        problem = "there is no C++ compiler" if compiler is None else _compile(command, path)
        if problem:
            failed.write_text(problem)
            log.warning(
                "Decoding on the CPU is faster with a kernel that could not be compiled: %s. "
                "Install g++ or clang (and delete %s to try again).",
                *(problem[:500], failed),
            )
            return None
    return ctypes.CDLL(str(path))


def _compile(command: list[str], path: Path) -> str | None:
    """Compiles the library to `path`, whole or not at all; what went wrong."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        try:
            done = subprocess.run(
                [*command, str(SOURCE), "-o", str(new)], capture_output=True, text=True, timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()[-2000:]}"
        os.replace(new, path)
    return None


def _flags() -> list[str]:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return ["-O3", native, "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden"]


def _cpu() -> str:
    """What tells CPUs with other instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
