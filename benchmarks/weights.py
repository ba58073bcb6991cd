"""What a model loses by weights in fewer bits: its predictions of held-out music beside those of float32 weights.

    python benchmarks/weights.py                                  # mini
    python benchmarks/weights.py --model DIR --pieces 2 --noise   # any model, on random codes

Codes of pieces of a held-out seed, with their descriptions, are predicted teacher-forced. For each choice of weights
stand the largest difference of a logit, the mean divergence (KL, in nats) of its predictions from those of float32, how
often the likeliest code is the same, and the cross-entropy, with the mean difference of pieces to that of float32 and
twice its standard error.
"""

import clips
import numpy as np
from scipy.special import log_softmax

import mgjax


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--weights", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--pieces", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--noise", action="store_true", help="random codes in the place of music")
    args = parser.parse_args()

    exact = mgjax.load(args.model, weights="float32")
    if args.noise:
        shape = (args.pieces, int(args.seconds * exact.frame_rate), exact.num_codebooks)
        codes, prompts = np.random.default_rng(0).integers(exact.codebook_size, size=shape), [""] * args.pieces
    else:
        pieces = clips.held_out(args.pieces, args.seconds, exact.sample_rate, args.music_seed)
        codes = exact.codec.encode(np.stack([piece.sound for piece in pieces])[..., None], exact.sample_rate)
        prompts = [piece.metadata["description"] for piece in pieces]
    codes = np.asarray(codes)[..., : exact.num_codebooks]
    expected = predictions(exact, codes, prompts)
    entropy = cross_entropy(expected, codes)
    print(f"{args.model}, {args.pieces} pieces of {args.seconds:g} s")
    print(f"  float32   cross-entropy {entropy.mean():.5f}")
    numbers = {"float32": {"cross_entropy": float(entropy.mean())}}
    for weights in args.weights:
        found = predictions(mgjax.load(args.model, weights=weights), codes, prompts)
        before, after = log_softmax(expected, -1), log_softmax(found, -1)
        change = cross_entropy(found, codes) - entropy
        error = 2 * change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.nan
        numbers[weights] = {
            "largest": float(np.abs(found - expected).max()),
            "kl": float((np.exp(before) * (before - after)).sum(-1).mean()),
            "same": float((found.argmax(-1) == expected.argmax(-1)).mean()),
            "cross_entropy": float(entropy.mean() + change.mean()),
            "change": [float(change.mean()), float(error)],
        }
        row = numbers[weights]
        print(
            f"  {weights:9} cross-entropy {row['cross_entropy']:.5f} ({change.mean():+.5f} +- {error:.5f}), largest "
            f"difference {row['largest']:.3f}, KL {row['kl']:.1e}, likeliest code the same {row['same']:.2%}",
            flush=True,
        )
    clips.keep(numbers, args)


def predictions(model: mgjax.MusicGen, codes: np.ndarray, prompts: list[str]) -> np.ndarray:
    """Logits [b, t, k, v], a few rows at a time."""
    parts = [
        np.asarray(model.logits(codes[first : first + 8], prompts[first : first + 8]))
        for first in range(0, len(codes), 8)
    ]
    return np.concatenate(parts)


def cross_entropy(logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Of each piece, in nats a code."""
    return -np.take_along_axis(log_softmax(logits, -1), codes[..., None], -1)[..., 0].mean(axis=(1, 2))


if __name__ == "__main__":
    main()
