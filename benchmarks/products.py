"""The matrix products of a decode step of musicgen-small, by number of rows, type of weights and formulation.

    python benchmarks/products.py
    python benchmarks/products.py --rows 2 64 --weights int8 --layers 6

`nn.TransposedKernel.product` chooses among them: the kernel of mgjax/kernels where it is, and otherwise XLA's. "dot" is
the product over kernels as training keeps them, in float32. Every form reads all layers in turn, so that weights come
from memory as in a step; forms take turns, and medians are reported.
"""

import argparse
import functools
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from mgjax import nn
from mgjax.kernels import cpu
from mgjax.kernels.memory import Blocks

# Inputs and outputs: queries, keys and values; self-attention's and cross-attention's output and the latter's queries;
# the two of the feed-forward network.
SHAPES = [(1024, 3072), (1024, 1024), (1024, 1024), (1024, 1024), (1024, 4096), (4096, 1024)]


def inputs_of(rows: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((rows, width), np.float32)) for width in (1024, 4096)]


@functools.partial(jax.jit, static_argnames="kernel")
def transposed(kernels: list[nn.TransposedKernel], few: jax.Array, many: jax.Array, kernel: bool) -> jax.Array:
    """The sum of all products, by the CPU's kernel or by XLA."""
    total = jnp.float32(0)
    for matrix in kernels:
        x = few if matrix.weights.shape[1] == few.shape[1] else many
        # One after the other, as in a step.
        x = jax.lax.optimization_barrier((x, total))[0]
        form = nn.by_cpu_kernel if kernel else nn.by_xla_on_cpu
        total = total + jnp.sum(form(x, matrix))
    return total


@jax.jit
def dense(kernels: list[jax.Array], few: jax.Array, many: jax.Array) -> jax.Array:
    """The same over kernels `[i, o]`."""
    total = jnp.float32(0)
    for matrix in kernels:
        x = jax.lax.optimization_barrier((few if matrix.shape[0] == few.shape[1] else many, total))[0]
        total = total + jnp.sum(x @ matrix)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--weights", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-xla", action="store_true", help="leave out the forms of XLA")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    layers = [rng.standard_normal(shape, np.float32) * 0.02 for shape in SHAPES]
    blocks = Blocks()
    forms = {}
    for weights in args.weights:
        kernels = [nn.TransposedKernel.of(layer, weights, blocks) for _ in range(args.layers) for layer in layers]
        size = sum(kernel.weights.nbytes for kernel in kernels)
        if cpu.available():
            forms[f"{weights}, kernel"] = (functools.partial(transposed, kernels, kernel=True), size)
        if not args.no_xla:
            forms[f"{weights}, XLA"] = (functools.partial(transposed, kernels, kernel=False), size)
    if not args.no_xla:
        kernels = [jnp.array(layer) for _ in range(args.layers) for layer in layers]
        forms["float32, dot"] = (functools.partial(dense, kernels), sum(kernel.nbytes for kernel in kernels))
    products = args.layers * sum(inputs * outputs for inputs, outputs in SHAPES)
    for rows in args.rows:
        x = inputs_of(rows)
        times = {name: [] for name in forms}
        for turn, (name, (run, _)) in itertools.product(range(args.repeats + 1), forms.items()):
            began = time.perf_counter()
            run(*x).block_until_ready()
            if turn:
                times[name].append(time.perf_counter() - began)
        for name, (_, size) in forms.items():
            seconds = statistics.median(times[name])
            print(
                f"{rows:3} rows  {name:18} {seconds * 1e3:8.1f} ms  {size / seconds / 1e9:6.1f} GB/s  "
                f"{2 * rows * products / seconds / 1e9:7.1f} GFLOP/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
