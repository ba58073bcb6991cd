"""What saving a checkpoint costs a run: seconds that the devices wait, and until it is whole, by size and tier.

    python benchmarks/checkpoints.py [--rounds 5] [--bandwidth 0.5]

The state of a language model (float32 weights, two moments, the average) of three sizes is saved by orbax into a shared
folder, and as shards onto the local disk (`loop.local_every`), in turns. The wait is a copy to the host and grows with
the bytes of a host; for the published sizes it is planned from the largest one measured, on 16 hosts of 16 chips whose
state is split among them, and the time until a bucket has it from `--bandwidth`, GB a second of a host.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from mgjax.train.state import TrainState
from mgjax.train.stores import OrbaxStore, ShardStore

SIZES = (2_000_000, 8_000_000, 32_000_000)  # weights
PUBLISHED = {"small, 0.4 B": 0.42e9, "medium, 1.8 B": 1.84e9, "large, 3.3 B": 3.27e9}
HOSTS = 16


def state(size: int, step: int) -> TrainState:
    weights = {"lm": {"kernel": jax.random.normal(jax.random.key(step), (size // 1024, 1024))}}
    copy = lambda: jax.tree.map(lambda leaf: leaf + 0, weights)  # noqa: E731
    return jax.block_until_ready(TrainState(jnp.int32(step), weights, (copy(), copy()), copy(), {}))


def measured(store, size: int, step: int) -> tuple[float, float]:
    """Seconds that `save` blocks, and until the checkpoint is whole."""
    value = state(size, step)
    begun = time.perf_counter()
    store.save(step, value, {"position": step})
    blocked = time.perf_counter() - begun
    store.wait()
    return blocked, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, default=0.5)
    args = parser.parse_args()
    keep = lambda steps: set(sorted(steps)[-2:])  # noqa: E731
    print(f"{jax.devices()[0].device_kind}, {args.rounds} rounds: median seconds of waiting / until it is whole")
    print(f"{'state':>10}  {'orbax, shared folder':>22}  {'shards, local disk':>22}")
    rate = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            stores = {
                "orbax": OrbaxStore(pathlib.Path(folder, f"orbax-{size}"), keep),
                "shards": ShardStore(pathlib.Path(folder, f"shards-{size}"), keep, of_host=True),
            }
            times = {name: [] for name in stores}
            for step in range(args.rounds + 1):  # the first one is not counted
                for name, store in stores.items():
                    times[name].append(measured(store, size, step))
            for store in stores.values():
                store.close()
            medians = {
                name: [statistics.median(column) for column in zip(*own[1:], strict=True)]
                for name, own in times.items()
            }
            cells = [f"{blocked:.3f} / {whole:.3f}" for blocked, whole in medians.values()]
            print(f"{16 * size / 1e6:>7.0f} MB  {cells[0]:>22}  {cells[1]:>22}")
            rate = {name: 16 * size / 1e9 / blocked for name, (blocked, _) in medians.items()}
    print(f"\nplanned, {HOSTS} hosts: GB of a host, wait with orbax / shards, until a bucket has it")
    for name, count in PUBLISHED.items():
        size = 16 * count / HOSTS / 1e9
        waits = " / ".join(f"{size / gb:.2f} s" for gb in rate.values())
        print(f"{name:>14}  {size:.2f} GB  {waits}  {size / args.bandwidth:.1f} s")


if __name__ == "__main__":
    main()
