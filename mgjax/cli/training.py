"""The common part of the training scripts in launch/: flags, connecting the hosts, and exit statuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mgjax.cli import terminal
from mgjax.devices import distributed
from mgjax.train import overrides

# The exit status of a run that was interrupted (SIGTERM, Ctrl-C) and goes on when it is started again: EX_TEMPFAIL, so
# that no scheduler takes it for done.
UNFINISHED = 75

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/ and the name of one in it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for checkpoints, curves and the model.", required=True)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "On several hosts: that of process 0 and a port, HOST:PORT.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "On several hosts: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "On several hosts: which of them this is, from 0.")
flags.mark_flag_as_required("config")


def main(train: Callable[[ConfigDict, str], Any]) -> None:
    """Runs `train` as an absl app, and exits with its `status`, or with 2 where the command line is wrong."""
    app.run(lambda _: status(train), flags_parser=_parse)


def _parse(words: list[str]) -> list[str]:
    rest: list[str] = []
    exit_status = terminal.status(lambda: rest.extend(overrides.parse_flags(flags.FLAGS, words)))
    if exit_status:
        raise SystemExit(exit_status)
    return rest


def status(train: Callable[[ConfigDict, str], Any]) -> int:
    """Runs `train`, and returns the exit status: 0 once it is done, `UNFINISHED`, or 2 for an error of the user.

    Args:
      train: Trains by a config in a folder, and returns the training state.
    """
    logging.set_verbosity(logging.WARNING)  # orbax logs every step

    def run() -> None:
        distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, heeds_sigterm=True)
        state = train(_CONFIG.value, _WORKDIR.value)
        if int(state.step) < _CONFIG.value.loop.steps:
            raise SystemExit(UNFINISHED)

    exit_status = terminal.status(run)
    # Interrupted processes all stop at the same step, so none waits for another.
    return exit_status if exit_status == UNFINISHED else distributed.finish(exit_status)
