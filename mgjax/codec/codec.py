"""The codec as its users hold it: numpy audio in, numpy codes out, of any length."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float32, Int, Int32

from mgjax.audio import waveform
from mgjax.codec import chunks, layers, stream, weight_norm
from mgjax.codec.chunks import Chunks
from mgjax.codec.encodec import EncodecModel
from mgjax.config.model import CodecConfig
from mgjax.config.serialization import to_json
from mgjax.devices import sharding
from mgjax.errors import NotFiniteError
from mgjax.inputs import arguments
from mgjax.nn import apply, why_not_finite

Audio = Any  # [n], [n, c] or [b, n, c], of numpy, JAX or torch, or a list of rows
Codes = Int[np.ndarray | jax.Array, "..."]  # [b, t, k]

_MOST_FRAMES = 512  # that are coded at once; a longer signal goes through windows
_WINDOW_FRAMES = 256


@functools.partial(jax.jit, static_argnames=("config", "method", "options"))
def _apply(
    config: CodecConfig, method: str, variables: dict[str, Any], *inputs: Any, options: tuple[tuple[str, Any], ...] = ()
) -> Any:
    # Full float32 products: a code is a hard decision, and accelerators round to fewer bits by default.
    with jax.default_matmul_precision("highest"):
        return apply(EncodecModel(config), variables, *inputs, **dict(options), method=method)


class Codec:
    """EnCodec with its weights: audio to codes and back.

    A codec with fewer channels than `channels` codes groups of channels apart, as the stereo models do with the mono
    codec: left and right each have their own codes, interleaved (left 1, right 1, left 2, ...).

    Attributes:
      config: The codec's config.
      folded_config: The same with weight norm folded into the kernels; `variables` are of this form.
      variables: The weights, `{"params", "codebooks"}` of `EncodecModel(folded_config)`.
      channels: Of the audio.
    """

    def __init__(self, config: CodecConfig, variables: Mapping[str, Any], channels: int | None = None):
        """Takes variables of `EncodecModel(config)`; raises ValueError where `channels` or chunks do not fit it."""
        self.config = config
        self.channels = channels or config.channels
        self._groups = self.channels // config.channels
        if self.channels % config.channels:
            raise ValueError(f"{self.channels} channels cannot be coded by a codec of {config.channels}")
        self._layout = None if config.chunk_seconds is None else chunks.ChunkLayout.of(config)
        if config.normalize and self._layout is None:
            raise ValueError("a codec that renormalises (normalize) needs the length of its chunks (chunk_seconds)")
        if self._layout and self._groups > 1:
            raise ValueError(f"a codec that codes chunks apart codes its own {config.channels} channels only")
        # Folded once: the runtime would otherwise normalise every kernel in every call.
        self.folded_config, params = weight_norm.fold(config, variables["params"])
        self.variables = jax.device_put({"params": params, "codebooks": dict(variables["codebooks"])})

    @property
    def sample_rate(self) -> int:
        """Of the audio, in hertz."""
        return self.config.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.config.frame_rate

    @property
    def hop_length(self) -> int:
        """Audio samples per frame of codes."""
        return self.config.hop_length

    @property
    def num_codebooks(self) -> int:
        """Codes per frame, over all channels."""
        return self.config.num_codebooks * self._groups

    @property
    def codebook_size(self) -> int:
        """The number of different codes of a codebook."""
        return self.config.codebook_size

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that tell codecs apart, of the config and the codebooks."""
        codebooks = np.asarray(self.variables["codebooks"]["embed"])
        return hashlib.sha256(to_json(self.folded_config).encode() + codebooks.tobytes()).hexdigest()[:12]

    def encode(
        self, audio: Audio, sample_rate: float | None = None, bandwidth: float | None = None
    ) -> Int32[np.ndarray, "b t k"] | Chunks:
        """The codes of `audio`, ceil(n / hop_length) frames; as `Chunks` where the codec codes chunks apart.

        Args:
          audio: [n], [n, c], [b, n, c] or a list of rows of one length, from -1 to 1. Other channels than the codec's
            are converted as `mgjax.audio.waveform.to_channels` does.
          sample_rate: Of `audio`, in hertz; it is resampled if the codec's differs. None: it has the codec's.
          bandwidth: In kilobits per second, one of the codec's; a lower one uses fewer codebooks. None: all of them.

        Raises:
          ValueError: The audio is empty, not finite, or of another shape.
          NotFiniteError: The weights give NaN or infinity.
        """
        audio = self._batched(audio, set())
        if sample_rate is not None and (sample_rate := arguments.rate(sample_rate)) != self.sample_rate:
            audio = np.stack([waveform.resample(row, sample_rate, self.sample_rate) for row in audio])
        rows, num_codebooks = self._rows(audio), self.config.codebooks_for(bandwidth)
        frames = -(-audio.shape[1] // self.hop_length)
        if self._layout:
            return chunks.merge(self._encode_chunks(self._layout, [rows], num_codebooks))
        if frames > _MOST_FRAMES:
            return np.concatenate(list(self._encode_windows([rows], num_codebooks)), axis=1)
        return self._interleaved(self._encode_whole(rows, frames, num_codebooks))

    def decode(self, codes: Codes | Chunks, num_samples: int | None = None) -> Float32[np.ndarray, "b n c"]:
        """The audio of `codes`: frames * hop_length samples, or the first `num_samples` of them.

        `codes` may hold fewer codebooks than the codec has: the first ones.

        Raises:
          ValueError: The codes have another shape or are out of range.
          NotFiniteError: The weights give NaN or infinity.
        """
        if num_samples is not None and not (arguments.is_whole(num_samples) and num_samples >= 0):
            raise ValueError(f"num_samples must be a whole number, 0 or above, got {arguments.shown(num_samples)}")
        shape = () if isinstance(codes, Chunks) else np.shape(codes)
        if self._layout or len(shape) != 3 or not 0 < shape[1] <= _MOST_FRAMES:
            audio = np.concatenate(list(self.decode_blocks([codes])), axis=1)
        else:
            audio = self._joined(self._decode_whole(self._code_rows(codes)))
        return audio if num_samples is None else audio[:, :num_samples]

    def encode_blocks(
        self, blocks: Iterable[Audio], bandwidth: float | None = None, *, one_size: bool = False
    ) -> Iterator[Int32[np.ndarray, "b t k"] | Chunks]:
        """The codes of audio that arrives in blocks of any length, at the codec's rate; in bounded memory.

        Joined, they are what `encode` gives for the blocks joined. With `one_size`, the same three programs serve audio
        of every length, where else dozens are compiled: for many pieces, at some waste at the end of each.
        """
        num_codebooks, rows = self.config.codebooks_for(bandwidth), self._checked_rows(blocks)
        if self._layout:
            yield from self._encode_chunks(self._layout, rows, num_codebooks)
        else:
            yield from self._encode_windows(rows, num_codebooks, one_size)

    def decode_blocks(self, blocks: Iterable[Codes | Chunks]) -> Iterator[Float32[np.ndarray, "b n c"]]:
        """The audio of codes that arrive in blocks of any number of frames; in bounded memory.

        Joined, it is what `decode` gives for the blocks joined. Each piece is yielded as soon as its receptive field is
        complete.
        """
        if self._layout:
            yield from chunks.overlap_add(self._decode_chunks(self._layout, blocks))
            return
        rows = _checked_blocks(map(self._code_rows, blocks), "there are no codes to decode: they have 0 frames")
        for audio in self._streamed("decoder", layers.decoder(self.config), rows):
            yield self._joined(audio)

    def _streamed(
        self, name: str, half: layers.Half, rows: Iterable[np.ndarray], one_size: bool = False, **options: Any
    ) -> Iterator[np.ndarray]:
        """The three stages of the encoder or the decoder over blocks of rows; `options` are those of the last one."""
        if self.config.norm == "time_group_norm":
            raise ValueError("this codec normalises over the whole signal: it cannot code blocks of it, or a long one")

        def windows(stage: str, part: Sequence[layers.Layer], rows: Iterable[np.ndarray], **options: Any) -> Any:
            run = functools.partial(self._run, stage, half=name, **options)
            return stream.windowed(run, stream.receptive_field(self.config, part), _WINDOW_FRAMES, rows, one_size)

        before = windows("before", half.before, rows)
        run, num_layers = functools.partial(self._run, "recur", half=name), self.config.num_lstm_layers
        recurred = stream.recurrent(run, num_layers, _WINDOW_FRAMES, before, one_size)
        yield from windows("after", half.after, recurred, **options)

    def _run(self, method: str, x: np.ndarray, length: int, *inputs: Any, **options: Any) -> Any:
        """A method of the module, with its rows spread over the devices that the weights are on."""
        where = self.variables["codebooks"]["embed"].sharding
        if isinstance(where, NamedSharding):  # else each device would do all of the work
            x = jax.device_put(x, sharding.rows(len(x), where.mesh))
        inputs = (x, np.int32(length), *inputs)
        return _apply(self.folded_config, method, self.variables, *inputs, options=tuple(options.items()))

    def _encode_whole(self, rows: np.ndarray, frames: int, num_codebooks: int) -> np.ndarray:
        buffer = stream.padded(rows, stream.bucket(frames) * self.hop_length)
        return np.asarray(self._run("encode", buffer, rows.shape[1], num_codebooks=num_codebooks))[:, :frames]

    def _decode_whole(self, rows: np.ndarray) -> np.ndarray:
        buffer = stream.padded(rows, stream.bucket(rows.shape[1]))
        return np.asarray(self._run("decode", buffer, rows.shape[1]))[:, : rows.shape[1] * self.hop_length]

    def _encode_windows(
        self, rows: Iterable[np.ndarray], num_codebooks: int, one_size: bool = False
    ) -> Iterator[Int32[np.ndarray, "b t k"]]:
        half = layers.encoder(self.config)
        for codes in self._streamed("encoder", half, rows, one_size, num_codebooks=num_codebooks):
            yield self._interleaved(codes)

    def _encode_chunks(
        self, layout: chunks.ChunkLayout, rows: Iterable[np.ndarray], num_codebooks: int
    ) -> Iterator[Chunks]:
        for chunk, ahead in chunks.split(rows, layout):
            scale = chunks.volume(chunk) if self.config.normalize else np.ones(chunk.shape[0], np.float32)
            frames = -(-chunk.shape[1] // self.hop_length)
            codes = self._encode_whole(chunk / scale[:, None, None], frames, num_codebooks)
            yield Chunks(codes[:, None], scale[:, None], ahead)

    def _decode_chunks(
        self, layout: chunks.ChunkLayout, blocks: Iterable[Codes | Chunks]
    ) -> Iterator[tuple[np.ndarray, int]]:
        def checked() -> Iterator[Chunks]:
            for block in blocks:
                if not isinstance(block, Chunks):
                    raise ValueError("this codec codes chunks apart: decode what encode returned, not codes alone")
                b, count, t, k = block.codes.shape
                self._code_rows(block.codes.reshape(b, count * t, k))
                yield block

        for codes, scale, ahead in chunks.unpadded(checked(), layout):
            audio = self._decode_whole(codes) * scale[:, None, None]
            self._check_finite(np.isfinite(audio), "decoder")
            yield audio, ahead

    def _check_finite(self, is_finite: np.ndarray, part: str) -> None:
        """Raises NotFiniteError unless the output of a part of the codec `is_finite` everywhere."""
        if not is_finite.all():
            rows = sorted(set(np.nonzero(~is_finite)[0] // self._groups))
            raise NotFiniteError(
                f"what the codec's {part} gives is not finite in row {', '.join(map(str, rows))}: "
                f"{why_not_finite({'codec': self.variables})}"
            )

    def _checked_rows(self, blocks: Iterable[Audio]) -> Iterator[Float32[np.ndarray, "b n c"]]:
        """The blocks of audio that are not empty, as `_rows`."""
        warned: set[str] = set()
        arrays = (arguments.array(block, "audio") for block in blocks)
        rows = (self._rows(self._batched(block, warned)) for block in arrays if block.size)
        return _checked_blocks(rows, "there is no audio to encode: it has 0 samples")

    def _batched(self, audio: Audio, warned: set[str]) -> Float32[np.ndarray, "b n c"]:
        """`audio` in the codec's channels, checked; `warned` as for `waveform.check`."""
        rows = [waveform.check(row, "audio", warned) for row in arguments.rows(audio, "audio")]
        rows = [waveform.to_channels(row, self.channels, "audio", warned) for row in rows]
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"the rows of a batch must be of one length, got {[len(row) for row in rows]} samples")
        return np.stack(rows)

    def _rows(self, audio: np.ndarray) -> np.ndarray:
        """[b, n, c] to [b * groups, n, channels of the codec]."""
        b, n, _ = audio.shape
        c = self.config.channels
        return np.moveaxis(audio.reshape(b, n, self._groups, c), 2, 1).reshape(b * self._groups, n, c)

    def _joined(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `_rows`."""
        self._check_finite(np.isfinite(rows), "decoder")
        _, n, c = rows.shape
        return np.moveaxis(rows.reshape(-1, self._groups, n, c), 1, 2).reshape(-1, n, self.channels)

    def _interleaved(self, codes: np.ndarray) -> np.ndarray:
        """[b * groups, t, k] to [b, t, k * groups]."""
        self._check_finite(codes >= 0, "encoder")
        _, t, k = codes.shape
        return np.moveaxis(codes.reshape(-1, self._groups, t, k), 1, 3).reshape(-1, t, k * self._groups)

    def _code_rows(self, codes: Any) -> Int32[np.ndarray, "r t k"]:
        """The inverse of `_interleaved`, of codes that are checked first."""
        codes = arguments.array(codes, "codes")
        if codes.ndim != 3 or not codes.shape[0] or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"codes must be whole numbers of shape [b, t, k], got {codes.dtype} {list(codes.shape)}")
        b, t, k = codes.shape
        if not 0 < k <= self.num_codebooks or k % self._groups:
            raise ValueError(f"the codec has {self.num_codebooks} codebooks, the codes come from {k}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codebook_size:
            raise ValueError(
                f"codes must be from 0 to {self.codebook_size - 1}, got {codes.min()} to {codes.max()}: "
                "are they another model's, or special tokens?"
            )
        each = k // self._groups
        rows = np.moveaxis(codes.reshape(b, t, each, self._groups), 3, 1)
        return rows.reshape(b * self._groups, t, each).astype(np.int32)


def _checked_blocks(blocks: Iterable[np.ndarray], if_empty: str) -> Iterator[np.ndarray]:
    """The blocks that are not empty, alike but for their length; ValueError `if_empty` where there are none."""
    first = None
    for block in blocks:
        if block.shape[1]:
            first = block if first is None else first
            if (len(block), *block.shape[2:]) != (len(first), *first.shape[2:]):
                raise ValueError(f"blocks must be alike but for their length, got {first.shape} and {block.shape}")
            yield block
    if first is None:
        raise ValueError(if_empty)
