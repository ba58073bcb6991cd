"""Source separation of the melody from a mix: by a function, from ready stems, or by Demucs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from mgjax.audio import waveform

Audio = Float32[np.ndarray, "n c"]
Separate = Callable[[Audio, int], Any] | Mapping[str, Any] | str

# The stems with a melody, of those that separators agree on: not drums and bass.
STEMS = ("vocals", "other")


def separated(audio: Audio, sample_rate: int, separate: Any) -> Float32[np.ndarray, "n s"]:
    """Separates the melody from a mix, as audio of the same rate and length, in any number of channels.

    `separate` is a function of the mix and its rate that returns the melody, or all stems by their names; ready stems;
    or "demucs".

    Raises:
      ImportError: Demucs is asked for and not installed.
      TypeError, ValueError: `separate` is something else, or does not return such audio.
    """
    if isinstance(separate, str):
        if separate != "demucs":
            raise ValueError(f'separate must be "demucs", a function or stems, got {separate!r}')
        separate = demucs
    elif not isinstance(separate, Mapping) and not callable(separate):
        raise TypeError(f'separate must be "demucs", a function or stems, got {type(separate).__name__}')
    result = separate(audio, sample_rate) if callable(separate) else separate
    melody = mixed(result) if isinstance(result, Mapping) else waveform.check(result, "the separated melody")
    if len(melody) != len(audio):
        raise ValueError(
            f"the separated melody has {len(melody)} samples and the mix {len(audio)}: both must have one length and "
            f"one sample rate ({sample_rate} Hz)"
        )
    return melody


def mixed(stems: Mapping[str, Any]) -> Audio:
    """Sums the stems with a melody (`STEMS`), or either alone; raises ValueError for neither, or for unlike shapes."""
    melodic = {name: waveform.check(stems[name], f"the stem {name!r}", {"loud"}) for name in STEMS if name in stems}
    if not melodic:
        raise ValueError(f"stems must hold {' or '.join(map(repr, STEMS))}, got {sorted(map(str, stems))}")
    if len({stem.shape for stem in melodic.values()}) > 1:
        listed = ", ".join(f"{name} {list(stem.shape)}" for name, stem in melodic.items())
        raise ValueError(f"stems must be of one length and as many channels, got {listed}")
    return np.sum(list(melodic.values()), axis=0)


def demucs(audio: Audio, sample_rate: int) -> Float32[np.ndarray, "n 2"]:
    """Removes drums and bass by Demucs (htdemucs, Rouard et al. 2023), as the published models were trained.

    It gives stereo of the same rate and length, and is deterministic: the random shift that Demucs averages over by
    default is left out. Its weights are downloaded when it is first used.

    Raises:
      ImportError: The extra `separate` is not installed.
    """
    try:
        import torch
        from demucs.apply import apply_model
    except ImportError as error:
        raise ImportError('taking the melody out of a mix needs Demucs: pip install "mgjax[separate]"') from error
    model = _htdemucs()
    mix = waveform.resample(waveform.to_channels(audio, model.audio_channels), sample_rate, model.samplerate)
    with torch.no_grad():
        stems = apply_model(model, torch.from_numpy(np.ascontiguousarray(mix.T))[None], shifts=0)[0]
    melody = mixed({name: stem.numpy().T for name, stem in zip(model.sources, stems, strict=True)})
    return waveform.resample(melody, model.samplerate, sample_rate)[: len(audio)]


@functools.cache
def _htdemucs() -> Any:
    from demucs.pretrained import get_model

    return get_model("htdemucs").eval()
