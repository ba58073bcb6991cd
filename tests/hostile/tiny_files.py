"""The smallest models, in all forms. Their arrays stay numpy's, so that reading them compiles nothing."""

import dataclasses
import json

import numpy as np

from mgjax.checkpoints import random_weights, sources
from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.tables import clap, hubert, matching
from mgjax.config.conditioning import (
    ClapAudioConfig,
    ClapConfig,
    ClapTextConfig,
    HubertConfig,
    LabelConfig,
    MelodyConfig,
    NumberConfig,
    StyleConfig,
    T5Config,
)
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig

LM = LMConfig(8, num_layers=1, num_heads=2, ffn_dim=12, num_codebooks=2, codebook_size=4, delays=(0, 1),
              conditions=(Fused("text", 6),))  # fmt: skip
CODEC = CodecConfig(80, num_filters=2, ratios=(2, 2), latent_dim=4, num_lstm_layers=1, num_codebooks=2,
                    codebook_size=4, bandwidths=(0.08,))  # fmt: skip
TEXT = T5Config(vocab_size=5, dim=6, head_dim=2, ffn_dim=7, num_layers=1, num_heads=2)
MODEL = ModelConfig(LM, CODEC, TEXT, tokenizer="bytes")
HUBERT = HubertConfig(conv_dims=(4, 4), conv_kernels=(3, 2), conv_strides=(2, 2), dim=8, ffn_dim=6, num_layers=1,
                      num_heads=2, position_kernel=4, position_groups=2)  # fmt: skip
CLAP = ClapConfig(
    ClapTextConfig(vocab_size=9, dim=8, ffn_dim=6, num_layers=1, num_heads=2, max_positions=7),
    ClapAudioConfig(16_000, 256, 5, 24, 50.0, 7000.0, 0.1, 96, 6, 4, 4, (1, 1), (2, 4), 2.0),
    dim=6,
)
# All that a model of mgjax's own form can be told but for CLAP.
STEERED = dataclasses.replace(
    MODEL,
    lm=dataclasses.replace(LM, conditions=(
        Fused("melody", 12, "prefix"), Fused("style", 8, "prefix"), Fused("text", 6), Fused("genre", 2, "sum"),
        Fused("bpm", 4, "sum"),
    )),
    melody=MelodyConfig(num_frames=5),
    style=StyleConfig(HUBERT, dim=8, ffn_dim=6, num_layers=1, num_heads=2, codebook_size=4),
    labels=(LabelConfig("genre", ("waltz", "polka")),),
    numbers=(NumberConfig("bpm", 40.0, 200.0, 4),),
)  # fmt: skip


def in_place(path, array):
    return array


def write(folder, form, config=MODEL, **options):
    """A model in one of its forms."""
    sources.write(folder, Checkpoint(config, random_weights.random_variables(config, place=in_place)), form, **options)


def read(folder):
    """All that is in the folder of a model."""
    sources.read_config(folder)
    sources.read(folder, place=in_place)
    sources.read_codec(folder, place=in_place)


def write_clap(folder):
    """A CLAP as transformers writes it."""
    text, audio = CLAP.text, CLAP.audio
    _write_settings(
        folder / "config.json",
        model_type="clap",
        projection_dim=CLAP.dim,
        text_config={theirs: getattr(text, ours) for ours, (theirs, _) in clap._TEXT_FIELDS.items()},
        audio_config={theirs: getattr(audio, ours) for ours, (theirs, _) in clap._AUDIO_FIELDS.items()}
        | {"hidden_size": audio.dims[-1], "patch_stride": [audio.patch_size] * 2},
    )
    features = {theirs: getattr(audio, ours) for ours, (theirs, _) in clap._FEATURE_FIELDS.items()}
    _write_settings(folder / "preprocessor_config.json", **features)
    arrays = random_weights.random_arrays(matching.target_shapes(clap.clap(CLAP)), place=in_place)
    safetensors.write(folder, matching.export(clap.clap(CLAP), arrays))


def write_hubert(folder):
    """A HuBERT as transformers writes it."""
    fields = {theirs: getattr(HUBERT, ours) for ours, (theirs, _) in hubert._FIELDS.items()}
    _write_settings(folder / "config.json", model_type="hubert", **fields)
    _write_settings(folder / "preprocessor_config.json", do_normalize=True, sampling_rate=16_000)
    arrays = random_weights.random_arrays(matching.target_shapes(hubert.hubert(HUBERT)), place=in_place)
    tensors = matching.export(hubert.hubert(HUBERT), arrays)
    kernel = tensors.pop(f"{hubert._POSITIONS}.weight")
    size = np.ones((1, 1, kernel.shape[2]), np.float32)
    tensors[f"{hubert._POSITIONS}.weight_v"] = kernel
    tensors[f"{hubert._POSITIONS}.weight_g"] = Tensor(size.shape, size.dtype, "", lambda: size)
    safetensors.write(folder, tensors)


def _write_settings(path, **values):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))
