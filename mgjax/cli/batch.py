"""Music for a file of prompts, by many hosts: what `launch/generate_batch.py` runs."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from mgjax.audio import files as audio_files
from mgjax.audio import loudness
from mgjax.cli import conditions, generate, terminal
from mgjax.cli.options import add_host_options, add_model_options, count, file_path, option, positive
from mgjax.cli.recipe import Recipe, read_lines
from mgjax.devices import distributed
from mgjax.storage.preflight import check_writable

_DESCRIPTION = """\
Makes music for every prompt of a file, on all devices of all hosts. What is done is kept: the same command, on as many
hosts as there are then, makes what is missing. The result is the same.
"""

_EPILOG = """\
a line of the file of prompts:
  {"text": "a slow waltz on accordion", "id": "waltz-1", "seconds": 20, "seed": 7}
may also have then, negative, melody, style and labels; all but text can be left out. An id names the sound file.

in the folder:
  manifest.jsonl   a line for each prompt: where its music is, its seed, model and settings; an error if it failed
  run.json, parts  what is done so far
  ID.wav, ...      or, with --format array_record, a corpus of sound as `mgjax corpus build` makes them
"""

_PER_DEVICE = 4  # pieces at a time, by default
_OF_THE_MACHINE = ("mgjax", "jax", "device")
_COMMON = ("model", "model_hash", "adapter", "dtype", "weights", "format", "loudness")  # of all pieces of a folder


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the command line `argv` (None: that of this process)."""
    return distributed.finish(terminal.exit_status(lambda: run(_parser().parse_args(argv))))


def run(args: argparse.Namespace) -> None:
    """Generates the pieces of the file of prompts `args.prompts`; raises ValueError if some could not be generated."""
    # Mistakes are found before anything is generated, and most of them before the model is loaded.
    sampling = generate.sampling_options(args)
    lines = [
        (where, line if line.name else dataclasses.replace(line, name=f"{number:06d}"))
        for number, (where, line) in enumerate(read_lines(args.prompts))
    ]
    plan = generate.pieces_of(args, lines, args.format)
    _check_names(plan)
    check_writable(args.out)

    distributed.start(args.coordinator, args.num_processes, args.process_id, heeds_sigterm=False)
    terminal.apply_model_options(args)
    import jax

    from mgjax.data.description import describe_audio
    from mgjax.devices import sharding
    from mgjax.generation import batch

    devices = jax.local_devices()
    size = args.batch or _PER_DEVICE * len(devices)
    if size % len(devices):
        raise ValueError(f"--batch {size} cannot be spread over {len(devices)} devices: make it a multiple of that")
    mesh = sharding.make_mesh(devices=devices) if len(devices) > 1 else None
    model = generate.load_model(plan[0].recipe, mesh)
    jobs = []
    for where, name, recipe in plan:
        recipe = generate.completed(recipe, sampling, model)
        with terminal.errors_at(where):
            generate.check(recipe, model, reads_sounds=False)
        about = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in _OF_THE_MACHINE}
        jobs.append(batch.Job(name, _kind(recipe), recipe, about))
    writer: batch.Sounds | batch.Records = batch.Sounds(f".{args.format}", model.sample_rate)
    if args.format == "array_record":
        writer = batch.Records(describe_audio(model.sample_rate, model.channels))
    first = jobs[0].recipe  # completed by the model
    settings = {name: getattr(first, name) for name in _COMMON}
    settings |= {"batch": size, **dataclasses.asdict(first.sampling)}
    machine = {name: getattr(first, name) for name in _OF_THE_MACHINE}
    start, seconds = time.monotonic(), 0.0

    def progress(done: list[batch.Job], count: int, of: int) -> None:
        nonlocal seconds
        seconds += sum(job.recipe.seconds for job in done)
        speed = seconds / (time.monotonic() - start)
        terminal.say(f"{count} of {of} batches of this host, {speed:.2f} s of sound a second")

    failed = batch.generate(
        jobs, lambda recipes: _play(model, recipes), writer, args.out, size, settings, machine, progress
    )
    terminal.say(f"{len(jobs) - failed} of {len(jobs)} pieces are in {args.out}")
    if failed:
        raise ValueError(
            f"{failed} pieces could not be made; {args.out / 'manifest.jsonl'} says why. The same command tries them "
            "again"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate_batch.py",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(batch=None, offline=False, cache=None, coordinator=None, num_processes=None, process_id=None)
    what = parser.add_argument_group("what to play")
    option(what, "--prompts FILE", "one a line, or .jsonl; see below", file_path, required=True)
    option(what, "--seconds S", "length of each piece (8)", positive)
    option(what, "--seed N", "of the first prompt; the next one gets N + 1 ... (0)", int)
    conditions.add_options(parser)
    where = parser.add_argument_group("where to put it")
    option(where, "--out DIR", "a folder that all hosts see", file_path, required=True)
    forms = [*(suffix[1:] for suffix in audio_files.FORMATS), "array_record"]
    option(where, "--format", "a file for each, or the shards of a corpus (wav)", choices=forms, default="wav")
    option(where, "--loudness LUFS|off", "make all equally loud (-14)", generate.lufs)
    how = parser.add_argument_group("how to play it")
    option(how, "--model NAME|DIR", "as for mgjax generate", required=True)
    generate.add_sampling(how)
    machine = parser.add_argument_group("the machines")
    option(machine, "--batch N", "pieces that a host plays at a time (4 for each of its devices)", count)
    generate.add_model_sources(machine)
    add_model_options(machine)
    add_host_options(machine)
    return parser


def _check_names(plan: Sequence[generate.Piece]) -> None:
    """Raises ValueError if two pieces have the same name."""
    seen: dict[str, str] = {}
    for where, name, _ in plan:
        if name in seen:
            raise ValueError(f"{where}: has the id {name!r}, as {seen[name]} has: give each one of its own")
        seen[name] = where


def _kind(recipe: Recipe) -> Hashable:
    """What recipes of one batch have in common, because the compiled programs depend on it."""
    present = tuple(map(bool, (recipe.prompt, recipe.negative, recipe.melody, recipe.style)))
    return recipe.seconds, tuple(when for when, _ in recipe.then), present, tuple(sorted(recipe.labels))


def _play(model: Any, recipes: Sequence[Recipe]) -> list[Any]:
    """The pieces of a batch, normalized to the loudness of their recipes."""
    import numpy as np

    from mgjax.generation.batch import Piece

    codes: list[np.ndarray] = []

    def kept() -> Iterator[np.ndarray]:
        for chunk in model.stream_codes(**generate.arguments(recipes, model)):
            codes.append(chunk)
            yield chunk

    sounds = np.concatenate(list(model.codec.decode_blocks(kept())), axis=1)
    pieces = []
    for row, sound, recipe in zip(np.concatenate(codes, axis=1), sounds, recipes, strict=True):
        pieces.append(Piece(row, loudness.normalized(sound, model.sample_rate, recipe.loudness)))
    return pieces
