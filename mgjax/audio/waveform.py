"""Audio as arrays: checks, resampling and conversion of channels.

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

MOST_CHANNELS = 64  # beyond this, an array is taken to be transposed
PEAK_REFUSED = 8.0  # floating point audio with a peak beyond this cannot have its full scale at 1
_LOUD = 1.001  # rounding and resampling go a little beyond 1

# ITU-R BS.775 from L, R, C, LFE, Ls, Rs, divided by the sum of a channel's weights so that nothing can clip.
_HALF = math.sqrt(0.5)
_SURROUND_TO_STEREO = np.array([[1, 0], [0, 1], [_HALF, _HALF], [0, 0], [_HALF, 0], [0, _HALF]]) / (1 + 2 * _HALF)


def resample(audio: Audio, sample_rate: float, target: float) -> Float32[np.ndarray, "m c"]:
    """Resamples `audio` to `target` hertz, `[ceil(n * target / sample_rate), c]`, by soxr's very high quality filter.

    The length is rounded up, so that nothing is lost at the end and the result is never empty.
    """
    if sample_rate == target:
        return audio
    return np.concatenate(list(resampled([audio], sample_rate, target)))


def resampled(blocks: Iterable[Audio], sample_rate: float, target: float) -> Iterator[Audio]:
    """`resample` of a stream, block by block."""
    import soxr

    sample_rate, target = arguments.rate(sample_rate), arguments.rate(target, "the sample rate to resample to")
    stream = None
    samples_in = samples_out = 0
    for block in blocks:
        if stream is None:
            stream = soxr.ResampleStream(sample_rate, target, block.shape[1], dtype="float32", quality="VHQ")
        converted = stream.resample_chunk(np.ascontiguousarray(block))
        samples_in, samples_out = samples_in + len(block), samples_out + len(converted)
        yield converted
    if stream is not None:
        # soxr rounds the length to the nearest; silence at the end gives the sample that rounding up adds.
        silence = np.zeros((-(-sample_rate // target), block.shape[1]), np.float32)
        missing = -(-samples_in * target // sample_rate) - samples_out
        yield stream.resample_chunk(silence, last=True)[:missing]


def regrouped(blocks: Iterable[Audio], size: int) -> Iterator[Audio]:
    """The samples of a stream in blocks of exactly `size`, but for the last."""
    pending = None
    for block in blocks:
        pending = block if pending is None or not len(pending) else np.concatenate([pending, block])
        while len(pending) >= size:
            yield pending[:size]
            pending = pending[size:]
    if pending is not None and len(pending):
        yield pending


def to_channels(
    audio: Audio, channels: int, what: str = "audio", warned: set[str] | None = None
) -> Float32[np.ndarray, "n {channels}"]:
    """Converts `audio` to `channels` channels: mono is copied to each, and several are mixed down to one or two.

    6 channels in the order of wav files (left, right, centre, low frequencies, left and right surround) are mixed as
    in ITU-R BS.775, with weights that add up to 1, so that nothing clips; other numbers by their mean. More than two
    are mixed with a warning.

    Messages call it `what`; `warned` is as for `check`.

    Raises:
      ValueError: There is no such conversion, as from 2 channels to 6.
    """
    before = audio.shape[1]
    if before == channels:
        return audio
    if before == 1 and 1 < channels <= MOST_CHANNELS:
        return np.repeat(audio, channels, axis=1)
    if channels not in (1, 2):
        raise ValueError(f"{what}: {before} channels cannot be made into {channels}; mix it down to 1 or 2 first")
    if before > 2:
        _warn(f"{what}: {before} channels are mixed down to {channels}", "mixed", warned)
    if before == 6:
        # Sample by sample, so that blocks are mixed as the whole is.
        audio = sum(audio[:, i : i + 1] * weights for i, weights in enumerate(_SURROUND_TO_STEREO.astype(np.float32)))
    elif before > 2:
        audio = audio.mean(axis=1, keepdims=True, dtype=np.float32).repeat(2, axis=1)
    return audio if channels == 2 else audio.mean(axis=1, keepdims=True, dtype=np.float32)


def check(audio: Any, what: str = "audio", warned: set[str] | None = None) -> Audio:
    """`audio` as float32 `[n, c]`. A peak above 1 gives a warning and is left as it is.

    It comes as `[n]` or `[n, c]`, floating point with full scale at 1, or integers of 8 (unsigned), 16 or 32 bits with
    that of their type. Messages call it `what`. `warned` are the kinds of warning ("loud", "mixed") that
    are not to be repeated, as for the blocks of a file; new ones are added.

    Raises:
      ValueError: It is empty, has another rank, holds NaN, infinity or a peak beyond `PEAK_REFUSED`, is transposed
        (`[c, n]`), or is of a dtype without a known full scale.
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
        _warn(f"{what}: has a peak of {peak:.3g}, where full scale is 1; it is left as it is", "loud", warned)
    return audio.astype(np.float32, copy=False)


def _warn(message: str, kind: str, warned: set[str] | None) -> None:
    """Warns, unless `warned` holds that kind of warning; adds it."""
    if warned is None or kind not in warned:
        warnings.warn(message, stacklevel=3)
    if warned is not None:
        warned.add(kind)
