"""The plan of generation: a step of the loop that draws codes, compiled as `MusicGen` runs it, from shapes alone."""

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

from mgjax.checkpoints.tables.matching import is_exact
from mgjax.checkpoints.tables.shapes import model_shapes
from mgjax.conditioning.condition import Condition
from mgjax.config.model import ModelConfig, Sampling
from mgjax.devices import sharding
from mgjax.devices.chips import Chip
from mgjax.generation.sampling import (
    DecodeState,
    SamplingParams,
    capacity_for,
    decode_steps,
    make_context,
    state_shardings,
)
from mgjax.lm import pattern as patterns
from mgjax.lm.model import LM, Cache
from mgjax.lm.transformer import KeyValue
from mgjax.plan import roofline
from mgjax.plan.roofline import Plan
from mgjax.train.flops import products

_TEXT = 64  # tokens of the texts
_STEPS = 50  # of a call, over which what is done once for each call is spread


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be generated.

    Attributes:
      batch: Pieces at a time.
      seconds: Their length. What is beyond the model's window is made window by window, in the same memory.
      dtype: Of weights, activations and cache.
      is_guided: Whether by guidance, for which each piece has two rows.
    """

    batch: int
    seconds: float
    dtype: str = "bfloat16"
    is_guided: bool = True


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
    """The plan of one step, which reads the cache of the whole piece (of its longest window), as the last steps do.

    Args:
      config: What generates.
      workload: What is generated.
      devices: What it is compiled for.
      chip: What they are.
      data, fsdp, model: The sizes of the mesh.

    Raises:
      DoesNotFitError: It needs more memory than a device has.
    """
    mesh = sharding.make_mesh(data, fsdp, model, devices)
    module, num_sets = LM(config.lm), 1 + workload.is_guided
    weights = _weights(config, workload.dtype, mesh)
    params, rows = weights.pop("lm"), num_sets * workload.batch
    made = make_context.lower(module, params, _conditions(config, rows, mesh), rows)
    context = jax.tree.map(_on, made.out_info, made.compile().output_shardings)
    shardings = state_shardings(config.lm, workload.batch, num_sets, mesh)

    num_frames = round(min(workload.seconds, config.window_seconds) * config.codec.frame_rate)
    capacity = capacity_for(patterns.from_config(config.lm).num_steps(num_frames))
    h, e, k = config.lm.num_heads, config.lm.head_dim, config.lm.num_codebooks

    def cached(num_slots: int) -> KeyValue:
        slots = jax.ShapeDtypeStruct((rows, h, num_slots, e), jnp.dtype(workload.dtype), sharding=shardings.cache)
        return KeyValue(slots, slots)

    cross_length = context.cross.shape[1]
    layer = cached(context.prefix.shape[1] + capacity), cached(cross_length) if cross_length else None
    everywhere = NamedSharding(mesh, P())
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    state = DecodeState(
        tokens=jax.ShapeDtypeStruct((workload.batch, capacity, k), jnp.int32, sharding=shardings.tokens),
        cache=Cache(*((part,) * config.lm.num_layers for part in layer)),
        step=number,
        non_finite_step=jax.ShapeDtypeStruct((workload.batch,), jnp.int32, sharding=everywhere),
    )
    sampled = jax.ShapeDtypeStruct((capacity, k), jnp.bool_)
    scales = jax.ShapeDtypeStruct((capacity, num_sets - 1, workload.batch), jnp.float32)
    sampling = jax.eval_shape(lambda: SamplingParams.of([Sampling()] * workload.batch, range(workload.batch), k))
    lowered = decode_steps.lower(module, params, context, state, sampled, sampling, scales, number, number, shardings)

    tokens = jax.ShapeDtypeStruct((rows, 1, k), jnp.int32)
    decode = functools.partial(module.apply, method="decode")
    operations = products(decode, {"params": params}, tokens, context, state.cache, number)
    plan = roofline.of(lowered, mesh, chip, needed=operations, computed=operations, open_loops=_STEPS)
    return dataclasses.replace(
        plan,
        memory=dataclasses.replace(plan.memory, beside=_bytes_each(weights)),
        moved=plan.moved / _STEPS,
        traffic=tuple(
            dataclasses.replace(
                item, times=item.times / _STEPS, bytes=item.bytes / _STEPS, seconds=item.seconds / _STEPS
            )
            for item in plan.traffic
        ),
    )


def speed(config: ModelConfig, workload: Workload, plan: Plan) -> str:
    """How much music that is in a second, in words."""
    each = 1 / (plan.step * config.codec.frame_rate)
    return f"at most {workload.batch * each:.3g} s of music in a second, {each:.3g} of each piece"


def advice(plan: Plan | None) -> list[str]:
    """What to change where it does not fit; `plan` is None where it could not even be compiled."""
    if plan is not None and plan.free >= 0.1:
        return []
    return ["--mesh model=N splits weights and caches among N devices; or generate fewer pieces at a time"]


def _weights(config: ModelConfig, dtype: str, mesh: Mesh) -> dict[str, Any]:
    """Shapes of the model's weights, where `mgjax.load` puts them."""
    shapes = {}
    for path, shape in model_shapes(config).items():
        kind = jnp.float32 if is_exact(tuple(path.split("/"))) else jnp.dtype(dtype)
        where = NamedSharding(mesh, sharding.spec(path, shape, mesh))
        shapes[path] = jax.ShapeDtypeStruct(shape, kind, sharding=where)
    return unflatten_dict(shapes, sep="/")


def _conditions(config: ModelConfig, rows: int, mesh: Mesh) -> dict[str, Condition]:
    """Shapes of conditions, as the encoders give them and `MusicGen` places them."""
    lengths = {"text": _TEXT, "melody": config.melody and config.melody.num_frames}
    if config.style is not None:
        rate = config.codec.frame_rate if config.style.features is None else config.style.features.frame_rate
        lengths["style"] = round(config.style.seconds * rate) // config.style.downsample
    conditions = {}
    for fused in config.lm.conditions:
        where, length = sharding.rows(rows, mesh), lengths.get(fused.name, 1)
        mask = jax.ShapeDtypeStruct((rows, length), jnp.bool_, sharding=where)
        tokens = jax.ShapeDtypeStruct((rows, length, fused.dim), jnp.float32, sharding=where)
        rate = config.melody.frame_rate / config.codec.frame_rate if fused.name == "melody" else None
        conditions[fused.name] = Condition(tokens, mask, mask if fused.fuse == "prefix" else None, rate)
    return conditions


def _on(info: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=where)


def _bytes_each(tree: Any) -> float:
    """Bytes of arrays on each device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves))
