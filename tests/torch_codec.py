"""EncodecModel of transformers with random weights, and its weights as ours."""

import numpy as np
import torch
from transformers import EncodecConfig
from transformers import EncodecModel as TorchEncodec

from mgjax.config.model import CodecConfig

_FORMS = {
    "32khz": {"sampling_rate": 32_000, "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False,
              "use_conv_shortcut": False, "codebook_size": 64, "target_bandwidths": [1.2]},
    "16khz": {"sampling_rate": 16_000, "use_causal_conv": False, "use_conv_shortcut": False, "pad_mode": "constant",
              "codebook_size": 64, "target_bandwidths": [1.2], "num_residual_layers": 2},
    "24khz": {"sampling_rate": 24_000},
    "48khz": {"sampling_rate": 48_000, "audio_channels": 2, "normalize": True, "use_causal_conv": False,
              "norm_type": "time_group_norm", "chunk_length_s": 1.0, "overlap": 0.01,
              "target_bandwidths": [3.0, 6.0, 12.0, 24.0]},
}  # fmt: skip


def torch_codec(form: str) -> TorchEncodec:
    """A small random codec of transformers, with codebooks at the scale of its latents."""
    torch.manual_seed(0)
    model = TorchEncodec(EncodecConfig(num_filters=4, hidden_size=16, codebook_dim=16, **_FORMS[form])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(torch.rand_like(parameter) + 1)  # loud, and with scales that are not the kernels' norms
            elif ".lstm.weight" in name:
                parameter.mul_(6)  # so that the state is heard
        latents = model.encoder(torch.randn(1, model.config.audio_channels, 16_000) * 0.3)
        for i, layer in enumerate(model.quantizer.layers):
            rows = torch.randint(latents.shape[2], (model.config.codebook_size,))
            layer.codebook.embed.copy_(latents[0, :, rows].T * 0.9**i * torch.randn(len(rows), 1))
    return model


def config_of(torch_config: EncodecConfig) -> CodecConfig:
    """The same codec in our words."""
    return CodecConfig(
        sample_rate=torch_config.sampling_rate, channels=torch_config.audio_channels,
        num_filters=torch_config.num_filters, ratios=tuple(torch_config.upsampling_ratios),
        num_residual_layers=torch_config.num_residual_layers, latent_dim=torch_config.hidden_size,
        num_codebooks=torch_config.num_quantizers, codebook_size=torch_config.codebook_size,
        causal=torch_config.use_causal_conv, norm=torch_config.norm_type, pad_mode=torch_config.pad_mode,
        conv_shortcut=torch_config.use_conv_shortcut, normalize=torch_config.normalize,
        chunk_seconds=torch_config.chunk_length_s, chunk_overlap=torch_config.overlap or 0.0,
        bandwidths=tuple(torch_config.target_bandwidths),
    )  # fmt: skip


def variables_of(model: TorchEncodec) -> dict:
    """The variables of `EncodecModel` from a torch codec, by position: the layers come in the order of the data."""
    config = config_of(model.config)
    state = {name: value.numpy() for name, value in model.state_dict().items()}

    def conv(prefix, transposed=False):
        prefix += ".conv"
        own = prefix + ".parametrizations.weight.original"
        kernel = state.get(own + "1", state.get(prefix + ".weight_v", state.get(prefix + ".weight")))
        scale = state.get(own + "0", state.get(prefix + ".weight_g"))
        layer = {"kernel": kernel.transpose(2, 0, 1) if transposed else kernel.transpose(2, 1, 0)}
        layer["bias"] = state[prefix + ".bias"]
        if scale is not None:
            layer["scale"] = scale[:, 0, 0]
        norm = prefix.removesuffix("conv") + "norm"
        if norm + ".weight" in state:
            layer |= {"norm_scale": state[norm + ".weight"], "norm_bias": state[norm + ".bias"]}
        return layer

    def lstm_layer(prefix, i):
        return {
            "input_kernel": state[f"{prefix}.lstm.weight_ih_l{i}"].T,
            "hidden_kernel": state[f"{prefix}.lstm.weight_hh_l{i}"],
            "input_bias": state[f"{prefix}.lstm.bias_ih_l{i}"],
            "hidden_bias": state[f"{prefix}.lstm.bias_hh_l{i}"],
        }

    def lstm(prefix):
        return {f"layer{i}": lstm_layer(prefix, i) for i in range(config.num_lstm_layers)}

    def residuals(prefix, first):
        blocks = {}
        for j in range(config.num_residual_layers):
            block = f"{prefix}.{first + j}"
            blocks[f"res{j}"] = {"conv1": conv(block + ".block.1"), "conv2": conv(block + ".block.3")}
            if config.conv_shortcut:
                blocks[f"res{j}"]["shortcut"] = conv(block + ".shortcut")
        return blocks

    count, step = config.num_residual_layers, config.num_residual_layers + 2
    last = len(config.ratios) * step
    encoder = {"conv_in": conv("encoder.layers.0"), "conv_out": conv(f"encoder.layers.{last + 3}")}
    encoder["lstm"] = lstm(f"encoder.layers.{last + 1}")
    decoder = {"conv_in": conv("decoder.layers.0"), "conv_out": conv(f"decoder.layers.{last + 3}")}
    decoder["lstm"] = lstm("decoder.layers.1")
    for i in range(len(config.ratios)):
        down, up = 1 + i * step + count + 1, 2 + i * step + 1
        encoder[f"block{i}"] = {"down": conv(f"encoder.layers.{down}"), **residuals("encoder.layers", 1 + i * step)}
        decoder[f"block{i}"] = {"up": conv(f"decoder.layers.{up}", True), **residuals("decoder.layers", up + 1)}
    codebooks = {
        name: np.stack(
            [state[f"quantizer.layers.{q}.codebook.{name}"].squeeze() if name == "inited" else
             state[f"quantizer.layers.{q}.codebook.{name}"] for q in range(config.num_codebooks)]
        )
        for name in ("embed", "embed_avg", "cluster_size", "inited")
    }  # fmt: skip
    return {"params": {"encoder": encoder, "decoder": decoder}, "codebooks": codebooks}
