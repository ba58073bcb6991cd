"""Weight normalisation (Salimans & Kingma 2016) put back into a codec whose kernels have it folded in."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mgjax.checkpoints.tables.shapes import LSTM, codec_modules
from mgjax.config.model import CodecConfig


def unfold(config: CodecConfig, variables: dict[str, Any]) -> tuple[CodecConfig, dict[str, Any]]:
    """The same codec with `norm="weight_norm"`, where it had `norm="none"`; any other codec as it is.

    The other libraries know no codec without a norm. The scale becomes the norm of the kernel, so nothing changes but
    the last bit of a rounding.
    """
    if config.norm != "none":
        return config, variables
    flat = flatten_dict(variables)
    for module in codec_modules(config):
        if isinstance(module, LSTM):
            continue
        path = ("params", *module.path.split("/"))
        kernel = np.asarray(flat[*path, "kernel"])
        # torch takes the norm per index of its first axis: what goes out, or in of a transposed convolution.
        scale = np.sqrt(np.sum(np.square(kernel.astype(np.float64)), axis=(0, 2) if module.transposed else (0, 1)))
        flat[*path, "scale"] = scale.astype(kernel.dtype)
        zero = (scale == 0)[:, None] if module.transposed else scale == 0
        flat[*path, "kernel"] = np.where(zero, np.ones_like(kernel), kernel)  # a direction of length 0 would be NaN
    return dataclasses.replace(config, norm="weight_norm"), unflatten_dict(flat)
