"""The public API: `load` a model, then `generate`, `stream`, `logits`, `save`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32, Int32
from numpy.typing import ArrayLike

from mgjax.checkpoints import inference, sources
from mgjax.checkpoints.native import Checkpoint, hash_of
from mgjax.checkpoints.tables.matching import Place
from mgjax.codec.codec import Codec
from mgjax.conditioning.provider import ConditionProvider
from mgjax.conditioning.separation import Separate
from mgjax.conditioning.tokenizers import Tokenizer
from mgjax.config.model import Sampling
from mgjax.devices import sharding
from mgjax.errors import NotFiniteError
from mgjax.generation import arguments, guidance, windows
from mgjax.generation.arguments import Audio, Labels, Melodies, Prompts
from mgjax.generation.sampling import SamplingParams
from mgjax.lm.model import LM
from mgjax.nn import TransposedKernel, why_not_finite

Progress = Callable[[int, int], None]
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _takes_texts(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """The method, which takes `prompts` under its former name `texts` too."""

    @functools.wraps(method)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if "texts" in kwargs and "prompts" not in kwargs:
            kwargs["prompts"] = kwargs.pop("texts")
        return method(*args, **kwargs)

    return wrapper


def _arguments(names: dict[str, Any], *excluded: str) -> dict[str, Any]:
    """The arguments of a method but for `excluded`, from its `locals()` in the first line."""
    return {name: value for name, value in names.items() if name not in ("self", *excluded)}


class MusicGen:
    """A language model over codes, the codec that decodes them to audio, and the encoders of its conditions.

    Nothing on it changes when it is used: the same call with the same seed gives the same result.

    Attributes:
      config: The model's config.
      codec: Audio to codes and back.
    """

    def __init__(
        self, model: Checkpoint, *, compat: str | None = None, mesh: Mesh | None = None, cache: str | None = None
    ):
        """Takes a checkpoint as its readers return it; use `load`."""
        if compat not in (None, "audiocraft"):
            raise ValueError(f"compat must be None or 'audiocraft', got {compat!r}")
        self.config = model.config
        self.codec = Codec(model.config.codec, model.variables["codec"], channels=model.config.channels)
        self._lm = LM(model.config.lm, cache_dtype=cache)
        self._params = {name: tree for name, tree in model.variables.items() if name != "codec"}
        self._tokenizers = {"tokenizer": model.tokenizer, "clap_tokenizer": model.clap_tokenizer}
        files = {f"{name}_files": folder for name, folder in self._tokenizers.items()}
        self._conditioner = ConditionProvider(model.config, self._params, **files, compat=compat)
        self._mesh = mesh

    @property
    def sample_rate(self) -> int:
        """Of the audio, in hertz."""
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        """1 for mono, 2 for stereo."""
        return self.config.channels

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.codec.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Codes per frame: of all the codec's codebooks, or of the first ones."""
        return self.config.lm.num_codebooks

    @property
    def codebook_size(self) -> int:
        """The number of different codes of a codebook."""
        return self.config.lm.codebook_size

    @property
    def dtype(self) -> str:
        """The type of the activations, and of the weights that `load` was not told to keep in fewer bits."""
        return str(self._params["lm"]["embed"]["embedding"].dtype)

    @property
    def weights(self) -> str:
        """The type that the kernels of the language model are kept in."""
        kernel = self._params["lm"]["head"]["kernel"]
        return str((kernel.weights if isinstance(kernel, TransposedKernel) else kernel).dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the T5."""
        return self._conditioner.tokenizer

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that tell models apart, of the config and a sample of every array."""
        model = self._checkpoint()
        # Of weights in fewer bits as they are: to expand them takes a second.
        variables = model.variables if self.weights == self.dtype else {**self._params, "codec": self.codec.variables}
        return hash_of(dataclasses.replace(model.config, license="", sampling=Sampling()), variables)

    @_takes_texts
    def generate(
        self,
        prompts: Prompts,
        *,
        seconds: float = 8.0,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prompt: Audio | None = None,
        prompt_sample_rate: float | None = None,
        negative: str | Sequence[str | None] | None = None,
        blend: float = 0.0,
        melody: Melodies | None = None,
        melody_sample_rate: float | None = None,
        separate: Separate | None = None,
        chroma: ArrayLike | None = None,
        style: Audio | None = None,
        style_sample_rate: float | None = None,
        labels: Labels | Sequence[Labels | None] | None = None,
        window: float | None = None,
        stride: float | None = None,
        progress: Progress | None = None,
    ) -> Float32[np.ndarray, "b n c"]:
        """Generates audio for one prompt or a batch, float32 from -1 to 1 (a little beyond it in loud places).

        Row i of the batch is sampled with the seed `seed + i` and does not depend on the other rows, up to the rounding
        of sums.

        Args:
          prompts: The text prompt of each row. None or "" for no text. In its place, a prompt schedule: a list of
            (seconds, text).
          seconds: Length of the whole result, the audio prompt included. Cut to whole frames.
          seed: A whole number, or one for each row.
          sampling: Sampling parameters and guidance scale, for all rows or one for each; the checkpoint's own where
            None.
          prompt: Audio prompt, music to continue: [n], [n, c], [b, n, c] or a list of arrays, one for all rows or one
            for each, all of one length.
          prompt_sample_rate: Of the audio prompt, in hertz; the model's where None.
          negative: Negative prompt, for all rows or one for each: guidance moves the music away from it.
          blend: Seconds of the crossfade to the next prompt of a schedule; 0 for none.
          melody: For melody models, audio whose melody to follow from the start of the result, the audio prompt
            included: [n], [n, c], [b, n, c], or a list with an array or None for each row. It is repeated where it is
            short. Where the melody is a prefix, the model gets as much of it as in training
            (`config.melody.num_frames`), also with a longer `window`.
          melody_sample_rate: Of the melody, in hertz; the model's where None.
          separate: How to separate the melody from a mix: "demucs", or a function of audio [n, c] and its rate that
            returns the melody. None for the mix as it is.
          chroma: Instead of a melody, the strength of each pitch class over time: [1 or b, frames, pitch classes],
            `config.melody` says how many; in longer music it is repeated.
          style: For style models, music to sound like, in the forms of a melody. The row's seed chooses an excerpt of
            a few seconds.
          style_sample_rate: Of the style, in hertz; the model's where None.
          labels: Values of the model's labels by name, such as {"genre": "waltz", "bpm": 120}, for all rows or each.
          window: Seconds of music that the model sees at once; what it was trained on where None.
          stride: Seconds by which each window is later than the one before; where None 18, or 0.6 of a window
            below 30.
          progress: Called with the frames decoded so far and the frames in all.

        Raises:
          ValueError: A value is out of range; the message says what is allowed.
          TypeError: A value is of another kind.
          NotFiniteError: The weights give NaN or infinity; `stream` yields the audio before that.
        """
        return self.codec.decode(self.generate_codes(**_arguments(locals())))

    @_takes_texts
    def stream(
        self,
        prompts: Prompts,
        *,
        seconds: float = 8.0,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prompt: Audio | None = None,
        prompt_sample_rate: float | None = None,
        negative: str | Sequence[str | None] | None = None,
        blend: float = 0.0,
        melody: Melodies | None = None,
        melody_sample_rate: float | None = None,
        separate: Separate | None = None,
        chroma: ArrayLike | None = None,
        style: Audio | None = None,
        style_sample_rate: float | None = None,
        labels: Labels | Sequence[Labels | None] | None = None,
        window: float | None = None,
        stride: float | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Float32[np.ndarray, "b n c"]]:
        """Yields the audio of `generate` in pieces, each as soon as it is decoded; Args: as for `generate`."""
        return self.codec.decode_blocks(self.stream_codes(**_arguments(locals())))

    @_takes_texts
    def generate_codes(
        self,
        prompts: Prompts,
        *,
        seconds: float = 8.0,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prompt: Audio | None = None,
        prompt_sample_rate: float | None = None,
        negative: str | Sequence[str | None] | None = None,
        blend: float = 0.0,
        melody: Melodies | None = None,
        melody_sample_rate: float | None = None,
        separate: Separate | None = None,
        chroma: ArrayLike | None = None,
        style: Audio | None = None,
        style_sample_rate: float | None = None,
        labels: Labels | Sequence[Labels | None] | None = None,
        window: float | None = None,
        stride: float | None = None,
        progress: Progress | None = None,
    ) -> Int32[np.ndarray, "b t k"]:
        """Generates the codes that `generate` decodes to audio; Args: as for `generate`."""
        return np.concatenate(list(self.stream_codes(**_arguments(locals()))), axis=1)

    @_takes_texts
    def stream_codes(
        self,
        prompts: Prompts,
        *,
        seconds: float = 8.0,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prompt: Audio | None = None,
        prompt_sample_rate: float | None = None,
        negative: str | Sequence[str | None] | None = None,
        blend: float = 0.0,
        melody: Melodies | None = None,
        melody_sample_rate: float | None = None,
        separate: Separate | None = None,
        chroma: ArrayLike | None = None,
        style: Audio | None = None,
        style_sample_rate: float | None = None,
        labels: Labels | Sequence[Labels | None] | None = None,
        window: float | None = None,
        stride: float | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Int32[np.ndarray, "b t k"]]:
        """Yields the codes of `generate_codes` in pieces of about a second, each as soon as it is complete.

        All arguments, those of `generate`, are checked when it is called, before the first piece.
        """
        request = arguments.request(self.config, self.codec, **_arguments(locals(), "progress"))
        codes = windows.decode(
            self._lm,
            self._params["lm"],
            guidance.prepare_windows(request, self.config, self._conditioner, self._encode_mono),
            request.audio_prompt,
            SamplingParams.of(request.samplings, request.seeds, self.num_codebooks),
            mesh=self._mesh,
            progress=progress and (lambda num_frames: progress(num_frames, request.num_frames)),
        )
        return self._naming_weights(codes)

    def _naming_weights(self, codes: Iterator[Int32[np.ndarray, "b t k"]]) -> Iterator[Int32[np.ndarray, "b t k"]]:
        """The same codes; the error where weights are not finite names them."""
        not_finite = NotFiniteError  # the module may be empty by the time that an unfinished stream is closed
        try:
            yield from codes
        except not_finite as error:
            raise NotFiniteError(f"{error}: {why_not_finite(self._params)}") from None

    @_takes_texts
    def logits(
        self,
        codes: ArrayLike,
        prompts: str | Sequence[str | None] | None,
        *,
        seed: int | Sequence[int] = 0,
        melody: Melodies | None = None,
        melody_sample_rate: float | None = None,
        separate: Separate | None = None,
        chroma: ArrayLike | None = None,
        style: Audio | None = None,
        style_sample_rate: float | None = None,
        labels: Labels | Sequence[Labels | None] | None = None,
    ) -> Float[Array, "b t k v"]:
        """Predicts every code from the codes before it in the interleaved sequence (teacher-forced), float32 logits.

        The codes are [t, k] or [b, t, k], as from `codec.encode`: of all the codec's codebooks, or of those of the
        language model. `prompts` is one text for all rows, or one for each, and `seed` is that of the style's excerpts.
        Other Args: as for `generate`.
        """
        request = arguments.scoring_request(self.config, self.codec, **_arguments(locals()))
        [window] = guidance.prepare_windows(request, self.config, self._conditioner, self._encode_mono)
        return windows.score(self._lm, self._params["lm"], window, request.audio_prompt, mesh=self._mesh)

    def save(
        self,
        directory: str | os.PathLike[str],
        format: str = "mgjax",
        text_encoder: str | None = None,
        compact: str | None = None,
    ) -> None:
        """Writes the model as a directory that `load` opens.

        Args:
          directory: Where to. A model that it holds is replaced only once the new one is complete.
          format: "mgjax", "huggingface" or "audiocraft".
          text_encoder: The name of the T5, for audiocraft's format, which does not hold it. None for the published T5
            of that size.
          compact: The type of all weights but the codebooks in mgjax's format, "bfloat16" or "int8". None for their
            own.
        """
        sources.write(directory, self._checkpoint(), format, text_encoder, compact)

    def _checkpoint(self) -> Checkpoint:
        """The checkpoint to save. The codec's weight normalisation stays folded into its kernels."""
        config = dataclasses.replace(self.config, codec=self.codec.folded_config)
        variables = inference.to_trained(config, {**self._params, "codec": self.codec.variables})
        return Checkpoint(config, variables, **self._tokenizers)

    def _encode_mono(self, audio: Float32[np.ndarray, "b n"]) -> Int32[np.ndarray, "b t k"]:
        """The codes of mono audio, which a stereo model's codec would code as left and right."""
        codec = Codec(self.codec.folded_config, self.codec.variables)
        codes = codec.encode(np.repeat(audio[:, :, None], codec.channels, axis=2))
        assert isinstance(codes, np.ndarray)  # language models have no codecs with chunks
        return codes

    def __getstate__(self) -> dict[str, Any]:
        if self._mesh is not None:
            raise TypeError("a model that is spread over devices cannot be copied or pickled: save and load it")
        return self.__dict__


def load(
    source: str | os.PathLike[str],
    *,
    dtype: str | jnp.dtype | None = None,
    mesh: Mesh | None = None,
    text_encoder: str | None = None,
    style_encoder: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    compat: str | None = None,
    weights: str | None = None,
    cache: str | None = None,
) -> MusicGen:
    """Loads the model at `source`.

    Args:
      source: "mini" (bundled with mgjax), "debug" (a toy with random weights), a directory, or a Hub id such as
        "facebook/musicgen-small".
      dtype: "float32", "bfloat16" or "float16"; None for float32 on CPU and bfloat16 elsewhere.
      mesh: The devices to spread the model over (`mgjax.devices.sharding.make_mesh`); None for the first one.
      text_encoder: A directory or Hub id of a T5 encoder, for audiocraft's checkpoints, which come without theirs, or
        of a ClapModel for those that are conditioned on CLAP.
      style_encoder: A directory or Hub id of MERT, for audiocraft's checkpoints of style models; None for the published
        one.
      adapter: A directory or Hub id of a LoRA adapter of this model, in the layout of the library peft.
      compat: "audiocraft" treats texts of different lengths in one batch as the original does: padding is attended
        to. By default a row does not depend on its batch.
      weights: The type that the kernels of the language model and the T5 are kept in, "float32", "bfloat16" or "int8";
        None for `dtype`. Decoding is bound by reading them. They are computed with in `dtype`.
      cache: The type of the KV cache, "float32", "bfloat16" or "int8" (with a scale for each head of each step); None
        for `dtype`.

    Raises:
      ValueError: `dtype`, `weights` or `cache` is none of these, or `mesh` is combined with `weights`.
      CheckpointError: `source` is no model, or its files are damaged or do not fit together.
    """
    on_cpu = jax.default_backend() == "cpu"
    weights, cache = arguments.weights(weights), arguments.weights(cache, "cache")
    if weights and mesh is not None:
        raise ValueError("weights is for a model on one device: leave it out with mesh, and give dtype")
    dtype = arguments.dtype(dtype) or ("float32" if on_cpu or weights == "float32" else "bfloat16")
    if on_cpu and mesh is None and dtype == "float32":
        weights = weights or "float32"  # transposed, they are read faster
    elif not on_cpu and weights == dtype:
        weights = None
    encoders = {"text_encoder": text_encoder, "style_encoder": style_encoder}
    # An adapter is added to the kernels as they were trained, before these become those of inference.
    place = inference.place(weights) if weights and adapter is None else _placement(mesh)
    model = sources.read(source, dtype=dtype, place=place, adapter=adapter, **encoders)
    if weights and adapter is not None:
        model = dataclasses.replace(model, variables=inference.from_trained(model.variables, weights))
    return MusicGen(model, compat=compat, mesh=mesh, cache=cache)


def load_codec(source: str | os.PathLike[str]) -> Codec:
    """Loads the codec at `source`: of a repository or directory that holds a codec alone, or a whole model.

    Raises:
      CheckpointError: `source` holds no codec, or its files are damaged or do not fit together.
    """
    return Codec(*sources.read_codec(source))


def _placement(mesh: Mesh | None) -> Place | None:
    """Puts every array on its devices as soon as it is read, so that the host never holds the whole model."""
    if mesh is None:
        return None
    spec = sharding.spec
    return lambda path, array: jax.device_put(array, NamedSharding(mesh, spec("/".join(path), array.shape, mesh)))
