"""What the scripts of launch/ that train share: their flags, the other hosts, and the status that says how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mgjax.cli import terminal
from mgjax.devices import distributed
from mgjax.train import overrides

# The exit status of a run that was stopped (SIGTERM, Ctrl-C) and goes on when it is started again: that of a temporary
# failure, so that no scheduler takes it for done.
UNFINISHED = 75

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/ and the name of one in it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for checkpoints, curves and the model.", required=True)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "On several hosts: that of process 0 and a port, HOST:PORT.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "On several hosts: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "On several hosts: which of them this is, from 0.")
flags.mark_flag_as_required("config")


def main(train: Callable[[ConfigDict, str], Any]) -> None:
    """Ends the process with the `status` of a run; with 2 where the command line describes none."""
    app.run(lambda _: status(train), flags_parser=_parse)


def _parse(words: list[str]) -> list[str]:
    rest = []
    found = terminal.status(lambda: rest.extend(overrides.parse_flags(flags.FLAGS, words)))
    if found:
        raise SystemExit(found)
    return rest


def status(train: Callable[[ConfigDict, str], Any]) -> int:
    """The exit status of a run: 0 once it is done, `UNFINISHED`, or 2 for an error that the user can mend.

    Args:
      train: Does the run of a config in a folder, and returns its state.
    """
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step that it takes

    def work() -> None:
        distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, heeds_sigterm=True)
        state = train(_CONFIG.value, _WORKDIR.value)
        if int(state.step) < _CONFIG.value.loop.steps:
            raise SystemExit(UNFINISHED)

    found = terminal.status(work)
    return found if found == UNFINISHED else distributed.finish(found)  # those who stop together leave together
