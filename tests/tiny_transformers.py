"""Tiny random models of transformers, their directories, and how to compare arrays."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file


def t5_config(**changes):
    sizes = dict(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return transformers.T5Config(**sizes, relative_attention_num_buckets=8, **changes)


def encodec_config(**changes):
    fields = dict(
        sampling_rate=320,
        num_filters=4,
        upsampling_ratios=[4, 2],
        hidden_size=8,
        codebook_size=32,
        target_bandwidths=[0.8],
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    return transformers.EncodecConfig(**fields | changes)


def decoder_fields(**changes):
    fields = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, vocab_size=32)
    return fields | dict(num_codebooks=4, pad_token_id=32, bos_token_id=32) | changes


def musicgen(t5=None, encodec=None, **decoder):
    torch.manual_seed(0)
    config = transformers.MusicgenConfig(
        text_encoder=t5 or t5_config(),
        audio_encoder=encodec or encodec_config(),
        decoder=transformers.MusicgenDecoderConfig(**decoder_fields(**decoder)),
    )
    return randomised(transformers.MusicgenForConditionalGeneration(config))


def melody(**decoder):
    torch.manual_seed(0)
    config = transformers.MusicgenMelodyConfig(
        text_encoder=t5_config(),
        audio_encoder=encodec_config(),
        decoder=transformers.MusicgenMelodyDecoderConfig(**decoder_fields(**decoder)),
        num_chroma=12,
        chroma_length=7,
    )
    return randomised(transformers.MusicgenMelodyForConditionalGeneration(config))


def randomised(model):
    """Every array random, so that no two of them can be taken for one another."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn_like(value))
    return model.eval()


def save(model, directory, **options) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, **options)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def rename_keys(directory, change):
    """Rewrites model.safetensors with other names; `change` gives None for a tensor to be left out."""
    tensors = load_file(directory / "model.safetensors")
    save_file({new: t for name, t in tensors.items() if (new := change(name))}, directory / "model.safetensors")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_numpy(path, array):
    """Leaves each array where it is: much faster than a jax array of each."""
    return array


def flat(tree, path=""):
    if not isinstance(tree, dict):
        return {path: np.asarray(tree)}
    return {name: array for key, value in tree.items() for name, array in flat(value, f"{path}/{key}").items()}


def assert_same(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def loaded(model, directory):
    """The model that transformers loads from a directory, and what it says of the names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(model).from_pretrained(directory, output_loading_info=True)
