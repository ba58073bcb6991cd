"""How many clips are silent, clipped or stuck, and how loud they are.

    python benchmarks/defects.py CLIPS [--count N] [--json FILE]

CLIPS is a folder of sound files, such as benchmarks/adherence.py --out leaves: what `generate` of the API gives,
unchanged. The command line makes it -14 LUFS loud before it writes a file; here both are measured. Beside each number
stands that of as many clips of real synthetic pieces.

* silence: clips of which more than 20 % is silent, in stretches of 50 ms below -50 dB of full scale.
* clipping: clips in which three samples in a row are at or beyond full scale, as they are and when made -14 LUFS loud.
* stuck: clips in which one pitch class is the strongest in over 80 % of the stretches of 0.2 s that are not silent.
* loudness: mean of the integrated loudness (BS.1770) as it is, and how far from -14 LUFS the files are afterwards.

The intervals of shares are twice the standard error of a share; for none of n clips, 3 / n is the most that is likely.
"""

from pathlib import Path

import analysers
import clips
import numpy as np
import pyloudnorm

from mgjax.audio.loudness import normalized

TARGET = -14.0


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="CLIPS")
    parser.add_argument("--count", type=int, help="the first so many (all)")
    args = parser.parse_args()
    sounds, rate = clips.read_folder(args.folder, args.count)
    pieces = clips.held_out(len(sounds), len(sounds[0]) / rate, rate, args.music_seed)
    numbers = {"made": measured(sounds, rate), "real": measured([piece.sound for piece in pieces], rate)}
    print(f"{len(sounds)} clips of {len(sounds[0]) / rate:g} s       made               real")
    for name, number in numbers["made"].items():
        print(f"  {name:<28} {clips.text(number):>16} {clips.text(numbers['real'][name]):>18}")
    clips.keep(numbers, args)


def measured(sounds: list[np.ndarray], rate: int) -> dict[str, dict[str, float]]:
    """All numbers of clips [n]."""
    loud = [normalized(sound[:, None], rate, TARGET)[:, 0] for sound in sounds]
    before, after = ([loudness(sound, rate) for sound in some] for some in (sounds, loud))
    return {
        "silence, share": clips.mean([silent(sound, rate) > 0.2 for sound in sounds]),
        "clipping as made, share": clips.mean([clipped(sound) for sound in sounds]),
        "clipping at -14 LUFS, share": clips.mean([clipped(sound) for sound in loud]),
        "stuck, share": clips.mean([stuck(sound, rate) > 0.8 for sound in sounds]),
        "loudness as made, LUFS": clips.mean(before),
        "of the file, off by, LU": clips.mean(np.abs(np.array(after) - TARGET)),
    }


def silent(sound: np.ndarray, rate: int) -> float:
    """The share of the stretches of 50 ms that are below -50 dB."""
    size = rate // 20
    power = np.square(sound[: len(sound) // size * size]).reshape(-1, size).mean(axis=1)
    return float(np.mean(power < 10**-5.0))


def clipped(sound: np.ndarray) -> bool:
    """Whether three samples in a row are at full scale."""
    full = np.abs(sound) >= 1 - 2**-15
    return bool(np.any(full[:-2] & full[1:-1] & full[2:]))


def stuck(sound: np.ndarray, rate: int) -> float:
    """The share of the time in which the commonest strongest pitch class is the strongest."""
    chroma = analysers.chroma(analysers.pitches(sound, rate))
    heard = chroma.sum(axis=0) > 1e-2 * chroma.sum(axis=0).max()
    return float(np.bincount(chroma[:, heard].argmax(axis=0)).max() / max(heard.sum(), 1))


def loudness(sound: np.ndarray, rate: int) -> float:
    """In LUFS, -70 for silence."""
    return max(-70.0, float(pyloudnorm.Meter(rate).integrated_loudness(sound)))


if __name__ == "__main__":
    main()
