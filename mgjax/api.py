"""What users hold: `load` a model, then `generate`, `stream`, `logits`, `save`."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32, Int, Int32

from mgjax.checkpoints import sources
from mgjax.checkpoints.native import Checkpoint, hash_of
from mgjax.checkpoints.tables.matching import Place
from mgjax.codec.codec import Codec
from mgjax.conditioning import excerpts
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.melody import prepare
from mgjax.conditioning.provider import ConditioningInputs, ConditionProvider, Span
from mgjax.conditioning.separation import Separate
from mgjax.conditioning.text import Tokenizer
from mgjax.config.model import LMConfig, Sampling
from mgjax.devices import sharding
from mgjax.errors import NotFiniteError
from mgjax.generation import arguments
from mgjax.generation.guidance import Steering
from mgjax.generation.sampling import Draws, Layout, capacity_for
from mgjax.generation.windows import Steering as WindowSteering
from mgjax.generation.windows import Window, cut, generate, windows
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM, Context
from mgjax.nn import applied, why_not_finite

Progress = Callable[[int, int], None]
Text = str | None | Sequence[tuple[float, str | None]]  # the last one changes as the music goes on
Texts = Text | Sequence[Text]


class MusicGen:
    """A language model over codes, the codec that turns them into sound, and the encoder of the texts that steer it.

    Nothing on it changes when it is used: the same call with the same seed gives the same result.

    Attributes:
      config: What the model is.
      codec: Audio to codes and back.
      sample_rate: Of the audio, in hertz.
      channels: 1 for mono, 2 for stereo.
      frame_rate: Frames of codes per second.
      num_codebooks: Codes per frame, of the first of the codec's codebooks or all.
      codebook_size: The number of different codes.
    """

    def __init__(self, model: Checkpoint, *, compat: str | None = None, mesh: Mesh | None = None):
        """Takes what the checkpoint readers give; `load` is the usual way here."""
        if compat not in (None, "audiocraft"):
            raise ValueError(f"compat must be None or 'audiocraft', got {compat!r}")
        self.config = model.config
        self.codec = Codec(model.config.codec, model.variables["codec"], channels=model.config.channels)
        self._lm = LM(model.config.lm)
        self._params = {name: tree for name, tree in model.variables.items() if name != "codec"}
        self._tokenizers = {"tokenizer": model.tokenizer, "clap_tokenizer": model.clap_tokenizer}
        files = {f"{name}_files": folder for name, folder in self._tokenizers.items()}
        self._conditioner = ConditionProvider(model.config, self._params, **files, compat=compat)
        self._mesh = mesh

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def frame_rate(self) -> float:
        return self.codec.frame_rate

    @property
    def num_codebooks(self) -> int:
        return self.config.lm.num_codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.lm.codebook_size

    @property
    def dtype(self) -> str:
        """The type of the weights and activations: "float32", "bfloat16" or "float16"."""
        return str(self._params["lm"]["head"]["kernel"].dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        """What cuts texts into the pieces that the text encoder knows."""
        return self._conditioner.tokenizer

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that tell models apart, from their shape and a sample of every array."""
        model = self._checkpoint()
        what = dataclasses.replace(model.config, license="", sampling=Sampling())
        return hash_of(what, model.variables)

    def generate(self, texts: Texts, **options) -> Float32[np.ndarray, "b n c"]:
        """Music for one text or several, float32 from -1 to 1 (a little beyond it in loud places).

        Row i of the batch is drawn from the seed `seed + i` and does not depend on the other rows, up to the rounding
        of sums.

        Args:
          texts: What to play, one per row. None or "" leaves it to the model. A list of (seconds, text) changes it as
            the music goes on.
          **options: As for `stream_codes`: seconds, seed, sampling, prompt, ...

        Raises:
          ValueError: A value is out of range; the message says what is allowed.
          TypeError: A value is of another kind.
          NotFiniteError: The weights give NaN or infinity; `stream` gives what is good before that.
        """
        return np.concatenate(list(self.stream(texts, **options)), axis=1)

    def stream(self, texts: Texts, **options) -> Iterator[Float32[np.ndarray, "b n c"]]:
        """The same music as `generate` gives, in pieces, each as soon as it is made."""
        return self.codec.decode_blocks(self.stream_codes(texts, **options))

    def generate_codes(self, texts: Texts, **options) -> Int32[np.ndarray, "b t k"]:
        """The codes that `generate` with the same options decodes."""
        return np.concatenate(list(self.stream_codes(texts, **options)), axis=1)

    def stream_codes(
        self,
        texts: Texts,
        *,
        seconds: float = 8.0,
        seed: int | Sequence[int] = 0,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prompt: Any = None,
        prompt_sample_rate: int | None = None,
        negative: str | Sequence[str | None] | None = None,
        blend: float = 0.0,
        melody: Any = None,
        melody_sample_rate: int | None = None,
        separate: Separate | None = None,
        chroma: Float[np.ndarray, "b f p"] | None = None,
        style: Any = None,
        style_sample_rate: int | None = None,
        labels: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        window: float | None = None,
        stride: float | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Int32[np.ndarray, "b t k"]]:
        """The codes of `generate_codes`, in pieces of about a second, each as soon as it is made.

        All is checked at once, before the first piece is asked for.

        Args:
          texts: As for `generate`.
          seconds: Length of the whole result, the prompt included. Cut to whole frames.
          seed: A whole number, or one for each row.
          sampling: How to draw, one for all rows or one for each; the checkpoint's own default where None.
          prompt: Audio to continue: [n], [n, c], [b, n, c] or a list of arrays, one for all rows or one for each, all
            of one length.
          prompt_sample_rate: Of the prompt, in hertz; the model's where None.
          negative: What the music is to keep away from, one text for all rows or one for each. It works through
            guidance.
          blend: Seconds that a change of text takes; 0 for at once.
          melody: For melody models, audio whose melody to follow from the start of the result, the prompt included:
            [n], [n, c], [b, n, c], or a list with an array or None for each row. It is repeated where it is short. A
            model that reads it before the music hears as much of it as in training (`config.melody.num_frames`), also
            where `window` is longer.
          melody_sample_rate: Of the melody, in hertz; the model's where None.
          separate: How to take the melody out of a mix: "demucs", or a function of audio [n, c] and its rate that gives
            the part of it that carries the melody. None for the mix as it is.
          chroma: Instead of a melody, the strength of each pitch class over time: [1 or b, frames, pitch classes],
            `config.melody` says how many; in longer music it is repeated.
          style: For style models, music to sound like, in the forms of a melody. A few seconds of it count, which the
            row's seed chooses.
          style_sample_rate: Of the style, in hertz; the model's where None.
          labels: Values of the model's labels by name, such as {"genre": "waltz", "bpm": 120}, for all rows or each.
          window: Seconds of music that the model looks at once; what it was trained on where None.
          stride: Seconds by which each window is later than the one before; where None 18, or 0.6 of a window
            below 30.
          progress: Called with the frames made so far and the frames in all.
        """
        num_frames = arguments.num_frames(seconds, self.frame_rate)
        blend_frames = arguments.blend(blend, self.frame_rate)
        texts = arguments.texts(texts, self.frame_rate, num_frames, blend_frames)
        batch = len(texts)
        samplings = arguments.samplings(
            self.config.sampling if sampling is None else sampling, batch, self.num_codebooks
        )
        seeds = arguments.seeds(seed, batch)
        spans = arguments.window_and_stride(window, stride, self.config.window_seconds, self.frame_rate)
        given = np.zeros((batch, 0, self.num_codebooks), np.int32)
        if prompt is not None:
            given = arguments.prompt_codes(self.codec, prompt, prompt_sample_rate, batch)[..., : self.num_codebooks]
            arguments.prompt_length(given.shape[1], num_frames, spans[0], self.frame_rate)
        steering = Steering(
            texts,
            self._rows(seeds, melody, melody_sample_rate, separate, chroma, style, style_sample_rate, labels),
            arguments.plain_texts(negative, batch, "negative texts"),
            samplings,
            blend_frames,
            self.frame_rate,
        )
        arguments.can_read(steering.all_texts, self.config)
        for warning in steering.warnings():
            warnings.warn(warning, stacklevel=2)
        plan = cut(windows(num_frames, given.shape[1], *spans), steering.cuts())
        codes = generate(
            self._lm,
            self._params["lm"],
            self._steer(steering, num_frames > spans[0]),
            given,
            plan,
            Draws.of(samplings, seeds, self.num_codebooks),
            progress,
        )
        return self._explained(codes)

    def _explained(self, codes: Iterator[Int32[np.ndarray, "b t k"]]) -> Iterator[Int32[np.ndarray, "b t k"]]:
        """The same codes; where they end because something is not finite, the error says what."""
        not_finite = NotFiniteError  # the module may be empty by the time that an unfinished stream is closed
        try:
            yield from codes
        except not_finite as error:
            raise NotFiniteError(f"{error}: {why_not_finite(self._params)}") from None

    def logits(
        self,
        codes: Int[np.ndarray, "..."],
        texts: Texts,
        *,
        melody: Any = None,
        melody_sample_rate: int | None = None,
        separate: Separate | None = None,
        chroma: Float[np.ndarray, "b f p"] | None = None,
        style: Any = None,
        style_sample_rate: int | None = None,
        labels: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Float[Array, "b t k v"]:
        """The model's prediction of every code given the codes before it in the sequence (teacher-forced), float32.

        Args:
          codes: [t, k] or [b, t, k], as `codec.encode` gives them: of all the codec's codebooks, or those written.
          texts: One for all rows, or one for each.
          melody, melody_sample_rate, separate, chroma, style, style_sample_rate, labels: As for `stream_codes`.
          seed: Of the style's excerpts: a whole number, or one for each row.
        """
        if np.shape(codes)[-1:] == (self.codec.num_codebooks,):
            codes = np.asarray(codes)[..., : self.num_codebooks]
        codes = arguments.codes(codes, self.num_codebooks, self.codebook_size)
        seconds, num_frames = codes.shape[1] / self.frame_rate, codes.shape[1]
        if seconds > self.config.window_seconds:
            raise ValueError(
                f"the codes last {seconds:g} seconds, and the model sees {self.config.window_seconds:g} at once: score "
                "them in parts"
            )
        batch = codes.shape[0]
        seeds = arguments.seeds(seed, batch)
        others = self._rows(seeds, melody, melody_sample_rate, separate, chroma, style, style_sample_rate, labels)
        texts = arguments.plain_texts(texts, batch, "texts")
        arguments.can_read(texts, self.config)
        rows = [dataclasses.replace(row, text=text) for row, text in zip(others, texts, strict=True)]
        span = Span(0.0, self.config.window_seconds, False)
        context = self._context([rows], self._conditioner.encode(texts), span)
        pattern = patterns.from_config(self.config.lm)
        tokens = pattern.build(codes, self.config.lm.special_token)
        # Few lengths, few programs: what stands after the music is not seen from before.
        after = [(0, 0), (0, capacity_for(tokens.shape[1]) - tokens.shape[1]), (0, 0)]
        logits = applied(self._lm, {"params": self._params["lm"]}, jnp.asarray(np.pad(tokens, after)), context)
        return pattern.revert_logits(logits[:, : tokens.shape[1]], num_frames)[0]

    def save(
        self,
        directory: str | os.PathLike,
        format: str = "mgjax",
        text_encoder: str | None = None,
        compact: str | None = None,
    ) -> None:
        """Writes the model as a directory that `load` opens.

        Args:
          directory: Where to. A model that is there already is replaced only once the new one is whole.
          format: "mgjax", "huggingface" or "audiocraft".
          text_encoder: For audiocraft's form, which names the T5 and does not hold it: its name. None for the published
            one of that size.
          compact: For mgjax's form, all weights but the codebooks in fewer bytes: "bfloat16" or "int8". None for what
            they are here.
        """
        sources.write(directory, self._checkpoint(), format, text_encoder, compact)

    def _checkpoint(self) -> Checkpoint:
        """What there is to save. The codec's weight normalisation stays folded into its kernels."""
        config = dataclasses.replace(self.config, codec=self.codec.folded_config)
        return Checkpoint(config, {**self._params, "codec": self.codec.variables}, **self._tokenizers)

    def _place_rows(self, rows: Any) -> Any:
        """Arrays with one row per piece of music, spread over the mesh where there is one."""
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, rows)
        return jax.tree.map(
            lambda x: jax.device_put(x, sharding.rows(x.shape[0], self._mesh)) if np.ndim(x) else x, rows
        )

    def _rows(
        self,
        seeds: Sequence[int],
        melody: Any,
        rate: Any,
        separate: Any,
        chroma: Any,
        like: Any,
        like_rate: Any,
        labels: Any,
    ) -> list[ConditioningInputs]:
        """What each row is told besides its text."""
        batch, config = len(seeds), self.config.melody
        if config is None and (melody is not None or chroma is not None):
            raise ValueError("this model was not trained with melodies: use a melody model, such as musicgen-melody")
        if melody is not None and chroma is not None:
            raise ValueError("melody and chroma say the same in two ways: give one of them")
        melodies, chromas = [None] * batch, [None] * batch
        if melody is not None:
            rate = self.sample_rate if rate is None else rate
            melodies = prepare(melody, rate, batch, config, separate=separate)
        if chroma is not None:
            chromas = arguments.chroma(chroma, batch, config.num_frames, config.num_bins)
        styles = self._styles(like, like_rate, seeds)
        values = arguments.labels(labels, batch, self.config)
        return [
            ConditioningInputs(melody=one, chroma=array, style=vectors, labels=names)
            for one, array, vectors, names in zip(melodies, chromas, styles, values, strict=True)
        ]

    def _styles(self, given: Any, rate: int | None, seeds: Sequence[int]) -> list[Float[np.ndarray, "l d"] | None]:
        """What the style conditioner makes of the music that each row is to sound like."""
        if given is None:
            return [None] * len(seeds)
        if self.config.style is None:
            raise ValueError("this model was not trained with styles: use a style model, such as musicgen-style")
        prepared = excerpts.prepare(given, self.sample_rate if rate is None else rate, seeds, self.config)
        return self._conditioner.styles(prepared, self._encode_mono)

    def _encode_mono(self, audio: Float32[np.ndarray, "b n"]) -> Int32[np.ndarray, "b t k"]:
        """The codes of mono audio, which a stereo model's codec would code as left and right."""
        codec = Codec(self.codec.folded_config, self.codec.variables)
        return codec.encode(np.repeat(audio[:, :, None], codec.channels, axis=2))

    def _steer(self, steering: Steering, beyond: bool) -> Callable[[Window], WindowSteering]:
        """What steers each window."""
        texts = self._conditioner.encode(steering.all_texts)

        def steer(window: Window) -> WindowSteering:
            part = steering.part(window.offset + window.given, window.offset, window.num_frames)
            span = Span(window.offset / self.frame_rate, self.config.window_seconds, beyond)
            size = len(part.sets[0]), len(part.sets)
            place = None if self._mesh is None else layout(self.config.lm, *size, self._mesh)
            return WindowSteering(self._context(part.sets, texts, span), part.strengths, place)

        return steer

    def __getstate__(self) -> dict[str, Any]:
        if self._mesh is not None:
            raise TypeError("a model that is spread over devices cannot be copied or pickled: save and load it")
        return self.__dict__

    def _context(self, sets: Sequence[Sequence[ConditioningInputs]], texts: Any, span: Span) -> Context:
        """The conditions of a batch, then of the same rows with less, as the language model reads them."""
        conditions = self._place_rows(self._conditioner.conditions(sets, texts, span))
        return make_context(self._lm, self._params["lm"], conditions, len(sets) * len(sets[0]))


def layout(config: LMConfig, batch: int, num_sets: int, mesh: Mesh) -> Layout:
    """How the state of generation lies over a mesh.

    Args:
      config: Of the language model.
      batch: Pieces at a time.
      num_sets: How often each of them has a row: more than once with guidance.
      mesh: The devices.
    """
    return Layout(sharding.rows(batch, mesh), sharding.cache(num_sets * batch, config.num_heads, mesh))


@functools.partial(jax.jit, static_argnames=("module", "batch"))
def make_context(module: LM, params: dict, conditions: dict[str, Condition], batch: int) -> Context:
    """The conditions of `batch` rows, guidance's included, as the language model reads them."""
    return module.apply({"params": params}, conditions, batch=batch, method="context")


def load(
    source: str | os.PathLike,
    *,
    dtype: str | jnp.dtype | None = None,
    mesh: Mesh | None = None,
    text_encoder: str | None = None,
    style_encoder: str | None = None,
    adapter: str | os.PathLike | None = None,
    compat: str | None = None,
) -> MusicGen:
    """The model at `source`.

    Args:
      source: "mini" (it comes with mgjax), "debug" (a toy with random weights), a directory, or a Hub id such as
        "facebook/musicgen-small".
      dtype: "float32", "bfloat16" or "float16"; None for float32 on CPU and bfloat16 elsewhere.
      mesh: The devices to spread the model over (`mgjax.devices.sharding.make_mesh`); None for the first one.
      text_encoder: A directory or Hub id of a T5 encoder, for audiocraft's checkpoints, which come without theirs, or
        of a ClapModel for those that hear texts through CLAP.
      style_encoder: A directory or Hub id of MERT, for audiocraft's checkpoints of style models; None for the published
        one.
      adapter: A directory or Hub id of what a fine-tuning of this model has learned, in the layout of the library peft.
      compat: "audiocraft" repeats what the original does with texts of different lengths in one batch: padding is
        attended to. By default a row does not depend on its batch.

    Raises:
      CheckpointError: There is no model, or its files are damaged or do not fit together.
    """
    dtype = arguments.dtype(dtype) or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    parts = {"text_encoder": text_encoder, "style_encoder": style_encoder, "adapter": adapter}
    model = sources.read(source, dtype=dtype, place=_placement(mesh), **parts)
    return MusicGen(model, compat=compat, mesh=mesh)


def load_codec(source: str | os.PathLike) -> Codec:
    """The codec at `source`: of a repository or directory that holds a codec alone, or a whole model.

    Raises:
      CheckpointError: There is no codec, or its files are damaged or do not fit together.
    """
    return Codec(*sources.read_codec(source))


def _placement(mesh: Mesh | None) -> Place | None:
    """Puts every array on its devices as soon as it is read, so that the host never holds the whole model."""
    if mesh is None:
        return None
    return lambda path, array: jax.device_put(
        array, NamedSharding(mesh, sharding.spec("/".join(path), array.shape, mesh))
    )
