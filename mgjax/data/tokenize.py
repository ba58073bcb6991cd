"""Encodes an audio corpus into a token corpus."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from mgjax.checkpoints import hub, sources
from mgjax.codec.codec import Codec
from mgjax.conditioning import chroma
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.config.conditioning import MelodyConfig
from mgjax.data import assembly
from mgjax.data.assembly import Plan, Progress, Report
from mgjax.data.conditions import stored_melody
from mgjax.data.corpus import Corpus
from mgjax.data.corpus_writing import Piece
from mgjax.data.description import SPLITS, Description, read_description
from mgjax.errors import CorpusError
from mgjax.storage import paths

_BLOCK_SECONDS = 60.0
_MELODY_FRAMES = 256  # of a chromagram that are computed at once


@dataclasses.dataclass(frozen=True)
class PieceSource:
    """A piece of an audio corpus."""

    name: str
    split: str
    number: int


@dataclasses.dataclass(frozen=True)
class CodeMaker:
    """Makes pieces of codes out of audio pieces, as an `assembly.Maker`."""

    directory: str  # the audio corpus
    codec: str
    codec_hash: str  # so that no worker uses another codec
    channels: int
    tokenizer: str | None
    melody: MelodyConfig | None = None

    @contextlib.contextmanager
    def open(self, source: PieceSource, scratch: pathlib.Path) -> Iterator[Piece]:
        """As `assembly.Maker.open`."""
        corpus = _corpus(self.directory, source.split)
        codec = _load(self.codec, self.channels)
        if codec.hash != self.codec_hash:
            raise CorpusError(f"the codec {self.codec} is not that which the work began with; leave it as it is")
        blocks = codec.encode_blocks(_blocks(corpus, source.number), one_size=True)
        codes = np.concatenate([np.asarray(block)[0].astype(np.uint16) for block in blocks])
        metadata = corpus.metadata(source.number)
        text_ids = None
        if self.tokenizer is not None:
            ids, mask = _tokenizer(self.tokenizer).encode([metadata.description])
            text_ids = ids[0, mask[0]]
        melody = None if self.melody is None else chromagram(corpus, source.number, self.melody)
        yield Piece(corpus.name(source.number), metadata, codes, text_ids, melody)


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
    """Encodes an audio corpus into a token corpus in `directory`, with the same splits and metadata.

    Called again, an interrupted run goes on. Each worker loads the codec once and compiles a few programs. On a GPU,
    use one worker; on a TPU, more are not possible.

    Args:
      audio_corpus: The folder of an audio corpus.
      directory: The folder of the token corpus, which is created if missing.
      codec_source: The codec: a directory or Hub id of a codec or a model.
      channels: The number of channels to encode; None for those of the audio. With a mono codec, 2 interleaves the
        codebooks of left and right (left 1, right 1, left 2, ...).
      tokenizer: The directory or Hub id of a T5 (or of a model with one), or "bytes", to store token ids of the
        descriptions too; None for none.
      melody: The config of chromagrams of the audio (mixed down) to store for melody models; None for none. The values
        of all pitch classes are stored, so that they serve the bottlenecks "dominant" and "none".
      workers: As for `assembly.assemble`.
      replace: As for `assembly.assemble`.
      beam_options: As for `assembly.assemble`.
      progress: As for `assembly.assemble`.

    Raises:
      CorpusError: There is no audio corpus, or the codec cannot encode it.
      CheckpointError: There is no codec, or no tokenizer.
      FileExistsError: There is something else in `directory`.
    """
    audio, splits = read_description(audio_corpus)
    if audio.kind != "audio":
        raise CorpusError(f"{os.fspath(audio_corpus)}: holds codes already; give a corpus of sound")
    channels = channels or audio.channels
    if paths.is_remote(codec_source) or os.path.isdir(codec_source):
        codec_source = paths.absolute(codec_source)  # workers may run in other folders
    codec = _load(codec_source, channels)
    if codec.sample_rate != audio.sample_rate:
        raise CorpusError(
            f"{os.fspath(audio_corpus)}: has {audio.sample_rate} Hz, but {codec_source} takes {codec.sample_rate} Hz; "
            f"build the corpus with --sample-rate {codec.sample_rate}"
        )
    if codec.config.chunk_seconds is not None:
        raise CorpusError(
            f"{codec_source}: codes chunks apart, each with its loudness, which a language model cannot be trained on; "
            "give another codec"
        )
    if melody is not None:
        melody = stored_melody(melody)
        if melody.sample_rate != audio.sample_rate:
            raise CorpusError(
                f"{os.fspath(audio_corpus)}: has {audio.sample_rate} Hz, but the melody is of {melody.sample_rate} Hz; "
                f"set its sample_rate to {audio.sample_rate}"
            )
    if tokenizer is not None:
        _tokenizer(tokenizer)  # raises its errors now
    description = Description(
        "tokens",
        sample_rate=audio.sample_rate,
        channels=channels,
        frame_rate=float(codec.frame_rate),
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        codec_source=codec_source,
        codec_hash=codec.hash,
        tokenizer=tokenizer,
        melody=melody,
    )
    maker = CodeMaker(paths.absolute(audio_corpus), codec_source, codec.hash, channels, tokenizer, melody)
    shards = {split: _shards(Corpus.open(audio_corpus, split)) if split in splits else [] for split in SPLITS}
    files = [
        paths.path(audio_corpus, name).read_bytes()
        for name in ("corpus.json", *(f"index-{split}.npz" for split in splits))
    ]
    settings = {**dataclasses.asdict(maker), "sound": hashlib.sha256(b"".join(files)).hexdigest()[:12]}
    return assembly.assemble(
        paths.path(directory),
        Plan(description, maker, shards, settings),
        workers=workers,
        max_bad=0.0,
        replace=replace,
        beam_options=beam_options,
        progress=progress,
    )


def chromagram(corpus: Corpus, number: int, config: MelodyConfig) -> Float32[np.ndarray, "f p"]:
    """The chromagram of a whole audio piece, equal to `chroma.chromagram` of its samples.

    It is computed in blocks of one length, so that one program serves pieces of all lengths.
    """
    hop, num_samples = config.hop_length, int(corpus.lengths[number])
    if num_samples <= config.fft_size:
        return np.asarray(chroma.chromagram(_mono(corpus, number, 0, num_samples)[None], config))[0]
    margin = -(-config.fft_size // (2 * hop))  # frames at both ends of a block whose windows exceed it
    num_frames, frames = chroma.length(num_samples, config), []
    for first in range(0, num_frames, _MELODY_FRAMES):
        # Reflected at the ends of the piece, as by `chroma.chromagram`.
        indices = np.abs(np.arange(-margin * hop, (_MELODY_FRAMES + margin) * hop) + first * hop)
        indices = np.maximum(num_samples - 1 - np.abs(num_samples - 1 - indices), 0)
        low, high = int(indices.min()), int(indices.max()) + 1
        block = _mono(corpus, number, low, high - low)[indices - low]
        frames.append(np.asarray(chroma.chromagram(block[None], config))[0, margin : margin + _MELODY_FRAMES])
    return np.concatenate(frames)[:num_frames]


def _mono(corpus: Corpus, number: int, start: int, length: int) -> Float32[np.ndarray, "n"]:
    return corpus.read(number, start, length).mean(axis=1)


@functools.lru_cache(maxsize=1)
def _load(codec_source: str, channels: int) -> Codec:
    """The codec, cached in each process so that its programs are compiled once."""
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
    """The audio of a piece in blocks of a minute."""
    size = round(_BLOCK_SECONDS * corpus.sample_rate)
    for start in range(0, int(corpus.lengths[number]), size):
        yield corpus.read(number, start, size)


def _shards(corpus: Corpus) -> list[list[PieceSource]]:
    """The pieces of each shard; a token corpus has the same shards."""
    return [
        [PieceSource(f"{corpus.split}/{number}", corpus.split, number) for number in numbers]
        for numbers in corpus.shards()
    ]
