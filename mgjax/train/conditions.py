"""What the language model is told while it learns: the conditions of a batch, made within the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mgjax.conditioner_config import MelodyConfig
from mgjax.conditioning.chroma import chromagram
from mgjax.conditioning.condition import Condition
from mgjax.conditioning.t5 import T5Encoder
from mgjax.config import LMConfig, ModelConfig
from mgjax.strict_json import ConfigError
from mgjax.train import optim

Batch = Mapping[str, Array]


def check(model: ModelConfig) -> None:
    """Raises ConfigError unless `model` can be trained with its conditions."""
    if model.melody is not None and model.melody.sample_rate != model.codec.sample_rate:
        raise ConfigError(
            f"melody.sample_rate is {model.melody.sample_rate}, but the codec's music has {model.codec.sample_rate} "
            "Hz: set it to that"
        )
    for name in ("style", "clap"):
        if getattr(model, name) is not None:
            raise ConfigError(f"models with the condition {name} cannot be trained yet: leave {name} out")


def heard(model: ModelConfig, batch: Batch, parts: int) -> dict[str, Array]:
    """What the conditions of a batch are made of, rows first: its texts and labels as they are, and its chromagrams.

    Args:
      model: Whose conditions they are.
      batch: See `data.pipeline.batches`.
      parts: How many parts of the batch are worked on one after the other, to save memory.
    """
    found = {name: batch[name] for name in batch if name.startswith(("text_", "melody", "label_"))}
    if model.melody is not None and "melody" not in found:
        config = model.melody
        found["melody"] = optim.in_parts(lambda audio: melodies(audio, config), batch["audio"], parts)
    return found


def melodies(audio: Float[Array, "b n c"], config: MelodyConfig) -> Float[Array, "b f p"]:
    """The chromagrams of the music itself, mixed down, with `config.num_frames` frames; zeros where it is shorter."""
    found = chromagram(jnp.mean(audio, axis=2), config)[:, : config.num_frames]
    return jnp.pad(found, ((0, 0), (0, config.num_frames - found.shape[1]), (0, 0)))


def conditions(model: ModelConfig, frozen: Mapping[str, Any], pieces: Batch) -> dict[str, Condition]:
    """The conditions of a batch by name.

    Args:
      model: Whose conditions they are.
      frozen: Weights of the encoders: {"text": ...}.
      pieces: What `heard` gave, or a part of its rows.
    """
    found = {}
    if model.text is not None:
        found["text"] = _text(model, frozen["text"], pieces["text_ids"], pieces["text_mask"])
    if model.melody is not None:
        found["melody"] = _melody(model, model.melody, pieces["melody"], pieces["melody_mask"])
    for label in (*model.labels, *model.numbers):
        name = f"label_{label.name}"
        found[label.name] = Condition(pieces[name], pieces[f"{name}_mask"])
    return found


def _text(model: ModelConfig, params: Any, ids: Array, mask: Bool[Array, "b l"]) -> Condition:
    tokens, attended = T5Encoder(model.text).apply({"params": params}, ids, mask), None
    if is_prefix(model.lm, "text"):
        # A null text before the music is one zero vector, as the published models saw it.
        lengths = jnp.maximum(jnp.sum(mask, axis=1), 1)
        attended = jnp.arange(mask.shape[1])[None] < lengths[:, None]
    return Condition(tokens, mask, attended)


def _melody(
    model: ModelConfig, config: MelodyConfig, chroma: Float[Array, "b f p"], mask: Bool[Array, "b f"]
) -> Condition:
    """Where silence stands for no melody, frames that are not there are zero vectors before the music, as the published
    models saw them in training; where nothing does, there are none."""
    is_silence = is_prefix(model.lm, "melody") and config.null == "silence"
    attended = jnp.ones_like(mask) if is_silence else None
    return Condition(chroma, mask, attended, rate=config.frame_rate / model.codec.frame_rate)


def is_prefix(config: LMConfig, name: str) -> bool:
    """Whether the condition stands before the music."""
    return config.condition(name).fuse == "prefix"
