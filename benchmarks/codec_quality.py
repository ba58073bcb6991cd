"""What a codec loses, beside Opus and MP3 on the same clips, and how much of its codebooks it uses.

    python benchmarks/codec_quality.py [--model mini] [--clips 40] [--seconds 4] [--json FILE]

Two kinds of clips that training never saw: synthetic music of a held-out seed, and real music, the OGG files of Debian
packages that are fetched by `apt-get download` (they stay in --cache). All are mono at the codec's sample rate.

* SI-SNR in dB, higher is better: how closely the waveform is kept. Codecs that are trained to sound right, and Opus and
  MP3 at low rates, keep the waveform badly and may still sound well.
* Mel distance, lower is better: the mean absolute difference of log10 mel powers; 0.1 is 1 dB. Nearer to what is heard.
* kb/s is what the packets of the clips really take, without the container; Opus and MP3 are asked for 1, 2 and 4 times
  the codec's rate, or the lowest that they can do (4 and 8 kb/s). Their delay is taken off before measuring.
* Codes used: the share of each codebook's codes that occur at all, and the perplexity, the number of codes that would
  be as varied if all were equally frequent. Over --usage-clips clips of 10 s of each kind.

The intervals are two standard errors over clips. Needs ffmpeg with libopus and libmp3lame, and Debian's apt and dpkg.
"""

import subprocess
import tempfile
from pathlib import Path

import clips
import numpy as np
import platformdirs
import soundfile

import mgjax
from mgjax.audio import files as audio_files
from mgjax.audio.waveform import resample, to_channels
from mgjax.codec import losses

PACKAGES = ("extremetuxracer-data", "lincity-ng-data")
CODERS = {  # name: ffmpeg's options, suffix, lowest rate in bits per second
    "Opus": (("-c:a", "libopus", "-application", "audio", "-frame_duration", "60"), ".ogg", 4000),
    "MP3": (("-c:a", "libmp3lame", "-ar", "24000"), ".mp3", 8000),  # at 32 kHz its lowest is 32 kb/s
}
MULTIPLES = (1, 2, 4)
CACHE = Path(platformdirs.user_cache_dir("mgjax")) / "benchmarks"


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("--model", default="mini", help="a codec, or a model whose codec to take")
    parser.add_argument("--clips", type=int, default=40, help="of each kind")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--usage-clips", type=int, default=200)
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="Debian packages with OGG music")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--seed", type=int, default=0, help="of all else that is drawn")
    args = parser.parse_args()

    codec = mgjax.load_codec(args.model)
    rate = codec.sample_rate
    bits = codec.frame_rate * codec.num_codebooks * np.log2(codec.codebook_size)
    print(f"{args.model}: {rate} Hz, {codec.num_codebooks} codebooks, {bits / 1000:.2f} kb/s", flush=True)
    music = {
        "synthetic": [clip.sound for clip in clips.held_out(args.clips, args.seconds, rate, args.music_seed)],
        "real": real_music(args.packages, args.clips, args.seconds, rate, args.seed, args.cache),
    }
    numbers = {"kilobits": bits / 1000}
    for kind, sounds in music.items():
        numbers[kind] = compare(codec, np.stack(sounds), bits)
        print(f"{kind}: {len(sounds)} clips of {args.seconds:g} s       kb/s          SI-SNR      mel distance")
        for name, row in numbers[kind].items():
            figures = f"{clips.text(row['si_snr'], '.2f'):>15} {clips.text(row['mel_distance']):>17}"
            print(f"  {name:<28} {row['kilobits']:8.2f} {figures}", flush=True)
    count = args.usage_clips
    long = {
        "synthetic": [clip.sound for clip in clips.held_out(count, 10.0, rate, args.music_seed)],
        "real": real_music(args.packages, count, 10.0, rate, args.seed, args.cache),
    }
    codes = {kind: np.concatenate([codec.encode(sound)[0] for sound in sounds]) for kind, sounds in long.items()}
    codes["both"] = np.concatenate(list(codes.values()))
    numbers["codebooks"] = {kind: usage(found, codec.codebook_size) for kind, found in codes.items()}
    print("share of codes used and perplexity, codebook by codebook")
    for kind, row in numbers["codebooks"].items():
        print(f"  {kind:<10} {' '.join(f'{share:6.1%}' for share in row['used'])}")
        print(f"  {'':<10} {' '.join(f'{perplexity:6.0f}' for perplexity in row['perplexity'])}")
    clips.keep(numbers, args)


def compare(codec: mgjax.Codec, sounds: np.ndarray, bits: float) -> dict[str, dict]:
    """Rate and losses on clips [b, n] of the codec and of the others."""
    found = {}
    coded = np.concatenate([codec.decode(codec.encode(sound[None, :, None])) for sound in sounds])
    found["this codec"] = judged(coded[:, : sounds.shape[1]].mean(axis=2), sounds, codec.sample_rate, bits)
    for name, (_, _, lowest) in CODERS.items():
        for asked in sorted({max(lowest, multiple * bits) for multiple in MULTIPLES}):
            others, real = zip(*(recoded(sound, codec.sample_rate, name, asked) for sound in sounds), strict=True)
            label = f"{name}, asked for {asked / 1000:.1f} kb/s"
            found[label] = judged(np.stack(others), sounds, codec.sample_rate, float(np.mean(real)))
    return found


def judged(coded: np.ndarray, sounds: np.ndarray, sample_rate: int, bits: float) -> dict:
    """Both distances of clips [b, n] as means with intervals."""
    lengths = np.full(len(sounds), sounds.shape[1], np.int32)
    pair = coded[..., None].astype(np.float32), sounds[..., None].astype(np.float32)
    return {
        "kilobits": bits / 1000,
        "si_snr": clips.mean(losses.si_snr(*pair, lengths)),
        "mel_distance": clips.mean(losses.mel_distance(*pair, lengths, sample_rate)),
    }


def recoded(sound: np.ndarray, sample_rate: int, coder: str, bits: float) -> tuple[np.ndarray, float]:
    """A clip [n] after one of `CODERS`, its delay taken off, and the bits per second of its packets."""
    options, suffix, _ = CODERS[coder]
    with tempfile.TemporaryDirectory() as folder:
        given, coded, decoded = (Path(folder) / name for name in ("given.wav", f"coded{suffix}", "decoded.wav"))
        soundfile.write(given, sound, sample_rate, subtype="FLOAT")
        ffmpeg("-i", str(given), *options, "-b:a", str(round(bits)), str(coded))
        ffmpeg("-i", str(coded), "-ar", str(sample_rate), "-c:a", "pcm_f32le", str(decoded))
        probe = ["ffprobe", "-v", "error", "-show_entries", "packet=size", "-of", "csv=p=0", str(coded)]
        sizes = subprocess.run(probe, check=True, capture_output=True, text=True).stdout.replace(",", " ").split()
        heard = soundfile.read(decoded, dtype="float32")[0]
    return aligned(heard, sound, sample_rate), 8 * sum(map(int, sizes)) * sample_rate / len(sound)


def ffmpeg(*arguments: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True)


def aligned(late: np.ndarray, sound: np.ndarray, sample_rate: int) -> np.ndarray:
    """`late` moved by the delay, of 0.2 s at most either way, at which it is most like `sound`; of the same length."""
    reach = sample_rate // 5
    size = len(late) + len(sound)
    likeness = np.fft.irfft(np.fft.rfft(late, size) * np.conj(np.fft.rfft(sound, size)), size)
    delay = max(range(-reach, reach + 1), key=lambda shift: likeness[shift])
    moved = late[delay:] if delay >= 0 else np.pad(late, (-delay, 0))
    return np.pad(moved, (0, max(0, len(sound) - len(moved))))[: len(sound)]


def usage(codes: np.ndarray, size: int) -> dict[str, list[float]]:
    """The share of codes used and the perplexity of each codebook, of codes [t, k]."""
    found = {"used": [], "perplexity": []}
    for column in codes.T:
        shares = np.bincount(column, minlength=size) / len(column)
        heard = shares[shares > 0]
        found["used"].append(float(np.mean(shares > 0)))
        found["perplexity"].append(float(np.exp(-np.sum(heard * np.log(heard)))))
    return found


def real_music(packages: list[str], count: int, seconds: float, rate: int, seed: int, cache: Path) -> list[np.ndarray]:
    """Clips [n] from the packages' OGG files by turns, at places drawn by chance, none of them near silence."""
    files = sorted(path for package in packages for path in fetched(package, cache).rglob("*.ogg"))
    files = [
        path for path in files if audio_files.info(path).num_samples / audio_files.info(path).sample_rate > 3 * seconds
    ]
    if not files:
        raise ValueError(f"there is no OGG music in {', '.join(packages)}; name other packages by --packages")
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < count:
        path = files[len(found) % len(files)]
        length = audio_files.info(path).num_samples / audio_files.info(path).sample_rate
        sound, given = audio_files.read(
            path, start_seconds=rng.uniform(0, length - seconds - 0.1), seconds=seconds + 0.05
        )
        sound = resample(to_channels(sound, 1), given, rate)[: round(seconds * rate), 0]
        if np.sqrt(np.mean(np.square(sound))) > 0.01:
            found.append(sound)
    return found


def fetched(package: str, cache: Path) -> Path:
    """The folder in which a Debian package lies unpacked."""
    folder = cache / package
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            subprocess.run(["apt-get", "download", "-q", package], check=True, cwd=temporary)
            (found,) = Path(temporary).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(found), f"{temporary}/unpacked"], check=True)
            (Path(temporary) / "unpacked").rename(folder)
    return folder


if __name__ == "__main__":
    main()
