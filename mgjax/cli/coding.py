"""`mgjax encode` and `mgjax decode`: sound files of any length to files of codes and back, in bounded memory."""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

import mgjax
from mgjax.audio import files as audio_files
from mgjax.cli import terminal
from mgjax.cli.options import add_model_options, command, file_path, option, positive
from mgjax.inputs import arrays, files
from mgjax.storage.paths import Path

_BLOCK_SECONDS = 10.0
_MOST_BYTES = 256 << 20  # of a file of codes, unpacked: some days of music
_MODEL_HELP = 'the model whose codec to use: "mini", "debug", a name on the Hugging Face Hub, or a folder'


class CodeFile(NamedTuple):
    """The content of a file of codes: a numpy .npz of these arrays.

    `codes` is `[t, k]`, or `[chunks, t, k]` with a scale for each chunk if the codec encodes chunks independently.
    """

    codes: np.ndarray
    num_samples: int
    sample_rate: int
    channels: int
    model: str
    codec_hash: str
    scales: np.ndarray | None


def add_commands(commands: Any) -> None:
    """Adds `encode` and `decode` to the commands of argparse."""
    description = "Writes the codes of a sound file, of any length, as numpy arrays."
    example = "example:\n  mgjax encode song.wav song.npz --model facebook/encodec_32khz"
    encode = command(commands, "encode", run_encode, "turn sound into codes", description, example)
    option(encode, "input SOUND", "a sound file (wav, flac, ogg, mp3, aiff ...), or a pipe", file_path)
    option(encode, "output CODES.npz", type=file_path)
    option(encode, "--model NAME|DIR", f"{_MODEL_HELP} (mini)", default="mini")
    option(encode, "--bandwidth KBPS", "one of the codec's, in kilobits a second (highest)", positive)

    description = "Writes the sound of a file of codes that mgjax encode made."
    example = "example:\n  mgjax decode song.npz again.wav"
    decode = command(commands, "decode", run_decode, "turn codes into sound", description, example)
    option(decode, "input CODES.npz", type=file_path)
    option(decode, "output SOUND", "a name that ends in .wav, .flac, .ogg or .mp3", file_path)
    option(decode, "--model NAME|DIR", f"{_MODEL_HELP} (the one that the file names)")
    for parser in (encode, decode):
        option(parser, "--force", "replace a file that is there already")
        add_model_options(parser)


def run_encode(args: argparse.Namespace) -> None:
    """Encodes `args.input` to `args.output`."""
    if args.output.suffix != ".npz":
        raise ValueError(f"{args.output}: codes are kept in .npz files; name it {args.output.with_suffix('.npz')}")
    terminal.claim([args.output], args.force)
    source = terminal.rereadable(args.input)
    sound = audio_files.info(source)
    terminal.apply_model_options(args)
    codec = mgjax.load_codec(args.model)
    if codec.channels < sound.channels == 2:  # audio_files.blocks warns about more
        warnings.warn(f"{args.input} has {sound.channels} channels; mixed down to {codec.channels}", stacklevel=2)
    num_samples = 0
    with terminal.progress("encode", sound.num_samples / sound.sample_rate) as update:

        def counted() -> Iterator[np.ndarray]:
            nonlocal num_samples
            for block in audio_files.blocks(source, _BLOCK_SECONDS, codec.sample_rate, codec.channels):
                num_samples += len(block)
                yield block
                update(num_samples / codec.sample_rate)

        dtype = np.min_scalar_type(codec.codebook_size - 1)
        codes, scales = _concatenated(codec.encode_blocks(counted(), args.bandwidth), dtype)
    sound_format = codec.sample_rate, codec.channels
    write_codes(args.output, CodeFile(codes, num_samples, *sound_format, args.model, codec.hash, scales))
    print(args.output)


def run_decode(args: argparse.Namespace) -> None:
    """Decodes `args.input` to `args.output`."""
    audio_files.writable_format(args.output)
    terminal.claim([args.output], args.force)
    file = read_codes(args.input)
    terminal.apply_model_options(args)
    codec = mgjax.load_codec(args.model or file.model)
    if file.codec_hash != codec.hash:
        changed = f"{args.input} was made by other weights ({file.model}, {file.codec_hash}); the sound will differ"
        warnings.warn(changed, stacklevel=2)
    if (file.sample_rate, file.channels) != (codec.sample_rate, codec.channels):
        raise ValueError(
            f"{args.input}: holds {file.channels} channel(s) at {file.sample_rate} Hz, but {args.model or file.model} "
            f"makes {codec.channels} at {codec.sample_rate} Hz; give the model that made it by --model"
        )
    if (file.scales is None) != (codec.config.chunk_seconds is None):
        raise ValueError(
            f"{args.input}: comes from another kind of codec than {args.model or file.model}, "
            f"{'one that codes everything in one' if file.scales is None else 'one that codes chunks apart'}"
        )
    if file.codes.min() < 0 or file.codes.max() >= codec.codebook_size:
        raise ValueError(f"{args.input}: codes must be from 0 to {codec.codebook_size - 1}; are they another model's?")
    missing = file.num_samples
    if missing > math.prod(file.codes.shape[:-1]) * codec.hop_length:
        raise ValueError(f"{args.input}: the codes end before the {missing} samples of sound that they should hold")
    with (
        terminal.progress("decode", file.num_samples / file.sample_rate) as update,
        audio_files.writer(args.output, codec.sample_rate, codec.channels) as sound,
    ):
        for piece in _decoded(args.input, file, codec):
            sound.write(piece[0, :missing])
            missing -= min(missing, piece.shape[1])
            update((file.num_samples - missing) / file.sample_rate)
    print(args.output)


def write_codes(path: Path, file: CodeFile) -> None:
    """Writes `file` to `path`, atomically."""
    with files.replacing(path) as output:
        np.savez_compressed(output, **{name: value for name, value in file._asdict().items() if value is not None})


def read_codes(path: Path) -> CodeFile:
    """Reads an untrusted file of codes; raises ValueError if it is something else, damaged or too large."""
    values = arrays.read_npz(path, CodeFile._fields, _MOST_BYTES)
    expected = set(CodeFile._fields)
    if set(values) | {"scales"} != expected:
        raise ValueError(f"{path}: is no file of codes; it holds {sorted(values)}, expected {sorted(expected)}")
    codes, scales = values["codes"], values.get("scales")
    numbers = [values[name] for name in ("num_samples", "sample_rate", "channels")]
    names = [values[name] for name in ("model", "codec_hash")]
    if not (
        np.issubdtype(codes.dtype, np.integer)
        and codes.ndim == (2 if scales is None else 3)
        and codes.size
        and (scales is None or (scales.shape == codes.shape[:1] and scales.dtype == np.float32))
        and (scales is None or np.isfinite(scales).all())
        and all(number.shape == () and np.issubdtype(number.dtype, np.integer) and number > 0 for number in numbers)
        and all(name.shape == () and name.dtype.kind == "U" for name in names)
    ):
        raise ValueError(f"{path}: is damaged: the arrays in it have the wrong shapes or types")
    (num_samples, sample_rate, channels), (model, codec_hash) = map(int, numbers), map(str, names)
    return CodeFile(codes, num_samples, sample_rate, channels, model, codec_hash, scales)


def _concatenated(blocks: Iterable[Any], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """The codes of one row as `dtype`, and the scales of a codec that encodes chunks independently."""
    from mgjax.codec import chunks

    blocks = list(blocks)
    if isinstance(blocks[0], chunks.Chunks):
        whole = chunks.merge(blocks)
        return whole.codes[0].astype(dtype), whole.scales[0]
    return np.concatenate([block[0].astype(dtype) for block in blocks]), None


def _decoded(path: Path, file: CodeFile, codec: Any) -> Iterator[np.ndarray]:
    """The audio of `file` in blocks; the codec's errors get the name of the file."""
    with terminal.errors_at(str(path)):
        yield from codec.decode_blocks(_blocks(file, codec))


def _blocks(file: CodeFile, codec: Any) -> Iterator[Any]:
    """The codes of `file` in blocks for `Codec.decode_blocks`."""
    from mgjax.codec import chunks

    if file.scales is None:
        frames = max(1, round(_BLOCK_SECONDS * codec.frame_rate))
        for start in range(0, len(file.codes), frames):
            yield file.codes[None, start : start + frames].astype(np.int32)
        return
    stride = chunks.ChunkLayout.of(codec.config).stride
    for i, (codes, scale) in enumerate(zip(file.codes, file.scales, strict=True)):
        samples = stride if i < len(file.codes) - 1 else file.num_samples - i * stride
        yield chunks.Chunks(codes[None, None].astype(np.int32), scale[None, None], samples)
