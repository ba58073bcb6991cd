"""Whether fine-tuning moves what a model plays towards the music that it was given, and how long that takes.

    python benchmarks/finetuning.py [--model mini] [--minutes 10] [--steps 500] [--out DIR] [--json FILE]

The music is real and was never heard by the bundled model: stretches of 10 s of the OGG files of a Debian package,
fetched by `apt-get download`. `mgjax finetune` makes an adapter of them, with one caption for all. Then as many clips
are made of that caption, by the same chances, before and after. Compared with other stretches of the same music:

* the Frechet distance of mel statistics, as benchmarks/frechet.py has it: spectrum, dynamics and loudness;
* how much more often than by chance the pitch classes are those of the music: the correlation of the clips' mean
  chromagram with the music's.

"the music itself" compares the music that was given with those other stretches: the best that can be reached.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import clips
import codec_quality
import frechet
import librosa
import numpy as np

import mgjax
from mgjax.audio import files as audio_files

CAPTION = "in the style of my songs"


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--package", default="extremetuxracer-data", help="a Debian package with OGG music")
    parser.add_argument("--cache", type=Path, default=codec_quality.CACHE)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--count", type=int, default=48, help="clips of 8 s that are compared")
    parser.add_argument("--out", type=Path, help="keep the adapter and the clips in this folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = mgjax.load(args.model)
    rate, given = base.sample_rate, round(6 * args.minutes)
    music = codec_quality.real_music([args.package], given + args.count, 10.0, rate, args.seed, args.cache)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        (out / "music").mkdir(parents=True, exist_ok=True)
        for number, sound in enumerate(music[:given]):
            audio_files.write(out / "music" / f"{number:03d}.wav", sound, rate)
        start = time.monotonic()
        command = [sys.executable, "-m", "mgjax", "finetune", out / "music", "--out", out / "adapter"]
        command += ["--model", args.model, "--caption", CAPTION, "--steps", str(args.steps), "--workers", "2"]
        subprocess.run(list(map(str, command)), check=True)
        minutes = (time.monotonic() - start) / 60
        tuned = mgjax.load(args.model, adapter=out / "adapter")
        before, after = (
            clips.made(model, [CAPTION] * args.count, 8.0, args.seed, out / name)
            for name, model in (("before", base), ("after", tuned))
        )
    wanted = [sound[: 8 * rate] for sound in music[given:]]
    reduce = frechet.reduction(frechet.statistics([sound[: 8 * rate] for sound in music], rate))
    rows = {"before": before, "after": after, "the music itself": [sound[: 8 * rate] for sound in music[:given]]}
    numbers = {"minutes": minutes}
    print(f"{args.steps} updates on {args.minutes:g} minutes of {args.package}: {minutes:.1f} minutes")
    print(f"{'':<18} Frechet distance     correlation of pitch classes")
    for name, sounds in rows.items():
        far = clips.bootstrap(
            frechet.distance,
            *(reduce(frechet.statistics(part, rate)) for part in (sounds, wanted)),
            seed=args.seed,
            repeats=200,
            paired=False,
        )
        like = clips.bootstrap(alike, *(pitches(part, rate) for part in (sounds, wanted)), seed=args.seed, paired=False)
        numbers[name] = {"frechet": far, "pitch classes": like}
        print(f"  {name:<16} {clips.text(far, '9.3f')}     {clips.text(like)}", flush=True)
    clips.keep(numbers, args)


def pitches(sounds: list[np.ndarray], rate: int) -> np.ndarray:
    """The mean chromagram [clips, 12] of clips [n]."""
    return np.stack([librosa.feature.chroma_stft(y=sound, sr=rate).mean(axis=1) for sound in sounds])


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of the mean chromagrams of two sets [clips, 12]."""
    return float(np.corrcoef(a.mean(axis=0), b.mean(axis=0))[0, 1])


if __name__ == "__main__":
    main()
