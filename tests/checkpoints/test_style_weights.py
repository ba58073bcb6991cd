"""The style conditioner with audiocraft's arrays, against a computation of torch's own layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from mgjax.checkpoints.files.torch_file import CheckpointError, Tensor
from mgjax.checkpoints.tables import matching
from mgjax.checkpoints.tables.audiocraft_conditioners import IGNORED, PREFIX, audiocraft_style, style_config
from mgjax.codec import rvq_training
from mgjax.conditioning.style import StyleConditioner, keep
from mgjax.config.conditioning import HubertConfig, StyleConfig

FEATURES = HubertConfig(dim=12, num_heads=2, position_groups=2, normalize=False)
SIZES = {
    "dim": 16, "ffn_dim": 24, "num_layers": 2, "num_heads": 4, "num_codebooks": 4, "codebook_size": 10,
    "eval_codebooks": 2, "downsample": 3, "num_code_streams": 2, "code_size": 9,
}  # fmt: skip
CONFIGS = {"features": StyleConfig(FEATURES, **SIZES), "codes": StyleConfig(None, **SIZES)}


class Codebook(nn.Module):
    def __init__(self, size: int, dim: int):
        super().__init__()
        for name, value in {
            "inited": torch.ones(1),
            "cluster_size": torch.rand(size) + 0.5,
            "embed": torch.randn(size, dim),
            "embed_avg": torch.randn(size, dim),
        }.items():
            self.register_buffer(name, value)


class Reference(nn.Module):
    """The arrays under their names in audiocraft, and what section 13 of the facts says is done with them."""

    def __init__(self, config: StyleConfig):
        super().__init__()
        self.config = config
        if config.features:
            self.embed = nn.Linear(config.features.dim, config.dim)
        else:
            tables = [nn.Embedding(config.code_size, config.dim) for _ in range(config.num_code_streams)]
            self.embed = nn.ModuleList(tables)
        layers = [
            nn.TransformerEncoderLayer(
                config.dim, config.num_heads, config.ffn_dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.num_layers)
        ]
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(layers)
        self.batch_norm = nn.BatchNorm1d(config.dim, affine=False)
        self.rvq = nn.Module()
        self.rvq.vq = nn.Module()
        self.rvq.vq.layers = nn.ModuleList()
        for _ in range(config.num_codebooks):
            level = nn.Module()
            level._codebook = Codebook(config.codebook_size, config.dim)
            self.rvq.vq.layers.append(level)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "layers" in name and name.endswith("bias") and "norm" not in name:
                    parameter.zero_()  # of the linear maps of a layer, which have none in audiocraft
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            self.batch_norm.running_mean.copy_(torch.randn(config.dim) * 0.3)
            self.batch_norm.running_var.copy_(torch.rand(config.dim) + 0.5)

    def latents(self, inputs):
        if self.config.features:
            x = self.embed(inputs)
        else:
            x = sum(part(inputs[:, :, k]) for k, part in enumerate(self.embed))
        half = self.config.dim // 2
        angles = torch.arange(x.shape[1])[:, None] / 10_000 ** (torch.arange(half) / (half - 1))
        x = x + torch.cat([angles.cos(), angles.sin()], dim=-1)
        for layer in self.transformer.layers:
            x = layer(x)
        return self.batch_norm(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, inputs, count):
        latents = self.latents(inputs)
        rest, total = latents.detach(), 0
        for level in self.rvq.vq.layers[:count]:
            embed = level._codebook.embed
            words = embed[torch.cdist(rest, embed[None].expand(len(rest), -1, -1)).argmin(dim=-1)]
            rest, total = rest - words, total + words
        return (latents + (total - latents).detach())[:, :: self.config.downsample]

    def tensors(self):
        """What audiocraft's file holds."""
        own = {name for name, _ in self.named_parameters() if name.endswith("bias") and "layers" in name}
        biases = {name for name in own if "norm" not in name}
        return {
            PREFIX + name: Tensor(tuple(value.shape), value.numpy().dtype, "state_dict.bin", value.clone().numpy)
            for name, value in self.state_dict().items()
            if name not in biases
        }


def make_inputs(config: StyleConfig) -> np.ndarray:
    rng = np.random.default_rng(0)
    if config.features:
        return rng.standard_normal((2, 11, config.features.dim)).astype(np.float32)
    return rng.integers(0, config.code_size, (2, 11, 4)).astype(np.int32)  # of four codebooks two are read


@pytest.fixture(params=CONFIGS)
def case(request):
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    reference = Reference(config)
    rules = list(audiocraft_style(config))
    match = matching.match(rules, reference.tensors(), where="here", ignored=IGNORED)
    return config, reference.eval(), rules, matching.load(match)


def as_torch(inputs: np.ndarray) -> torch.Tensor:
    return torch.tensor(inputs) if inputs.dtype == np.float32 else torch.tensor(inputs).long()


def test_generation_equals_torch(case):
    config, reference, _, variables = case
    inputs = make_inputs(config)
    with torch.no_grad():
        latents = reference.latents(as_torch(inputs)).numpy()
        expected = reference(as_torch(inputs), config.eval_codebooks).numpy()
    module = StyleConditioner(config)
    got = jax.jit(lambda variables, x: module.apply(variables, x, method="latents"))(variables, inputs)
    assert np.std(latents) > 0.5
    assert np.abs(got - latents).max() < 1e-4  # measured 3.8e-6
    got = jax.jit(module.apply)(variables, inputs)
    assert got.shape == (2, 4, 16)  # frames 0, 3, 6 and 9 of 11
    assert np.abs(got - expected).max() < 1e-4  # measured 4.8e-7


def test_training_equals_torch(case):
    """All codebooks, statistics of the batch and what becomes of the running ones, gradients through the quantizer."""
    config, reference, rules, variables = case
    inputs = make_inputs(config)
    weights = np.random.default_rng(1).standard_normal((2, 4, config.dim)).astype(np.float32)
    output = reference.train()(as_torch(inputs), config.num_codebooks)
    (output * torch.tensor(weights)).sum().backward()
    module = StyleConditioner(config)

    def loss(params, x):
        everything = variables | {"params": params}
        latents, updated = module.apply(everything, x, training=True, method="latents", mutable=["batch_stats"])
        learning = rvq_training.QuantizerConfig()
        coded = rvq_training.quantize(latents, variables["codebooks"], jax.random.key(0), learning)
        style = keep(coded.latents, config)
        return jnp.sum(style * weights), (style, updated)

    grads, (style, updated) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], inputs)
    assert np.abs(style - output.detach().numpy()).max() < 1e-4  # measured 2.4e-7
    ours = matching.export(rules, {"params": grads, **updated, "codebooks": variables["codebooks"]})
    for name, parameter in reference.named_parameters():
        if PREFIX + name in ours:
            error = np.abs(ours[PREFIX + name].read() - parameter.grad.numpy()).max()
            assert error < 1e-4, name  # measured 1.5e-5
    moved = reference.batch_norm
    for name, value in {"running_mean": moved.running_mean, "running_var": moved.running_var}.items():
        got = ours[f"{PREFIX}batch_norm.{name}"].read()
        assert np.abs(got - value.numpy()).max() < 1e-5  # measured 4.8e-7


def test_the_published_form():
    """The names of one level of each kind, as they are in the published file."""
    sources = {source for rule in audiocraft_style(StyleConfig()) for source in rule.sources}
    assert len(sources) == 2 + 8 * 8 + 2 + 6 * 4
    assert {
        "condition_provider.conditioners.self_wav.embed.weight",
        "condition_provider.conditioners.self_wav.transformer.layers.7.self_attn.in_proj_weight",
        "condition_provider.conditioners.self_wav.transformer.layers.0.self_attn.out_proj.weight",
        "condition_provider.conditioners.self_wav.transformer.layers.0.linear2.weight",
        "condition_provider.conditioners.self_wav.transformer.layers.0.norm2.bias",
        "condition_provider.conditioners.self_wav.batch_norm.running_var",
        "condition_provider.conditioners.self_wav.rvq.vq.layers.5._codebook.embed_avg",
    } <= sources


def run(**style):
    """The part of xp.cfg that the published config has."""
    published = {
        "model_name": "mert", "transformer_scale": "default", "sample_rate": 32_000,
        "encodec_checkpoint": "//pretrained/facebook/encodec_32khz", "encodec_n_q": 3, "length": 3.0, "ds_factor": 15,
        "n_q_out": 6, "eval_q": 3, "q_dropout": True, "bins": 1024, "varying_lengths": [1.5, 4.5], "batch_norm": True,
        "compute_mask": True, "num_codebooks_lm": 4, "ds_rate_compression": 640, "use_middle_of_segment": False,
        "rvq_threshold_ema_dead_code": 0.1,
    }  # fmt: skip
    return {
        "transformer_lm": {"card": 2048},
        "conditioners": {"self_wav": {"model": "style", "style": published | style}},
    }


def test_config_of_a_run():
    assert style_config(run()) == StyleConfig()
    assert style_config({"conditioners": {"self_wav": {"model": "style"}}}).num_codebooks == 6
    small = style_config(run(model_name="encodec", transformer_scale="xsmall", eval_q=1, length=2))
    assert small.features is None
    assert (small.code_size, small.num_code_streams) == (2048, 3)
    assert (small.dim, small.ffn_dim, small.num_layers, small.num_heads) == (256, 1024, 4, 8)
    assert (small.eval_codebooks, small.seconds) == (1, 2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditioners": {"self_wav": {"model": "chroma_stem"}}}, "no style conditioner"),
        ({}, "no style conditioner"),
        (run(batch_norm=False), "style.batch_norm is False in xp.cfg; supported: True"),
        (run(model_name="hubert"), "supported: 'mert', 'encodec'"),
        (run(transformer_scale="none"), "transformer_scale is 'none'"),
        (run(n_q_out=0), "num_codebooks must be 1 or more"),
        (run(eval_q=7), "eval_codebooks 7 is above num_codebooks 6"),
        (run(bins="many"), "codebook_size: expected int"),
    ],
)
def test_another_run_is_one_clear_error(values, message):
    with pytest.raises(CheckpointError, match=message):
        style_config(values)
