"""Time per step of decoding musicgen-small's shapes, beside transformers on the same random weights.

    python benchmarks/decode.py                       # batch 1, guidance on, 5 s; then 30 s of ours alone
    python benchmarks/decode.py --batch 4 --seconds 10 --no-long

The two take turns and medians are reported, because machines are noisy. transformers' codec is left out of its time;
its text encoder is in both. Compilation is reported apart: it happens once for each length of cache.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

import mgjax
from mgjax.api import MusicGen
from mgjax.checkpoints import sources

PROMPT = "80s synth pop with driving drums and a warm bass"


def build(directory: Path) -> tuple[torch.nn.Module, MusicGen]:
    """musicgen-small with random weights in both libraries."""
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
    theirs.save_pretrained(directory)
    model = sources.read(directory)
    # There is no vocabulary without a download; bytes are words enough to be timed.
    return theirs, MusicGen(dataclasses.replace(model, config=dataclasses.replace(model.config, tokenizer="bytes")))


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
    parser.add_argument("--no-long", action="store_true", help="leave out the 30 seconds of ours alone")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = build(Path(directory))
    texts = [PROMPT] * args.batch
    ids, mask = (torch.tensor(part).long() for part in ours.tokenizer.encode(texts))
    ids, mask = ids[:, : mask.sum(1).max()], mask[:, : mask.sum(1).max()]
    silence = transformers.models.encodec.modeling_encodec.EncodecDecoderOutput(torch.zeros(args.batch, 1, 640))
    theirs.audio_encoder.decode = lambda *inputs, **options: silence
    sampling = mgjax.Sampling(guidance=args.guidance)

    def steps_of(seconds: float) -> int:
        return int(seconds * ours.frame_rate) + ours.num_codebooks - 1

    def run_ours(seconds: float) -> float:
        began = time.perf_counter()
        ours.generate_codes(texts, seconds=seconds, sampling=sampling)
        return time.perf_counter() - began

    def run_theirs(seconds: float) -> float:
        began = time.perf_counter()
        theirs.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=250,
            guidance_scale=args.guidance,
            max_new_tokens=steps_of(seconds),
        )
        return time.perf_counter() - began

    first = run_ours(args.seconds)
    run_theirs(0.2)
    times = [(run_ours(args.seconds), run_theirs(args.seconds)) for _ in range(args.repeats)]
    mine, peer = (statistics.median(column) / steps_of(args.seconds) * 1e3 for column in zip(*times, strict=True))
    print(
        f"musicgen-small shapes, float32, batch {args.batch}, guidance {args.guidance:g}, {args.seconds:g} s of music"
    )
    print(f"  mgjax         {mine:7.1f} ms/step   ({20 / mine:.2f} x real time per row)")
    print(f"  transformers  {peer:7.1f} ms/step   ({20 / peer:.2f} x real time per row)")
    ratios = sorted(theirs / ours for ours, theirs in times)
    print(f"  ratio         {peer / mine:7.2f}           (single turns: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(
        f"  first call    {first:7.1f} s, of which about {first - mine * steps_of(args.seconds) / 1e3:.1f} s compiling"
    )
    if not args.no_long:
        del theirs
        print("  mgjax, one piece of 30 s, median of the chunks of a second that begin in")
        for span, milliseconds in per_step(ours, texts, sampling).items():
            print(f"    {span:<12} {milliseconds:7.1f} ms/step")


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
