"""`mgjax convert` and `mgjax info`: converts models to other formats, and describes them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from mgjax.cli import terminal
from mgjax.cli.options import add_model_options, command, file_path, option
from mgjax.config import model as model_config
from mgjax.storage import paths
from mgjax.storage.preflight import check_writable

_PARTS = {"lm/": "language model", "text/": "text encoder", "codec/": "codec"}
# Of the codebooks, only the codewords count; the rest is the state of their moving averages.
_NOT_COUNTED = ("codec/codebooks/embed_avg", "codec/codebooks/cluster_size", "codec/codebooks/inited")
_BYTES = {"float32": 4, "bfloat16 or float16": 2}


def add_commands(commands: Any) -> None:
    """Adds `convert` and `info` to the commands of argparse."""
    description = "Writes a model as a folder that mgjax, transformers (huggingface) or audiocraft opens."
    example = "example:\n  mgjax convert facebook/musicgen-small small --format audiocraft"
    convert = command(
        commands, "convert", run_convert, "write a model in the form of another program", description, example
    )
    option(convert, "model MODEL", '"mini", a name on the Hugging Face Hub, or a folder in any of the forms')
    option(convert, "output DIR", "the new folder", file_path)
    option(convert, "--format", "(mgjax)", choices=["mgjax", "huggingface", "audiocraft"], default="mgjax")
    option(convert, "--dtype", "precision (as it is)", choices=["float32", "bfloat16", "float16"])
    option(convert, "--compact", "store all weights in fewer bytes, for format mgjax", choices=["bfloat16", "int8"])
    option(convert, "--license NAME", "what the weights of a model of your own may be used for")
    option(convert, "--text-encoder NAME|DIR", "the T5 that audiocraft's form refers to")
    option(convert, "--style-encoder NAME|DIR", "the MERT of a style model in audiocraft's form")
    option(convert, "--adapter DIR", "what a fine-tuning has learned, to be added to the weights")
    option(convert, "--force", "replace a model that is there already")

    description = "Says how large a model is, what it needs, and what it may be used for. Reads no weights."
    info = command(commands, "info", run_info, "say what a model is", description)
    option(info, "model MODEL", '"mini", "debug", a name on the Hugging Face Hub, or a folder')
    for parser in (convert, info):
        add_model_options(parser)


def run_convert(args: argparse.Namespace) -> None:
    """Writes `args.model` to the folder `args.output`."""
    terminal.refuse_to_overwrite([args.output], args.force)
    check_writable(paths.path(paths.absolute(args.output)).parent)
    terminal.apply_model_options(args)
    from mgjax.checkpoints import native, sources

    native.check_replaceable(args.output)
    # --text-encoder is the one to read for a model in audiocraft's format, or the name to write into that format.
    text_encoder = None if args.format == "audiocraft" else args.text_encoder
    encoders = {"text_encoder": text_encoder, "style_encoder": args.style_encoder}
    model = sources.read(args.model, dtype=args.dtype, adapter=args.adapter, **encoders)
    if args.license is not None:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, license=args.license))
    sources.write(args.output, model, args.format, args.text_encoder, args.compact)
    print(args.output)


def run_info(args: argparse.Namespace) -> None:
    """Prints a description of `args.model`."""
    terminal.apply_model_options(args)
    from mgjax.checkpoints import sources

    terminal.print_table(args.model, describe(sources.read_config(args.model)))


def describe(model: model_config.ModelConfig) -> list[tuple[str, str]]:
    """The rows of the table that describes a model, from its config alone."""
    from mgjax.checkpoints.tables.shapes import model_shapes

    shapes = {path: shape for path, shape in model_shapes(model).items() if path not in _NOT_COUNTED}
    counts = {
        title: sum(math.prod(shape) for path, shape in shapes.items() if path.startswith(prefix))
        for prefix, title in _PARTS.items()
    }
    total = sum(counts.values())
    lm, codec = model.lm, model.codec
    steps = round(model.window_seconds * codec.frame_rate)
    cache = 2 * lm.num_layers * lm.dim * steps
    return [
        ("licence", model.license),
        ("sound", terminal.sound_format(codec.sample_rate, model.channels)),
        ("follows", ", ".join(model.condition_dims) or "nothing but chance"),
        *((label.name, ", ".join(label.values)) for label in model.labels),
        *((number.name, f"{number.low:g} to {number.high:g}") for number in model.numbers),
        ("window", f"{model.window_seconds:g} s at once"),
        ("codes", f"{codec.frame_rate:g} frames a second, {lm.num_codebooks} codebooks of {lm.codebook_size}"),
        ("size", f"{lm.num_layers} layers, width {lm.dim}, {lm.num_heads} heads"),
        *((title, f"{count / 1e6:.2f} M parameters") for title, count in counts.items() if count),
        ("together", f"{total / 1e6:.2f} M parameters"),
        *(
            ("memory", f"{_size(total * size)} in {dtype}, and {_size(2 * cache * size)} a piece while it plays")
            for dtype, size in _BYTES.items()
        ),
    ]


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"
