"""A corpus of sound, encoded into a corpus of codes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mgjax.checkpoints import hub, sources
from mgjax.codec.codec import Codec
from mgjax.conditioning import chroma
from mgjax.conditioning.text import Tokenizer
from mgjax.config.conditioning import MelodyConfig
from mgjax.data import assembly
from mgjax.data.assembly import Plan, Progress, Report
from mgjax.data.conditions import stored_melody
from mgjax.data.corpus import SPLITS, Corpus, Description, read_description
from mgjax.data.corpus_writing import Piece
from mgjax.errors import CorpusError

_BLOCK_SECONDS = 60.0
_MELODY_FRAMES = 256  # of a chromagram that are made at once


@dataclasses.dataclass(frozen=True)
class PieceSource:
    """A piece of a corpus of sound."""

    name: str
    split: str
    number: int


@dataclasses.dataclass(frozen=True)
class CodeMaker:
    """Makes pieces of codes out of pieces of sound.

    Attributes:
      directory: The corpus of sound.
      codec: Where the codec is.
      codec_hash: What it is, so that no worker takes another.
      channels: That are encoded.
      tokenizer: Where the tokenizer of the descriptions is; None for none.
      melody: The chromagrams that are kept beside the codes; None for none.
    """

    directory: str
    codec: str
    codec_hash: str
    channels: int
    tokenizer: str | None
    melody: MelodyConfig | None = None

    @contextlib.contextmanager
    def open(self, source: PieceSource, scratch: Path) -> Iterator[Piece]:
        """See `assembly.Maker`."""
        corpus = _corpus(self.directory, source.split)
        codec = _load(self.codec, self.channels)
        if codec.hash != self.codec_hash:
            raise CorpusError(f"the codec {self.codec} is not that which the work began with; leave it as it is")
        pieces = codec.encode_blocks(_blocks(corpus, source.number), one_size=True)
        codes = np.concatenate([piece[0].astype(np.uint16) for piece in pieces])
        metadata = corpus.metadata(source.number)
        ids = None
        if self.tokenizer is not None:
            found, mask = _tokenizer(self.tokenizer).encode([metadata.description])
            ids = found[0, mask[0]]
        melody = None if self.melody is None else strengths(corpus, source.number, self.melody)
        yield Piece(corpus.name(source.number), metadata, codes, ids, melody)


def tokenize(
    audio_corpus: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    codec_source: str,
    *,
    channels: int | None = None,
    tokenizer: str | None = None,
    melody: MelodyConfig | None = None,
    workers: int = 1,
    replace: bool = False,
    beam_options: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Makes a token corpus in `directory` of the audio corpus, with its splits and its metadata.

    An interrupted run goes on where it was when it is called again. Each worker loads the codec once and compiles a few
    programs. A GPU serves one worker best; a TPU serves no more than one.

    Args:
      audio_corpus: What `build` made.
      directory: Where to; made if missing.
      codec_source: Where the codec is: a directory, or the id of a repository on the Hugging Face Hub.
      channels: That are encoded; None: those of the sound. With a mono codec, 2 interleaves the codebooks of left and
        right (left 1, right 1, left 2, ...).
      tokenizer: The directory or Hub id of a T5 (or of a model with one), or "bytes": token ids of the descriptions
        are kept beside them. None: the descriptions are kept as text only.
      melody: Of the chromagrams of the sound (mixed down), which are kept beside the codes for melody models; None for
        none. Of each frame all strengths are kept, so that they serve for "dominant" as for "none".
      workers, replace, beam_options, progress: See `assembly.assemble`.

    Raises:
      CorpusError: There is no audio corpus, or the codec cannot encode it.
      CheckpointError: There is no codec, or no tokenizer.
      FileExistsError: There is something else in `directory`.
    """
    sound, splits = read_description(audio_corpus)
    if sound.kind != "audio":
        raise CorpusError(f"{os.fspath(audio_corpus)}: holds codes already; give a corpus of sound")
    channels = channels or sound.channels
    if os.path.isdir(codec_source):
        codec_source = os.path.abspath(codec_source)  # to be found again from elsewhere
    codec = _load(codec_source, channels)
    if codec.sample_rate != sound.sample_rate:
        raise CorpusError(
            f"{os.fspath(audio_corpus)}: has {sound.sample_rate} Hz, but {codec_source} takes {codec.sample_rate} Hz; "
            f"build the corpus with --sample-rate {codec.sample_rate}"
        )
    if codec.config.chunk_seconds is not None:
        raise CorpusError(
            f"{codec_source}: codes chunks apart, each with its loudness, which a language model cannot be trained on; "
            "give another codec"
        )
    if melody is not None:
        melody = stored_melody(melody)
        if melody.sample_rate != sound.sample_rate:
            raise CorpusError(
                f"{os.fspath(audio_corpus)}: has {sound.sample_rate} Hz, but the melody is of {melody.sample_rate} Hz; "
                f"set its sample_rate to {sound.sample_rate}"
            )
    if tokenizer is not None:
        _tokenizer(tokenizer)  # what is wrong with it shows now
    description = Description(
        "tokens",
        sample_rate=sound.sample_rate,
        channels=channels,
        frame_rate=float(codec.frame_rate),
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        codec_source=codec_source,
        codec_hash=codec.hash,
        tokenizer=tokenizer,
        melody=melody,
    )
    maker = CodeMaker(os.path.abspath(audio_corpus), codec_source, codec.hash, channels, tokenizer, melody)
    shards = {split: _shards(Corpus.open(audio_corpus, split)) if split in splits else [] for split in SPLITS}
    files = [
        Path(audio_corpus, name).read_bytes() for name in ("corpus.json", *(f"index-{split}.npz" for split in splits))
    ]
    settings = {**dataclasses.asdict(maker), "sound": hashlib.sha256(b"".join(files)).hexdigest()[:12]}
    return assembly.assemble(
        Path(directory),
        Plan(description, maker, shards, settings),
        workers=workers,
        max_bad=0.0,
        replace=replace,
        beam_options=beam_options,
        progress=progress,
    )


def strengths(corpus: Corpus, number: int, config: MelodyConfig) -> Float32[np.ndarray, "f p"]:
    """The chromagram of a piece of sound, as `chroma.chromagram` gives it of the whole piece.

    It is made of stretches of one length, so that one program serves pieces of all lengths.
    """
    hop, num_samples = config.hop_length, int(corpus.lengths[number])
    if num_samples <= config.fft_size:
        return np.asarray(chroma.chromagram(_mono(corpus, number, 0, num_samples)[None], config))[0]
    margin = -(-config.fft_size // (2 * hop))  # frames at either end of a stretch, whose windows reach beyond it
    num_frames, found = chroma.length(num_samples, config), []
    for first in range(0, num_frames, _MELODY_FRAMES):
        # Mirrored at the ends of the piece, as the chromagram of the whole is.
        places = np.abs(np.arange(-margin * hop, (_MELODY_FRAMES + margin) * hop) + first * hop)
        places = np.maximum(num_samples - 1 - np.abs(num_samples - 1 - places), 0)
        low, high = int(places.min()), int(places.max()) + 1
        stretch = _mono(corpus, number, low, high - low)[places - low]
        found.append(np.asarray(chroma.chromagram(stretch[None], config))[0, margin : margin + _MELODY_FRAMES])
    return np.concatenate(found)[:num_frames]


def _mono(corpus: Corpus, number: int, start: int, length: int) -> Float32[np.ndarray, "n"]:
    return corpus.read(number, start, length).mean(axis=1)


@functools.lru_cache(maxsize=1)
def _load(codec_source: str, channels: int) -> Codec:
    """The codec, once in each process, so that its programs are compiled once."""
    config, variables = sources.read_codec(codec_source)
    return Codec(config, variables, channels)


@functools.lru_cache(maxsize=1)
def _tokenizer(source: str) -> Tokenizer:
    if source == "bytes":
        return Tokenizer.bytes()
    return Tokenizer.from_directory(hub.fetch(source))


@functools.lru_cache(maxsize=2)
def _corpus(directory: str, split: str) -> Corpus:
    return Corpus.open(directory, split)


def _blocks(corpus: Corpus, number: int) -> Iterator[Float32[np.ndarray, "n c"]]:
    """The sound of a piece, block by block."""
    size = round(_BLOCK_SECONDS * corpus.sample_rate)
    for start in range(0, int(corpus.lengths[number]), size):
        yield corpus.read(number, start, size)


def _shards(corpus: Corpus) -> list[list[PieceSource]]:
    """The pieces of each shard, in which they stay."""
    return [
        [PieceSource(f"{corpus.split}/{number}", corpus.split, number) for number in numbers]
        for numbers in corpus.shards()
    ]
