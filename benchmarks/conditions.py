"""What conditions cost: time per step with and without each, at the shapes of musicgen-small with random weights.

    python benchmarks/conditions.py
    python benchmarks/conditions.py --layers 8 --dim 512 --seconds 4     # quicker

The cases take turns, and medians are reported. Time per step is that between two chunks of about a second, so that what
happens once (encoding a text, reading the prefix) is not in it; "before the first" is what happens once, with the first
second of music, and with everything compiled.
"""

import argparse
import dataclasses
import itertools
import statistics
import time

import numpy as np

import mgjax
from mgjax.api import MusicGen
from mgjax.checkpoints import random_weights
from mgjax.checkpoints.native import Checkpoint
from mgjax.config.conditioning import LabelConfig, MelodyConfig
from mgjax.config.model import Fused, LMConfig

TEXT = "80s synth pop with driving drums and a warm bass"


def build(args: argparse.Namespace, **conditions: str) -> MusicGen:
    """A model with these conditions, by their fuses; a toy's codec and text encoder, which are not timed."""
    dims = {"melody": 12, "text": random_weights.DEBUG.text.dim, "genre": 20}
    lm = LMConfig(
        dim=args.dim,
        num_layers=args.layers,
        num_heads=args.dim // 64,
        ffn_dim=4 * args.dim,
        conditions=tuple(Fused(name, dims[name], fuse) for name, fuse in conditions.items()),
    )
    config = dataclasses.replace(
        random_weights.DEBUG,
        lm=lm,
        codec=dataclasses.replace(random_weights.DEBUG.codec, codebook_size=lm.codebook_size),
        melody=MelodyConfig() if "melody" in conditions else None,
        labels=(LabelConfig("genre", tuple(f"genre {i}" for i in range(20))),) if "genre" in conditions else (),
    )
    return MusicGen(Checkpoint(config, random_weights.random_variables(config)))


def timed(model: MusicGen, options: dict, seconds: float) -> tuple[float, list[float]]:
    """Seconds until the first chunk, and seconds per step of each later one."""
    times = [(0, time.perf_counter())]
    model.generate_codes(seconds=seconds, progress=lambda made, _: times.append((made, time.perf_counter())), **options)
    steps = [(end - begun) / (stop - start) for (start, begun), (stop, end) in itertools.pairwise(times[1:])]
    return times[1][1] - times[0][1], steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    text = build(args, text="cross")
    labelled = build(args, text="cross", genre="sum")
    melody = build(args, melody="prefix", text="prefix")
    tune = 0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000 * 10) / 32_000)
    off = dataclasses.replace(text.config.sampling, guidance=1.0)
    apart = dataclasses.replace(text.config.sampling, text_guidance=2.0)
    cases = {
        "text, guidance 3": (text, {"prompts": TEXT}),
        "text, guidance 1": (text, {"prompts": TEXT, "sampling": off}),
        "no text": (text, {"prompts": None, "sampling": off}),
        "text, negative text": (text, {"prompts": TEXT, "negative": "noise"}),
        "text, another from 1 s on": (text, {"prompts": [(0.0, TEXT), (1.0, "calm piano")]}),
        "text in a model with labels, unused": (labelled, {"prompts": TEXT}),
        "text and a label": (labelled, {"prompts": TEXT, "labels": {"genre": "genre 3"}}),
        "melody model, text alone": (melody, {"prompts": TEXT}),
        "melody model, text and melody": (melody, {"prompts": TEXT, "melody": tune}),
        "melody model, text guided apart": (melody, {"prompts": TEXT, "melody": tune, "sampling": apart}),
    }
    for model, options in cases.values():
        timed(model, options, args.seconds)  # compiles
    found = {name: ([], []) for name in cases}
    for _ in range(args.repeats):
        for name, (model, options) in cases.items():
            first, steps = timed(model, options, args.seconds)
            found[name][0].append(first)
            found[name][1].extend(steps)
    print(
        f"{args.layers} layers of width {args.dim}, float32, a piece of {args.seconds:g} s; mgjax {mgjax.__version__}"
    )
    print(f"  {'':<38} ms/step   before the first second's end")
    for name, (firsts, steps) in found.items():
        print(f"  {name:<38} {1e3 * statistics.median(steps):7.1f}   {statistics.median(firsts):7.2f} s")


if __name__ == "__main__":
    main()
