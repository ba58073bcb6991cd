"""A training step of `mini` on the CPU, of all its weights and of an adapter, beside transformers in PyTorch.

    python benchmarks/training.py [--rows 12] [--frames 250] [--before FOLDER]

The peer is transformers' decoder of the same sizes, with the same loss and AdamW (its fused form); it is given the text
encoder's vectors, which ours computes. Steps take turns, and medians are reported.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import sides

WORKER = Path(__file__).resolve()


def ours(rows: int, frames: int, adapter: bool):
    """What runs one step of ours, on one batch of codes."""
    import jax

    from mgjax.conditioning import tokenizers
    from mgjax.data.pipeline import DataConfig
    from mgjax.lm.lora import LoraConfig
    from mgjax.train import lm
    from mgjax.train.optim import OptimConfig

    run = lm.LMRun(
        lm=None,
        codec=None,
        init="mini",
        data=DataConfig(batch_size=rows, segment_seconds=frames / 25),
        optim=OptimConfig(warmup_steps=0, schedule="constant"),
        lora=LoraConfig(rank=16) if adapter else None,
        prompts=(),
    )
    start = lm.pretrained(run)
    task = lm.task(run, start, "tokens")
    text_ids, text_mask = tokenizers.load(start.config, start.tokenizer).encode(["a slow waltz on accordion"] * rows)
    rng = np.random.default_rng(0)
    num_codebooks, size = start.config.lm.num_codebooks, start.config.lm.codebook_size
    batch = {
        "codes": rng.integers(size, size=(rows, frames, num_codebooks)).astype(np.int32),
        "num_frames": np.full(rows, frames, np.int32),
        "text_ids": text_ids,
        "text_mask": text_mask,
        "melody": np.zeros((rows, frames, 12), np.float32),
        "melody_mask": np.zeros((rows, frames), bool),
    }
    state = jax.jit(task.init)(jax.random.key(0), task.pretrained)
    step = jax.jit(task.train_step, donate_argnums=0)

    def run_step() -> None:
        nonlocal state
        state, metrics = step(state, task.frozen, batch)
        jax.block_until_ready((state, metrics))

    return run_step


def theirs(rows: int, frames: int):
    """What runs one step of transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MusicgenDecoderConfig(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, ffn_dim=1024, num_codebooks=8, vocab_size=1024
    )
    config.pad_token_id = config.bos_token_id = 1024
    model = transformers.MusicgenForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    codes = torch.randint(1024, (rows, frames, 8))
    text = torch.randn(rows, 16, 256)

    def run_step() -> None:
        ids = codes.transpose(1, 2).reshape(rows * 8, frames)
        logits = model(input_ids=ids, encoder_hidden_states=text, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 1024), ids.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run_step


def worker(args: argparse.Namespace) -> None:
    """Runs a step for each line of its input, and says how long it took."""
    if args.worker == "theirs":
        run = theirs(args.rows, args.frames)
    else:
        run = ours(args.rows, args.frames, args.worker == "adapter")
    for _ in sys.stdin:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--before", type=Path, help="a folder with other code of mgjax")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)

    here = WORKER.parent.parent
    kinds = {"mgjax": ("all", here), "mgjax, adapter": ("adapter", here), "transformers": ("theirs", here)}
    if args.before:
        kinds["mgjax before"] = ("all", args.before.resolve())
        kinds["mgjax before, adapter"] = ("adapter", args.before.resolve())
    with contextlib.ExitStack() as stack:
        step = {}
        for name, (kind, folder) in kinds.items():
            command = [sys.executable, str(WORKER), "--worker", kind]
            command += ["--rows", str(args.rows), "--frames", str(args.frames)]
            step[name] = stack.enter_context(sides.started(command, folder))
            step[name]()  # compiles
        times = [{name: step[name]() for name in step} for _ in range(args.repeats)]
    print(f"a training step of mini, {args.rows} x {args.frames} frames, {os.cpu_count()} cores")
    for name in kinds:
        ratio = statistics.median(turn["transformers"] / turn[name] for turn in times)
        print(f"  {name:22} {statistics.median(turn[name] for turn in times):6.2f} s, {ratio:.2f} times transformers")


if __name__ == "__main__":
    main()
