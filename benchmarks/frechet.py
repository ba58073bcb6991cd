"""How far generated clips are, as a whole, from the music that the model was to learn: a Frechet distance.

    python benchmarks/frechet.py CLIPS [--model mini] [--count N] [--json FILE]

CLIPS is a folder of sound files, such as benchmarks/adherence.py --out leaves. Of each clip are taken the mean and
the standard deviation over time of 64 log mel bands, and of their differences from frame to frame (256 numbers; bands
up to half the rate or 12 kHz, windows of 2048 and steps of 512 samples). These numbers are brought to the scale of a
corpus of as many clips of held-out synthetic pieces and reduced to their 16 main directions there, so that covariances
of a few dozen clips are well conditioned. The Frechet distance of two sets is that of the normal distributions of their
means and covariances (Heusel et al. 2017); 0 for equal ones. It hears spectrum, dynamics and loudness, not melody or
harmony.

All sets hold equally many clips of equal length, for the distance grows as sets become small. Compared with the corpus:

    another half   other held-out pieces: what is reached by the music itself
    codec only     those other pieces after the model's codec: what is reached if the language model is perfect
    made           the clips
    noise          white noise at the loudness of the other pieces: what bad is

The intervals are twice the standard error by the bootstrap over the clips of both sets.
"""

from pathlib import Path

import clips
import librosa
import numpy as np
import scipy.linalg

import mgjax

DIRECTIONS = 16


def main() -> None:
    parser = clips.parser(__doc__, clips.SEED + 1)  # not the seed of the prompts
    parser.add_argument("folder", type=Path, metavar="CLIPS")
    parser.add_argument("--model", default="mini", help="whose codec is compared")
    parser.add_argument("--count", type=int, help="the first so many (all)")
    parser.add_argument("--seed", type=int, default=0, help="of all else that is drawn")
    args = parser.parse_args()
    codec = mgjax.load_codec(args.model)
    made, rate = clips.read_folder(args.folder, args.count)
    count, length = len(made), len(made[0])
    if rate != codec.sample_rate:
        raise ValueError(f"the clips have {rate} Hz and the codec of {args.model} {codec.sample_rate}: not its clips")
    if count <= 2 * DIRECTIONS:
        raise ValueError(f"{count} clips are too few for covariances of {DIRECTIONS} numbers; make 100 or more")

    pieces = [clip.sound for clip in clips.held_out(2 * count, length / rate, rate, args.music_seed)]
    order = np.random.default_rng(args.seed).permutation(2 * count)
    corpus, other = ([pieces[i] for i in half] for half in np.split(order, 2))
    coded = [codec.decode(codec.encode(sound))[0, :length].mean(axis=1) for sound in other]
    noise = np.random.default_rng(args.seed).standard_normal((count, length)).astype(np.float32)
    noise = [one * np.sqrt(np.mean(np.square(sound))) for one, sound in zip(noise, other, strict=True)]

    reduce = reduction(statistics(corpus, rate))
    wanted = reduce(statistics(corpus, rate))
    numbers = {"clips in each set": count}
    print(f"Frechet distance from {count} clips of {length / rate:g} s, {DIRECTIONS} directions of mel statistics")
    for name, sounds in (("another half", other), ("codec only", coded), ("made", made), ("noise", noise)):
        found = reduce(statistics(sounds, rate))
        numbers[name] = clips.bootstrap(distance, found, wanted, seed=args.seed, repeats=200, paired=False)
        print(f"  {name:<14} {clips.text(numbers[name], '9.3f')}", flush=True)
    clips.keep(numbers, args)


def statistics(sounds: list[np.ndarray], rate: int) -> np.ndarray:
    """The mel statistics [clips, 256] of clips [n]."""
    found = []
    for sound in sounds:
        power = librosa.feature.melspectrogram(
            y=sound, sr=rate, n_fft=2048, hop_length=512, n_mels=64, fmin=30.0, fmax=min(12_000.0, rate / 2)
        )
        bands = np.log10(np.maximum(power, 1e-5))
        changes = np.diff(bands, axis=1)
        found.append(np.concatenate([part(axis=1) for x in (bands, changes) for part in (x.mean, x.std)]))
    return np.stack(found).astype(np.float64)


def reduction(corpus: np.ndarray):
    """The function that brings statistics [clips, 256] to the main directions [clips, d] of the corpus."""
    centre, scale = corpus.mean(axis=0), corpus.std(axis=0) + 1e-6
    directions = np.linalg.svd((corpus - centre) / scale, full_matrices=False)[2][:DIRECTIONS]
    return lambda found: (found - centre) / scale @ directions.T


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of two sets [clips, d], taken for normal distributions."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the square root of the product, by the eigenvalues of a symmetric matrix that has the same.
    root = scipy.linalg.sqrtm(first).real
    common = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(first) + np.trace(second) - 2 * common)


if __name__ == "__main__":
    main()
