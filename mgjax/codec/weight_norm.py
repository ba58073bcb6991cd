"""Weight normalisation (Salimans & Kingma 2016): a kernel is `scale * direction / |direction|`, along one axis."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from mgjax.codec import layers
from mgjax.config.model import CodecConfig


def norm(kernel: Float[Array, "..."], axis: int) -> Float[Array, " d"]:
    """The Euclidean norm of the kernel at each index of `axis`."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=_other_axes(kernel.ndim, axis)))


def normalized(kernel: Float[Array, "..."], scale: Float[Array, " d"], axis: int) -> Float[Array, "..."]:
    """The kernel in the direction of `kernel` whose norm at each index of `axis` is `scale`."""
    return kernel * jnp.expand_dims(scale / norm(kernel, axis), _other_axes(kernel.ndim, axis))


def _other_axes(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(ndim) if other != axis % ndim)


def fold(config: CodecConfig, params: dict[str, Any]) -> tuple[CodecConfig, dict[str, Any]]:
    """The same codec with the norms multiplied into its kernels, and with `norm="none"`; other norms are left alone."""
    if config.norm != "weight_norm":
        return config, params
    return dataclasses.replace(config, norm="none"), _folded(params, config)


@functools.partial(jax.jit, static_argnames="config")  # a program for each of a hundred layers would take seconds
def _folded(params: dict[str, Any], config: CodecConfig) -> dict[str, Any]:
    flat = flatten_dict(params, sep="/")
    for path, _, layer in layers.with_weights(config):
        if isinstance(layer, layers.Conv):
            scale = flat.pop(f"{path}/scale")
            flat[f"{path}/kernel"] = normalized(flat[f"{path}/kernel"], scale, layer.norm_axis)
    return unflatten_dict(flat, sep="/")


def unfold(config: CodecConfig, variables: dict[str, Any]) -> tuple[CodecConfig, dict[str, Any]]:
    """The same codec with `norm="weight_norm"`, where it had `norm="none"`; any other codec as it is.

    The other libraries know no codec without a norm. The scale becomes the norm of the kernel, so nothing changes but
    the last bit of a rounding.
    """
    if config.norm != "none":
        return config, variables
    flat = flatten_dict(variables, sep="/")
    for path, _, layer in layers.with_weights(config):
        if isinstance(layer, layers.Conv):
            kernel = np.asarray(flat[f"params/{path}/kernel"])
            axes = _other_axes(kernel.ndim, layer.norm_axis)
            scale = np.sqrt(np.sum(np.square(kernel.astype(np.float64)), axis=axes))
            flat[f"params/{path}/scale"] = scale.astype(kernel.dtype)
            zero = np.expand_dims(scale == 0, axes)
            flat[f"params/{path}/kernel"] = np.where(zero, np.ones_like(kernel), kernel)  # of length 0 it would be NaN
    return dataclasses.replace(config, norm="weight_norm"), unflatten_dict(flat, sep="/")
