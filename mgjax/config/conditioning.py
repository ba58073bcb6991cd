"""Configs of the conditioners: text (T5), melody (chroma), style, CLAP, labels and numbers."""

from __future__ import annotations

import dataclasses
import math

from mgjax.config.serialization import bounded, one_of
from mgjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The T5 encoder (Raffel et al. 2020). The defaults are t5-base; FLAN-T5 has `activation="gated-gelu"`."""

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

    def __post_init__(self) -> None:
        one_of("activation", self.activation, ("relu", "gated-gelu"))
        bounded(self)
        if self.max_distance <= self.num_buckets // 4:
            raise ConfigError(f"max_distance {self.max_distance} must be above a quarter of num_buckets")


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
    """The chromagram of a melody (Copet et al. 2023, section 2.3). The defaults are those of the published models.

    The `bottleneck` is against copying the melody exactly: "dominant" keeps only the strongest pitch class of each
    frame, "suppress" drops the strongest frequency of each frame of the spectrogram, "none" keeps all.
    """

    num_bins: int = 12  # pitch classes: semitones of an octave, or another number of equal parts
    sample_rate: int = 32_000  # that the audio is resampled to, in hertz
    fft_size: int = 16_384  # samples of a window, and of its Fourier transform
    hop_length: int = 4096  # samples between two windows
    num_frames: int = 235  # the length of the prefix; shorter melodies are repeated, longer ones cut
    bottleneck: str = "dominant"
    null: str = "silence"  # for no melody: "silence", its chromagram, as in the published models; or "nothing"

    def __post_init__(self) -> None:
        one_of("bottleneck", self.bottleneck, ("dominant", "suppress", "none"))
        one_of("null", self.null, ("silence", "nothing"))
        bounded(self)

    @property
    def frame_rate(self) -> float:
        """Frames of the chromagram per second."""
        return self.sample_rate / self.hop_length


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """A label with a closed vocabulary (genre, mood, instrument). A piece may have any number of its values."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not self.values or len({value.strip().casefold() for value in self.values}) != len(self.values):
            raise ConfigError(f"the values of the label {self.name} must be one or more, and differ in more than case")

    @property
    def dim(self) -> int:
        """Width of the condition: one entry for each value."""
        return len(self.values)


@dataclasses.dataclass(frozen=True)
class NumberConfig:
    """A numeric condition, such as the tempo, on a logarithmic scale from `low` to `high`."""

    name: str
    low: float
    high: float
    dim: int = 16

    def __post_init__(self) -> None:
        _check_name(self.name)
        bounded(self)
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(f"the number {self.name} must have 0 < low < high, got {self.low} and {self.high}")


def _check_name(name: str) -> None:
    if not name.isidentifier() or name in ("text", "melody", "style", "clap"):
        raise ConfigError(f"a label's name must be a word of its own, such as genre or bpm, got {name!r}")


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """A HuBERT-type encoder of audio (Hsu et al. 2021). The defaults are MERT-v1-95M (Li et al. 2023)."""

    sample_rate: int = 24_000
    conv_dims: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "group"  # "group" (after the first convolution) or "layer" (after each)
    dim: int = 768
    ffn_dim: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    position_kernel: int = 128
    position_groups: int = 16
    pre_norm: bool = False  # "stable" layer norm: before each part of a layer rather than after
    norm_eps: float = 1e-5
    normalize: bool = True  # each clip is brought to mean 0 and variance 1

    def __post_init__(self) -> None:
        one_of("conv_norm", self.conv_norm, ("group", "layer"))
        bounded(self)
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise ConfigError("conv_dims, conv_kernels and conv_strides must be of one length")
        if self.dim % self.num_heads or self.dim % self.position_groups:
            raise ConfigError(
                f"dim must be a multiple of num_heads and of position_groups, got {self.dim}, {self.num_heads} and "
                f"{self.position_groups}"
            )

    @property
    def frame_rate(self) -> float:
        """Frames of features per second."""
        return self.sample_rate / math.prod(self.conv_strides)


@dataclasses.dataclass(frozen=True)
class StyleConfig:
    """The style conditioner (Rouard et al. 2024). The defaults are those of musicgen-style.

    `features` is the encoder of the excerpt; None to read the codes of the model's own codec instead. The published
    model was trained on features of unnormalised audio, although MERT itself normalises each clip.
    """

    features: HubertConfig | None = dataclasses.field(default_factory=lambda: HubertConfig(normalize=False))
    num_code_streams: int = 3  # codebooks that are read, if `features` is None
    code_size: int = 2048  # of these codebooks
    dim: int = 512  # of the transformer and of its output
    ffn_dim: int = 2048
    num_layers: int = 8
    num_heads: int = 8
    num_codebooks: int = 6  # of the residual vector quantizer, the bottleneck
    codebook_size: int = 1024
    eval_codebooks: int = 3  # the number of them that generation uses
    downsample: int = 15  # the factor by which frames are thinned out
    seconds: float = 3.0  # of the excerpt

    def __post_init__(self) -> None:
        bounded(self)
        if self.dim % self.num_heads or self.dim % 2:
            raise ConfigError(f"dim must be even and a multiple of num_heads, got {self.dim} and {self.num_heads}")
        if self.eval_codebooks > self.num_codebooks:
            raise ConfigError(f"eval_codebooks {self.eval_codebooks} is above num_codebooks {self.num_codebooks}")


@dataclasses.dataclass(frozen=True)
class ClapTextConfig:
    """CLAP's text tower: RoBERTa (Liu et al. 2019)."""

    vocab_size: int = 50_265
    dim: int = 768
    ffn_dim: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 514  # the first pad_token + 1 of them are unused
    pad_token: int = 1
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        bounded(self)
        if self.dim % self.num_heads:
            raise ConfigError(f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}")
        if not 0 <= self.pad_token < min(self.vocab_size, self.max_positions):
            raise ConfigError(f"pad_token must be a token and below max_positions, got {self.pad_token}")


@dataclasses.dataclass(frozen=True)
class ClapAudioConfig:
    """CLAP's audio tower: HTSAT (Chen et al. 2022), without fusion of long clips, and its log-mel spectrogram.

    The defaults are HTSAT-tiny; HTSAT-base has `dim` 128 and `depths` 2, 2, 12, 2. The spectrogram's time is cut into
    `image_size / num_mels` parts, which on top of each other make a square image of `image_size`.
    """

    sample_rate: int = 48_000
    fft_size: int = 1024
    hop_length: int = 480
    num_mels: int = 64
    lowest_hz: float = 50.0  # of the published models; the feature extractor of transformers starts at 0
    highest_hz: float = 14_000.0
    seconds: float = 10.0  # of a clip
    image_size: int = 256
    patch_size: int = 4  # side of a patch of the image, which becomes a vector
    window: int = 8  # side of an attention window, in patches
    dim: int = 96  # of the first stage; each stage doubles the width and halves the sides of the image
    depths: tuple[int, ...] = (2, 2, 6, 2)  # layers of each stage
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        bounded(self)
        if not len(self.depths) == len(self.num_heads) > 0:
            raise ConfigError(f"depths and num_heads must be of one length: {self.depths}, {self.num_heads}")
        if any(dim % heads for dim, heads in zip(self.dims, self.num_heads, strict=True)):
            raise ConfigError(f"the stages are {self.dims} wide, which num_heads {self.num_heads} do not divide")
        if self.image_size % self.num_mels:
            raise ConfigError(f"image_size must be a multiple of num_mels, got {self.image_size} and {self.num_mels}")
        smallest, rest = divmod(self.image_size, self.patch_size * 2 ** (len(self.depths) - 1))
        if rest or smallest < self.window:
            raise ConfigError(
                f"an image of {self.image_size}, in patches of {self.patch_size} and halved for each of "
                f"{len(self.depths)} stages, must come out even and not below the window of {self.window}"
            )
        if not 0 <= self.lowest_hz < self.highest_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"frequencies must be 0 <= lowest_hz < highest_hz <= half the sample rate of {self.sample_rate}, got "
                f"{self.lowest_hz:g} and {self.highest_hz:g}"
            )
        if not self.fft_size // 2 < self.num_samples < self.hop_length * self.most_frames:
            raise ConfigError(
                f"{self.seconds:g} seconds do not fit: a clip must be longer than half a window of {self.fft_size} "
                f"samples and at most {self.most_frames} frames of {self.hop_length}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """The width of each stage."""
        return tuple(self.dim * 2**i for i in range(len(self.depths)))

    @property
    def num_samples(self) -> int:
        """The length of a clip in samples."""
        return round(self.seconds * self.sample_rate)

    @property
    def most_frames(self) -> int:
        """Frames of a spectrogram that fills the image; shorter ones are stretched."""
        return self.image_size**2 // self.num_mels


@dataclasses.dataclass(frozen=True)
class ClapConfig:
    """LAION-CLAP (Wu et al. 2023): two towers with a joint space. The defaults are laion/clap-htsat-unfused."""

    text: ClapTextConfig = dataclasses.field(default_factory=ClapTextConfig)
    audio: ClapAudioConfig = dataclasses.field(default_factory=ClapAudioConfig)
    dim: int = 512  # of the joint space

    def __post_init__(self) -> None:
        bounded(self)


@dataclasses.dataclass(frozen=True)
class ClapConditionConfig:
    """The CLAP condition: embeddings of audio in training, of a text in generation (Copet et al. 2023, section 2.3)."""

    clap: ClapConfig = dataclasses.field(default_factory=ClapConfig)
    num_codebooks: int = 12  # of the residual vector quantizer before the language model; 0 for none
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if self.num_codebooks:  # 0: no quantizer
            bounded(self)
