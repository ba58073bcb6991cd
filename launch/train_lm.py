"""Trains a language model: `mgjax train lm`, for schedulers that start scripts.

    python launch/train_lm.py --config=configs/lm.py:debug --workdir=runs/lm --config.loop.steps=100

The same command goes on where a run in that folder was stopped. `mgjax/train/presets/lm.py` says what there is to
run. On several hosts each of them starts this command; launch/README.md says how, on TPUs, GKE, Slurm and plain hosts.
"""

import sys

from mgjax import cli

if __name__ == "__main__":
    sys.exit(cli.main(["train", "lm", *sys.argv[1:]]))
