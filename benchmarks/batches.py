"""How many seconds of music a second are generated, by the number of pieces at a time.

    python benchmarks/batches.py --before FOLDER                                      # mini
    python benchmarks/batches.py --model DIR --weights int8 --batches 1 4 16 32 --repeats 1

Codes alone, with guidance; text encoding is in it, the codec and compilation are not. `--before` is a folder with other
code of mgjax, which runs in a process of its own; both take turns, and medians are printed.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
from pathlib import Path

import sides

WORKER = """
import json, sys, time
import mgjax
request = json.loads(sys.argv[1])
options = {"weights": request["weights"]} if request["weights"] else {}
model = mgjax.load(request["model"], **options)
for line in sys.stdin:
    batch = int(line)
    texts = [f"a slow waltz on accordion, take {i}" for i in range(batch)]
    began = time.perf_counter()
    codes = model.generate_codes(texts, seconds=request["seconds"])
    peak = next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith("VmHWM"))
    print(json.dumps([time.perf_counter() - began, peak * 1024 / 1e9]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--weights", help="float32, bfloat16 or int8 (as the model has them); not of the code before")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a folder with other code of mgjax")
    args = parser.parse_args()

    folders = {"mgjax": (Path(__file__).resolve().parent.parent, args.weights)}
    if args.before:
        folders["before"] = (args.before.resolve(), None)
    with contextlib.ExitStack() as stack:
        run = {}
        for name, (folder, weights) in folders.items():
            request = {"model": args.model, "seconds": args.seconds, "weights": weights}
            command = [sys.executable, "-c", WORKER, json.dumps(request)]
            run[name] = stack.enter_context(sides.started(command, folder))
        print(f"{args.model}, {args.weights or 'as it is'}, pieces of {args.seconds:g} s, {os.cpu_count()} cores")
        for batch in args.batches:
            for name in run:
                run[name](batch)  # compiles
            turns = [{name: run[name](batch) for name in run} for _ in range(args.repeats)]
            row = f"  batch {batch:3}"
            for name in run:
                seconds = statistics.median(turn[name][0] for turn in turns)
                row += f"   {name} {batch * args.seconds / seconds:7.2f} s/s, peak {turns[-1][name][1]:.2f} GB"
            if args.before:
                row += f"   {statistics.median(turn['before'][0] / turn['mgjax'][0] for turn in turns):.2f} times"
            print(row, flush=True)


if __name__ == "__main__":
    main()
