"""The plan of generation: a decode step, compiled as `MusicGen` runs it, from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mgjax.checkpoints.inference import kernel_shape
from mgjax.checkpoints.tables.matching import stays_float32
from mgjax.checkpoints.tables.shapes import model_shapes
from mgjax.conditioning.condition import Condition
from mgjax.config.model import ModelConfig, Sampling
from mgjax.devices import sharding
from mgjax.devices.chips import Chip
from mgjax.generation.sampling import SamplingParams, capacity_for, decode_steps, make_context, prefill, state_shardings
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM
from mgjax.plan import roofline
from mgjax.plan.roofline import Plan
from mgjax.train.flops import products

_TEXT = 64  # tokens of a prompt
_STEPS = 50  # decode steps of a call


@dataclasses.dataclass(frozen=True)
class Workload:
    """The pieces to generate."""

    batch: int  # pieces at a time
    seconds: float  # their length; beyond the model's window, windows follow each other in the same memory
    dtype: str = "bfloat16"  # of weights, activations and cache
    is_guided: bool = True  # by classifier-free guidance, for which each piece has two rows
    weights: str | None = None  # the type that transposed kernels are kept in, on one device; None for `dtype`

    @property
    def num_sets(self) -> int:
        """The rows of a piece."""
        return 1 + self.is_guided


def of_model(
    config: ModelConfig,
    workload: Workload,
    devices: Sequence[Any],
    chip: Chip,
    *,
    data: int = -1,
    fsdp: int = 1,
    model: int = 1,
) -> Plan:
    """The plan of one decode step with the cache of the longest window, as the last steps have it.

    The `devices` to compile for, which are of the kind `chip`, form a mesh of `data`, `fsdp` and `model`, as for
    `sharding.make_mesh`.

    Raises:
      DoesNotFitError: It needs more memory than a device has.
    """
    mesh = sharding.make_mesh(data, fsdp, model, devices)
    rows = workload.num_sets * workload.batch
    arguments = step_arguments(config, workload, mesh)
    module, params, context, state, *_, number = arguments
    shardings = state_shardings(config.lm, workload.batch, workload.num_sets, mesh)
    lowered = decode_steps.lower(*arguments, shardings)

    step = _shape((rows, 1, config.lm.num_codebooks), jnp.int32)
    decode = functools.partial(module.apply, method="decode")
    operations = products(decode, {"params": params}, step, context, state.cache, number)
    plan = roofline.of(lowered, mesh, chip, needed=operations, computed=operations, open_loops=_STEPS)
    beside = _bytes_each({part: tree for part, tree in _weights(config, workload, mesh).items() if part != "lm"})
    return dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, beside=beside))


def step_arguments(config: ModelConfig, workload: Workload, mesh: Mesh) -> tuple[Any, ...]:
    """What `sampling.decode_steps` is called with in the longest window, as shapes; the shardings are left out."""
    module, rows, k = LM(config.lm), workload.num_sets * workload.batch, config.lm.num_codebooks
    params = _weights(config, workload, mesh)["lm"]
    lowered = make_context.lower(module, params, _conditions(config, rows, mesh), rows)
    placed = lowered.compile().output_shardings
    context = jax.tree.map(lambda leaf, where: _shape(leaf.shape, leaf.dtype, where), lowered.out_info, placed)
    shardings = state_shardings(config.lm, workload.batch, workload.num_sets, mesh)

    num_frames = round(min(workload.seconds, config.window_seconds) * config.codec.frame_rate)
    capacity = capacity_for(patterns.from_config(config.lm).num_steps(num_frames))
    number = _shape((), jnp.int32, NamedSharding(mesh, P()))
    tokens = _shape((workload.batch, capacity, k), jnp.int32)
    state = jax.eval_shape(functools.partial(prefill, module, num_read=0), params, context, tokens, number)
    by_axes = {4: shardings.cache, 3: shardings.tokens}
    state = jax.tree.map(lambda leaf: _shape(leaf.shape, leaf.dtype, by_axes.get(leaf.ndim, number.sharding)), state)
    sampled = _shape((capacity, k), jnp.bool_)
    scales = _shape((capacity, workload.num_sets - 1, workload.batch), jnp.float32)
    sampling = jax.eval_shape(lambda: SamplingParams.of([Sampling()] * workload.batch, range(workload.batch), k))
    return module, params, context, state, sampled, sampling, scales, number, number


def speed(config: ModelConfig, workload: Workload, plan: Plan) -> str:
    """The upper bound of the seconds of music generated in a second, as text."""
    each = 1 / (plan.step * config.codec.frame_rate)
    return f"at most {workload.batch * each:.3g} s of music in a second, {each:.3g} of each piece"


def advice(plan: Plan | None) -> list[str]:
    """Options to change if it does not fit; `plan` is None if it could not be compiled."""
    if plan is not None and plan.free >= 0.1:
        return []
    return ["--mesh model=N splits weights and caches among N devices; or generate fewer pieces at a time"]


def _weights(config: ModelConfig, workload: Workload, mesh: Mesh) -> dict[str, Any]:
    """Shapes of the model's weights, with the shardings of `mgjax.load`."""
    shapes = {}
    for path, shape in model_shapes(config).items():
        names = tuple(path.split("/"))
        kernel = kernel_shape(names, shape, workload.weights) if workload.weights else None
        dtype = jnp.float32 if stays_float32(names) else jnp.dtype(workload.dtype)
        placed = NamedSharding(mesh, P() if kernel else sharding.spec(path, shape, mesh))
        shapes[path] = jax.tree.map(
            lambda leaf, placed=placed: _shape(leaf.shape, leaf.dtype, placed), kernel or _shape(shape, dtype)
        )
    return unflatten_dict(shapes, sep="/")


def _conditions(config: ModelConfig, rows: int, mesh: Mesh) -> dict[str, Condition]:
    """Shapes of the conditions, with the shardings of `MusicGen`."""
    lengths = {"text": _TEXT} | ({"melody": config.melody.num_frames} if config.melody else {})
    if config.style is not None:
        frame_rate = (config.style.features or config.codec).frame_rate
        lengths["style"] = round(config.style.seconds * frame_rate) // config.style.downsample
    conditions = {}
    for fused in config.lm.conditions:
        by_rows, length = sharding.rows(rows, mesh), lengths.get(fused.name, 1)
        mask = _shape((rows, length), jnp.bool_, by_rows)
        tokens = _shape((rows, length, fused.dim), jnp.float32, by_rows)
        rate = config.melody.frame_rate / config.codec.frame_rate if config.melody and fused.name == "melody" else None
        conditions[fused.name] = Condition(tokens, mask, mask if fused.fuse == "prefix" else None, rate)
    return conditions


def _shape(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    """A shape in the place of an array."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)


def _bytes_each(tree: Any) -> float:
    """Bytes of arrays on each device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves))
