"""HuBERT and MERT as transformers writes them: config.json, preprocessor_config.json and the weights.

MERT comes with code of its own, which is never run: without its constant-Q part and DeepNorm it is a HuBERT.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mgjax.checkpoints.files import safetensors
from mgjax.checkpoints.files.config_json import parse_config, read_json, require_values
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.matching import CONV, Rule, linear, norm, single
from mgjax.config.conditioning import HubertConfig
from mgjax.errors import CheckpointError

# Our field -> their field, and its default in transformers.
_FIELDS = {
    "conv_dims": ("conv_dim", [512] * 7),
    "conv_kernels": ("conv_kernel", [10, 3, 3, 3, 3, 2, 2]),
    "conv_strides": ("conv_stride", [5, 2, 2, 2, 2, 2, 2]),
    "conv_bias": ("conv_bias", False),
    "conv_norm": ("feat_extract_norm", "group"),
    "dim": ("hidden_size", 768),
    "ffn_dim": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "position_kernel": ("num_conv_pos_embeddings", 128),
    "position_groups": ("num_conv_pos_embedding_groups", 16),
    "pre_norm": ("do_stable_layer_norm", False),
    "norm_eps": ("layer_norm_eps", 1e-5),
}
# Fields of which only the values of m-a-p/MERT-v1-95M are supported, with which musicgen-style was trained.
_FIXED = {
    "feature_extractor_cqt": False,
    "deepnorm": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
_IGNORED = (r"^masked_spec_embed$", r"^feature_extractor_cqt\.")
_POSITIONS = "encoder.pos_conv_embed.conv"


def match_hubert(directory: Path) -> tuple[HubertConfig, matching.Match]:
    """The config of the HubertModel or MERT in `directory` and its match; raises CheckpointError for another model."""
    config = _config(directory)
    tensors = _folded(safetensors.find(directory))
    return config, matching.match(hubert(config), tensors, where=str(directory), ignored=_IGNORED)


def _config(directory: Path) -> HubertConfig:
    path = directory / "config.json"
    values = read_json(path)
    if values.get("model_type") not in ("hubert", "mert_model"):
        raise CheckpointError(
            f"{path}: model_type is {values.get('model_type')!r:.200}; expected 'hubert' or 'mert_model'. Give "
            "the folder of a HuBERT-type encoder, such as m-a-p/MERT-v1-95M"
        )
    require_values(path, values, _FIXED)
    front = directory / "preprocessor_config.json"
    audio = read_json(front) if front.is_file() else {}
    rate = values.get("sample_rate", audio.get("sampling_rate", 16_000))
    normalize = audio.get("do_normalize", True)
    return parse_config(path, HubertConfig, values, _FIELDS, sample_rate=rate, normalize=normalize)


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the weight norm of the positions' convolution folded into one kernel."""
    renamed = {matching.renamed(name, matching.WEIGHT_NORM_ALIASES): tensor for name, tensor in tensors.items()}
    size, direction = (renamed.pop(f"{_POSITIONS}.weight_{part}", None) for part in "gv")
    if direction is None or size is None or len(direction.shape) != 3 or size.shape != (1, 1, direction.shape[2]):
        raise CheckpointError(
            f"the weights hold no {_POSITIONS}.weight_g and weight_v that fit each other: this is not a HuBERT, or the "
            "file is damaged. Fetch it again"
        )

    def read() -> np.ndarray:
        # One norm for each tap of the kernel, over its inputs and outputs.
        wide = direction.read().astype(np.float64)
        length = np.sqrt(np.sum(np.square(wide), axis=(0, 1), keepdims=True))
        return (wide * (size.read().astype(np.float64) / length)).astype(np.float32)

    kernel = Tensor(direction.shape, np.dtype(np.float32), direction.file, read)
    return renamed | {f"{_POSITIONS}.weight": kernel}


def hubert(config: HubertConfig) -> Iterator[Rule]:
    """The parameters of `Hubert`, of a HubertModel with the weight norm folded."""
    inputs = 1
    for i, (outputs, width) in enumerate(zip(config.conv_dims, config.conv_kernels, strict=True)):
        source = f"feature_extractor.conv_layers.{i}"
        yield single(f"conv{i}/kernel", (width, inputs, outputs), f"{source}.conv.weight", CONV)
        if config.conv_bias:
            yield single(f"conv{i}/bias", (outputs,), f"{source}.conv.bias")
        if i == 0 or config.conv_norm == "layer":
            yield from norm(f"conv{i}_norm", f"{source}.layer_norm", outputs)
        inputs = outputs
    d, f, heads = config.dim, config.ffn_dim, (config.num_heads, config.dim // config.num_heads)
    yield from norm("features_norm", "feature_projection.layer_norm", inputs)
    yield from linear("features_proj", "feature_projection.projection", (inputs,), (d,))
    shape = (config.position_kernel, d // config.position_groups, d)
    yield single("positions/conv/kernel", shape, f"{_POSITIONS}.weight", CONV)
    yield single("positions/conv/bias", (d,), f"{_POSITIONS}.bias")
    yield from norm("norm", "encoder.layer_norm", d)
    for i in range(config.num_layers):
        target, source = f"layer{i}", f"encoder.layers.{i}"
        projections = [f"{source}.attention.{name}_proj" for name in "qkv"]
        yield from linear(f"{target}/attn/qkv", projections, (d,), (3, *heads))
        yield from linear(f"{target}/attn/out", f"{source}.attention.out_proj", heads, (d,))
        yield from linear(f"{target}/ffn/up", f"{source}.feed_forward.intermediate_dense", (d,), (f,))
        yield from linear(f"{target}/ffn/down", f"{source}.feed_forward.output_dense", (f,), (d,))
        yield from norm(f"{target}/attn_norm", f"{source}.layer_norm", d)
        yield from norm(f"{target}/ffn_norm", f"{source}.final_layer_norm", d)
