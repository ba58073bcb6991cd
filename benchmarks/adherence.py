"""Whether music has the tempo, the key and the leading instrument that the prompt asks for.

    python benchmarks/adherence.py --out CLIPS [--model mini] [--weights int8] [--prompts 200] [--json FILE]
    python benchmarks/adherence.py --ceiling-only [--prompts 60]

The prompts state facts of synthetic pieces of a held-out seed, in several wordings; the model makes a clip for each.
The analysers of benchmarks/analysers.py hear them: librosa's beats for the tempo, and two classifiers, for the key and
for the family of the leading instrument, that are fitted to --training real pieces of yet another seed, never to what
a model made. They see no prompt. The family is told from the whole mix, so that the backing's style helps to tell it.

For each of the three stand

    model     the share of clips that are as asked: tempo within 5 %, tonic and third of the key, family of the leader
    ceiling   the same share for real clips of the same pieces, cut out anywhere: the analysers err, and some clips are
              ambiguous
    floor     the share when each clip is held against the prompts of the others
    way       how far the model is on the way from floor to ceiling: (model - floor) / (ceiling - floor)

and apart from that how often the tempo is right but for the octave (half, double, a third, two thirds, ...; right ones
included) and the key right but for the relative one. The intervals are twice the standard error by the bootstrap over
prompts. The clips stay in --out for benchmarks/frechet.py, defects.py and pictures.py; what was cut off goes on there.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import analysers
import clips
import numpy as np

import mgjax

WORDINGS = (
    "{mood} {genre} led by {lead}, in {key} at {bpm} bpm",
    "{genre}, {lead} lead, {mood}, {bpm} bpm, {key}",
    "A {mood} {genre} piece led by {lead} in {key} at {bpm} beats per minute.",
    "This is a {mood} {genre} track. The melody is played by the {lead}. The tempo is {bpm} bpm. It is in {key}.",
    "{genre} with {lead} melody in the key of {key}, {bpm} BPM",
    "A {mood} {genre} tune with {lead} melody at {bpm} bpm in {key}.",
)
FACTS = ("tempo", "tempo or its octave", "key", "key or its relative", "lead family")


def main() -> None:
    parser = clips.parser(__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--weights", help="float32, bfloat16 or int8 (as the model has them)")
    parser.add_argument("--out", type=Path, help="folder for the clips")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0)
    clips.add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the model's clips, the wordings and the bootstrap")
    parser.add_argument("--training", type=int, default=500, help="pieces that the analysers are fitted to")
    parser.add_argument("--ceiling-only", action="store_true", help="hear real clips alone, at 24 kHz")
    args = parser.parse_args()
    if not (args.out or args.ceiling_only):
        parser.error("say by --out where the clips are to be kept")

    model = None if args.ceiling_only else mgjax.load(args.model, weights=args.weights)
    rate = 24_000 if model is None else model.sample_rate
    pieces = led(args.prompts, args.seconds, rate, args.music_seed)
    ear = trained(args.training, args.seconds, rate)
    real = heard(ear, [piece.sound for piece in pieces], rate)
    made = None
    if model:
        rng = np.random.default_rng(args.seed)
        prompts = [prompt(piece, str(rng.choice(WORDINGS))) for piece in pieces]
        sampling = clips.sampling(model, args)
        made = heard(ear, clips.made(model, prompts, args.seconds, args.seed, args.out, sampling=sampling), rate)

    numbers = {}
    print(f"{len(pieces)} prompts, {args.seconds:g} s{'':<12} model          ceiling            floor              way")
    for name in FACTS:
        numbers[name] = compared(judged(real, pieces, name), made and judged(made, pieces, name), args.seed)
        row = [clips.text(numbers[name][what]) if what in numbers[name] else "-" for what in ("model", "ceiling")]
        row += [clips.text(numbers[name][what]) if what in numbers[name] else "-" for what in ("floor", "way")]
        print(f"  {name:<22}" + "".join(f"{figure:>17}" for figure in row))
    clips.keep(numbers, args)


def led(count: int, seconds: float, rate: int, seed: int) -> list[clips.Clip]:
    """The first `count` clips of pieces that a melody instrument leads."""
    found: list[clips.Clip] = []
    first = 0
    while len(found) < count:
        more = max(8, count - len(found))
        found += [clip for clip in clips.held_out(more, seconds, rate, seed, first) if clip.is_led]
        first += more
    return found[:count]


def trained(count: int, seconds: float, rate: int) -> analysers.Ear:
    """Analysers that are fitted to as many real clips."""
    real = led(count, seconds, rate, analysers.SEED)
    keys, leads = zip(*((clip.key, clip.lead) for clip in real), strict=True)
    return analysers.Ear([clip.sound for clip in real], rate, keys, leads)


def prompt(piece: clips.Clip, wording: str) -> str:
    """A text that states tempo, key and leading instrument."""
    facts = piece.metadata
    said = wording.format(mood=facts["moods"][0], genre=facts["genre"], lead=piece.lead, key=piece.key, bpm=piece.bpm)
    for vowel in "aeiou":
        said = said.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return said


def heard(ear: analysers.Ear, sounds: list[np.ndarray], rate: int) -> list[tuple]:
    """The tempo, the key and the family of each clip."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda sound: (analysers.tempo(sound, rate), ear.key(sound), ear.family(sound)), sounds))


def judged(answers: list[tuple], pieces: list[clips.Clip], name: str) -> np.ndarray:
    """Whether the clip of row i has what piece j asks for, bool [i, j]."""
    tempo, key, family = zip(*answers, strict=True)
    if name.startswith("tempo"):
        good = ("right",) if name == "tempo" else ("right", "octave")
        return np.array([[analysers.tempo_verdict(one, piece.bpm) in good for piece in pieces] for one in tempo])
    if name.startswith("key"):
        good = ("right",) if name == "key" else ("right", "relative")
        return np.array([[analysers.key_verdict(one, piece.key) in good for piece in pieces] for one in key])
    return np.array([[one == analysers.family(piece.lead) for piece in pieces] for one in family])


def compared(real: np.ndarray, made: np.ndarray | None, seed: int) -> dict[str, dict[str, float]]:
    """Model, ceiling, floor and the way between them, of tables that `judged` gives; without `made` two of them."""
    table = real if made is None else made
    others = (table.sum(axis=1) - np.diag(table)) / (len(table) - 1)  # every shuffle at once
    columns = {"ceiling": np.diag(real).astype(float), "floor": others}
    found = {name: clips.mean(column) for name, column in columns.items()}
    if made is None:
        return found
    columns = {"model": np.diag(made).astype(float), **columns}

    def way(model: np.ndarray, ceiling: np.ndarray, floor: np.ndarray) -> float:
        return (model.mean() - floor.mean()) / max(ceiling.mean() - floor.mean(), 1e-9)

    found["model"] = clips.mean(columns["model"])
    found["way"] = clips.bootstrap(way, *columns.values(), seed=seed)
    return found


if __name__ == "__main__":
    main()
