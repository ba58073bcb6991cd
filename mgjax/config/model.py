"""Configs of models: frozen dataclasses that are written as JSON into every checkpoint.

A run (batch size, learning rate, paths) is described by the presets of `mgjax.train.presets`. Unknown keys and wrong
types are errors, so that a checkpoint of a newer version is never misread.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from mgjax.config import conditioning
from mgjax.config.serialization import LONGEST, bounded, one_of
from mgjax.errors import ConfigError
from mgjax.inputs import arguments

PATTERNS = ("delay", "parallel", "flattened", "coarse_first", "musiclm")  # made by lm/pattern.py
_LONGEST_DELAY = 1000  # sequence steps or frames


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """EnCodec (Défossez et al. 2022): SEANet encoder and decoder around a residual vector quantizer.

    The defaults are `facebook/encodec_32khz`, the codec of MusicGen. Rates are in hertz, `bandwidths` in kilobits
    a second, `ratios` in the order of the decoder. `phases` is not in the paper: that many neighbouring samples are the
    channels of one step, which saves the layers at the highest rates, the slowest on a CPU.
    """

    sample_rate: int = 32_000
    channels: int = 1
    phases: int = 1
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
    normalize: bool = False  # each chunk is divided by its loudness, which is stored as its scale
    chunk_seconds: float | None = None  # the length of chunks that are coded independently; None for one chunk
    chunk_overlap: float = 0.0  # the share of a chunk that the next one overlaps
    bandwidths: tuple[float, ...] = (2.2,)

    def __post_init__(self) -> None:
        one_of("norm", self.norm, ("weight_norm", "time_group_norm", "none"))
        one_of("pad_mode", self.pad_mode, ("reflect", "constant"))
        bounded(self)
        if not self.ratios or not self.bandwidths:
            raise ConfigError("there must be one or more ratios and bandwidths")
        widest = max(self.num_filters * 2 ** len(self.ratios), self.dilation_growth**self.num_residual_layers)
        if widest > LONGEST or self.hop_length > LONGEST or self.compress > self.num_filters or self.codebook_size < 2:
            raise ConfigError(
                f"num_filters {self.num_filters}, ratios {self.ratios}, compress {self.compress}, dilation_growth "
                f"{self.dilation_growth} or codebook_size {self.codebook_size} make layers that cannot be built"
            )
        if self.chunk_seconds is not None and self.chunk_seconds * self.frame_rate < 1:
            raise ConfigError(f"chunk_seconds must be as long as a frame, got {self.chunk_seconds}")

    @property
    def hop_length(self) -> int:
        """Audio samples per frame of codes."""
        return self.phases * math.prod(self.ratios)

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sample_rate / self.hop_length

    def codebooks_for(self, bandwidth: float | None) -> int:
        """The number of codebooks that fits in `bandwidth` kb/s, one of `bandwidths` (all of them for None)."""
        if bandwidth is None:
            return self.num_codebooks
        if not any(math.isclose(bandwidth, known) for known in self.bandwidths):
            raise ValueError(f"this codec has the bandwidths {self.bandwidths} kb/s, got {bandwidth}")
        bits_per_frame = math.log2(self.codebook_size)
        return int(max(1, math.floor(bandwidth * 1000 / (math.ceil(self.frame_rate) * bits_per_frame))))


FUSES = ("cross", "prefix", "sum", "interpolate")


@dataclasses.dataclass(frozen=True)
class Fused:
    """How the language model fuses a condition, a sequence of vectors that is projected to the model's width.

    By `fuse` it is, "cross", attended to in every layer; "prefix", prepended to the sequence; "sum", one vector, added
    to every step; "interpolate", interpolated in time and added to the steps.
    """

    name: str  # "text", "melody", "style", "clap", or the name of a label or a number
    dim: int  # of the vectors
    fuse: str = "cross"

    def __post_init__(self) -> None:
        one_of("fuse", self.fuse, FUSES)
        bounded(self)


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """The causal transformer over K streams of codes (Copet et al. 2023). The defaults are musicgen-small."""

    dim: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_dim: int = 4096
    num_codebooks: int = 4
    codebook_size: int = 2048
    pattern: str = "delay"  # one of PATTERNS; lm/pattern.py explains the parameters that follow
    delays: tuple[int, ...] = (0, 1, 2, 3)  # of delay
    flatten_first: int = 0  # of delay
    empty_initial: int = 0  # of delay and parallel
    flattening: tuple[int, ...] = ()  # of flattened; empty for one codebook per step
    frame_delays: tuple[int, ...] = ()  # of flattened and coarse_first; empty for none
    group_by: int = 2  # of musiclm
    conditions: tuple[Fused, ...] = (Fused("text", 768),)  # prefixes are prepended in this order

    def __post_init__(self) -> None:
        bounded(self)
        one_of("pattern", self.pattern, PATTERNS)
        if self.dim % self.num_heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.dim % 2 or self.dim < 4:
            raise ConfigError(f"dim must be even and at least 4, for its sines and cosines, got {self.dim}")
        along = [condition.name for condition in self.conditions if condition.fuse == "interpolate"]
        if along and (self.pattern not in ("delay", "parallel") or self.flatten_first or self.empty_initial):
            raise ConfigError(
                f"conditions that go along with the music ({', '.join(along)}) need the pattern delay or parallel, in "
                f"which every step is one frame later than the one before, from the start; got {self.pattern}"
            )
        names = [condition.name for condition in self.conditions]
        if len(set(names)) != len(names):
            raise ConfigError(f"two conditions have one name: {names}")
        if self.pattern == "delay" and len(self.delays) != self.num_codebooks:
            raise ConfigError(f"{self.num_codebooks} codebooks need as many delays, got {self.delays}")
        delays = (*self.delays, *self.flattening, *self.frame_delays, self.flatten_first, self.empty_initial)
        if not 0 <= min(delays) <= max(delays) <= _LONGEST_DELAY:
            raise ConfigError(
                f"all numbers of the pattern {self.pattern} must be from 0 to {_LONGEST_DELAY}, got {delays}"
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.dim // self.num_heads

    @property
    def special_token(self) -> int:
        """The token for positions without a code: the first step, and the gaps of the pattern."""
        return self.codebook_size

    @property
    def cross_attention(self) -> bool:
        """Whether the layers have cross-attention."""
        return any(condition.fuse == "cross" for condition in self.conditions)

    def condition(self, name: str) -> Fused | None:
        """The condition of that name; None if the model has no such condition."""
        return next((condition for condition in self.conditions if condition.name == name), None)

    def stereo(self) -> LMConfig:
        """The config of the stereo model: every codebook once for the left and once for the right channel."""
        delays = tuple(delay for delay in self.delays for _ in range(2))
        return dataclasses.replace(self, num_codebooks=2 * self.num_codebooks, delays=delays)


_LARGEST_SCALE = 1000.0  # of guidance


def _hashable(value: Any, name: str) -> Any:
    """A number, or lists and arrays of numbers as tuples."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(_hashable(item, name) for item in value)
    if not _is_number(value):
        raise TypeError(f"{name} must be made of numbers, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return arguments.is_number(value) and not (isinstance(value, int) and abs(value) >= 2**1023)  # which no float holds


def _is_scale(value: Any) -> bool:
    return _is_number(value) and abs(value) <= _LARGEST_SCALE


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters: how codes are drawn from the logits.

    Attributes:
      temperature: Above 1 is wilder, below 1 is safer; 0 is greedy. One for all codebooks, or one for each.
      top_k: Sample only from the k likeliest codes; 0 for all. Ignored where top_p is set.
      top_p: Sample only from the likeliest codes that together have this probability; 0 for off.
      guidance: The scale of classifier-free guidance (Ho & Salimans 2022); 1 for off. A list of (seconds, scale) is a
        schedule, interpolated linearly from each point to the next.
      text_guidance: The scale of the text apart from the other conditions (double guidance, Rouard et al. 2024, section
        3.3); `guidance` is then that of all conditions together. None for classifier-free guidance alone.
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int = 250
    top_p: float = 0.0
    guidance: float | tuple[tuple[float, float], ...] = 3.0
    text_guidance: float | None = None

    def __post_init__(self) -> None:
        set_field = functools.partial(object.__setattr__, self)
        set_field("temperature", _hashable(self.temperature, "temperature"))
        set_field("guidance", _hashable(self.guidance, "guidance"))
        temperatures = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not temperatures or not all(_is_number(t) and math.isfinite(t) and t >= 0 for t in temperatures):
            raise ValueError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if not arguments.is_whole(self.top_k) or not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k must be a whole number, 0 (all codes) or above, got {self.top_k}")
        set_field("top_k", int(self.top_k))
        if not (_is_number(self.top_p) and 0 <= self.top_p <= 1):
            raise ValueError(f"top_p must be from 0 (off) to 1, got {self.top_p}")
        points = self.guidance_points
        if not points or not all(isinstance(point, tuple) and len(point) == 2 for point in points):
            raise ValueError(
                f"guidance must be a number, or (seconds, scale) pairs such as ((0, 3), (20, 5)), got {self.guidance}"
            )
        if not all(_is_number(seconds) and _is_scale(scale) for seconds, scale in points):
            raise ValueError(f"guidance must be a finite number up to {_LARGEST_SCALE:g}, got {self.guidance}")
        times = [seconds for seconds, _ in points]
        if times != sorted(set(times)) or not 0 <= times[0] <= times[-1] < math.inf:
            raise ValueError(f"the times of guidance must be 0 or above and rise, got {self.guidance}")
        if self.text_guidance is not None and not _is_scale(self.text_guidance):
            raise ValueError(
                f"text_guidance must be a finite number up to {_LARGEST_SCALE:g}, got {self.text_guidance}"
            )

    @property
    def is_guided(self) -> bool:
        """Whether any guidance scale differs from 1."""
        return any(scale != 1 for _, scale in self.guidance_points) or self.text_guidance not in (None, 1)

    @property
    def guidance_points(self) -> tuple[tuple[float, float], ...]:
        """The schedule of guidance as (seconds, scale)."""
        return self.guidance if isinstance(self.guidance, tuple) else ((0.0, self.guidance),)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model: language model, codec and conditioners (None or empty if it has none).

    `channels` 2 is stereo by a mono codec on the left and the right channel, with the codebooks interleaved
    (left 1, right 1, left 2, ...). `window_seconds` is the length of the segments that the language model was trained
    on. It may predict only the first of the codec's codebooks.
    """

    lm: LMConfig = dataclasses.field(default_factory=LMConfig)
    codec: CodecConfig = dataclasses.field(default_factory=CodecConfig)
    text: conditioning.T5Config | None = dataclasses.field(default_factory=conditioning.T5Config)
    channels: int = 1
    window_seconds: float = 30.0
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    tokenizer: str = "sentencepiece"  # "sentencepiece" (T5's, from the model's files) or "bytes" (needs no files)
    license: str = "unknown"
    melody: conditioning.MelodyConfig | None = None
    style: conditioning.StyleConfig | None = None
    clap: conditioning.ClapConditionConfig | None = None
    labels: tuple[conditioning.LabelConfig, ...] = ()
    numbers: tuple[conditioning.NumberConfig, ...] = ()

    def __post_init__(self) -> None:
        bounded(self)
        one_of("tokenizer", self.tokenizer, ("sentencepiece", "bytes"))
        if self.channels % self.codec.channels:
            raise ConfigError(f"{self.channels} channels cannot be coded by a codec of {self.codec.channels}")
        streams = self.channels // self.codec.channels
        if self.lm.num_codebooks % streams or self.lm.num_codebooks > streams * self.codec.num_codebooks:
            raise ConfigError(
                f"the language model writes {self.lm.num_codebooks} codebooks, but the codec reads "
                f"{streams} x {self.codec.num_codebooks}, or the first of them"
            )
        if self.lm.codebook_size != self.codec.codebook_size:
            raise ConfigError(
                f"the language model's codebooks hold {self.lm.codebook_size} codes, "
                f"the codec's {self.codec.codebook_size}"
            )
        if self.style and self.style.features is None:
            streams, size = self.style.num_code_streams, self.style.code_size
            if streams > self.codec.num_codebooks or size != self.codec.codebook_size:
                raise ConfigError(
                    f"the style conditioner reads {streams} codebooks of {size} codes, the codec has "
                    f"{self.codec.num_codebooks} of {self.codec.codebook_size}"
                )
        names = [*(label.name for label in self.labels), *(number.name for number in self.numbers)]
        if len(set(names)) != len(names):
            raise ConfigError(f"two labels or numbers have one name: {names}")
        along = [fused.name for fused in self.lm.conditions if fused.fuse == "interpolate" and fused.name != "melody"]
        if along:
            raise ConfigError(f"only a melody goes along with the music; {', '.join(along)} must be fused otherwise")
        dims = self.condition_dims
        read = {condition.name: condition.dim for condition in self.lm.conditions}
        if dims != read:
            raise ConfigError(f"the language model reads the conditions {read}, the model's encoders give {dims}")

    @property
    def condition_dims(self) -> dict[str, int]:
        """The name of every condition, and the width of its encoder's vectors."""
        dims = {
            "text": None if self.text is None else self.text.dim,
            "melody": None if self.melody is None else self.melody.num_bins,
            "style": None if self.style is None else self.style.dim,
            "clap": None if self.clap is None else self.clap.clap.dim,
        }
        present = {name: dim for name, dim in dims.items() if dim is not None}
        labels = {label.name: label.dim for label in self.labels}
        return present | labels | {number.name: number.dim for number in self.numbers}
