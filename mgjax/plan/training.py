"""The plan of a training run: one training step, compiled as the loop compiles it, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mgjax.config.conditioning import LabelConfig, NumberConfig
from mgjax.config.model import CodecConfig, ModelConfig
from mgjax.devices import sharding
from mgjax.devices.chips import Chip
from mgjax.errors import ConfigError
from mgjax.plan import roofline
from mgjax.plan.roofline import Plan
from mgjax.train import codec, lm
from mgjax.train.codec.config import CodecRun
from mgjax.train.flops import products
from mgjax.train.lm import resolver
from mgjax.train.lm.config import LMRun
from mgjax.train.lm.resolver import corpus_kind
from mgjax.train.programs import Programs
from mgjax.train.task import LoopConfig, Task


def spread(run: LMRun | CodecRun, devices: Sequence[Any]) -> LMRun | CodecRun:
    """The run with a batch size that can be spread over `devices`: its own, or the next larger one."""
    multiple = _batch_multiple(run, run.mesh.make(devices))
    size = -(-run.data.batch_size // multiple) * multiple
    return dataclasses.replace(run, data=dataclasses.replace(run.data, batch_size=size))


def of_run(run: LMRun | CodecRun, devices: Sequence[Any], chip: Chip) -> Plan:
    """The plan of one training step of a run, whose weights are not read, on `devices` of the kind `chip`.

    Raises:
      ConfigError: The parts do not fit together, or a source would have to be fetched.
      DoesNotFitError: The step needs more memory than a device has.
    """
    mesh = run.mesh.make(devices)
    multiple = _batch_multiple(run, mesh)
    if run.data.batch_size % multiple:
        raise ConfigError(
            f"a batch of {run.data.batch_size} in {run.optim.accumulate} parts cannot be spread over data x fsdp of "
            f"this mesh, {dict(mesh.shape)}: make data.batch_size a multiple of {multiple}, or model larger"
        )
    if isinstance(run, CodecRun):
        new = _without_init(run)
        return of_task(codec.training.task(new), new.loop, mesh, clip_shapes(new), chip)
    run = dataclasses.replace(run, codes_as_heard=False)  # the initial weights make no difference
    start = lm.pretrained_shapes(run)
    task = lm.task(run, start, corpus_kind(start.config))
    return of_task(task, run.loop, mesh, batch_shapes(run, start.config), chip)


def _without_init(run: CodecRun) -> CodecRun:
    """The run with new weights of the same shapes; of one that keeps its codes, all weights are trained."""
    if run.init is None:
        return run
    model = run.model or resolver.read_config(CodecConfig, run.init, fetch=False)
    if model.norm == "none":
        model = dataclasses.replace(model, norm="weight_norm")  # as training unfolds it
    return dataclasses.replace(run, init=None, keep_codes=False, model=model)


def clip_shapes(run: CodecRun) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the global batches of a codec's run, as of `data.pipeline.batches`."""
    size, samples = run.data.batch_size, math.floor(round(run.data.segment_seconds * run.codec.sample_rate, 6))
    return {
        "audio": jax.ShapeDtypeStruct((size, samples, run.codec.channels), np.float32),
        "num_samples": jax.ShapeDtypeStruct((size,), np.int32),
    }


def batch_shapes(run: LMRun, model: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the run's global batches, as of `data.pipeline.batches`."""
    kind = corpus_kind(model)
    rate = model.codec.sample_rate if kind == "audio" else model.codec.frame_rate
    length = math.floor(round(run.data.segment_seconds * rate, 6))
    rows: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {}
    if kind == "audio":
        rows |= {"audio": ((length, model.channels), np.float32), "num_samples": ((), np.int32)}
    else:
        rows |= {"codes": ((length, model.lm.num_codebooks), np.int32), "num_frames": ((), np.int32)}
    if model.text is not None:
        tokens = (run.text.max_tokens,)
        rows |= {"text_ids": (tokens, np.int32), "text_mask": (tokens, np.bool_)}
    if model.melody is not None:
        frames = (model.melody.num_frames,)
        rows["melody_mask"] = (frames, np.bool_)
        if kind == "tokens":
            rows["melody"] = ((*frames, model.melody.num_bins), np.float32)
    if model.style is not None:
        rows |= {"style_start": ((), np.int32), "style_mask": ((), np.bool_)}
    if model.clap is not None:
        rows["clap_mask"] = ((), np.bool_)
    labels: tuple[LabelConfig | NumberConfig, ...] = (*model.labels, *model.numbers)
    for label in labels:
        rows |= {f"label_{label.name}": ((1, label.dim), np.float32), f"label_{label.name}_mask": ((1,), np.bool_)}
    size = run.data.batch_size
    return {name: jax.ShapeDtypeStruct((size, *shape), dtype) for name, (shape, dtype) in rows.items()}


def _batch_multiple(run: LMRun | CodecRun, mesh: Mesh) -> int:
    """The number that the batch size has to be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * run.optim.accumulate


def of_task(task: Task, config: LoopConfig, mesh: Mesh, batch: dict[str, jax.ShapeDtypeStruct], chip: Chip) -> Plan:
    """The plan of one training step of a task on global batches of such shapes; its weights may be shapes."""
    assert task.flops is not None, "a plan compares with the operations that the model needs"
    programs = Programs(task, config, mesh)
    step = sharding.on_mesh(mesh, task.train_step)
    return roofline.of(
        programs.lowered(batch),
        mesh,
        chip,
        needed=task.flops(batch),
        computed=products(step, programs.state_shapes, programs.frozen_shapes, batch),
    )


def advice(run: LMRun | CodecRun, plan: Plan | None) -> list[str]:
    """Settings to change if a training step does not fit, or is far below the peak of the devices.

    The `plan` is None if the step could not be compiled.
    """
    changes = []
    if plan is None or plan.free < 0.1:
        splits = f"mesh.fsdp={2 * run.mesh.fsdp}" if run.mesh.fsdp > 0 else "more devices"
        if plan is None or plan.memory.temporaries > plan.memory.arguments:
            if isinstance(run, LMRun) and run.remat != "full":
                changes.append("set remat=full: layers are computed again rather than stored, a quarter more work")
            if isinstance(run, LMRun) and run.data.batch_size > 1:
                changes.append(f"set optim.accumulate={2 * run.optim.accumulate}: a batch in more parts, one by one")
            changes.append(f"set {splits}, or mesh.model={2 * run.mesh.model}: activations are split too")
        if plan is None or plan.memory.arguments > plan.chip.memory / 4:
            changes.append(f"set {splits}: weights and the optimiser's state are split among more devices")
    elif plan.utilization < 0.5:
        changes.append(
            {
                "computing": "less is computed twice with remat=dots or remat=none, if it fits",
                "memory": "a larger data.batch_size shares what is read of the weights",
                "interconnect": "a larger data.batch_size shares what is sent of the weights; remat=weights sends them "
                "once, if they fit",
            }[plan.limit]
        )
    return changes
