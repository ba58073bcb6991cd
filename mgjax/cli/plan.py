"""`mgjax plan`: memory and time of training or generation on devices that need not be there."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mgjax.cli import terminal
from mgjax.cli.options import command, count, file_path, fraction, option, positive
from mgjax.config.model import ModelConfig
from mgjax.errors import ConfigError
from mgjax.inputs import files

if TYPE_CHECKING:
    from mgjax.devices.chips import Chip
    from mgjax.plan.interconnect import Traffic
    from mgjax.plan.roofline import Plan
    from mgjax.train.codec import CodecRun
    from mgjax.train.lm import LMRun

    Planned = tuple[str, Callable[[], Plan], Callable[[Plan | None], list[tuple[str, str]]]]

_DESCRIPTION = """\
Compiles one update of a training run, or the loop that generates, for devices that need not be there, and says what it
takes: memory of a device against what it has, operations, bytes moved and sent, the least time that follows, and what
to change where it does not fit. Nothing is fetched, and no weights are made.
"""

_EXAMPLES = """\
examples:
  mgjax plan --config lm:large --topology v5e:16x16
  mgjax plan --config codec:32khz --topology v5e:2x2 --price 1.2
  mgjax plan --config lm:medium --topology v6e:16x16 --mesh data=4,fsdp=64 --config.data.batch-size=512
  mgjax plan --decode --model facebook/musicgen-large --batch 64 --seconds 30 --topology v5e:2x4 --mesh model=8

devices:
  v5e:16x16, v5p:8x8x8   a TPU slice; 2*v5e:16x16 are two. libtpu, which compiles for it, runs on any Linux machine:
                         pip install '.[tpu]'. The plan is that of the real program.
  h100:8, a100:64        so many GPUs. Without a GPU there is no compiler for GPUs, so the CPU's splits the program.
                         Weights, state, operations and what is sent are those of the GPUs' program; temporaries and
                         bytes moved are a CPU's, without flash attention and partly in float32: too many.
  here                   the devices of this machine
"""


def add_commands(commands: Any) -> None:
    """Adds `plan` to the commands of argparse."""
    help = "say what training or generation takes on devices that need not be there"
    parser = command(commands, "plan", run, help, _DESCRIPTION, _EXAMPLES)
    parser.set_defaults(settings=[])
    option(parser, "--topology DEVICES", "what to compile for (see below)", required=True)
    mesh = "sizes of data, fsdp and model: -1 for as many as there are; those that are not named are 1 (as in the "
    option(parser, "--mesh AXIS=N,...", mesh + "config; --decode: data=-1)", _mesh)
    training = parser.add_argument_group("a training run")
    option(training, "--config NAME", "a preset, as in mgjax train; --config.NAME=VALUE sets more")
    option(training, "--set NAME=VALUE", "the same as --config.NAME=VALUE", nargs="+", default=[])
    decoding = parser.add_argument_group("generation")
    option(training, "--updates N", "updates to price (those of the config)", count)
    option(training, "--share U", "for the price: the part of the least time's speed (0.5)", fraction, default=0.5)
    option(training, "--price P", "of a chip hour, in any currency", positive)
    option(decoding, "--decode", "plan generation, not training")
    option(decoding, "--model NAME|DIR|FILE:NAME", "a published model, a folder with one, or that of a run")
    option(decoding, "--batch N", "pieces at a time (1)", count, default=1)
    option(decoding, "--seconds S", "their length (30)", positive, default=30.0)
    option(decoding, "--dtype", "(bfloat16)", choices=["float32", "bfloat16"], default="bfloat16")
    option(decoding, "--unguided", "without guidance, which doubles the rows")
    option(parser, "--json FILE", "write the numbers there too", file_path)


def run(args: argparse.Namespace) -> None:
    """Prints the plan of a training run or of generation; the exit status is 1 if it does not fit."""
    if args.decode == (args.model is None) or args.decode == (args.config is not None):
        raise ValueError("give --config FILE:NAME for a training run, or --decode --model NAME for generation")
    terminal.require_extra("train")
    from mgjax.plan import topology
    from mgjax.plan.roofline import DoesNotFitError

    devices, chip = topology.find(args.topology)
    title, compiled, rows_of = (_decoding if args.decode else _training)(args, devices, chip)
    plan = None
    try:
        plan = compiled()
    except DoesNotFitError as error:
        terminal.say(f"it does not fit: {error}")
    terminal.print_table(f"{title}, on {args.topology}: {len(devices)} x {chip.kind}", rows_of(plan))
    if args.json and plan is not None:
        properties = ("seconds", "step", "limit", "utilization", "free")
        values = dataclasses.asdict(plan) | {name: getattr(plan, name) for name in properties}
        files.write_json(args.json, values)
    if plan is None or plan.free < 0:
        raise SystemExit(1)


def _training(args: argparse.Namespace, devices: Sequence[Any], chip: Chip) -> Planned:
    """A training run: its title, what plans it, and the rows that describe its plan, None where it does not fit."""
    from mgjax.plan import training

    sizes = [f"--config.mesh.{axis}={size}" for axis, size in (args.mesh or {}).items()]
    run = _run(args.config, _settings(args) + sizes)
    spread = training.spread(run, devices)
    size, changes = spread.data.batch_size, []
    if spread.data != run.data:
        reason = f"a batch of {run.data.batch_size} cannot be spread over this mesh"
        changes = [f"set data.batch_size={size}, of which this is the plan: {reason}"]
    title = f"one update of {args.config}, {size} x {spread.data.segment_seconds:g} s"
    compiled = functools.partial(training.of_run, spread, devices, chip)
    updates = args.updates or run.loop.steps

    def rows(plan: Plan | None) -> list[tuple[str, str]]:
        changed = [*changes, *training.advice(spread, plan)]
        return describe(plan, changed) + ([] if plan is None else [_price(plan, updates, args.share, args.price)])

    return title, compiled, rows


def _price(plan: Plan, updates: int, share: float, price: float | None) -> tuple[str, str]:
    """The row that says what so many updates take, and cost."""
    hours = plan.step * updates / 3600
    chips = math.prod(plan.mesh.values())
    parts = [
        f"{updates} updates take {hours:.3g} h, {hours * chips:.4g} chip hours, at the least time",
        f"{hours / share:.3g} h, {hours * chips / share:.4g} chip hours, at {share:.0%} of its speed",
    ]
    if price is not None:
        parts.append(f"which cost {hours * chips * price:.4g} to {hours * chips / share * price:.4g}")
    return "price", "; ".join(parts)


def _decoding(args: argparse.Namespace, devices: Sequence[Any], chip: Chip) -> Planned:
    """`_training` for generation."""
    from mgjax.plan import decoding
    from mgjax.train.lm import LMRun, resolver

    if ":" in args.model:
        run = _run(args.model, _settings(args))
        if not isinstance(run, LMRun):
            raise ValueError(f"--model {args.model} is a codec, which generates nothing: give a language model")
        model = resolver.resolve(run, fetch=False)
    else:
        model = resolver.read_config(ModelConfig, args.model, fetch=False)
    workload = decoding.Workload(args.batch, args.seconds, args.dtype, not args.unguided)
    title = f"a step of {args.model}, {args.batch} x {args.seconds:g} s in {args.dtype}"
    compiled = functools.partial(decoding.of_model, model, workload, devices, chip, **(args.mesh or {}))

    def rows(plan: Plan | None) -> list[tuple[str, str]]:
        speed = [] if plan is None else [("speed", decoding.speed(model, workload, plan))]
        return speed + describe(plan, decoding.advice(plan))

    return title, compiled, rows


def _settings(args: argparse.Namespace) -> list[str]:
    return [*args.settings, *(f"--config.{setting}" for setting in args.set)]


def _run(name: str, settings: list[str]) -> LMRun | CodecRun:
    """The run of a preset or a config file, of a language model or a codec, with settings of the command line."""
    from mgjax.train.codec import CodecRun
    from mgjax.train.lm import LMRun
    from mgjax.train.overrides import read

    try:
        return read(LMRun, name, settings)
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return read(CodecRun, name, settings)
        raise


def _mesh(text: str) -> dict[str, int]:
    """An argparse type: sizes of the axes of a mesh."""
    sizes = {"data": 1, "fsdp": 1, "model": 1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise argparse.ArgumentTypeError(f"must be like data=4,fsdp=64,model=1, got {part!r}")
        sizes[axis] = int(size)
    return sizes


def describe(plan: Plan | None, changes: Sequence[str]) -> list[tuple[str, str]]:
    """The rows of the table that describes a plan, None where it does not fit, and what to change."""
    from mgjax.train.memory import gib

    advice = [("to change", change) for change in changes]
    if plan is None:
        return advice
    memory, chip, left = plan.memory, plan.chip, f"{plan.free:.0%}"
    seconds = ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in plan.seconds.items())
    return [
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())),
        ("memory", f"{gib(memory.total)} of the {gib(chip.memory)} of a device, {left} left: {memory.parts()}"),
        ("operations", f"{plan.needed / 1e12:.4g} T that the model needs, {plan.computed / 1e12:.4g} T that are done"),
        ("moved", f"{plan.moved / 1e9:.4g} GB between memory and chip"),
        *(("sent", _sent(traffic)) for traffic in plan.traffic if traffic.bytes >= 1e6),
        ("least time", f"{1e3 * plan.step:.4g} ms, limited by {plan.limit} ({seconds})"),
        ("utilization", f"{plan.utilization:.0%} of {chip.flops / 1e12:.4g} TFLOP/s at most"),
        *(("XLA says", line) for line in plan.remarks),
        *advice,
    ]


def _sent(traffic: Traffic) -> str:
    axes = " and ".join(traffic.axes) or "all"
    size, seconds = f"{traffic.bytes / 1e9:.4g} GB", f"{1e3 * traffic.seconds:.3g} ms"
    return f"{size} by {traffic.times:.0f} {traffic.kind} along {axes}, {seconds}"
