"""The command `mgjax`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import mgjax
from mgjax.cli import coding, corpus, finetune, generate, models, plan, terminal

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
        args = _parser().parse_args(argv)
        args.run(args)

    return terminal.status(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mgjax",
        description="Makes music from words, with MusicGen in JAX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mgjax {mgjax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate.add_command(commands)
    coding.add_commands(commands)
    models.add_commands(commands)
    corpus.add_command(commands)
    finetune.add_command(commands)
    plan.add_command(commands)
    return parser
