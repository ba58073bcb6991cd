"""The command `mgjax`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import mgjax
from mgjax.cli import coding, corpus, finetune, generate, models, plan, terminal, train
from mgjax.devices import distributed

_EPILOG = """\
first steps:
  mgjax generate "driving techno with a deep bass" --out techno.wav
  mgjax generate --help

The model "mini" comes with mgjax: small, trained on synthetic music, free to use (Apache-2.0). Where the Hugging Face
Hub can be reached, `--model facebook/musicgen-small` plays more kinds of music, not for commercial use.

Choose the device with JAX_PLATFORMS=cpu, cuda or tpu. MGJAX_TRACEBACK=1 shows where in the code an error arose.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (None: that of this process).

    Returns:
      The exit status: 0, 2 for an error that the caller can mend, or 130 where Ctrl-C ended it.
    """

    def run() -> None:
        words, settings = _split_settings(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(words)
        if settings and "settings" not in args:
            raise ValueError(f"{settings[0]} is for commands with a --config, train and plan")
        if settings:
            args.settings = settings
        args.run(args)

    status = terminal.exit_status(run)
    return status if status == train.UNFINISHED else distributed.finish(status)  # all processes stop together


def _split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The rest of the command line, and its settings of a run: --config.NAME=VALUE, or --config.NAME VALUE."""
    rest: list[str] = []
    settings: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*rest, word, *words], settings
        if not word.startswith(("--config.", "-config.")):
            rest.append(word)
            continue
        name, equals, value = word.partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        settings.append(f"{name}={value}" if equals or value else name)
    return rest, settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgjax",
        description="Makes music from words, with MusicGen in JAX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mgjax {mgjax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (generate, coding, models, corpus, train, finetune, plan):
        module.add_commands(commands)
    return parser
