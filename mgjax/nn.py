"""The layers that all networks here share: linear maps, norms, attention, positions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from mgjax.devices import sharding
from mgjax.kernels import cpu
from mgjax.kernels.memory import Blocks

Initializer = Callable[..., jax.Array]
AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)  # of functions that return the kind of array that they take

# A float32 model is computed in float32 on every device: left alone, accelerators round float32 products to fewer
# bits. Products of bfloat16 and float16 are not affected.
_EXACT = jax.lax.Precision.HIGHEST

_FEW_ROWS = 8
_SOME_OUTPUTS = 256

WEIGHT = "weight"  # the `checkpoint_name` of kernels, for the policies of remat


def _product(x: Float[Array, "n i"], kernel: Float[Array, "i *o"], dtype: Any) -> Float[Array, "n *o"]:
    """The product over `i`, with the sums in `dtype`.

    A step of decoding has few rows and is bound by reading the kernel. On CPU, XLA reads it a fifth faster in a
    convolution of width 1, which is the same product. Training has more rows than that: the convolution's gradient
    would be slow.
    """
    product = functools.partial(_dot, dtype=dtype)
    if not 1 < x.shape[0] <= _FEW_ROWS:
        return product(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(_convolution, dtype=dtype), default=product)


def _dot(x: Float[Array, "n i"], kernel: Float[Array, "i *o"], dtype: Any) -> Float[Array, "n *o"]:
    contracted = (((1,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contracted, precision=_EXACT, preferred_element_type=dtype)


def _convolution(x: Float[Array, "n i"], kernel: Float[Array, "i *o"], dtype: Any) -> Float[Array, "n *o"]:
    matrix = kernel.reshape(1, kernel.shape[0], -1)
    y = jax.lax.conv_general_dilated(
        x[None], matrix, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"), preferred_element_type=dtype
    )
    return y.reshape(x.shape[0], *kernel.shape[1:])


@struct.dataclass
class TransposedKernel:
    """A kernel as decoding reads it: the weights of each output lie together, in fewer bits by choice.

    It stands in the place of a `Dense`'s kernel. `scale` is that of each output where the weights are int8, else None.
    """

    weights: Float[Array, "o i"] | Int[Array, "o i"]
    scale: Float[Array, " o"] | None = None

    @classmethod
    def of(cls, kernel: Float[np.ndarray, "i o"], dtype: str, blocks: Blocks | None = None) -> TransposedKernel:
        """The kernel with weights of `dtype`, "float32", "bfloat16" or "int8"; int8 rounds to 127 steps per output.

        The weights are put into `blocks`.
        """
        weights = (blocks or Blocks()).empty(kernel.T.shape, jnp.dtype(dtype))
        scale = np.empty(len(weights), np.float32) if dtype == "int8" else None
        for first in range(0, len(weights), _SOME_OUTPUTS):  # what is made on the way stays small
            some = slice(first, first + _SOME_OUTPUTS)
            part = np.ascontiguousarray(kernel[:, some].T, np.float32)
            if scale is not None:
                scale[some] = np.maximum(np.abs(part).max(axis=1), np.finfo(np.float32).tiny) / 127
                np.rint(np.divide(part, scale[some, None], out=part), out=part)
            weights[some] = part
        return cls(jax.device_put(weights), None if scale is None else jax.device_put(scale))

    def kernel(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """The kernel of `(*in_shape, *out_shape)`, float32; where it is stored so, a view of the same memory."""
        weights = np.asarray(self.weights).astype(np.float32, copy=False)
        weights = weights if self.scale is None else weights * np.asarray(self.scale)[:, None]
        return weights.T.reshape(shape)

    def product(self, x: Float[Array, "n i"], dtype: Any) -> Float[Array, "n o"]:
        """The product over `i`, with the sums in `dtype`; on CPU they are float32 ones."""
        on_cpu = by_cpu_kernel if cpu.available() else by_xla_on_cpu
        return jax.lax.platform_dependent(x, self, cpu=on_cpu, default=_transposed_dot).astype(dtype)


def _transposed_dot(x: Float[Array, "n i"], kernel: TransposedKernel) -> Float[Array, "n o"]:
    contracted = (((1,), (1,)), ((), ()))
    weights = kernel.weights.astype(x.dtype)
    y = jax.lax.dot_general(x, weights, contracted, precision=_EXACT, preferred_element_type=jnp.float32)
    return y if kernel.scale is None else y * kernel.scale[None]


def by_cpu_kernel(x: Float[Array, "n i"], kernel: TransposedKernel) -> Float[Array, "n o"]:
    """The product by the kernel in C++."""
    return cpu.product(x, kernel.weights, kernel.scale)


def by_xla_on_cpu(x: Float[Array, "n i"], kernel: TransposedKernel) -> Float[Array, "n o"]:
    """The product in the form of XLA that is fastest for that number of rows (benchmarks/products.py)."""
    # XLA would take the conversion of weights out of the loop over steps, and read float32.
    x, kernel = jax.lax.optimization_barrier((x.astype(jnp.float32), kernel))
    if x.shape[0] > _FEW_ROWS:
        return _transposed_dot(x, kernel)
    rows = x if x.shape[0] > 1 else jnp.concatenate([x, x])  # alone, a row takes ten times as long
    y = jnp.sum(kernel.weights.astype(jnp.float32)[:, None] * rows[None], axis=-1).T[: x.shape[0]]
    return y if kernel.scale is None else y * kernel.scale[None]


class Dense(nn.Module):
    """A linear map of the last axes of x, `in_shape`, to `out_shape`, with a kernel of `(*in_shape, *out_shape)`.

    The product is over one axis, into which those of x are merged: if two axes are contracted at once, XLA copies the
    kernel on CPU. Those of the result stay apart: one of them may be split among devices. The kernel is cast to `dtype`
    (x's where None); `result_dtype` is the type that sums are kept and returned in (that of the product where None).
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    result_dtype: jnp.dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch_and_in"]) -> Float[Array, "*batch_and_out"]:
        """Maps x `[*batch, *in_shape]` to `[*batch, *out_shape]`."""
        dtype = self.dtype or x.dtype
        batch = x.shape[: x.ndim - len(self.in_shape)]
        rows = x.astype(dtype).reshape(-1, math.prod(self.in_shape))
        kernel = self.get_variable("params", "kernel") if self.has_variable("params", "kernel") else None
        if isinstance(kernel, TransposedKernel):
            y = kernel.product(rows, self.result_dtype or dtype)
        else:
            kernel = self.param("kernel", self.kernel_init, (*self.in_shape, *self.out_shape))
            # Cast before it is gathered: half the bytes.
            kernel = checkpoint_name(sharding.gathered("/".join((*self.path, "kernel")), kernel.astype(dtype)), WEIGHT)
            y = _product(rows, kernel.reshape(-1, *self.out_shape), self.result_dtype)
        if self.has_variable("params", "lora_down"):
            y = y + self._adapted(rows).reshape(y.shape).astype(y.dtype)
        y = y.reshape(*batch, *self.out_shape)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, self.out_shape)
            y = y + jnp.expand_dims(bias.astype(y.dtype), range(len(batch)))
        return y

    def _adapted(self, rows: Float[Array, "n i"]) -> Float[Array, "n o"]:
        """The product of the rows with the adapter (lm/lora.py) beside the kernel, two narrow matrices."""
        params = self.variables["params"]
        down, up = (params[f"lora_{name}"].astype(rows.dtype) for name in ("down", "up"))
        if "lora_key" in params:
            keep = params["lora_keep"].astype(rows.dtype)
            kept = jax.random.bernoulli(params["lora_key"], keep, rows.shape)
            rows = jnp.where(kept, rows / keep, 0)
        # One product for each group: XLA on CPU transposes what a batch of products reads in the backward pass.
        parts = [_dot(_dot(rows, down[g], rows.dtype), up[g], rows.dtype) for g in range(len(down))]
        return jnp.concatenate(parts, axis=-1)


@functools.cache
def symmetric_uniform(fan_in: int) -> Initializer:
    """Uniform within 1 / sqrt(fan_in) of zero."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class LayerNorm(nn.Module):
    """Layer normalisation with scale and bias of the last axis, in float32."""

    eps: float = 1e-5
    axis: int = -1

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Normalises x over `axis`, in x's type."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=self.axis, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=self.axis, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps)
        leading = range(x.ndim - 1)
        y = y * jnp.expand_dims(scale, leading).astype(jnp.float32) + jnp.expand_dims(bias, leading)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with scale only, in float32 (the norm of T5)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Normalises x over its last axis, in x's type."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (y * jnp.expand_dims(scale, range(x.ndim - 1)).astype(jnp.float32)).astype(x.dtype)


def attention(
    query: Float[Array, "b q h e"],
    key: Float[Array, "b m h e"],
    value: Float[Array, "b m h e"],
    *,
    mask: Bool[Array, "#b #h #q m"] | None = None,
    bias: Float[Array, "#b #h #q m"] | None = None,
    scale: float = 1.0,
) -> Float[Array, "b q h e"]:
    """Softmax attention with the scores in float32.

    `mask` is True where a query attends to a key. A query that attends to none gets zeros, not NaN: a null condition
    adds nothing.
    """
    scores = jnp.einsum("bqhe,bmhe->bhqm", query, key, precision=_EXACT, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)
    return jnp.einsum("bhqm,bmhe->bqhe", weights.astype(value.dtype), value, precision=_EXACT)


def apply(module: nn.Module, variables: Mapping[str, Any], *inputs: Any, **options: Any) -> Any:
    """`module.apply`, of which flax's types say that it may return changed variables too: not without `mutable`."""
    return module.apply(variables, *inputs, **options)


@functools.partial(jax.jit, static_argnames="module")
def jit_apply(module: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> Any:
    """`module.apply(variables, *inputs)` as one compiled program."""
    return module.apply(variables, *inputs)


def sinusoidal_positions(
    positions: Int[Array, "*batch s"], dim: int, max_period: float = 10_000.0
) -> Float[Array, "*batch s {dim}"]:
    """The position vectors of MusicGen, always float32: half-precision angles are wrong by up to 2.

    Cosines first, then sines, with frequencies `max_period ** (-i / (dim / 2 - 1))`: the divisor differs by one from
    Vaswani et al. 2017.
    """
    half = dim // 2
    frequencies = max_period ** (-jnp.arange(half, dtype=jnp.float32) / (half - 1))
    angles = positions[..., None].astype(jnp.float32) * jnp.expand_dims(frequencies, range(positions.ndim))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def nearest(x: Float[Array, "b t d"], embed: Float[Array, "v d"]) -> Int[Array, "b t"]:
    """The index of the codeword nearest to each frame, in float32; the first of equals."""
    products = jnp.einsum("btd,vd->btv", x, embed, precision=_EXACT, preferred_element_type=jnp.float32)
    return jnp.argmin(jnp.sum(jnp.square(embed), axis=-1)[None, None] - 2 * products, axis=-1).astype(jnp.int32)


def quantize(
    latents: Float[Array, "b t d"], embed: Float[Array, "k v d"]
) -> tuple[Int[Array, "b t k"], Float[Array, "b t d"], Float[Array, "b t d"]]:
    """Residual vector quantization (Défossez et al. 2022, section 3.2): a codebook quantizes the last one's residual.

    Returns:
      The codes, -1 where latents are not finite; the sum of their codewords; and the residual of the last codebook.
    """

    def level(carry: tuple[Array, Array], codebook: Array) -> tuple[tuple[Array, Array], Array]:
        residual, total = carry
        codes = nearest(residual, codebook)
        codewords = jnp.take(codebook, codes, axis=0)
        return (residual - codewords, total + codewords), codes

    latents = latents.astype(jnp.float32)
    # NaN has a nearest codeword too; the last residual is then not finite.
    (residual, total), codes = jax.lax.scan(level, (latents, jnp.zeros_like(latents)), embed.astype(jnp.float32))
    codes = jnp.where(jnp.isfinite(residual).all(axis=-1, keepdims=True), jnp.moveaxis(codes, 0, -1), -1)
    return codes, total, residual


def dequantize(codes: Int[Array, "b t k"], embed: Float[Array, "n v d"]) -> Float[Array, "b t d"]:
    """The sum of the codewords that `codes` stand for, of the first k codebooks."""
    _, v, d = embed.shape
    rows = codes + (jnp.arange(codes.shape[-1]) * v)[None, None]
    return jnp.sum(jnp.take(embed.reshape(-1, d), rows, axis=0), axis=2)


Shapes = dict[str, tuple[int, ...]]  # of arrays, by their paths


def codebook_shapes(k: int, v: int, d: int) -> Shapes:
    """The shapes of a residual vector quantizer: k codebooks of v codewords of width d, and their moving averages."""
    return {"embed": (k, v, d), "embed_avg": (k, v, d), "cluster_size": (k, v), "inited": (k,)}


def not_finite(tree: Any) -> list[str]:
    """The paths of the arrays in which a number is NaN or infinite."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [sharding.path_of(path) for path, leaf in leaves if not jnp.isfinite(leaf).all()]


def why_not_finite(variables: Any) -> str:
    """The end of an error message: why a model with these weights gives NaN or infinity, and what to do."""
    paths = not_finite(variables)
    if not paths:
        return "all weights are finite, so numbers became too large on the way; load the model in dtype float32"
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"the weights {', '.join(paths[:3])}{more} are NaN or infinite; fetch or convert the model again"
