"""The CPU's kernels: what they compute, and what happens where they cannot be compiled."""

import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import nn
from mgjax.kernels import cpu
from mgjax.kernels.memory import Blocks
from mgjax.lm import attention, slots


@pytest.fixture(params=["kernel", "xla"])
def form(request, monkeypatch):
    """Each of the two ways to compute it; a machine without a compiler has the second alone."""
    if request.param == "xla" or not cpu.available():
        monkeypatch.setattr(cpu, "available", lambda: False)
    return request.param


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 40), (100, 7), (1100, 33), (256, 5)])
def test_products_with_any_number_of_rows(form, weights, inputs, outputs):
    kernel = nn.TransposedKernel.of(random(inputs, outputs), weights)
    exact = kernel.kernel((inputs, outputs)).astype(np.float64)
    multiply = jax.jit(lambda x, kernel: kernel.product(x, jnp.float32))
    for rows in (1, 2, 3, 5, 8, 9):
        x = random(rows, inputs)
        found, expected = np.asarray(multiply(x, kernel)), x @ exact
        errors = [np.abs(found - expected).max() / np.abs(expected).max()]
        if form == "kernel" and weights == "int8":
            # Where there are instructions that multiply int8 by int8, x is rounded to 15 bits for them.
            step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127 * 128)
            rounded = np.rint(x.astype(np.float64) * (1 / step)) * step
            errors.append(np.abs(found - rounded @ exact).max() / np.abs(expected).max())
            assert errors[0] < 1e-4, (rows, errors)  # measured 5.1e-5
        assert min(errors) < 1e-6, (rows, errors)  # measured 4.3e-7


@pytest.mark.parametrize("cores", ["all", "one"])
def test_threads_share_the_work(cores):
    """Of several products at once, in a process of its own: here XLA has no threads."""
    program = """
import sys
from concurrent.futures import ThreadPoolExecutor
import jax, jax.numpy as jnp, numpy as np
from mgjax import nn
from mgjax.kernels import cpu
cpu.available()
rng = np.random.default_rng(0)
matrix = rng.normal(size=(512, 3000)).astype(np.float32)
kernels = [nn.TransposedKernel.of(matrix, weights) for weights in ("float32", "int8")]
multiply = jax.jit(lambda x, kernel: kernel.product(x, jnp.float32))
cases = [(jnp.asarray(rng.normal(size=(rows, 512)), jnp.float32), kernel) for kernel in kernels for rows in (1, 2, 16)]
exact = [np.asarray(x, np.float64) @ kernel.kernel((512, 3000)) for x, kernel in cases]
def check(turn):
    (x, kernel), expected = cases[turn % 6], exact[turn % 6]
    return np.abs(multiply(x, kernel) - expected).max() / np.abs(expected).max()
with ThreadPoolExecutor(3) as pool:
    assert max(pool.map(check, range(600))) < 1e-4
"""
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONWARNINGS": "error::RuntimeWarning"}
    one = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if cores == "one" and shutil.which("taskset") else []
    subprocess.run([*one, sys.executable, "-c", program], env=environment, check=True, timeout=120)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_row_that_is_not_finite_stays_so(form, weights, bad):
    """And it alone."""
    x = random(3, 1024)
    x[1, 700] = bad
    found = np.asarray(nn.TransposedKernel.of(random(1024, 16), weights).product(jnp.asarray(x), jnp.float32))
    assert np.isfinite(found[[0, 2]]).all()
    assert not np.isfinite(found[1]).any()


def test_rows_of_zeros_and_of_large_and_small_numbers(form):
    kernel = nn.TransposedKernel.of(random(1024, 16), "int8")
    x = random(4, 1024) * np.float32([[0], [1e-20], [1e20], [1]])
    found = np.asarray(kernel.product(jnp.asarray(x), jnp.float32))
    expected = x.astype(np.float64) @ kernel.kernel((1024, 16)).astype(np.float64)
    assert np.all(found[0] == 0)
    assert np.all(np.abs(found - expected)[1:].max(1) < 1e-4 * np.abs(expected)[1:].max(1))


def test_weights_lie_in_blocks_that_are_not_copied():
    blocks = Blocks()
    first, second = blocks.empty((3, 5), np.int8), blocks.empty((1024, 64), np.float32)
    assert (first.ctypes.data % 64, second.ctypes.data % 64) == (0, 0)
    assert 15 <= second.ctypes.data - first.ctypes.data < 64 * 2
    first[...], second[...] = 1, 2
    assert np.all(first == 1)
    large = blocks.empty((70 << 20,), np.int8)
    assert large.nbytes == 70 << 20
    assert jax.default_backend() != "cpu" or jax.device_put(second).unsafe_buffer_pointer() == second.ctypes.data


def test_freed_memory_is_kept():
    """What is freed is used again, and is not filled with zeros page by page; in a process of its own."""
    if platform.libc_ver()[0] != "glibc":
        return
    program = """
import resource, sys
import numpy as np
from mgjax.kernels import memory
if sys.argv[1] == "keep":
    memory.keep_freed_memory()
for turn in range(3):
    arrays = [np.ones(1 << 20, np.uint8) for _ in range(60)]
    del arrays
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    if turn == 1:
        before = faults
print(faults - before)
"""
    command = [sys.executable, "-c", program]
    kept, given_back = (int(subprocess.check_output([*command, word])) for word in ("keep", "as it is"))
    assert kept < 100 < given_back, (kept, given_back)  # 60 MB are 15,360 pages


def test_weights_are_stored_in_their_type():
    kernel = random(64, 12)
    stored = {dtype: nn.TransposedKernel.of(kernel, dtype) for dtype in ("float32", "bfloat16", "int8")}
    assert [str(kernel.weights.dtype) for kernel in stored.values()] == list(stored)
    errors = {dtype: np.abs(stored.kernel((64, 12)) - kernel).max() for dtype, stored in stored.items()}
    assert errors["float32"] == 0
    assert 0 < errors["bfloat16"] < np.abs(kernel).max() / 256
    assert 0 < errors["int8"] < np.abs(kernel).max() / 253  # half a step of 1 / 127


def test_outputs_of_zero_weights_are_zero():
    kernel = nn.TransposedKernel.of(np.zeros((8, 4), np.float32), "int8")
    assert np.all(np.asarray(kernel.product(jnp.ones((2, 8)), jnp.float32)) == 0)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_layer_takes_its_kernel_transposed(form, weights):
    """Heads that come in and go out, a bias, and an adapter beside the kernel."""
    layer = nn.Dense((3, 8), (2, 5), use_bias=True)
    x = jnp.asarray(random(4, 6, 3, 8))
    params = layer.init(jax.random.key(0), x)["params"] | {"bias": jnp.asarray(random(2, 5))}
    params |= {"lora_down": jnp.asarray(random(1, 24, 2)), "lora_up": jnp.asarray(random(1, 2, 10))}
    stored = nn.TransposedKernel.of(np.asarray(params["kernel"]).reshape(24, 10), weights)
    rounded = params | {"kernel": jnp.asarray(stored.kernel((3, 8, 2, 5)))}
    expected = layer.apply({"params": rounded}, x)
    found = jax.jit(layer.apply)({"params": params | {"kernel": stored}}, x)
    assert found.shape == (4, 6, 2, 5)
    assert np.abs(found - expected).max() < 1e-5  # measured 3.8e-6, of numbers up to 59


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint16, jnp.int8])
@pytest.mark.parametrize(("width", "filled"), [(64, 1), (64, 300), (20, 37), (20, 512)])
def test_a_step_attends_to_the_filled_and_valid_slots(dtype, width, filled):
    if not cpu.available():
        return  # a machine without a compiler has nothing to compare
    query, key, value = (jnp.asarray(random(2, 4, n, width)) for n in (1, 512, 513))
    floats = {"key": key, "value": value[:, :, :512]}
    key, value = (slots.stored(each, dtype) for each in floats.values())
    query = 3 * jnp.swapaxes(query, 1, 2)
    valid = np.random.default_rng(0).random((2, 512)) < 0.7
    valid[1] = False
    for mask in (None, jnp.asarray(valid)):
        causal = attention.causal_mask(filled - 1, 1, 512, mask)
        expected = attention.attend(query, key, value, causal)
        found = jax.jit(attention.attend_to_cache)(query, key, value, jnp.int32(filled - 1), mask)
        assert np.abs(found - expected).max() < 1e-5  # measured 1.4e-6
        rounding = np.abs(found - attention.attend(query, *floats.values(), causal)).max()
        # Measured 1.4e-6, 0.0099 and 0.035, of results up to 3.6; uint16 is the bits of bfloat16.
        assert rounding < {jnp.float32: 1e-5, jnp.int8: 0.1}.get(dtype, 0.03), rounding
        assert mask is None or np.all(np.asarray(found)[1] == 0)


def test_slots_in_int8_have_a_scale_each():
    """Large and small ones, zeros, and one that is not finite, which is not hidden."""
    x = random(1, 2, 5, 8) * np.float32([1e6, 1, 0, 1e-6, 1])[None, None, :, None]
    x[0, 1, 4, 3] = np.inf
    int8 = slots.stored(jnp.asarray(x), jnp.int8)
    assert (int8.shape, int8.dtype, int8.scale.dtype) == (x.shape, jnp.int8, jnp.float32)
    largest = np.abs(x).max(-1, keepdims=True)
    assert np.array_equal(np.asarray(int8.scale), largest / np.float32(127))
    found = np.asarray(slots.widened(int8, jnp.float32))
    assert np.isnan(found[0, 1, 4]).all()
    found, x, largest = (each[:, :, :4] for each in (found, x, largest))
    assert np.all(np.abs(found - x) <= 1.001 / 254 * largest)
    assert np.all(found[:, :, 2] == 0)
    with jax.debug_nans(True):
        slots.stored(jnp.zeros((1, 1, 1, 8)), jnp.int8)


def test_slots_that_are_not_filled_are_not_read():
    if not cpu.available():
        return
    query, key = jnp.ones((1, 1, 2, 8)), jnp.full((1, 2, 16, 8), jnp.nan).at[:, :, :3].set(1.0)
    for dtype in (jnp.float32, jnp.int8):
        slots_of_key = slots.stored(key, dtype)
        seen = attention.attend_to_cache(query, slots_of_key, slots_of_key, 2, None)
        assert np.abs(np.asarray(seen) - 1).max() < 1e-6


@pytest.mark.parametrize("architecture", ["x86-64", "haswell"])
def test_instructions_of_other_cpus(architecture, tmp_path):
    """CONTRIBUTING has the command for ARM's, under an emulator."""
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        return
    source, program = Path(__file__).with_name("check.cc"), tmp_path / "check"
    command = [compiler, "-O1", "-std=c++20", f"-march={architecture}", f"-isystem{jax.ffi.include_dir()}"]
    subprocess.run([*command, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`available` as in a new process, with an empty cache."""
    monkeypatch.setattr(cpu.platformdirs, "user_cache_dir", lambda name: str(tmp_path))
    monkeypatch.delenv("MGJAX_CPU_KERNELS", raising=False)
    return cpu.available.__wrapped__


def test_it_can_be_switched_off(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("MGJAX_CPU_KERNELS", "off")
    assert not fresh()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compiler", ["missing", "fails", "hangs"])
def test_without_a_compiler_it_is_said_once(fresh, monkeypatch, tmp_path, caplog, compiler):
    program = tmp_path / "compiler"
    program.write_text("#!/bin/sh\n" + ("sleep 9\n" if compiler == "hangs" else "echo no such option >&2\nexit 1\n"))
    program.chmod(0o755)
    monkeypatch.setattr(cpu, "_SECONDS", 0.2)
    monkeypatch.setattr(cpu.shutil, "which", lambda name: None if compiler == "missing" else str(program))
    with caplog.at_level(logging.WARNING):
        assert not fresh()
        assert not fresh()
    [message] = [record.getMessage() for record in caplog.records]
    cause = {"missing": "there is no C++ compiler", "fails": "no such option", "hangs": "timed out"}[compiler]
    assert cause in message
    assert "Install g++ or clang" in message
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".failed"]


def test_a_library_that_is_damaged_is_left_alone(fresh, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(cpu.shutil, "which", lambda name: "/bin/false")
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(cpu.hashlib, "sha256", lambda data: type("Digest", (), {"hexdigest": lambda self: "0" * 64})())
    (tmp_path / "kernels" / f"{'0' * 20}.so").write_bytes(b"nothing")
    assert not fresh()
    assert "could not be loaded" in caplog.text


def test_numbers_that_are_not_finite_are_not_hidden():
    query, key = jnp.ones((1, 1, 2, 8)), jnp.ones((1, 2, 4, 8)).at[:, 1].set(jnp.nan)
    seen = np.asarray(attention.attend_to_cache(query, key, jnp.ones((1, 2, 4, 8)), 3, None))
    assert np.all(seen[:, :, 0] == 1)
    assert np.all(np.isnan(seen[:, :, 1]))
