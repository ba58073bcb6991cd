"""What users hold: `load` a model, then `generate`, `stream`, `logits`, `save`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Float32, Int, Int32

from mgjax import checks, formats, sharding
from mgjax.checkpoint import Checkpoint
from mgjax.codec.codec import Codec
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.t5 import T5Encoder
from mgjax.conditioning.text import Tokenizer
from mgjax.config import Sampling
from mgjax.interop.table import Place
from mgjax.interop.torch_file import CheckpointError
from mgjax.lm import pattern as patterns
from mgjax.lm.generate import generate, windows
from mgjax.lm.model import LM, Context
from mgjax.lm.sample import Draws, Layout, capacity_for
from mgjax.strict_json import to_json

Progress = Callable[[int, int], None]
Texts = str | None | Sequence[str | None]

_HASHED_NUMBERS = 1024  # of each array


class MusicGen:
    """A language model over codes, the codec that turns them into sound, and the encoder of the texts that steer it.

    Nothing on it changes when it is used: the same call with the same seed gives the same result.

    Attributes:
      config: What the model is.
      codec: Audio to codes and back.
      sample_rate: Of the audio, in hertz.
      channels: 1 for mono, 2 for stereo.
      frame_rate: Frames of codes per second.
      num_codebooks: Codes per frame.
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
        self._tokenizer_files = model.tokenizer
        self._compat = compat
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

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that tell models apart, from their shape and a sample of every array."""
        model = self._checkpoint()
        what = dataclasses.replace(model.config, license="", sampling=Sampling())
        digest = hashlib.sha256(to_json(what).encode())
        for path, array in jax.tree_util.tree_leaves_with_path(model.variables):
            sample = array.ravel()[:: max(1, array.size // _HASHED_NUMBERS)]
            digest.update(f"{jax.tree_util.keystr(path)} {array.shape}".encode())
            digest.update(np.asarray(sample, np.float32).tobytes())
        return digest.hexdigest()[:12]

    def generate(self, texts: Texts, **options) -> Float32[np.ndarray, "b n c"]:
        """Music for one text or several, float32 from -1 to 1 (a little beyond it in loud places).

        Row i of the batch is drawn from the seed `seed + i` and does not depend on the other rows, up to the rounding
        of sums.

        Args:
          texts: What to play, one per row. None or "" leaves it to the model.
          **options: As for `stream_codes`: seconds, seed, sampling, prompt, ...

        Raises:
          ValueError: A value is out of range; the message says what is allowed.
          TypeError: A value is of another kind.
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
        sampling: Sampling | None = None,
        prompt: Any = None,
        prompt_sample_rate: int | None = None,
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
          sampling: How to draw; the checkpoint's own default where None.
          prompt: Audio to continue: [n], [n, c] or [b, n, c], one for all rows or one for each.
          prompt_sample_rate: Of the prompt, in hertz; the model's where None.
          window: Seconds of music that the model looks at once; what it was trained on where None.
          stride: Seconds by which each window is later than the one before; where None 18, or 0.6 of a window
            below 30.
          progress: Called with the frames made so far and the frames in all.
        """
        sampling = sampling or self.config.sampling
        texts = checks.texts(texts)
        seeds = checks.seeds(seed, len(texts))
        num_frames = checks.num_frames(seconds, self.frame_rate)
        spans = checks.window_and_stride(window, stride, self.config.window_seconds, self.frame_rate)
        given = np.zeros((len(texts), 0, self.num_codebooks), np.int32)
        if prompt is not None:
            given = checks.prompt_codes(self.codec, prompt, prompt_sample_rate, len(texts))
            checks.prompt_length(given.shape[1], num_frames, spans[0], self.frame_rate)
        if not all(texts) and sampling.guidance != 1:
            warnings.warn("a text is empty: nothing steers the music there, and guidance has no effect", stacklevel=2)
        # Where nothing steers, the null rows would repeat the others.
        guided = any(texts) and sampling.guidance != 1
        context = self._context(texts, guided)
        layout = None
        if self._mesh is not None:
            num_rows = context.prefix_mask.shape[0]
            cache = sharding.cache(num_rows, self.config.lm.num_heads, self._mesh)
            layout = Layout(sharding.rows(len(texts), self._mesh), cache)
        return generate(
            self._lm,
            self._params["lm"],
            lambda window: context,
            given,
            windows(num_frames, given.shape[1], *spans),
            Draws.of(sampling, seeds),
            progress,
            layout,
        )

    def logits(
        self,
        codes: Int[np.ndarray, "..."],
        texts: Texts,
        *,
        chroma: Float[np.ndarray, "b f p"] | None = None,
    ) -> Float[Array, "b t k v"]:
        """The model's prediction of every code given the codes before it in the sequence (teacher-forced), float32.

        Args:
          codes: [t, k] or [b, t, k], as `codec.encode` gives them.
          texts: One for all rows, or one for each.
          chroma: For melody models, the strength of each pitch class over time; the null melody where None.
        """
        codes = checks.codes(codes, self.num_codebooks, self.codebook_size)
        seconds, num_frames = codes.shape[1] / self.frame_rate, codes.shape[1]
        if seconds > self.config.window_seconds:
            raise ValueError(
                f"the codes last {seconds:g} seconds, and the model sees {self.config.window_seconds:g} at once: score "
                "them in parts"
            )
        context = self._context(checks.texts(texts, codes.shape[0]), guided=False, chroma=chroma)
        pattern = patterns.from_config(self.config.lm)
        tokens = np.asarray(pattern.build(jnp.asarray(codes), self.config.lm.special_token))
        # Few lengths, few programs: what stands after the music is not seen from before.
        after = [(0, 0), (0, capacity_for(tokens.shape[1]) - tokens.shape[1]), (0, 0)]
        logits = _logits(self._lm, self._params["lm"], context, jnp.asarray(np.pad(tokens, after)))
        return pattern.revert_logits(logits[:, : tokens.shape[1]], num_frames)[0]

    def save(self, directory: str | os.PathLike, format: str = "mgjax", text_encoder: str | None = None) -> None:
        """Writes the model as a directory that `load` opens.

        Args:
          directory: Where to. A model that is there already is replaced only once the new one is whole.
          format: "mgjax", "huggingface" or "audiocraft".
          text_encoder: For audiocraft's form, which names the T5 and does not hold it: its name. None for the published
            one of that size.
        """
        formats.write(directory, self._checkpoint(), format, text_encoder)

    def _checkpoint(self) -> Checkpoint:
        """What there is to save. The codec's weight normalisation stays folded into its kernels."""
        config = dataclasses.replace(self.config, codec=self.codec.folded_config)
        return Checkpoint(config, {**self._params, "codec": self.codec.variables}, self._tokenizer_files)

    def _place_rows(self, rows: Any) -> Any:
        """Arrays with one row per piece of music, spread over the mesh where there is one."""
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, rows)
        return jax.tree.map(lambda x: jax.device_put(x, sharding.rows(x.shape[0], self._mesh)), rows)

    def _context(
        self, texts: list[str | None], guided: bool, chroma: Float[np.ndarray, "b f p"] | None = None
    ) -> Context:
        """The conditions of the texts, followed by as many null rows for guidance."""
        config = self.config.lm
        copies = 2 if guided else 1
        text = attended = None
        # Without any text, cross-attention would give zero in every row: it is left out.
        if config.text_dim is not None and (any(texts) or not config.cross_attention):
            ids, mask = self._tokenize(texts)
            encoded = _encode_text(T5Encoder(self.config.text), self._params["text"], ids, mask)
            text = Condition(jnp.tile(encoded, (copies, 1, 1)), jnp.asarray(_with_null(mask, copies)))
            attended = self._attended(mask, copies)
        melody = None
        if config.num_chroma:
            melody = self._melody(chroma, len(texts), copies)
        elif chroma is not None:
            raise ValueError("this model was not trained with melodies: use a melody model, such as musicgen-melody")
        text, melody, attended = self._place_rows((text, melody, attended))
        return _make_context(self._lm, self._params["lm"], text, melody, attended, copies * len(texts))

    def _attended(self, mask: np.ndarray, copies: int) -> np.ndarray | None:
        """Which positions of the text are attended to, padding included where the published models do that.

        In the melody models the text stands before the music, and a null text is as many zero vectors as the text that
        it stands for has tokens: masking them would move the music. audiocraft pads all rows to the longest.
        """
        lengths = np.maximum(mask.sum(axis=1), 1)
        if self._compat == "audiocraft":
            lengths = np.full_like(lengths, lengths.max())
        elif self.config.lm.cross_attention:
            return None
        return np.tile(np.arange(mask.shape[1]) < lengths[:, None], (copies, 1))

    def _melody(self, chroma: np.ndarray | None, batch: int, copies: int) -> Condition:
        """The melody prefix. The null melody is the first pitch class throughout: what silence gives."""
        shape = (self.config.lm.chroma_frames, self.config.lm.num_chroma)
        null = np.zeros((batch, *shape), np.float32)
        null[:, :, 0] = 1
        given = null if chroma is None else checks.chroma(chroma, batch, *shape)
        tokens = np.concatenate([given, null][:copies])
        return Condition(jnp.asarray(tokens), jnp.ones(tokens.shape[:2], bool))

    def _tokenize(self, texts: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        return self._tokenizer.encode(texts)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.config.tokenizer == "bytes":
            tokenizer = Tokenizer.bytes()
        elif self._tokenizer_files is not None:
            tokenizer = Tokenizer.from_directory(self._tokenizer_files)
        else:
            raise CheckpointError(
                "this model came without a tokenizer, so it cannot read texts: put spiece.model or tokenizer.json "
                "(those of t5-base for the published models) into its folder"
            )
        known = self.config.text.vocab_size
        if tokenizer.vocab_size > known:
            raise CheckpointError(
                f"the tokenizer in {self._tokenizer_files} has {tokenizer.vocab_size} tokens, and the text encoder "
                f"knows {known}: they do not belong together"
            )
        return tokenizer


def _with_null(mask: np.ndarray, copies: int) -> np.ndarray:
    return np.concatenate([mask, np.zeros_like(mask)][:copies])


@functools.partial(jax.jit, static_argnames="module")
def _encode_text(module: T5Encoder, params: dict, ids: Array, mask: Array) -> Float[Array, "b l d"]:
    return module.apply({"params": params}, ids, mask)


@functools.partial(jax.jit, static_argnames=("module", "batch"))
def _make_context(
    module: LM, params: dict, text: Condition | None, melody: Condition | None, attended: Array | None, batch: int
) -> Context:
    return module.apply({"params": params}, text, melody, batch=batch, attended=attended, method="context")


@functools.partial(jax.jit, static_argnames="module")
def _logits(module: LM, params: dict, context: Context, tokens: Int[Array, "b s k"]) -> Float[Array, "b s k v"]:
    return module.apply({"params": params}, tokens, context)


def load(
    source: str | os.PathLike,
    *,
    dtype: str | jnp.dtype | None = None,
    mesh: Mesh | None = None,
    text_encoder: str | None = None,
    compat: str | None = None,
) -> MusicGen:
    """The model at `source`.

    Args:
      source: "debug" (a toy with random weights), a directory, or a Hub id such as "facebook/musicgen-small".
      dtype: "float32", "bfloat16" or "float16"; None for float32 on CPU and bfloat16 elsewhere.
      mesh: The devices to spread the model over (`mgjax.sharding.make_mesh`); None for the first one.
      text_encoder: A directory or Hub id of a T5 encoder, for audiocraft's checkpoints, which come without theirs.
      compat: "audiocraft" repeats what the original does with texts of different lengths in one batch: padding is
        attended to. By default a row does not depend on its batch.

    Raises:
      CheckpointError: There is no model, or its files are damaged or do not fit together.
    """
    dtype = checks.dtype(dtype) or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = formats.read(source, dtype=dtype, place=_placement(mesh), text_encoder=text_encoder)
    return MusicGen(model, compat=compat, mesh=mesh)


def load_codec(source: str | os.PathLike) -> Codec:
    """The codec at `source`: of a repository or directory that holds a codec alone, or a whole model.

    Raises:
      CheckpointError: There is no codec, or its files are damaged or do not fit together.
    """
    return Codec(*formats.read_codec(source))


def _placement(mesh: Mesh | None) -> Place | None:
    """Puts every array on its devices as soon as it is read, so that the host never holds the whole model."""
    if mesh is None:
        return None
    return lambda path, array: jax.device_put(
        array, NamedSharding(mesh, sharding.spec("/".join(path), array.shape, mesh))
    )
