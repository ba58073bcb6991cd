"""The plans of the README: training and generation on TPU pods, compiled ahead of time on this machine.

    pip install '.[train,tpu]'
    python benchmarks/plans.py                    # all of them, in a process each; an hour of processor time
    python benchmarks/plans.py large v6e decode   # those with any of these words in their name

Finished plans are kept as JSON in --keep and are not made again. The table goes to the standard output.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

PODS = {"v5e:16x16": 256, "v5p:8x8x8": 512, "v6e:16x16": 256}
SIZES = ("small", "medium", "large")


def plans() -> dict[str, list[str]]:
    """The arguments of `mgjax plan`, by name."""
    found = {}
    for size in SIZES:
        for pod, batch in PODS.items():
            found[f"train {size}, {batch} x 30 s | {pod}"] = [
                *("--config", f"configs/lm.py:{size}", "--topology", pod, "--set", f"data.batch_size={batch}")
            ]
    found["decode large, 64 x 30 s | v5e:2x4"] = [
        *("--decode", "--model", "facebook/musicgen-large", "--batch", "64", "--seconds", "30"),
        *("--topology", "v5e:2x4", "--mesh", "model=8"),
    ]
    return found


def row(name: str, plan: dict) -> str:
    """A line of the table."""
    memory, gib = sum(plan["memory"].values()), 2**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    milliseconds = [f"{1e3 * plan['seconds'][part]:.3g}" for part in ("computing", "memory", "interconnect")]
    return " | ".join(
        [
            f"| {name}",
            mesh,
            f"{memory / gib:.1f} of {plan['chip']['memory'] / gib:.1f} GiB",
            *milliseconds,
            f"{1e3 * plan['step']:.3g} ms",
            f"{plan['utilization']:.0%}",
            f"{plan['limit']} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="make the plans whose names have one of these alone")
    parser.add_argument("--keep", type=Path, default=Path("plans"), metavar="DIR", help="for finished plans (plans)")
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, arguments in plans().items():
        if args.words and not any(word in name for word in args.words):
            continue
        file = args.keep / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
        if not file.exists():
            command = [sys.executable, "-m", "mgjax", "plan", *arguments, "--json", str(file)]
            print("+", *command, file=sys.stderr, flush=True)
            subprocess.run(command, check=True, stdout=sys.stderr)
        rows.append(row(name, json.loads(file.read_text())))
    columns = ["what", "on", "mesh", "memory of a device", "computing, ms", "memory, ms", "interconnect, ms"]
    columns += ["least time", "utilisation", "limited by"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
