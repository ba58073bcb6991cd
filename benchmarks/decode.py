"""Time per step of decoding musicgen-small's shapes, beside transformers on the same random weights.

    python benchmarks/decode.py                       # batch 1, guidance on, 5 s; then 30 s of ours alone
    python benchmarks/decode.py --weights float32 bfloat16 int8 --before ../before --seconds 2 --no-long
    MGJAX_CPU_KERNELS=off python benchmarks/decode.py # by XLA alone

All take turns and medians are reported, because machines are noisy; `--before` is a folder with other code of mgjax,
which runs in a process of its own. transformers' codec is left out of its time; its text encoder is in all. Compilation
is reported apart: it happens once for each length of cache. The codes of float32 weights are compared with those of the
code before.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sides
import torch
import transformers

import mgjax
from mgjax.api import MusicGen
from mgjax.checkpoints import native, sources

PROMPT = "80s synth pop with driving drums and a warm bass"


def build(directory: Path) -> torch.nn.Module:
    """musicgen-small with random weights in transformers; and in mgjax's form in `directory`."""
    torch.manual_seed(0)
    config = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(
            d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32_128
        ).to_dict(),
        audio_encoder=transformers.EncodecConfig(**CODEC).to_dict(),
        decoder=transformers.MusicgenDecoderConfig().to_dict(),
    )
    theirs = transformers.MusicgenForConditionalGeneration(config).eval()
    special = {name: config.decoder.vocab_size for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id")}
    theirs.generation_config.update(**special)
    theirs.save_pretrained(directory.parent / "theirs")
    model = sources.read(directory.parent / "theirs")
    # There is no vocabulary without a download; bytes are words enough to be timed.
    config = dataclasses.replace(model.config, tokenizer="bytes")
    native.write_model(directory, dataclasses.replace(model, config=config, tokenizer=None))
    return theirs


# What another version of mgjax does in its own process: for each line a run, with the seconds that it took.
BEFORE = """
import json, sys, time
import mgjax
request = json.loads(sys.argv[2])
model = mgjax.load(sys.argv[1])
sampling = mgjax.Sampling(guidance=request["guidance"])
for line in sys.stdin:
    began = time.perf_counter()
    codes = model.generate_codes(request["texts"], seconds=request["seconds"], sampling=sampling)
    print(json.dumps([time.perf_counter() - began, codes.tolist()]), flush=True)
"""

CODEC = dict(
    sampling_rate=32_000,
    target_bandwidths=[2.2],
    num_filters=64,
    upsampling_ratios=[8, 5, 4, 4],
    codebook_size=2048,
    use_causal_conv=False,
    use_conv_shortcut=False,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", nargs="+", default=["float32"], help="float32, bfloat16, int8")
    parser.add_argument("--cache", help="float32, bfloat16 or int8")
    parser.add_argument("--before", type=Path, help="a folder with other code of mgjax")
    parser.add_argument("--no-long", action="store_true", help="leave out the 30 seconds of ours alone")
    args = parser.parse_args()

    texts, sampling = [PROMPT] * args.batch, mgjax.Sampling(guidance=args.guidance)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        directory = Path(folder) / "model"
        theirs = build(directory)
        ours = {weights: mgjax.load(directory, weights=weights, cache=args.cache) for weights in args.weights}
        any_of_ours = next(iter(ours.values()))
        num_steps = int(args.seconds * any_of_ours.frame_rate) + any_of_ours.num_codebooks - 1
        codes = {}

        def run_ours(weights: str) -> float:
            began = time.perf_counter()
            codes[weights] = ours[weights].generate_codes(texts, seconds=args.seconds, sampling=sampling)
            return time.perf_counter() - began

        runs = {f"mgjax, {weights}": functools.partial(run_ours, weights) for weights in ours}
        if args.before:
            request = {"texts": texts, "seconds": args.seconds, "guidance": args.guidance}
            command = [sys.executable, "-c", BEFORE, str(directory), json.dumps(request)]
            before = stack.enter_context(sides.started(command, args.before.resolve()))

            def run_before() -> float:
                seconds, codes["before"] = before()
                return seconds

            runs["mgjax before"] = run_before
        runs["transformers"] = timed_transformers(theirs, any_of_ours, texts, args.guidance, num_steps)
        first = {name: run() for name, run in runs.items()}
        times = [{name: run() for name, run in runs.items()} for _ in range(args.repeats)]

    medians = {name: statistics.median(turn[name] for turn in times) / num_steps * 1e3 for name in runs}
    print(f"musicgen-small shapes, batch {args.batch}, guidance {args.guidance:g}, {args.seconds:g} s of music")
    print("  (in brackets the smallest and largest ratio of one turn)")
    for name, median in medians.items():
        line = f"  {name:16} {median:7.1f} ms/step, {20 / median:.2f} x real time"
        for peer in ("transformers", "mgjax before"):
            if peer in runs and peer != name and name != "transformers":
                ratios = [turn[peer] / turn[name] for turn in times]
                ratio = statistics.median(ratios)
                line += f", {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times {peer}"
        print(f"{line}; first call {first[name]:.1f} s")
    if {"before", "float32"} <= codes.keys():
        equal = np.asarray(codes["before"]) == codes["float32"]
        print(f"  codes of float32 weights that equal those before: {equal.mean():.2%}")
    if not args.no_long:
        del theirs
        print(f"  mgjax, {next(iter(ours))}, one piece of 30 s, median of the chunks of a second that begin in")
        for span, milliseconds in per_step(any_of_ours, texts, sampling).items():
            print(f"    {span:<12} {milliseconds:7.1f} ms/step")


def timed_transformers(
    theirs: torch.nn.Module, ours: MusicGen, texts: list[str], guidance: float, num_steps: int
) -> Callable[[], float]:
    """What generates with transformers, without its codec, and says how long it took."""
    ids, mask = (torch.tensor(part).long() for part in ours.tokenizer.encode(texts))
    ids, mask = ids[:, : mask.sum(1).max()], mask[:, : mask.sum(1).max()]
    silence = transformers.models.encodec.modeling_encodec.EncodecDecoderOutput(torch.zeros(len(texts), 1, 640))
    theirs.audio_encoder.decode = lambda *inputs, **options: silence
    options = dict(do_sample=True, top_k=250, guidance_scale=guidance, max_new_tokens=num_steps)

    def run() -> float:
        began = time.perf_counter()
        theirs.generate(input_ids=ids, attention_mask=mask, **options)
        return time.perf_counter() - began

    return run


def per_step(model: MusicGen, texts: list[str], sampling: mgjax.Sampling) -> dict[str, float]:
    """Milliseconds per step in each sixth of a piece of 30 seconds; medians leave out the chunks that compile."""
    times = []
    model.generate_codes(
        texts, seconds=30.0, sampling=sampling, progress=lambda made, total: times.append((made, time.perf_counter()))
    )
    chunks = [(start, (end - began) / (stop - start)) for (start, began), (stop, end) in itertools.pairwise(times)]
    return {
        f"{first}-{first + 5} s": 1e3
        * statistics.median(step for start, step in chunks if first <= start / 50 < first + 5)
        for first in range(0, 30, 5)
    }


if __name__ == "__main__":
    main()
