"""The codec's speed against transformers' EncodecModel, with the same random weights, on the CPU.

    python benchmarks/codec.py --seconds 5 --repeats 9

Both are warm and timed in turns, so that whatever else the machine does slows both; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
import torch
from transformers import EncodecConfig
from transformers import EncodecModel as TorchEncodec

import mgjax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the audio (default: 5)")
    parser.add_argument(
        "--repeats", type=int, default=9, help="timings of each, of which the median counts (default: 9)"
    )
    args = parser.parse_args()

    torch.manual_seed(0)
    theirs = TorchEncodec(
        EncodecConfig(
            sampling_rate=32_000,
            upsampling_ratios=[8, 5, 4, 4],
            num_filters=64,
            codebook_size=2048,
            target_bandwidths=[2.2],
            use_causal_conv=False,
            use_conv_shortcut=False,
        )
    ).eval()
    for layer in theirs.quantizer.layers:
        layer.codebook.embed.normal_(0, 0.1)
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        ours = mgjax.load_codec(directory)
    audio = (np.random.default_rng(0).standard_normal((1, int(args.seconds * 32_000), 1)) * 0.3).astype(np.float32)
    tensor = torch.tensor(np.moveaxis(audio, 2, 1))

    with torch.inference_mode():
        coded = theirs.encode(tensor)
        codes = coded.audio_codes[0].numpy().transpose(0, 2, 1).astype(np.int32)
        runs = {
            ("encode", "transformers"): lambda: theirs.encode(tensor),
            ("encode", "mgjax"): lambda: ours.encode(audio),
            ("decode", "transformers"): lambda: theirs.decode(coded.audio_codes, coded.audio_scales).audio_values,
            ("decode", "mgjax"): lambda: ours.decode(codes),
        }
        results = {name: run() for name, run in runs.items()}
        seconds = {name: [] for name in runs}
        for _ in range(args.repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)

    equal = np.mean(results["encode", "mgjax"] == codes)
    error = np.abs(np.moveaxis(results["decode", "transformers"].numpy(), 1, 2) - results["decode", "mgjax"]).max()
    print(f"{args.seconds:g} s at 32 kHz, float32, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"codes equal {equal:.2%}, waveform within {error:.1e}")
    for direction in ("encode", "decode"):
        medians = [statistics.median(seconds[direction, name]) for name in ("transformers", "mgjax")]
        least = [min(seconds[direction, name]) for name in ("transformers", "mgjax")]
        for what, (other, own) in {"median": medians, "fastest": least}.items():
            print(
                f"{direction}, {what}: transformers {other:.3f} s, mgjax {own:.3f} s, {other / own:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
