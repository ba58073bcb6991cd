"""Options of the command line: how commands declare them, their types, and those that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from mgjax.storage import paths


def command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], None] | None,
    help: str,
    description: str,
    epilog: str | None = None,
    **settings: Any,
) -> argparse.ArgumentParser:
    """Adds a command to those of argparse: what runs it, its line in the list of commands, and the text of its help."""
    form = argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter
    texts = {"help": help, "description": description, "epilog": epilog}
    parser: argparse.ArgumentParser = commands.add_parser(name, **texts, formatter_class=form, **settings)
    parser.set_defaults(run=run)
    return parser


def option(
    parser: argparse._ActionsContainer,
    spelling: str,
    help: str | None = None,
    type: Callable[[str], Any] | None = None,
    **settings: Any,
) -> None:
    """Adds an option, spelled as its help shows it; `settings` are others of `ArgumentParser.add_argument`.

    "--seconds S" is an option with a value, "--then S PROMPT" one with two, "--force" a switch, "--name,--old-name N"
    an option with two names, "output DIR" an argument without a name.
    """
    names, *metavars = spelling.split()
    if len(metavars) > 1:
        settings |= {"nargs": len(metavars), "metavar": tuple(metavars)}
    elif metavars:
        settings["metavar"] = metavars[0]
    elif names.startswith("--") and "choices" not in settings:
        settings["action"] = "store_true"
    if type is not None:
        settings["type"] = type
    parser.add_argument(*names.split(","), help=help, **settings)


def file_path(text: str) -> paths.Path:
    """The `type` of an option that takes a path, on this machine or in a bucket."""
    try:
        return paths.path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_model_options(parser: argparse._ActionsContainer) -> None:
    """Adds the options of every command that loads a model."""
    option(parser, "--offline", "use only what is on this machine already, never the network")
    programs = "where to keep compiled programs, which makes the second start quicker (a folder of your user cache)"
    option(parser, "--cache DIR|off", programs)


def add_host_options(parser: argparse._ActionsContainer) -> None:
    """Adds the options by which plain hosts find each other; schedulers and TPUs need none."""
    option(parser, "--coordinator HOST:PORT", "on several hosts: that of process 0")
    option(parser, "--num-processes,--num_processes N", "on several hosts: how many processes there are", int)
    option(parser, "--process-id,--process_id I", "on several hosts: which of them this is, from 0", int)


def _checked(name: str, kind: Callable[[str], float], is_allowed: Callable[[Any], bool], bounds: str) -> Any:
    """An argparse type: a number within bounds; `name` is for messages about what is no number."""

    def convert(text: str) -> float:
        value = kind(text)
        if not is_allowed(value):
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        return value

    convert.__name__ = name
    return convert


positive = _checked("positive", float, lambda value: 0 < value < math.inf, "above 0")
count = _checked("count", int, lambda value: value >= 1, "1 or more")
fraction = _checked("fraction", float, lambda value: 0 < value <= 1, "above 0 and at most 1")
share = _checked("share", float, lambda value: 0 <= value < 1, "from 0 to below 1")
