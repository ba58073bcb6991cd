"""Low-rank adaptation (LoRA, Hu et al. 2021): a product of two narrow matrices is learned beside each kernel.

An adapter is a tree like the language model's, with `{"down", "up"}` in the place of kernels: `down` projects the input
to `rank` numbers, `up` these to the output. It begins with `up` at zero, so that it changes nothing.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from mgjax.config.serialization import ranged
from mgjax.errors import ConfigError
from mgjax.lm.matrices import matrix

KernelPath = tuple[str, ...]
Params = dict[str, Any]
Adapter = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The rank, scale, dropout and targets of an adapter.

    `targets` are patterns (regular expressions) that are searched for in the path of each kernel, such as
    "layer0/self_attn/qkv" or "head". One without a match is an error.
    """

    rank: int = 8  # the width of the narrow matrices
    alpha: float = 16.0  # the product is taken `alpha / rank` times, so that learning rates suit all ranks
    dropout: float = 0.0  # the share of an adapter's inputs that are dropped at random in training
    targets: tuple[str, ...] = ("self_attn", "cross_attn", "ffn")

    def __post_init__(self) -> None:
        ranged(self, "1 or more", "rank", "lora.")
        ranged(self, "above 0", "alpha", "lora.")
        ranged(self, "0 or above and below 1", "dropout", "lora.")
        if not self.targets:
            raise ConfigError('lora.targets names nothing to adapt: leave it out, or give patterns such as "self_attn"')
        for pattern in self.targets:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"lora.targets: {pattern!r} is no regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """The factor of the product, `alpha / rank`."""
        return self.alpha / self.rank


def initial(config: LoraConfig, params: Params, key: Key[Array, ""]) -> Adapter:
    """A new adapter for parameters (arrays or shapes), stacked or not; raises ConfigError if a target has no match."""
    pairs, kernels = {}, _targets(config, params)
    for (path, kernel), kernel_key in zip(kernels.items(), jax.random.split(key, len(kernels)), strict=True):
        lead, count, ins, outs = _sizes(path, kernel.shape)
        down = jax.random.uniform(kernel_key, (*lead, count, ins, config.rank), minval=-1.0, maxval=1.0) * ins**-0.5
        pairs[path] = {"down": down, "up": jnp.zeros((*lead, count, config.rank, outs))}
    return unflatten_dict(pairs)


def insert(config: LoraConfig, params: Params, adapter: Adapter, key: Key[Array, ""] | None = None) -> Params:
    """The parameters with the adapter beside the kernels, as `nn.Dense` reads them; no dropout where `key` is None."""
    pairs = pairs_of(adapter)
    keys: Iterable[Array | None] = [None] * len(pairs)
    if key is not None and config.dropout > 0:
        keys = jax.random.split(key, len(pairs))
    joined = flatten_dict(params)
    for (path, pair), pair_key in zip(pairs.items(), keys, strict=True):
        joined |= {(*path, "lora_down"): pair["down"], (*path, "lora_up"): pair["up"] * config.scale}
        if pair_key is not None:
            lead = pair["down"].shape[:-3]
            joined[*path, "lora_key"] = jax.random.split(pair_key, lead) if lead else pair_key
            joined[*path, "lora_keep"] = jnp.full(lead, 1 - config.dropout)
    return unflatten_dict(joined)


def merge(config: LoraConfig, params: Params, adapter: Adapter) -> Params:
    """The parameters with the adapter's products added; raises ConfigError if the adapter is for another model."""
    merged = flatten_dict(params)
    for path, pair in pairs_of(adapter).items():
        place = (*path, "kernel")
        if place not in merged:
            raise ConfigError(f"the adapter is for {path[0]!r}, which the model does not have")
        kernel = merged[place]
        lead, count, ins, outs = _sizes(path, kernel.shape)
        expected = {"down": (*lead, count, ins, config.rank), "up": (*lead, count, config.rank, outs)}
        if {name: tuple(np.shape(part)) for name, part in pair.items()} != expected:
            raise ConfigError(f"the adapter does not fit {'/'.join(path)}, whose kernel is {kernel.shape}")
        numbers = np if isinstance(kernel, np.ndarray) else jnp
        # Sums in float32 whatever the kernel is: an update may be smaller than its type resolves.
        product = numbers.matmul(np.float32(config.scale) * pair["down"], pair["up"])
        product = numbers.moveaxis(product, -3, -2).reshape(kernel.shape)
        merged[place] = (kernel.astype(np.float32) + product).astype(kernel.dtype)
    return unflatten_dict(merged)


def _targets(config: LoraConfig, params: Params) -> dict[KernelPath, Any]:
    """The kernels that are adapted, by the paths of their layers."""
    leaves = sorted(flatten_dict(params).items(), key=operator.itemgetter(0))
    kernels = {path[:-1]: leaf for path, leaf in leaves if matrix(path) is not None}
    for pattern in config.targets:
        if not any(re.search(pattern, "/".join(path)) for path in kernels):
            raise ConfigError(
                f"lora.targets: {pattern!r} is found in none of {', '.join(sorted({'/'.join(p) for p in kernels}))}"
            )
    return {path: leaf for path, leaf in kernels.items() if any(re.search(p, "/".join(path)) for p in config.targets)}


def _sizes(path: KernelPath, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int, int]:
    """Of a kernel: the axes in front, how many matrices it holds, and the inputs and outputs of each."""
    place = matrix((*path, "kernel"))
    if place is None:
        raise ConfigError(f"the adapter is for {'/'.join(path)}, which has no kernel that can be adapted")
    ins, outs = (math.prod(shape[axis] for axis in axes) for axes in place)
    lead = shape[: len(shape) + min(place.inputs)]
    return lead, math.prod(shape[len(lead) :]) // (ins * outs), ins, outs


def pairs_of(adapter: Adapter) -> dict[KernelPath, Params]:
    """The narrow matrices by the paths of their layers."""
    return flatten_dict(adapter, is_leaf=lambda _, tree: not isinstance(tree.get("down", {}), dict))
