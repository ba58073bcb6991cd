"""`mgjax finetune`: fine-tunes a model on a folder of music."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from mgjax.cli import terminal
from mgjax.cli.options import add_model_options, command, count, file_path, option, positive, share

_EXAMPLES = """\
examples:
  mgjax finetune my-songs --out mine --caption "in the style of my songs"
  mgjax generate "in the style of my songs" --adapter mine

Each piece needs a caption: {"description": "a slow waltz on accordion"} in waltz.json for waltz.wav, or one for all, or
its name. What is learned is an adapter of a few megabytes. The same command goes on where it was stopped.
"""


def add_commands(commands: Any) -> None:
    """Adds `finetune` to the commands of argparse."""
    description = "Trains a model on a folder of music, and writes what it has learned."
    parser = command(commands, "finetune", run, "teach a model to play like your music", description, _EXAMPLES)
    option(parser, "music MUSIC", "a folder of sound files, or a .csv or .jsonl table")
    option(parser, "--out DIR", "where to put what is learned", file_path, required=True)
    option(parser, "--model NAME|DIR", "the model to fine-tune (mini)", default="mini")
    texts = parser.add_mutually_exclusive_group()
    option(texts, "--caption TEXT", "one caption for all pieces")
    captions = "in a .json beside each piece, or its name (files)"
    option(texts, "--captions", captions, choices=["files", "names"], default="files")
    option(parser, "--full", "let all weights learn: a whole model, not an adapter")
    option(parser, "--rank R", "of the adapter: how much it can hold (16)", count, default=16)
    option(parser, "--steps N", "training steps (500)", count, default=500)
    option(parser, "--batch-size N", "segments in a batch (4)", count, default=4)
    option(parser, "--segment S", "seconds of a segment (the model's window)", positive, dest="segment_seconds")
    option(parser, "--learning-rate R", "(5e-4; with --full 1e-5)", positive)
    option(parser, "--seed N", "(0)", int, default=0)
    option(parser, "--workers N", "processes that prepare the music (1)", count, default=1)
    option(parser, "--max-bad SHARE", "of the pieces that may be unusable (0.05)", share, default=0.05)
    option(parser, "--force", "start anew where there is another run in DIR")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Fine-tunes `args.model` on `args.music`."""
    terminal.apply_model_options(args)
    terminal.require_extra("train")
    from mgjax.train.finetune import Finetuning, finetune

    tuning = Finetuning(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Finetuning)})
    if finetune(tuning, args.out, _stage, replace=args.force):
        how = f"--model {args.out}" if args.full else f"--model {args.model} --adapter {args.out}"
        terminal.say(f'listen to {args.out / "clips"}; then: mgjax generate "..." {how}')
        print(args.out)
    else:
        terminal.say("stopped; the same command goes on")


@contextlib.contextmanager
def _stage(name: str) -> Iterator[Callable[[int, int], None] | None]:
    terminal.say(name)
    with terminal.progress_of_pieces(name) as progress:
        yield progress
