"""`mgjax train`: trains a codec or a language model."""

from __future__ import annotations

import argparse
from typing import Any

from mgjax.cli import terminal
from mgjax.cli.options import add_host_options, command, option

# The exit status of a run that was stopped (SIGTERM, Ctrl-C) and goes on when it is started again: that of a temporary
# failure, so that no scheduler takes it for done.
UNFINISHED = 75

_DESCRIPTION = """\
Trains a codec, or a language model over the codes of one. The same command goes on where a run in its folder was
stopped. The folder holds checkpoints, curves for TensorBoard, and the model, as `mgjax generate --model` opens it.
"""

_EXAMPLES = """\
examples:
  mgjax train codec --config=codec:mini --workdir=runs/codec --config.data.corpora="('sound',)"
  mgjax train lm --config=lm:small --workdir=runs/lm --config.data.corpora="('tokens',)" --config.loop.fsdp=8

A config is a preset of mgjax.train.presets ("lm:small"), or a file of yours whose get_config(NAME) gives one like it
("my_lm.py:NAME"). --config.NAME=VALUE sets any of its settings. On several hosts each starts the same command.
"""


def add_commands(commands: Any) -> None:
    """Adds `train` to the commands of argparse."""
    parser = command(commands, "train", run, "train a codec or a language model", _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(settings=[])
    option(parser, "task", "a codec, or a language model", choices=["codec", "lm"])
    option(parser, "--config NAME", "lm:small, or FILE.py:NAME (see below)", required=True)
    option(
        parser,
        "--workdir DIR",
        "a folder for all that the run writes, or gs://BUCKET/... or s3://BUCKET/...",
        required=True,
    )
    programs = (
        "where to keep compiled programs, for a quicker start (your user cache; on several hosts, in the workdir)"
    )
    option(parser, "--cache DIR|off", programs)
    add_host_options(parser)


def run(args: argparse.Namespace) -> None:
    """Trains what `args` says; leaves with the exit status `UNFINISHED` where the run was stopped."""
    terminal.require_extra("train")
    from absl import logging

    from mgjax.devices import distributed
    from mgjax.train import codec, lm, overrides

    logging.set_verbosity(logging.WARNING)  # orbax logs every step of its work
    kind: type[codec.CodecRun | lm.LMRun] = codec.CodecRun if args.task == "codec" else lm.LMRun
    config = overrides.read(kind, args.config, args.settings)
    distributed.start(args.coordinator, args.num_processes, args.process_id, heeds_sigterm=True)
    terminal.keep_programs(args.cache, args.workdir)
    state = codec.run(config, args.workdir) if isinstance(config, codec.CodecRun) else lm.run(config, args.workdir)
    if int(state.step) < config.loop.steps:
        raise SystemExit(UNFINISHED)
