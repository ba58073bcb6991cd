"""How closely a melody model follows: the chromagram of what it makes, beside that of what was asked.

    python benchmarks/melody.py [MODEL] [--corpus CORPUS | --text] [--clips 32] [--guidance G] [--json FILE]

Each clip is handed over as the melody and music of the same length is made: clips of held-out synthetic pieces, or of a
corpus of sound (its validation split, which training never saw). No text goes with it; with --text the description of
another piece does, so that the melody is followed in a style that is not its own. Reported is the mean cosine of the
two chromagrams frame by frame, and how often their strongest pitch class is the same; then the same for melodies paired
with the music made for others, the floor, and for the clips beside themselves after coding, the ceiling. The intervals
are two standard errors over clips.
"""

import dataclasses

import clips
import numpy as np

import mgjax
from mgjax.audio.waveform import resample
from mgjax.conditioning.chroma import chromagram
from mgjax.data.corpus import Corpus


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("model", nargs="?", default="mini")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--corpus", help="of sound, at the model's rate")
    source.add_argument("--text", action="store_true", help="hand over another piece's description beside the melody")
    parser.add_argument("--clips", type=int, default=32)
    clips.add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = mgjax.load(args.model)
    seconds = model.config.window_seconds
    texts: list[str | None] = [None] * args.clips
    if args.corpus:
        asked = drawn(Corpus.open(args.corpus, "valid"), args.clips, int(seconds * model.sample_rate), args.seed)
    else:
        pieces = clips.held_out(args.clips, seconds, model.sample_rate, args.music_seed)
        asked = np.stack([piece.sound[:, None] for piece in pieces])
        if args.text:
            texts = [piece.metadata["description"] for piece in pieces[1:] + pieces[:1]]
    sampling = clips.sampling(model, args)
    made = np.concatenate(
        [
            model.generate(
                texts[start : start + len(part)],
                seconds=seconds,
                seed=args.seed + start,
                sampling=sampling,
                melody=part,
                melody_sample_rate=model.sample_rate,
            )
            for start in range(0, len(asked), clips.BATCH)
            for part in [asked[start : start + clips.BATCH]]
        ]
    )
    config = dataclasses.replace(model.config.melody, bottleneck="none")

    def chroma(sound: np.ndarray) -> np.ndarray:
        mono = [resample(one, model.sample_rate, config.sample_rate)[:, 0] for one in sound.mean(-1, keepdims=True)]
        return np.asarray(chromagram(np.stack(mono), config))

    coded = model.codec.decode(model.codec.encode(asked))[:, : asked.shape[1]]
    wanted, got, ceiling = chroma(asked), chroma(made[:, : asked.shape[1]]), chroma(coded)
    others = [np.roll(got, shift, axis=0) for shift in range(1, len(got))]
    print(f"{len(asked)} clips of {seconds:g} s, guidance {sampling.guidance:g}; cosine, share of equal pitch classes")
    numbers = {}
    for name, pairs in (("asked and made", [got]), ("shuffled", others), ("asked and coded", [ceiling])):
        cosines = np.mean([cosine(wanted, other) for other in pairs], axis=0)
        same = np.mean([equal(wanted, other) for other in pairs], axis=0)
        numbers[name] = {"cosine": clips.mean(cosines), "equal": clips.mean(same)}
        print(f"  {name:<16} {clips.text(numbers[name]['cosine'])}   {clips.text(numbers[name]['equal'])}")
    ahead = np.mean([cosine(wanted, got) > cosine(wanted, other) for other in others])
    print(f"  a clip is nearer to the music made for it than to that made for another in {ahead:.0%} of pairs")
    clips.keep({**numbers, "nearer to its own": float(ahead)}, args)


def drawn(corpus: Corpus, count: int, length: int, seed: int) -> np.ndarray:
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


if __name__ == "__main__":
    main()
