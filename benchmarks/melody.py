"""How closely a melody model follows: the chromagram of what it makes, beside that of what was asked.

    python benchmarks/melody.py MODEL CORPUS [--clips 32] [--guidance 3]

Each clip of the corpus of sound (its validation split, which training never saw) is handed over as the melody, without
any text, and music of the same length is made. Reported is the mean cosine of the two chromagrams frame by frame, and
how often their strongest pitch class is the same; then the same for melodies paired with the music made for others, the
floor, and for the clips beside themselves after coding, the ceiling. The intervals are two standard errors over clips.
"""

import argparse
import dataclasses

import numpy as np

import mgjax
from mgjax.conditioning.chroma import chromagram
from mgjax.data.corpus import Corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus", help="of sound, at the model's rate")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--top-k", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = mgjax.load(args.model)
    seconds = model.config.window_seconds
    asked = clips(Corpus.open(args.corpus, "valid"), args.clips, int(seconds * model.sample_rate), args.seed)
    sampling = mgjax.Sampling(guidance=args.guidance, top_k=args.top_k)
    made = np.concatenate(
        [
            model.generate([None] * len(part), seconds=seconds, seed=args.seed, sampling=sampling, melody=part)
            for part in np.array_split(asked, -(-len(asked) // 8))
        ]
    )
    config = dataclasses.replace(model.config.melody, bottleneck="none")

    def chroma(sound: np.ndarray) -> np.ndarray:
        return np.asarray(chromagram(sound.mean(axis=-1), config))

    coded = model.codec.decode(model.codec.encode(asked))[:, : asked.shape[1]]
    wanted, got, ceiling = chroma(asked), chroma(made[:, : asked.shape[1]]), chroma(coded)
    others = [np.roll(got, shift, axis=0) for shift in range(1, len(got))]
    print(f"{len(asked)} clips of {seconds:g} s, guidance {args.guidance:g}; cosine, share of equal pitch classes")
    for name, pairs in (("asked and made", [got]), ("shuffled", others), ("asked and coded", [ceiling])):
        cosines = np.mean([cosine(wanted, other) for other in pairs], axis=0)
        same = np.mean([equal(wanted, other) for other in pairs], axis=0)
        print(f"  {name:<16} {interval(cosines)}   {interval(same)}")
    ahead = np.mean([cosine(wanted, got) > cosine(wanted, other) for other in others])
    print(f"  a clip is nearer to the music made for it than to that made for another in {ahead:.0%} of pairs")


def clips(corpus: Corpus, count: int, length: int, seed: int) -> np.ndarray:
    """Clips float32 [count, length, c], from every piece by turns, at places drawn by `seed`."""
    rng = np.random.default_rng(seed)
    long = np.flatnonzero(corpus.lengths >= length)
    pieces = long[np.arange(count) % len(long)]
    starts = [int(rng.integers(corpus.lengths[piece] - length + 1)) for piece in pieces]
    found = [corpus.read(int(piece), start, length) for piece, start in zip(pieces, starts, strict=True)]
    return np.stack([clip for clip in found if np.ptp(clip) > 1e-2])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The mean over frames, of each clip."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.mean(np.sum(a * b, axis=-1) / np.maximum(norms, 1e-9), axis=-1)


def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.mean(a.argmax(axis=-1) == b.argmax(axis=-1), axis=-1)


def interval(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {2 * values.std(ddof=1) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
