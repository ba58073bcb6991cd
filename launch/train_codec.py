"""Trains a codec: the run that a config describes, with its settings overridden by flags.

    python launch/train_codec.py --config=configs/codec.py:debug --workdir=runs/codec --config.loop.steps=100

The same command goes on where a run in that folder was stopped. `configs/codec.py` says what there is to run.

On several hosts each of them starts this command; launch/README.md says how, on TPUs, GKE, Slurm and plain hosts.
"""

from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mgjax.cli import training

flags.adopt_module_key_flags(training)


def train(config: ConfigDict, workdir: str) -> Any:
    from mgjax.train import codec
    from mgjax.train.overrides import from_config_dict

    return codec.run(from_config_dict(codec.CodecRun, config), workdir)


if __name__ == "__main__":
    training.main(train)
