"""Trains a language model: the run that a config describes, with its settings overridden by flags.

    python launch/train_lm.py --config=configs/lm.py:debug --workdir=runs/lm --config.loop.steps=100

The same command goes on where a run in that folder was stopped. `configs/lm.py` says what there is to run.

On several hosts each of them starts this command; launch/README.md says how, on TPUs, GKE, Slurm and plain hosts.
"""

from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mgjax.cli import training

flags.adopt_module_key_flags(training)


def train(config: ConfigDict, workdir: str) -> Any:
    from mgjax.train import lm
    from mgjax.train.overrides import from_config_dict

    return lm.run(from_config_dict(lm.LMRun, config), workdir)


if __name__ == "__main__":
    training.main(train)
