"""A tiny random CLAP of transformers, and its directory."""

import warnings
from pathlib import Path

import torch
import transformers


def clap_config(text=None, audio=None, **changes):
    text_fields = dict(
        vocab_size=400, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=90, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    # 24 mel bands, an image of 96 in 16 x 16 patches of 6, windows of 4 with shifts in the second stage.
    audio_fields = dict(
        num_mel_bins=24, spec_size=96, patch_size=6, patch_stride=[6, 6], window_size=4, patch_embeds_hidden_size=8,
        hidden_size=16, depths=[1, 2], num_attention_heads=[2, 4], mlp_ratio=2.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.ClapConfig(
        text_config=text_fields | (text or {}), audio_config=audio_fields | (audio or {}), projection_dim=12, **changes
    )


def clap(config=None):
    """Every array random, so that no two of them can be taken for one another."""
    torch.manual_seed(0)
    model = transformers.ClapModel(config or clap_config())
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand_like(value) * 300 + 100)
            elif name.endswith("running_mean"):
                value.copy_(torch.randn_like(value) * 10 - 30)
            elif value.is_floating_point():
                value.copy_(torch.randn_like(value) * (0.3 if value.ndim > 1 else 0.5) + ("orm.weight" in name))
    return model.eval()


def extractor(**changes):
    """Clips of 0.1 seconds at 16 kHz: 321 frames, which are stretched to 384."""
    fields = dict(
        feature_size=24, sampling_rate=16_000, hop_length=5, fft_window_size=256, max_length_s=0.1, frequency_min=50,
        frequency_max=7000, truncation="rand_trunc",
    )  # fmt: skip
    made = transformers.ClapFeatureExtractor(**fields | changes)
    made.nb_max_samples = round(made.nb_max_samples)
    return made


def save(model, directory, features=None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
        (features or extractor()).save_pretrained(directory)
    return Path(directory)
