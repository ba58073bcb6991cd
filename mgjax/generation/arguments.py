"""The arguments of `MusicGen.generate`, checked and converted once to a `Request`.

Each function returns its argument in one type, or raises an error that explains it; all other modules trust the types.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from numpy.typing import ArrayLike

from mgjax.checkpoints import inference
from mgjax.codec.codec import Codec
from mgjax.conditioning.excerpts import Excerpt
from mgjax.conditioning.excerpts import prepare as prepare_excerpts
from mgjax.conditioning.labels import row_values, vectors
from mgjax.conditioning.melody import Melody
from mgjax.conditioning.melody import prepare as prepare_melodies
from mgjax.conditioning.provider import ConditioningInputs
from mgjax.conditioning.reference_audio import rows as rows_of
from mgjax.config.conditioning import LabelConfig, NumberConfig
from mgjax.config.model import ModelConfig, Sampling
from mgjax.generation.request import Request, Schedule, TimedPrompt
from mgjax.inputs import arguments
from mgjax.inputs.arguments import is_number, is_whole, shown

# Types of arguments; the docstrings of `MusicGen` explain each.
Prompt = str | None | Sequence[tuple[float, str | None]]  # the last is a prompt schedule
Prompts = Prompt | Sequence[Prompt]
Audio = ArrayLike | Sequence[ArrayLike | None]
Melodies = Audio | Mapping[str, ArrayLike] | Sequence[ArrayLike | Mapping[str, ArrayLike] | None]
Labels = Mapping[str, str | float | Sequence[str] | None]

# The published systems have a stride of 18 seconds for windows of 30.
_STRIDE_SECONDS = 18.0
_STRIDE_SHARE = 0.6
# Values beyond these are mistakes, and would fill the memory before an error is raised.
_MOST_SECONDS = 24 * 3600
_LONGEST_WINDOW = 10  # times the window of training
_MOST_WINDOWS = 100_000  # of a result
_MOST_CHARACTERS = 100_000  # of a text, of which the first few hundred words are read

_NUM_SEEDS = 2**32


def request(
    config: ModelConfig,
    codec: Codec,
    prompts: Any,
    *,
    seconds: Any,
    seed: Any,
    sampling: Any,
    negative: Any,
    blend: Any,
    window: Any,
    stride: Any,
    prompt: Any = None,
    prompt_sample_rate: Any = None,
    **inputs: Any,
) -> Request:
    """Checks and converts the arguments of `MusicGen.generate`, and raises what that does.

    `inputs` are its conditioning inputs other than text.
    """
    frame_rate, num_codebooks = codec.frame_rate, config.lm.num_codebooks
    length = num_frames(seconds, frame_rate)
    if not 0 <= (crossfade := arguments.number(blend, "blend", " of seconds")) < _MOST_SECONDS:
        raise ValueError(f"blend must be 0 (at once) or more seconds, got {blend}")
    crossfade_frames = round(crossfade * frame_rate)
    schedules = _schedules(prompts, frame_rate, length, crossfade_frames)
    batch = len(schedules)
    samplings = _samplings(config.sampling if sampling is None else sampling, batch, num_codebooks)
    row_seeds = seeds(seed, batch)
    window_frames, stride_frames = window_and_stride(window, stride, length, config.window_seconds, frame_rate)
    audio_prompt = np.zeros((batch, 0, num_codebooks), np.int32)
    if prompt is not None:
        audio_prompt = _prompt_codes(codec, prompt, prompt_sample_rate, batch)[..., :num_codebooks]
        check_prompt_length(audio_prompt.shape[1], length, window_frames, frame_rate)
    request = Request(
        frame_rate=frame_rate,
        num_frames=length,
        window_frames=window_frames,
        stride_frames=stride_frames,
        schedules=schedules,
        crossfade_frames=crossfade_frames,
        inputs=_conditioning_inputs(config, row_seeds, **inputs),
        negatives=_plain_texts(negative, batch, "negative texts"),
        samplings=samplings,
        seeds=row_seeds,
        audio_prompt=audio_prompt,
    )
    _check_texts(request.texts, config)
    return request


def scoring_request(
    config: ModelConfig, codec: Codec, codes: Any, prompts: Any, *, seed: Any, **inputs: Any
) -> Request:
    """As `request`, of `MusicGen.logits`: music that is all audio prompt, in one window, without guidance."""
    audio_prompt = _codes(codes, config, codec)
    batch, length, _ = audio_prompt.shape
    row_seeds = seeds(seed, batch)
    request = Request(
        frame_rate=codec.frame_rate,
        num_frames=length,
        window_frames=length,
        stride_frames=length,
        crossfade_frames=0,
        inputs=_conditioning_inputs(config, row_seeds, **inputs),
        schedules=[[TimedPrompt(0, text)] for text in _plain_texts(prompts, batch, "texts")],
        negatives=[None] * batch,
        samplings=[Sampling(guidance=1.0)] * batch,
        seeds=row_seeds,
        audio_prompt=audio_prompt,
    )
    _check_texts(request.texts, config)
    return request


def _conditioning_inputs(
    config: ModelConfig,
    seeds: Sequence[int],
    *,
    melody: Any = None,
    melody_sample_rate: Any = None,
    separate: Any = None,
    chroma: Any = None,
    style: Any = None,
    style_sample_rate: Any = None,
    labels: Any = None,
) -> list[ConditioningInputs]:
    """The conditioning inputs of the rows with these seeds; raises as `request`."""
    batch, model_rate = len(seeds), config.codec.sample_rate
    melodies: Sequence[Melody | None] = [None] * batch
    chromas: Sequence[Float32[np.ndarray, "f p"] | None] = [None] * batch
    excerpts: Sequence[Excerpt | None] = [None] * batch
    if melody is not None or chroma is not None:
        if config.melody is None:
            raise ValueError("this model was not trained with melodies: use a melody model, such as musicgen-melody")
        if melody is None:
            chromas = list(_chroma(chroma, batch, config.melody.num_frames, config.melody.num_bins))
        elif chroma is None:
            rate = model_rate if melody_sample_rate is None else melody_sample_rate
            melodies = prepare_melodies(melody, rate, batch, config.melody, separate=separate)
        else:
            raise ValueError("melody and chroma say the same in two ways: give one of them")
    if style is not None:
        if config.style is None:
            raise ValueError("this model was not trained with styles: use a style model, such as musicgen-style")
        rate = model_rate if style_sample_rate is None else style_sample_rate
        excerpts = prepare_excerpts(style, rate, seeds, config)
    rows = zip(melodies, chromas, excerpts, _labels(labels, batch, config), strict=True)
    return [ConditioningInputs(None, *row) for row in rows]


def _schedules(prompts: Any, frame_rate: float, num_frames: int, crossfade_frames: int) -> list[Schedule]:
    """The prompt schedule of each row: a single text, or one schedule, is a batch of one.

    Prompts that begin when the music is over are left out, with a warning.
    """
    expected = "texts must be a string, None, a list of (seconds, text), or a list with one of these for each row"
    rows = _rows(prompts, lambda row: _is_text(row) or _is_schedule(row), expected)
    if not rows:
        raise ValueError("there is no text: give at least one (None for music without a description)")
    schedules = [row if _is_schedule(row) else [(0.0, row)] for row in rows]
    return [_schedule(schedule, frame_rate, num_frames, crossfade_frames) for schedule in schedules]


def _check_texts(texts: Sequence[str | None], config: ModelConfig) -> None:
    """Raises ValueError for a text where the model has no text encoder, and for one that is far too long."""
    if any(texts) and config.text is None and config.clap is None:
        raise ValueError("this model was not trained with texts: give None (on the command line: an empty prompt)")
    longest = max((len(text) for text in texts if text), default=0)
    if longest > _MOST_CHARACTERS:
        raise ValueError(f"a text has {longest} characters, the most is {_MOST_CHARACTERS}: its beginning is enough")


def _rows(value: Any, is_row: Callable[[Any], bool], expected: str) -> Sequence[Any]:
    """The rows of a batch, or a single one for all; raises TypeError, which says what was `expected`."""
    rows = [value] if is_row(value) else value
    if not isinstance(rows, Sequence) or not all(map(is_row, rows)):
        raise TypeError(f"{expected}, got {shown(value)}")
    return rows


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_schedule(value: Any) -> bool:
    return (isinstance(value, Sequence) and len(value) > 0) and all(
        isinstance(item, tuple | list) and len(item) == 2 and is_number(item[0]) and _is_text(item[1]) for item in value
    )


def _schedule(schedule: Sequence[Any], frame_rate: float, num_frames: int, crossfade_frames: int) -> Schedule:
    """A row's prompts without those that change nothing, each at its frame; raises as `request`."""
    times = [arguments.number(seconds, "the time of a text", " of seconds") for seconds, _ in schedule]
    if not all(0 <= time <= _MOST_SECONDS for time in times):
        raise ValueError(f"the times of texts must be 0 or above, and at most {_MOST_SECONDS} (a day), got {times}")
    prompts = [
        TimedPrompt(round(time * frame_rate), text or None) for time, (_, text) in zip(times, schedule, strict=True)
    ]
    if any(after.frame <= before.frame for before, after in itertools.pairwise(prompts)):
        raise ValueError(f"the times of texts must rise, by {1 / frame_rate:g} s (a frame) or more, got {times}")
    if prompts[0].frame > 0:
        prompts.insert(0, TimedPrompt(0, None))
    late = [prompt for prompt in prompts if prompt.frame >= num_frames]
    if late:
        warnings.warn(
            f"the text {late[0].text!r} begins at {late[0].frame / frame_rate:g} s, when the music is over "
            f"({num_frames / frame_rate:g} s): it has no effect",
            stacklevel=3,
        )
    # A prompt that repeats the last is no change.
    prompts = [prompts[0], *(after for before, after in itertools.pairwise(prompts) if after.text != before.text)]
    prompts = [prompt for prompt in prompts if prompt.frame < num_frames]
    for before, after in itertools.pairwise(prompts[1:]):
        if after.frame - before.frame < crossfade_frames:
            raise ValueError(
                f"a blend of {crossfade_frames / frame_rate:g} s is longer than the time between the texts at "
                f"{before.frame / frame_rate:g} s and {after.frame / frame_rate:g} s: make it shorter"
            )
    return prompts


def _plain_texts(texts: Any, batch: int, name: str) -> list[str | None]:
    """One text for each row, from one for all or one for each; messages call them `name`."""
    rows = _rows(texts, _is_text, f"{name} must be a string, None, or a list of them")
    return [row or None for row in arguments.each(rows, batch, name)]


def _samplings(sampling: Any, batch: int, num_codebooks: int) -> list[Sampling]:
    """The sampling parameters of each row, from one for all or one for each."""
    expected = "sampling must be a mgjax.Sampling or a list of them"
    rows = _rows(sampling, lambda row: isinstance(row, Sampling), expected)
    for row in rows:
        if isinstance(row.temperature, tuple) and len(row.temperature) != num_codebooks:
            raise ValueError(f"the model has {num_codebooks} codebooks: give one temperature, or as many, got {row}")
    return arguments.each(rows, batch, "samplings")


def _labels(labels: Any, batch: int, config: ModelConfig) -> list[dict[str, Any]]:
    """The values of each row's labels and numbers by name, all of them known to the model."""
    known: tuple[LabelConfig | NumberConfig, ...] = (*config.labels, *config.numbers)
    rows = row_values(labels, batch, [label.name for label in known])
    for label in known:
        vectors([row.get(label.name) for row in rows], label)
    return rows


def seeds(seed: Any, batch: int) -> list[int]:
    """One seed per row: `seed + i` for row i of a single number (from 0 again after 2**32 - 1)."""
    seed = seed.tolist() if isinstance(seed, np.ndarray) else seed
    rows = _rows(seed, is_whole, "seed must be a whole number or a list of them")
    if not all(0 <= row < _NUM_SEEDS for row in rows):
        raise ValueError(f"a seed must be 0 or above and below 2**32, got {shown(seed)}")
    if is_whole(seed):
        return [(int(seed) + i) % _NUM_SEEDS for i in range(batch)]
    if len(rows) != batch:
        raise ValueError(f"{len(rows)} seeds do not fit {batch} texts: give one seed, or one for each text")
    return [int(row) for row in rows]


def num_frames(seconds: Any, frame_rate: float) -> int:
    """`seconds` in whole frames, rounded down."""
    frames = _to_frames(seconds, frame_rate, "seconds")
    if frames < 1:
        raise ValueError(f"seconds must be at least {1 / frame_rate:g} (one frame), got {seconds}")
    if frames > _MOST_SECONDS * frame_rate:
        raise ValueError(f"seconds must be at most {_MOST_SECONDS} (a day), got {seconds}: make it in parts")
    return frames


def default_stride(window: float, frame_rate: float = 1.0) -> float:
    """The stride of windows of this length, both in frames; in seconds with a frame rate of 1."""
    return min(_STRIDE_SECONDS * frame_rate, _STRIDE_SHARE * window)


def window_and_stride(
    window: Any, stride: Any, num_frames: int, default_window: float, frame_rate: float
) -> tuple[int, int]:
    """The window and the stride of `num_frames` frames of music, in frames."""
    window_frames = _to_frames(default_window if window is None else window, frame_rate, "window")
    shortest, longest = 2 / frame_rate, _LONGEST_WINDOW * default_window
    if not 2 <= window_frames <= longest * frame_rate:
        raise ValueError(f"window must be from {shortest:g} to {longest:g} seconds, got {window}")
    if stride is None:
        stride_frames = max(1, math.floor(default_stride(window_frames, frame_rate)))
    else:
        stride_frames = _to_frames(stride, frame_rate, "stride")
    if not 1 <= stride_frames < window_frames:
        raise ValueError(
            f"stride must be at least {1 / frame_rate:g} seconds (one frame) and below the window of "
            f"{window_frames / frame_rate:g} seconds, got {stride}: the rest of the window ties a new part to the last"
        )
    if num_frames > _MOST_WINDOWS * stride_frames + window_frames:
        raise ValueError(f"a stride of {stride_frames} frames is too short for {num_frames} frames: make it longer")
    return window_frames, stride_frames


def _prompt_codes(codec: Codec, prompt: Any, sample_rate: Any, batch: int) -> Int32[np.ndarray, "b t k"]:
    """The codes of the audio prompt of each row."""
    rows = rows_of(prompt, batch, "prompt")
    if any(row is None for row in rows):
        raise ValueError("all rows of a batch begin with a prompt, or none: make those without in another call")
    codes = codec.encode(rows[:1] if all(row is rows[0] for row in rows) else rows, sample_rate=sample_rate)
    if not isinstance(codes, np.ndarray):
        raise ValueError("this codec codes its chunks apart and cannot give the start of a piece to continue")
    return np.broadcast_to(codes, (batch, *codes.shape[1:]))


def check_prompt_length(prompt_frames: int, num_frames: int, window_frames: int, frame_rate: float) -> None:
    """Raises ValueError unless the audio prompt is shorter than the result and than the window."""
    seconds = prompt_frames / frame_rate
    if prompt_frames >= num_frames:
        raise ValueError(
            f"the prompt lasts {seconds:g} seconds and is part of the result, so seconds must be above {seconds:g}, "
            f"got {num_frames / frame_rate:g}"
        )
    if prompt_frames >= window_frames:
        raise ValueError(
            f"the prompt lasts {seconds:g} seconds, and the model sees {window_frames / frame_rate:g} at once: give "
            "only the end of the prompt (on the command line: --trim-prompt)"
        )


def _codes(codes: Any, config: ModelConfig, codec: Codec) -> Int32[np.ndarray, "b t k"]:
    """Codes as a batch, of the codebooks that the language model knows."""
    num_codebooks, codebook_size = config.lm.num_codebooks, config.lm.codebook_size
    codes = arguments.array(codes, "codes")
    if codes.shape[-1:] == (codec.num_codebooks,):
        codes = codes[..., :num_codebooks]
    if codes.ndim == 2:
        codes = codes[None]
    if codes.ndim != 3 or codes.shape[2] != num_codebooks or 0 in codes.shape:
        raise ValueError(
            f"codes must be [frames, {num_codebooks}] or [rows, frames, {num_codebooks}], got {codes.shape}"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise TypeError(f"codes must be whole numbers, got {codes.dtype}")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(f"codes must be from 0 to {codebook_size - 1}, got {codes.min()} to {codes.max()}")
    seconds = codes.shape[1] / codec.frame_rate
    if seconds > config.window_seconds:
        raise ValueError(
            f"the codes last {seconds:g} seconds, and the model sees {config.window_seconds:g} at once: score them in "
            "parts"
        )
    return codes.astype(np.int32)


def _chroma(chroma: Any, batch: int, num_frames: int, num_classes: int) -> Float32[np.ndarray, "b f p"]:
    """A chromagram for each row."""
    chroma = arguments.array(chroma, "chroma").astype(np.float32)
    if chroma.ndim != 3 or chroma.shape[0] not in (1, batch) or chroma.shape[1:] != (num_frames, num_classes):
        raise ValueError(
            f"chroma must be [1 or {batch} rows, {num_frames} frames, {num_classes} pitch classes], got "
            f"{list(chroma.shape)}"
        )
    if not np.isfinite(chroma).all():
        raise ValueError("chroma must be finite: it holds NaN or infinity")
    return np.broadcast_to(chroma, (batch, num_frames, num_classes))


def dtype(name: Any) -> str | None:
    """The name of a type that weights may have, of a name or a type; None for None."""
    known = ("float32", "bfloat16", "float16")
    plain = name if isinstance(name, str) else getattr(name, "__name__", getattr(name, "name", None))
    if name is not None and plain not in known:  # jnp.bfloat16 has a __name__, np.dtype("float32") a name
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {name!r}")
    return plain


def weights(name: Any, argument: str = "weights") -> str | None:
    """The name of a type that weights are kept in, or the KV cache; None for None."""
    known = inference.WEIGHTS
    if name is not None and name not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, or None for that of dtype, got {name!r}")
    return name


def _to_frames(seconds: Any, frame_rate: float, name: str) -> int:
    frames = min(arguments.seconds(seconds, name) * frame_rate, 2.0**53)
    # 2.3 seconds are 115 frames of 20 ms, although 2.3 * 50 is 114.99999999999999.
    return math.floor(round(frames, 6))
