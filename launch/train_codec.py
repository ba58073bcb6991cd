"""Trains a codec: the run that a config describes, with its settings overridden by flags.

    python launch/train_codec.py --config=configs/codec.py:debug --workdir=runs/codec --config.loop.steps=100

The same command goes on where a run in that folder was stopped. `configs/codec.py` says what there is to run.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from mgjax.cli import terminal

CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/ and the name of one in it.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder for checkpoints, curves and the model.", required=True)


def main(_: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step that it takes
    from mgjax.train import codec
    from mgjax.train.configs import from_config_dict

    return terminal.status(lambda: codec.run(from_config_dict(codec.CodecRun, CONFIG.value), WORKDIR.value))


if __name__ == "__main__":
    app.run(main)
