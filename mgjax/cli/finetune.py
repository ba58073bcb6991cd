"""`mgjax finetune`: fine-tunes a model on a folder of music."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mgjax.cli import corpus, terminal

_EXAMPLES = """\
examples:
  mgjax finetune my-songs --out mine --caption "in the style of my songs"
  mgjax generate "in the style of my songs" --adapter mine

Each piece needs a caption: {"description": "a slow waltz on accordion"} in waltz.json for waltz.wav, or one for all, or
its name. What is learned is an adapter of a few megabytes. The same command goes on where it was stopped.
"""


def add_command(commands: Any) -> None:
    """Adds `finetune` to the commands of argparse."""
    parser = commands.add_parser(
        "finetune",
        help="teach a model to play like your music",
        description="Trains a model on a folder of music, and writes what it has learned.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("music", metavar="MUSIC", help="a folder of sound files, or a .csv or .jsonl table")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to put what is learned")
    parser.add_argument("--model", default="mini", metavar="NAME|DIR", help="the model to fine-tune (mini)")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--caption", metavar="TEXT", help="one caption for all pieces")
    texts.add_argument(
        "--captions",
        choices=["files", "names"],
        default="files",
        help="in a .json beside each piece, or its name (files)",
    )
    parser.add_argument("--full", action="store_true", help="let all weights learn: a whole model, not an adapter")
    parser.add_argument(
        "--rank", type=terminal.count, default=16, metavar="R", help="of the adapter: how much it can hold (16)"
    )
    parser.add_argument("--steps", type=terminal.count, default=500, metavar="N", help="training steps (500)")
    parser.add_argument("--batch-size", type=terminal.count, default=4, metavar="N", help="segments in a batch (4)")
    parser.add_argument(
        "--segment",
        dest="segment_seconds",
        type=terminal.positive,
        metavar="S",
        help="seconds of a segment (the model's window)",
    )
    parser.add_argument("--learning-rate", type=terminal.positive, metavar="R", help="(5e-4; with --full 1e-5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    parser.add_argument(
        "--workers", type=terminal.count, default=1, metavar="N", help="processes that prepare the music (1)"
    )
    parser.add_argument(
        "--max-bad", type=corpus.share, default=0.05, metavar="SHARE", help="of the pieces that may be unusable (0.05)"
    )
    parser.add_argument("--force", action="store_true", help="start anew where there is another run in DIR")
    terminal.add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Fine-tunes `args.model` on `args.music`."""
    terminal.prepare(args)
    corpus.need((*corpus.TRAIN, "grain", "optax", "orbax"), "train")
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
    with corpus.bar(name) as progress:
        yield progress
