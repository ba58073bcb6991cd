"""Sound as arrays, and the little arithmetic that it needs before and after a model.

Audio is float32 `[n, c]` (samples, channels) with full scale at -1 and 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.inputs import arguments

Audio = Float32[np.ndarray, "n c"]

MOST_CHANNELS = 64  # more than this is an array that stands on its side
PEAK_REFUSED = 8.0  # float sound with a peak beyond this was not brought to a full scale of 1
_LOUD = 1.001  # rounding and resampling go a little beyond 1

# ITU-R BS.775 from L, R, C, LFE, Ls, Rs, divided by the sum of a channel's weights so that nothing can clip.
_HALF = math.sqrt(0.5)
_SURROUND_TO_STEREO = np.array([[1, 0], [0, 1], [_HALF, _HALF], [0, 0], [_HALF, 0], [0, _HALF]]) / (1 + 2 * _HALF)


def resample(audio: Audio, sample_rate: float, target: float) -> Float32[np.ndarray, "m c"]:
    """`audio` at `target` hertz, `[ceil(n * target / sample_rate), c]`, by soxr's very high quality filter.

    The length is rounded up, so that no sound is lost at the end and no piece becomes empty.
    """
    if sample_rate == target:
        return audio
    return np.concatenate(list(resampled([audio], sample_rate, target)))


def resampled(sound: Iterable[Audio], sample_rate: float, target: float) -> Iterator[Audio]:
    """`sound` at `target` hertz, piece by piece, as if it had been resampled in one."""
    import soxr

    sample_rate, target = arguments.rate(sample_rate), arguments.rate(target, "the sample rate to resample to")
    stream = None
    taken = given = 0
    for block in sound:
        if stream is None:
            stream = soxr.ResampleStream(sample_rate, target, block.shape[1], dtype="float32", quality="VHQ")
        piece = stream.resample_chunk(np.ascontiguousarray(block))
        taken, given = taken + len(block), given + len(piece)
        yield piece
    if stream is not None:
        # soxr rounds the length to the nearest; some silence at the end makes the last sample of rounding up.
        silence = np.zeros((-(-sample_rate // target), block.shape[1]), np.float32)
        missing = -(-taken * target // sample_rate) - given
        yield stream.resample_chunk(silence, last=True)[:missing]


def to_channels(
    audio: Audio, channels: int, what: str = "audio", said: set[str] | None = None
) -> Float32[np.ndarray, "n {channels}"]:
    """`audio` with `channels` channels: copies of a single one for many, or a mix of many for one or two.

    6 channels are mixed as ITU-R BS.775 has it, in the order of wav files (left, right, centre, low frequencies, left
    and right surround), with weights that add up to 1, so that nothing clips; others by their mean. It is said where
    more than two are mixed.

    Args:
      audio: `[n, c]`.
      channels: How many it is to have.
      what: What the audio is called in messages.
      said: As for `check`.

    Raises:
      ValueError: Neither applies, as in 2 channels to 6.
    """
    given = audio.shape[1]
    if given == channels:
        return audio
    if given == 1 and 1 < channels <= MOST_CHANNELS:
        return np.repeat(audio, channels, axis=1)
    if channels not in (1, 2):
        raise ValueError(f"{what}: {given} channels cannot be made into {channels}; mix it down to 1 or 2 first")
    if given > 2:
        _say(f"{what}: {given} channels are mixed down to {channels}", "mixed", said)
    if given == 6:
        # Sample by sample, so that blocks give what the whole gives.
        parts = [audio[:, i : i + 1] * weights for i, weights in enumerate(_SURROUND_TO_STEREO.astype(np.float32))]
        audio = sum(parts)
    elif given > 2:
        audio = audio.mean(axis=1, keepdims=True, dtype=np.float32).repeat(2, axis=1)
    return audio if channels == 2 else audio.mean(axis=1, keepdims=True, dtype=np.float32)


def check(audio: Any, what: str = "audio", said: set[str] | None = None) -> Audio:
    """`audio` as float32 `[n, c]`. A peak above 1 is said by a warning, and else left as it is.

    Args:
      audio: `[n]` or `[n, c]`, floating point with full scale at 1, or integers of 8 (unsigned), 16 or 32 bits, whose
        full scale is that of their type.
      what: What the audio is called in messages.
      said: The kinds of warning that were given for it before, as for the blocks of a file: they are not repeated, and
        new ones are added.

    Raises:
      ValueError: It is empty, has another rank, holds NaN, infinity or a peak beyond `PEAK_REFUSED`, stands on its side
        (`[c, n]`), or is of a type whose full scale is not known.
    """
    audio = arguments.array(audio, what)
    if audio.ndim == 1:
        audio = audio[:, None]
    if audio.ndim != 2:
        raise ValueError(f"{what}: expected [samples] or [samples, channels], got the shape {audio.shape}")
    if audio.size == 0:
        raise ValueError(f"{what}: there is no sound in it (shape {audio.shape})")
    if audio.shape[1] > MOST_CHANNELS:
        raise ValueError(
            f"{what}: the shape {audio.shape} means {audio.shape[1]} channels; expected [samples, channels], "
            f"transpose it if it is [channels, samples]"
        )
    if audio.dtype == np.uint8:
        return (audio.astype(np.float32) - 128) / 128
    if audio.dtype in (np.int16, np.int32):
        return (audio / -float(np.iinfo(audio.dtype).min)).astype(np.float32)
    if not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(f"{what}: expected floating point, int16, int32 or uint8, got {audio.dtype}")
    peak = float(max(audio.max(), -audio.min()))
    if not math.isfinite(peak):
        raise ValueError(f"{what}: holds NaN or infinity; repair it, or replace them by 0 (numpy.nan_to_num)")
    if peak > PEAK_REFUSED:
        raise ValueError(
            f"{what}: has a peak of {peak:g}, where full scale is 1; divide it by its own full scale (32768 for values "
            "of 16 bits), or make it quieter"
        )
    if peak > _LOUD:
        _say(f"{what}: has a peak of {peak:.3g}, where full scale is 1; it is left as it is", "loud", said)
    return audio.astype(np.float32, copy=False)


def _say(message: str, kind: str, said: set[str] | None) -> None:
    """Warns, unless that `kind` was `said` before."""
    if said is None or kind not in said:
        warnings.warn(message, stacklevel=3)
    if said is not None:
        said.add(kind)
