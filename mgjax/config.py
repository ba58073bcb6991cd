"""What a model is: frozen dataclasses that are written as JSON into every checkpoint.

A run (batch size, learning rate, paths) is described by the ml_collections configs in `configs/`; a model is
described here. Unknown keys and wrong types are errors, so that a checkpoint of a newer version never loads
half understood.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any


class ConfigError(ValueError):
    """A configuration that does not describe a model that can be built."""


PATTERNS = ("delay", "parallel", "flattened", "coarse_first", "musiclm")  # made by lm/pattern.py


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """EnCodec (Défossez et al. 2022): SEANet encoder and decoder around a residual vector quantizer.

    The defaults are `facebook/encodec_32khz`, the codec of MusicGen. Rates are in hertz, `bandwidths` in kilobits
    a second, `ratios` in the order of the decoder.
    """

    sample_rate: int = 32_000
    channels: int = 1
    num_filters: int = 64
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_growth: int = 2
    compress: int = 2
    num_lstm_layers: int = 2
    latent_dim: int = 128
    num_codebooks: int = 4
    codebook_size: int = 2048
    causal: bool = False
    norm: str = "weight_norm"  # "weight_norm", "time_group_norm", or "none" (weight norm folded into the kernels)
    pad_mode: str = "reflect"  # "reflect" or "constant"
    trim_right_ratio: float = 1.0
    conv_shortcut: bool = False  # residual blocks add a 1x1 convolution of their input, not the input itself
    normalize: bool = False  # each chunk is divided by its loudness, which is coded beside it
    chunk_seconds: float | None = None  # chunks that are coded apart, for codecs that renormalise
    chunk_overlap: float = 0.0  # the share of a chunk that the next one covers too
    bandwidths: tuple[float, ...] = (2.2,)

    def __post_init__(self):
        _one_of("norm", self.norm, ("weight_norm", "time_group_norm", "none"))
        _one_of("pad_mode", self.pad_mode, ("reflect", "constant"))
        _positive(self, "sample_rate", "channels", "num_filters", "latent_dim", "num_codebooks", "codebook_size")
        if not self.ratios or min(self.ratios) < 1:
            raise ConfigError(f"ratios must be one or more whole numbers above 0, got {self.ratios}")

    @property
    def hop_length(self) -> int:
        """Audio samples per frame of codes."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sample_rate / self.hop_length

    def codebooks_for(self, bandwidth: float | None) -> int:
        """The number of codebooks that fits in `bandwidth` kb/s (all of them for None)."""
        if bandwidth is None:
            return self.num_codebooks
        if not any(math.isclose(bandwidth, known) for known in self.bandwidths):
            raise ValueError(f"this codec has the bandwidths {self.bandwidths} kb/s, got {bandwidth}")
        bits_per_frame = math.log2(self.codebook_size)
        return int(max(1, math.floor(bandwidth * 1000 / (math.ceil(self.frame_rate) * bits_per_frame))))


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The encoder of T5 (Raffel et al. 2020). The defaults are t5-base; FLAN-T5 has `activation="gated-gelu"`."""

    vocab_size: int = 32_128
    dim: int = 768
    head_dim: int = 64
    ffn_dim: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    activation: str = "relu"  # "relu" (v1.0) or "gated-gelu" (v1.1, FLAN)

    def __post_init__(self):
        _one_of("activation", self.activation, ("relu", "gated-gelu"))
        _positive(self, "vocab_size", "dim", "head_dim", "ffn_dim", "num_layers", "num_heads")


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """The causal transformer over K streams of codes (Copet et al. 2023). The defaults are musicgen-small."""

    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_dim: int = 4096
    num_codebooks: int = 4
    codebook_size: int = 2048
    pattern: str = "delay"  # one of PATTERNS
    delays: tuple[int, ...] = (0, 1, 2, 3)
    text_dim: int | None = 768  # width of the text encoder's output; None: no text
    text_fuse: str = "cross"  # "cross" (cross-attention) or "prefix" (before the music, as in the melody models)
    num_chroma: int = 0  # pitch classes of the melody prefix; 0: no melody
    chroma_frames: int = 235  # length of the melody prefix

    def __post_init__(self):
        _one_of("text_fuse", self.text_fuse, ("cross", "prefix"))
        _positive(self, "dim", "num_layers", "num_heads", "ffn_dim", "num_codebooks", "codebook_size")
        _one_of("pattern", self.pattern, PATTERNS)
        if self.dim % self.num_heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.dim % 2 or self.dim < 4:
            raise ConfigError(f"dim must be even and at least 4, for its sines and cosines, got {self.dim}")
        if self.text_dim is not None and self.text_dim < 1:
            raise ConfigError(f"text_dim must be 1 or more, or None for no text, got {self.text_dim}")
        ascending = list(self.delays) == sorted(self.delays) and min(self.delays, default=0) >= 0
        if self.pattern == "delay" and (len(self.delays) != self.num_codebooks or not ascending):
            raise ConfigError(f"{self.num_codebooks} codebooks need as many delays, ascending, got {self.delays}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def special_token(self) -> int:
        """The id that stands where there is no code: before the start, and where the pattern leaves a gap."""
        return self.codebook_size

    @property
    def cross_attention(self) -> bool:
        return self.text_dim is not None and self.text_fuse == "cross"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How codes are drawn from the model's predictions.

    Attributes:
      temperature: Above 1 is wilder, below 1 is safer; 0 always takes the likeliest code (greedy).
      top_k: Draw only from the k likeliest codes; 0 for all. Ignored where top_p is set.
      top_p: Draw only from the likeliest codes that together hold this probability; 0 for off.
      guidance: How strongly the conditions steer (classifier-free guidance, Ho & Salimans 2022); 1 for off.
    """

    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    guidance: float = 3.0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if not isinstance(self.top_k, int) or not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must be a whole number, 0 (all codes) or above, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must be from 0 (off) to 1, got {self.top_p}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole system: language model, codec and text encoder.

    `channels` 2 is stereo by a mono codec on the left and the right channel, with the codebooks interleaved
    (left 1, right 1, left 2, ...). `window_seconds` is the longest stretch that the language model was trained on.
    """

    lm: LMConfig = dataclasses.field(default_factory=LMConfig)
    codec: CodecConfig = dataclasses.field(default_factory=CodecConfig)
    text: T5Config | None = dataclasses.field(default_factory=T5Config)
    channels: int = 1
    window_seconds: float = 30.0
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    tokenizer: str = "sentencepiece"  # "sentencepiece" (T5's, from the model's files) or "bytes" (needs no files)
    license: str = "unknown"

    def __post_init__(self):
        _one_of("tokenizer", self.tokenizer, ("sentencepiece", "bytes"))
        if self.channels % self.codec.channels:
            raise ConfigError(f"{self.channels} channels cannot be coded by a codec of {self.codec.channels}")
        streams = self.channels // self.codec.channels
        if self.lm.num_codebooks != streams * self.codec.num_codebooks:
            raise ConfigError(
                f"the language model writes {self.lm.num_codebooks} codebooks, but the codec reads "
                f"{streams} x {self.codec.num_codebooks}"
            )
        if self.lm.codebook_size != self.codec.codebook_size:
            raise ConfigError(
                f"the language model's codebooks hold {self.lm.codebook_size} codes, "
                f"the codec's {self.codec.codebook_size}"
            )
        if (self.lm.text_dim is None) != (self.text is None) or (self.text and self.text.dim != self.lm.text_dim):
            raise ConfigError(
                f"the language model reads text of width {self.lm.text_dim}, the text encoder gives "
                f"{self.text.dim if self.text else None}"
            )


def to_json(config: Any) -> str:
    """`config` (any dataclass of this file) as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """A `cls` from plain values, the inverse of `dataclasses.asdict`.

    Raises:
      ConfigError: A key is unknown or a value has the wrong type; the message names the path to it.
    """
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; known are {sorted(hints)}")
    try:
        return cls(**{name: _coerce(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {error}") from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` asks for; JSON knows neither tuples nor the difference of 2 and 2.0."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in options:
            return None
        return _coerce(next(option for option in options if option is not types.NoneType), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_coerce(options[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _one_of(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {choices}, got {value!r}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be 1 or more, got {getattr(config, name)}")
