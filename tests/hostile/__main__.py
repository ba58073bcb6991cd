"""Tries cases of the hostile files by hand: `python tests/hostile sounds --case 17`, `python tests/hostile all`."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from random import Random

import fuzzing


def main():
    parser = argparse.ArgumentParser(prog="python tests/hostile", description=__doc__)
    parser.add_argument("door", nargs="+", choices=[*fuzzing.names(), "all", "itself"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone, and all about it")
    parser.add_argument("--cases", type=int, help="how many of each door (what the tests try)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (as many as processors)")
    parser.add_argument("--keep", type=Path, help="where to put the damaged files of --case")
    args = parser.parse_args()
    names = fuzzing.names() if "all" in args.door else args.door
    faults = 0
    with fuzzing.Pool(1 if args.case is not None else args.workers) as pool:
        for name in names:
            count = args.cases or fuzzing.door(name).cases
            results = pool.run(name, range(count) if args.case is None else [args.case], args.seed)
            counts = Counter(result.verdict for result in results)
            faults += counts["fault"]
            said = [f"{counts[verdict]} {verdict}" for verdict in ("clear", "accepted", "fault")]
            print(f"{name}: {len(results)} cases, {', '.join(said)}", flush=True)
            print(fuzzing.report(name, results, args.seed, details=args.case is not None), flush=True)
            if args.case is not None:
                print(results[0].text)
            if args.keep is not None:
                rng = Random(f"{name} {args.seed} {args.case}")
                print(fuzzing.damage(pool.root / name, args.keep, fuzzing.door(name).targets, rng))
    sys.exit(bool(faults))


if sys.argv[1:2] == ["--work"]:
    fuzzing.work(Path(sys.argv[2]))
else:
    main()
