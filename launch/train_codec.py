"""Trains a codec: `mgjax train codec`, for schedulers that start scripts.

    python launch/train_codec.py --config=configs/codec.py:debug --workdir=runs/codec --config.loop.steps=100

The same command goes on where a run in that folder was stopped. `mgjax/train/presets/codec.py` says what there is to
run. On several hosts each of them starts this command; launch/README.md says how, on TPUs, GKE, Slurm and plain hosts.
"""

import sys

from mgjax import cli

if __name__ == "__main__":
    sys.exit(cli.main(["train", "codec", *sys.argv[1:]]))
