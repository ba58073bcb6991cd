"""`mgjax corpus`: builds, tokenizes and inspects corpora, learns vocabularies, and synthesizes music."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mgjax.cli import terminal
from mgjax.cli.options import add_model_options, command, count, file_path, option, positive, share
from mgjax.storage.paths import Path

_EXAMPLES = """\
example:
  mgjax corpus synthesize music --hours 1
  mgjax corpus build music audio-corpus
  mgjax corpus tokenize audio-corpus token-corpus --codec facebook/encodec_32khz
  mgjax corpus inspect token-corpus"""

_INSPECTED = 1000  # pieces, at most, that `inspect` reads
_WORK = ("workers", "replace", "beam_options")  # options of `_add_work_options`


def add_commands(commands: Any) -> None:
    """Adds `corpus` and its actions to the commands of argparse."""
    description = "Makes corpora to train on: of sound for a codec, of codes for a language model."
    corpus = command(commands, "corpus", None, "make the corpora that models are trained on", description, _EXAMPLES)
    actions = corpus.add_subparsers(metavar="ACTION", required=True)
    for add_action in (_add_build, _add_tokenize, _add_inspect, _add_vocabulary, _add_synthesize):
        add_action(actions)


def _add_build(actions: Any) -> None:
    description = "Makes a corpus of sound. Run again, it goes on where it was interrupted."
    build = command(actions, "build", run_build, "make a corpus of sound from music", description)
    option(
        build,
        "source SOURCE",
        "a folder of sound files (wav, flac, ogg, mp3, aiff ...), each with its metadata in a .json of the same "
        "name or without; a manifest (.csv, .jsonl, .jsonl.gz) with a `path` in each row; or tfds:NAME",
    )
    option(build, "output DIR", "the new corpus", file_path)
    option(build, "--sample-rate HZ", "(32000)", count, default=32_000)
    option(build, "--channels", "(1)", int, choices=[1, 2], default=1)
    option(build, "--valid SHARE", "of the pieces, kept for validation (0.05)", share, default=0.05)
    option(build, "--min-seconds S", "leave out shorter pieces (1)", positive, default=1.0)
    option(build, "--loudness LUFS", "bring each piece to this, -14 say (as it is)", float)
    option(build, "--max-bad SHARE", "fail if more of the pieces than this cannot be used (0.05)", share, default=0.05)
    option(build, "--shards N", "files to make, about (by the pieces)", count, dest="num_shards")
    dataset = build.add_argument_group("of a dataset of tensorflow-datasets")
    option(dataset, "--audio-feature FEATURE", "its sound (audio)")
    option(dataset, "--source-rate HZ", "its rate, where it does not say so", count)
    fields = "which of its features is the genre, description and so on; may be given again"
    option(dataset, "--field FIELD=FEATURE", fields, action="append", default=[])
    _add_work_options(build)


def _add_tokenize(actions: Any) -> None:
    description = "Makes a corpus of codes. Run again, it goes on where it was interrupted."
    tokenize = command(actions, "tokenize", run_tokenize, "make a corpus of codes from one of sound", description)
    option(tokenize, "source AUDIO_DIR", "a corpus that `mgjax corpus build` made", file_path)
    option(tokenize, "output DIR", "the new corpus", file_path)
    option(tokenize, "--codec NAME|DIR", "a codec or a model, on the Hugging Face Hub or a folder", required=True)
    option(tokenize, "--channels", "2 interleaves the codes of left and right (as the sound)", int, choices=[1, 2])
    tokenizer = "keep token ids of the descriptions too, by this T5's tokenizer"
    option(tokenize, "--tokenizer NAME|DIR|bytes", tokenizer)
    melody = "keep chromagrams of the sound too, for models that follow melodies; of windows of S seconds (0.512, as "
    option(tokenize, "--melody S", melody + "the published models have)", positive, nargs="?", const=0.512)
    _add_work_options(tokenize)
    add_model_options(tokenize)


def _add_inspect(actions: Any) -> None:
    inspect = command(actions, "inspect", run_inspect, "say what is in a corpus", "Says what is in a corpus.")
    option(inspect, "corpus DIR", type=file_path)
    option(inspect, "--examples N", "captions to show (3)", int, default=3)


def _add_vocabulary(actions: Any) -> None:
    vocabulary = command(
        actions,
        "vocabulary",
        run_vocabulary,
        "learn the vocabulary of a new text encoder from the texts of corpora",
        "Learns a vocabulary, as a text encoder that is trained from scratch needs one, from the descriptions and the "
        "other metadata of all pieces that are trained on.",
    )
    option(vocabulary, "corpora CORPUS", "of sound or of codes", file_path, nargs="+")
    option(vocabulary, "--size N", "pieces of text (2000)", count, default=2000)
    option(vocabulary, "--out DIR", "where spiece.model is written", file_path, required=True)
    option(vocabulary, "--force", "replace a vocabulary that is there already")


def _add_synthesize(actions: Any) -> None:
    description = "Composes and renders music, with captions. Run again, it goes on where it was interrupted."
    synthesize = command(
        actions, "synthesize", run_synthesize, "make a folder of captioned music, to try things out", description
    )
    option(synthesize, "output DIR", "the folder", file_path)
    option(synthesize, "--hours H", "how much of it (1)", positive, default=1.0)
    option(synthesize, "--seed SEED", "other seeds make other music (0)", int, default=0)
    option(synthesize, "--sample-rate HZ", "(32000)", count, default=32_000)
    option(synthesize, "--channels", "(1)", int, choices=[1, 2], default=1)
    lengths = "seconds of the shortest and of the longest piece (20 58)"
    option(synthesize, "--lengths S S", lengths, positive, default=(20.0, 58.0))
    option(synthesize, "--workers N", "processes (1)", count, default=1)


def _add_work_options(parser: argparse.ArgumentParser) -> None:
    option(parser, "--workers N", "processes on this machine (1)", count, default=1)
    option(parser, "--force", "replace a corpus that is there already", dest="replace")
    beam = "an option of Apache Beam, as in --beam=--runner=FlinkRunner, to run on many machines; may be given again"
    option(parser, "--beam --OPTION=VALUE", beam, dest="beam_options", action="append", default=[])


def run_build(args: argparse.Namespace) -> None:
    """Builds an audio corpus from `args.source`."""
    terminal.require_extra("train")
    from mgjax.data import build

    with terminal.progress_of_pieces("build") as progress:
        names = ("sample_rate", "channels", "valid", "min_seconds", "loudness", "max_bad", "num_shards", *_WORK)
        options = {name: getattr(args, name) for name in names}
        report = build.build(args.source, args.output, fields=_fields(args), progress=progress, **options)
    _print_report(args.output, report)


def run_tokenize(args: argparse.Namespace) -> None:
    """Encodes the audio corpus `args.source` into a token corpus."""
    terminal.apply_model_options(args)
    terminal.require_extra("train")
    from mgjax.data import tokenize

    with terminal.progress_of_pieces("tokenize") as progress:
        options = {name: getattr(args, name) for name in ("channels", "tokenizer", *_WORK)}
        melody = _melody(args.source, args.melody) if args.melody else None
        report = tokenize.tokenize(args.source, args.output, args.codec, melody=melody, progress=progress, **options)
    _print_report(args.output, report)


def _melody(source: Path, seconds: float) -> Any:
    """The config of the published chromagram at the sample rate of the corpus, with windows of about `seconds`."""
    from mgjax.config.conditioning import MelodyConfig
    from mgjax.data.description import read_description

    rate = read_description(source)[0].sample_rate
    size = 2 ** max(6, round(math.log2(seconds * rate)))
    return MelodyConfig(sample_rate=rate, fft_size=size, hop_length=size // 4)


def run_inspect(args: argparse.Namespace) -> None:
    """Prints a description of the corpus `args.corpus`."""
    terminal.require_extra("train")
    terminal.print_table(args.corpus, describe(args.corpus, args.examples))


def run_vocabulary(args: argparse.Namespace) -> None:
    """Learns a vocabulary from the texts of `args.corpora`."""
    terminal.require_extra("train")
    from mgjax.data import vocabulary
    from mgjax.data.corpus import Corpus

    corpora = [Corpus.open(directory) for directory in args.corpora]
    with terminal.progress_of_pieces("vocabulary") as progress:
        texts = vocabulary.texts_of(corpora, progress)
        size = vocabulary.train(texts, args.size, args.out, replace=args.force)
    fewer = f"; the texts do not hold {args.size}" if size < args.size else ""
    terminal.say(f"{size} pieces of text{fewer}")
    print(args.out)


def run_synthesize(args: argparse.Namespace) -> None:
    """Fills the folder `args.output` with music."""
    terminal.require_extra("synthetic")
    from mgjax import synthetic

    with terminal.progress("synthesize", args.hours * 3600) as update:
        options = {name: getattr(args, name) for name in ("seed", "sample_rate", "channels", "workers")}
        options |= {"lengths": tuple(args.lengths), "progress": lambda seconds, _: update(seconds)}
        synthetic.write_folder(args.output, args.hours, **options)
    print(args.output)


def describe(directory: Path, examples: int = 3) -> list[tuple[str, str]]:
    """The rows of the table that describes a corpus, with some `examples` of captions."""
    from mgjax.data.corpus import Corpus
    from mgjax.data.description import read_description

    description, splits = read_description(directory)
    corpora = {split: Corpus.open(directory, split) for split in splits}
    seconds = {split: corpus.lengths.sum() / corpus.rate for split, corpus in corpora.items()}
    train = next(iter(corpora.values()))
    pieces = np.unique(np.linspace(0, len(train) - 1, min(len(train), _INSPECTED)).round().astype(int)).tolist()
    captions = [train.metadata(piece).description for piece in pieces]
    lengths = train.lengths / train.rate
    lines = [
        ("kind", {"audio": "sound", "tokens": "codes"}[description.kind]),
        *((split, f"{len(corpora[split])} pieces, {_time(seconds[split])}") for split in splits),
        ("lengths", f"{lengths.min():.1f} to {lengths.max():.1f} s, half of them below {np.median(lengths):.1f} s"),
        ("sound", terminal.sound_format(description.sample_rate, description.channels)),
    ]
    if description.kind == "tokens":
        codebooks = f"{description.num_codebooks} codebooks of {description.codebook_size}"
        lines += [
            ("codes", f"{description.frame_rate:g} frames a second, {codebooks}"),
            ("codec", f"{description.codec_source} ({description.codec_hash})"),
            ("token ids", description.tokenizer or "none"),
            ("melodies", f"{description.melody.num_bins} pitch classes" if description.melody else "none"),
            *_usage(train, pieces),
        ]
    lines.append(("captions", f"{sum(map(bool, captions)) / len(captions):.0%} of {len(captions)} pieces have one"))
    shown = [(piece, caption) for piece, caption in zip(pieces, captions, strict=True) if caption][:examples]
    return lines + [(train.name(piece)[-14:], caption) for piece, caption in shown]


def _usage(corpus: Any, pieces: list[int]) -> Iterator[tuple[str, str]]:
    """The share of used codes and the entropy of each codebook, over some pieces."""
    counts = np.zeros((corpus.width, corpus.codebook_size), np.int64)
    for piece in pieces:
        codes = corpus.read(piece)
        for k in range(corpus.width):
            counts[k] += np.bincount(codes[:, k], minlength=corpus.codebook_size)
    most = np.log2(corpus.codebook_size)
    for k, row in enumerate(counts):
        share = row[row > 0] / row.sum()
        entropy = max(0.0, float(-(share * np.log2(share)).sum()))
        yield f"codebook {k + 1}", f"{len(share) / len(row):.0%} of the codes used, {entropy:.2f} of {most:.2f} bits"


def _print_report(output: Path, report: Any) -> None:
    parts = [
        f"{count} {split} pieces ({_time(report.seconds[split])})" for split, count in report.pieces.items() if count
    ]
    skipped = f"; {len(report.skipped)} skipped, see {output / 'report.json'}" if report.skipped else ""
    terminal.say(" and ".join(parts) + skipped)
    print(output)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _fields(args: argparse.Namespace) -> Any:
    """The features of a dataset to use; None if none of the options is used."""
    from mgjax.data.datasets import Fields

    if not (args.audio_feature or args.source_rate or args.field):
        return None
    pairs = []
    for text in args.field:
        field, equals, feature = text.partition("=")
        if not equals:
            raise ValueError(f"--field {text}: expected FIELD=FEATURE, as in genre=label")
        pairs.append((field, feature))
    return Fields(args.audio_feature or "audio", args.source_rate, tuple(pairs))
