"""What a decode step is on accelerators that are not there, read from its compiled program.

    pip install libtpu jax-cuda13-plugin jax-cuda13-pjrt   # in an environment of its own: jax then looks for a GPU
    python benchmarks/programs.py                          # small and large, on an H100 and a TPU v5e
    python benchmarks/programs.py --devices h100 --sizes small --weights int8 --batch 32

For each it tells the launches of a step, in all and of one layer (on TPUs instructions of one program, which start
without the host), and the bytes that it moves against those of the weights and the cache that it needs; and what must
not be in it: sorts, arrays of the cache written whole, keys of cross-attention computed anew. The compilers choose
without measuring (no autotuning), so a real device may do better. The numbers of StableHLO, before the compiler, are
those of tests/generation/test_programs.py. All of it takes ten minutes of two cores.
"""

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.experimental import topologies

from mgjax.config import published
from mgjax.devices import chips, sharding
from mgjax.devices.chips import Chip
from mgjax.generation.sampling import decode_steps
from mgjax.plan import hlo, topology
from mgjax.plan.decoding import Workload, step_arguments

# What `mgjax.load(weights=...)` makes of them on an accelerator.
WEIGHTS = {
    "float32": Workload(1, 30.0, "float32"),
    "bfloat16": Workload(1, 30.0, "bfloat16"),
    "int8": Workload(1, 30.0, "bfloat16", weights="int8"),
}
STEPS = 50  # of a call: what comes before and after its loop counts so much less

# NVIDIA's data sheet of the H100 SXM, in the words of XLA's GpuTargetConfigProto.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  device_memory_size: 84942979072  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices_of(name: str) -> tuple[Sequence[Any], Chip]:
    """One H100, or the devices of a TPU slice, to compile for.

    Raises:
      ImportError: Their compiler is not installed.
    """
    if name != "h100":
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")  # its compiler says at length what it tries
        return topology.find(name)
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        raise ImportError("compiling for GPUs needs the packages jax-cuda13-plugin and jax-cuda13-pjrt")
    jax.config.update("jax_platforms", "cpu")
    described = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1")
    return described.devices, chips.find(name)


def measured(size: str, workload: Workload, device: Any, chip: Chip) -> dict[str, str]:
    """The numbers of a step, by their names."""
    config = published.MUSICGEN[f"facebook/musicgen-{size}"]
    arguments = step_arguments(config, workload, sharding.make_mesh(1, 1, 1, [device]))
    compiled = decode_steps.lower(*arguments).compile()
    program, cache = hlo.Program(compiled.as_text(), 1, STEPS), arguments[3].cache
    operations = [(operation, times) for operation, times in program.operations() if times >= 1]
    layer = f"layer{config.lm.num_layers // 2}/"
    needed = read_each_step(arguments[1]) + num_bytes(cache)
    cached = num_bytes(cache.layers[0].key)
    moved = program.bytes_moved()
    return {
        "launches": f"{sum(times for _, times in operations):.0f}",
        "of a layer": f"{sum(times for operation, times in operations if layer in operation.rest):.0f}",
        "moved, GB": f"{moved / 1e9:.3f}",
        "of what is needed": f"{moved / needed:.3f}",
        "ms": f"{1e3 * moved / chip.bandwidth:.3f}",
        "temporary, MB": f"{compiled.memory_analysis().temp_size_in_bytes / 1e6:.1f}",
        "sorts": str(sum("sort" in operation.kind or "TopK" in operation.rest for operation, _ in operations)),
        "cache copied": str(sum(program.written(operation) >= cached for operation, _ in operations)),
        "cross keys": str(sum("cross_attn/kv" in operation.rest for operation, _ in operations)),
    }


def read_each_step(params: dict[str, Any]) -> int:
    """The bytes of the weights that a step reads: all but projections of the conditions and tables of embeddings."""
    flat = flatten_dict(params)
    return num_bytes(
        [leaf for path, leaf in flat.items() if path[0] != "embed" and path[0][-5:] != "_proj" and path[-2] != "kv"]
    )


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["h100", "v5e:2x2"], help="h100, or a TPU slice")
    parser.add_argument("--sizes", nargs="+", default=["small", "large"])
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--batch", type=int, default=1, help="pieces, each of two rows for guidance")
    parser.add_argument("--seconds", type=float, default=30.0, help="of music, which the cache has room for")
    args = parser.parse_args()
    heading = ""
    for name in args.devices:
        try:
            devices, chip = devices_of(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        for size in args.sizes:
            for weights in args.weights:
                workload = dataclasses.replace(WEIGHTS[weights], batch=args.batch, seconds=args.seconds)
                numbers = measured(size, workload, devices[0], chip)
                if not heading:
                    heading = " | ".join(numbers)
                    print(f"| device | size | weights | {heading} |\n|{'---|' * (len(numbers) + 3)}")
                print(f"| {name} | {size} | {weights} | {' | '.join(numbers.values())} |", flush=True)


if __name__ == "__main__":
    main()
