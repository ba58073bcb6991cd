"""Every test runs on eight fake devices, with shapes checked and with rank promotion and key reuse as errors."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# What is compiled is tiny, so that compiling it takes longer than running it; and each core has a worker of pytest,
# whose threads would wait for one another.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] += " --xla_cpu_multi_thread_eigen=false"
if importlib.metadata.version("jax").startswith("0.10."):  # later ones do not know it
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

# What one worker has compiled, the others and the processes that tests start need not: within one run of pytest, or as
# long as a folder is kept that the environment names.
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.mkdtemp(prefix="mgjax-tests-")
    atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import checks

# What users hand over is not checked here: api.py does it.
CHECKED = [
    "codec",
    "conditioning",
    "config",
    "audio",
    "data",
    "devices.sharding",
    "inputs",
    "kernels",
    "checkpoints",
    "generation",
    "lm",
    "nn",
    "plan",
    "synthetic",
    "train.codec",
    "train.clap",
    "train.conditions",
    "train.finetune",
    "train.flops",
    "train.lm",
    "train.loop",
    "train.memory",
    "train.optim",
    "train.presets",
    "train.programs",
    "train.resample",
    "train.state",
    "train.task",
    "train.text",
    "train.trainable",
    "train.checkpoints",
]
checks.install([f"mgjax.{name}" for name in CHECKED])

import jax  # noqa: E402 - after the hook and the flags
from jax._src.interpreters import mlir  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Tracing makes millions of small objects, and each full collection would walk all that was imported.
gc.freeze()
gc.set_threshold(10_000, 20, 20)

# Each program that is kept keeps the MLIR context it was lowered in, and with threads every context looks through the
# caches of all others: lowering and compiling a small program took 24 ms at first, 110 ms after two thousand.
_make_context = mlir.make_ir_context


def _context_without_threads():
    context = _make_context()
    context.enable_multithreading(False)
    return context


mlir.make_ir_context = _context_without_threads


def pytest_addoption(parser):
    parser.addoption("--hostile-cases", type=int, help="damaged files for each test of tests/hostile (some hundred)")


def pytest_collection_modifyitems(items):
    """The files that take minutes come first: the workers then end together."""
    first = ("test_end_to_end.py", "test_threads.py")
    items.sort(key=lambda item: (item.path.name not in first, item.path.parent.name != "train"))
