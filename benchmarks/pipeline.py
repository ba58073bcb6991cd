"""How fast the pipeline gives batches when nothing else runs, and whether its memory stays flat.

    python benchmarks/pipeline.py --minutes 60 --seconds 5

An audio and a token corpus of noise are written first: `--minutes` of mono at 32 kHz in pieces of three minutes, and as
much of it as 4 codebooks at 50 frames a second. They stay in the page cache, so this measures the pipeline and not the
disk. Memory is measured while as much audio as there is passes through in batches of 64 x 1 s.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mgjax.audio.metadata import Metadata
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.data import corpus_writing
from mgjax.data.conditions import BatchConditions
from mgjax.data.corpus import Corpus
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import Description, describe_audio, shard_path
from mgjax.data.pipeline import BatchIterator, DataConfig, batches
from mgjax.data.prompts import TextConfig

RATE, FRAME_RATE, PIECE_SECONDS = 32_000, 50, 180
METADATA = Metadata(
    description="A slow waltz on accordion with upright bass and brushes, recorded in a small room. Warm and sad.",
    key="A minor",
    bpm=84.0,
    moods=("warm", "sad"),
    keywords=("waltz", "acoustic", "slow"),
    instrument=("accordion", "bass", "drums"),
)
READERS = {
    "when asked": {"num_threads": 0},
    "2 threads": {"num_threads": 2},
    "4 threads": {"num_threads": 4},
    "2 processes": {"num_workers": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="music in each corpus (default: 60)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each speed is measured (default: 5)")
    args = parser.parse_args()

    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        audio, tokens = write(Path(directory), max(1, round(args.minutes * 60 / PIECE_SECONDS)))
        short = DataConfig(batch_size=64, segment_seconds=1.0)
        rows = {
            "audio 64 x 1 s": (audio, short, None),
            "audio 16 x 30 s": (audio, DataConfig(batch_size=16), None),
            "tokens 64 x 30 s": (tokens, DataConfig(batch_size=64), None),
            "tokens 64 x 30 s, texts": (tokens, DataConfig(batch_size=64), TextConfig(max_tokens=512)),
        }
        for (name, (corpus, config, text)), (reader, settings) in itertools.product(rows.items(), READERS.items()):
            iterator = read(corpus, dataclasses.replace(config, **settings), text)
            speed = batches_a_second(iterator, args.seconds)
            iterator.close()
            music = speed * config.batch_size * config.segment_seconds
            print(f"{name:24} {reader:12} {speed:8.1f} batches/s {music / 3600:8.2f} hours of music a second")
        for reader, settings in READERS.items():
            iterator = read(audio, dataclasses.replace(short, **settings), None)
            sizes = list(memory(iterator, args.minutes * 60))
            iterator.close()
            print(f"memory, {reader:12} MiB at each sixth: {' '.join(f'{size:.0f}' for size in sizes)}")


def write(directory: Path, num_pieces: int) -> tuple[Corpus, Corpus]:
    """An audio and a token corpus of noise."""
    rng = np.random.default_rng(0)
    blocks = [rng.uniform(-0.5, 0.5, (10 * RATE, 1)).astype(np.float32) for _ in range(4)]
    sounds = (Piece(f"{i}", METADATA, itertools.islice(itertools.cycle(blocks), 18)) for i in range(num_pieces))
    shape = PIECE_SECONDS * FRAME_RATE, 4
    codes = (Piece(f"{i}", METADATA, rng.integers(0, 2048, shape)) for i in range(num_pieces))
    description = Description("tokens", RATE, 1, frame_rate=float(FRAME_RATE), num_codebooks=4, codebook_size=2048)
    audio, tokens = directory / "audio", directory / "tokens"
    for folder, about, pieces in ((audio, describe_audio(RATE, 1), sounds), (tokens, description, codes)):
        folder.mkdir(parents=True)
        shard = corpus_writing.write_shard(shard_path(folder, about.kind, "train", 0, 1), about, pieces)
        corpus_writing.finish(folder, about, {"train": [shard]})
    return Corpus.open(audio), Corpus.open(tokens)


def read(corpus: Corpus, config: DataConfig, text: TextConfig | None) -> BatchIterator:
    return batches(corpus, config, seed=0, conditions=BatchConditions(text, Tokenizer.bytes().encode))


def batches_a_second(iterator: BatchIterator, seconds: float) -> float:
    """The speed once what was prefetched at the start is used up."""
    for _ in range(2 * DataConfig().prefetch):
        next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += 1
    return count / (time.perf_counter() - start)


def memory(iterator: BatchIterator, seconds: float) -> Iterator[float]:
    """The resident memory of this process in MiB at the start, and then six times while `seconds` of audio pass."""
    count = 0.0
    for sixth in range(7):
        while count < seconds * sixth / 6 or not count:
            count += next(iterator)["num_samples"].sum() / RATE
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        yield pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
