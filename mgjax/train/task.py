"""A task, as pure functions that the loop runs, and the settings of the loop and of the device mesh."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from mgjax.config.serialization import ranged
from mgjax.devices import sharding
from mgjax.errors import ConfigError
from mgjax.storage.paths import Path
from mgjax.train.metrics import Mean, Sound
from mgjax.train.state import TrainState

Batch = dict[str, Array]
BatchShapes = Mapping[str, Array | np.ndarray | jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Task:
    """A training task, as pure functions, which the loop jits and shards.

    `init` takes a key, and `pretrained` if there are such weights; the loop runs it with the state's shardings, so that
    no device ever holds all of it. `train_step` returns the state after one training step (the old one is donated) and
    float32 scalars by name, all of them finite; the terminal shows the one named "loss". `eval_step` returns means by
    name, or other trees of sums that have `value`, which the loop adds up over the validation split.
    """

    name: str  # in messages, such as "codec"
    init: Callable[..., TrainState]
    train_step: Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]
    eval_step: Callable[[TrainState, Any, Batch], dict[str, Mean | Any]]
    frozen: Any  # weights that are read and not trained, placed by the table of `sharding.py`; {} for none
    # The floating point operations that the model needs for a training step on a global batch, without recomputed ones.
    flops: Callable[[BatchShapes], float] | None
    show: Callable[[TrainState, Batch], dict[str, Sound]] | None  # sounds by name, of a batch of the validation split
    save: Callable[[TrainState, Path], None]  # writes a model that `mgjax.load` or `mgjax.load_codec` opens
    best: tuple[str, Literal["min", "max"]]  # the validation metric by which the best checkpoint is chosen
    pretrained: Any = None  # weights to go on from, placed by the table; None for none


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The size of each axis of the device mesh; -1 for one of them is as many as there are devices for.

    Attributes:
      data: Devices (groups of them, with fsdp and model) that hold a whole copy.
      fsdp: Devices among which parameters are split, each working on its own rows; where `data` is -1 and there are
        fewer, all of them.
      model: Devices among which heads and wide layers are split, working on the same rows.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh of all devices, or of `devices`; raises ValueError if there are too few."""
        return sharding.make_mesh(self.data, self.fsdp, self.model, devices)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The length of a run, and what it reports and keeps.

    Attributes:
      steps: Training steps in all.
      seed: The seed of the initial weights and of every training step.
      log_every: Training steps between two lines of training metrics.
      eval_every: Training steps between two validations, 0 for none but the last.
      eval_batches: Batches of the validation split that a validation reads; None for all.
      show_every: Training steps between two rounds of sounds for TensorBoard; 0 for none.
      save_every: Training steps between two checkpoints. One is also written after each validation, and at the end.
      local_every: Training steps between two checkpoints on the local disk of each host, from which a run goes on if
        all hosts have theirs; 0 for none. They cost less than those in a bucket, and the newest two are kept.
      local_folder: Where; None for the user's cache folder.
      keep_last: The number of newest checkpoints to keep.
      keep_best: The number of best checkpoints to keep in addition.
      data: The old name of the mesh's `data`; None if it is not used.
      fsdp: That of its `fsdp`.
      model: That of its `model`.
      max_skipped: Training steps in a row that may be skipped because a metric was NaN or infinite; one more stops the
        run. More than 0 needs memory for a second state.
      hang_seconds: A training step, a validation, a round of sounds or the copying of a checkpoint that takes longer
        than this ends the process, after the stacks of its threads were written to stderr; 0 for never. The first
        step, which compiles, may take longer.
      peak_flops: The floating point operations of one device per second, for the utilisation that is printed; None to
        look it up by the name of the device.
    """

    steps: int = 100_000
    seed: int = 0
    log_every: int = 50
    eval_every: int = 1000
    eval_batches: int | None = 50
    show_every: int = 5000
    save_every: int = 1000
    local_every: int = 0
    local_folder: str | None = None
    keep_last: int = 2
    keep_best: int = 1
    data: int | None = None
    fsdp: int | None = None
    model: int | None = None
    max_skipped: int = 0
    hang_seconds: float = 1800.0
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "loop.")
        ranged(self, "1 or more", "steps log_every save_every keep_last eval_batches", "loop.")
        ranged(self, "0 or more", "seed eval_every show_every local_every keep_best max_skipped hang_seconds", "loop.")
        ranged(self, "above 0", "peak_flops", "loop.")


def take_old_mesh(run: Any) -> None:
    """Moves sizes of the mesh by their old names, in the run's `loop`, into its `mesh`, with a warning."""
    old = {axis: size for axis in sharding.AXES if (size := getattr(run.loop, axis)) is not None}
    if not old:
        return
    settings = ", ".join(f"loop.{axis} is now mesh.{axis} ({size})" for axis, size in old.items())
    warnings.warn(f"{settings}: the old names will go", stacklevel=4)  # where the run is made
    object.__setattr__(run, "mesh", dataclasses.replace(run.mesh, **old))
    object.__setattr__(run, "loop", dataclasses.replace(run.loop, **dict.fromkeys(old)))


def check_numbers(config: Any, path: str = "") -> None:
    """Raises ConfigError if a number in the dataclass `config` is not finite, or an integer of more than 32 bits.

    Dataclasses in it are checked too; `path` stands before the names in messages.
    """
    for name, value in vars(config).items():
        for item in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(item):
                check_numbers(item, f"{path}{name}.")
            elif (isinstance(item, float) and not math.isfinite(item)) or (
                isinstance(item, int) and abs(item) >= 2**32
            ):
                raise ConfigError(f"{path}{name} must be finite, and within 32 bits where it is whole, got {item}")
