"""The discriminators against torch, with the same weights: scores, feature maps and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from mgjax.codec.discriminator import Discriminator, DiscriminatorConfig
from mgjax.config.serialization import ConfigError

_CONFIG = DiscriminatorConfig(
    families=("stft", "scale", "period"),
    stft_sizes=(64,),
    stft_filters=4,
    num_scales=2,
    scale_filters=4,
    periods=(3,),
    period_filters=4,
    max_filters=32,
)
_TOLERANCE = 1e-4  # relative


def _audio(channels=2):
    return 0.3 * np.random.default_rng(0).standard_normal((2, 700, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def judged():
    """Parameters, judgements, and the gradient of their sum (with random signs) with respect to audio and weights."""
    module, audio = Discriminator(_CONFIG), jnp.asarray(_audio())
    shapes = jax.eval_shape(module.init, jax.random.key(0), audio)["params"]
    rng = np.random.default_rng(1)
    # A scale of its own for each channel, not the kernel's norm, so that the weight norm is seen.
    params = jax.tree.map(lambda leaf: (0.4 * rng.standard_normal(leaf.shape) + 0.1).astype(np.float32), shapes)

    # Compiled in half the time, into what takes a little longer.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(params, audio):
        def total(params, audio):
            judgements = module.apply({"params": params}, audio)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(judgements)), judgements

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, audio)

    return params, *both(params, audio)


class _Torch:
    """One discriminator's weights as torch's, and its layers."""

    def __init__(self, params):
        self.params = jax.tree.map(lambda leaf: torch.tensor(leaf, requires_grad=True), params)

    def conv(self, name, x, **options):
        layer = self.params[name]
        weight = layer["kernel"].movedim((-1, -2), (0, 1))
        if "scale" in layer:
            weight = torch._weight_norm(weight, layer["scale"].reshape(-1, *[1] * (weight.ndim - 1)), 0)
        return (functional.conv2d if weight.ndim == 4 else functional.conv1d)(x, weight, layer["bias"], **options)

    def layer(self, maps, x, **options):
        maps.append(functional.leaky_relu(self.conv(f"conv{len(maps)}", x, **options), 0.3))
        return maps[-1]


def _spectral(theirs, audio, size):
    b, c, n = audio.shape
    window = torch.hann_window(size)
    z = torch.stft(audio.reshape(b * c, n), size, size // 4, window=window, center=False, return_complex=True)
    z = (z / window.square().sum().sqrt()).reshape(b, c, *z.shape[1:])
    x, maps = torch.cat([z.real, z.imag], dim=1).transpose(2, 3), []
    x = theirs.layer(maps, x, padding=(1, 4))
    for dilation in (1, 2, 4):
        x = theirs.layer(maps, x, stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4))
    x = theirs.layer(maps, x, padding=(1, 1))
    return theirs.conv("score", x, padding=(1, 1)), maps


def _scale(theirs, audio, groups):
    x, maps = functional.pad(audio, (7, 7), mode="reflect"), []
    x = theirs.layer(maps, x)
    for count in groups:
        x = theirs.layer(maps, x, stride=4, padding=20, groups=count)
    x = theirs.layer(maps, x, padding=2)
    return theirs.conv("score", x, padding=1), maps


def _period(theirs, audio, period):
    b, c, n = audio.shape
    x, maps = functional.pad(audio, (0, -n % period), mode="reflect"), []
    x = x.reshape(b, c, -1, period).permute(0, 3, 1, 2).flatten(0, 1)
    for i in range(5):
        x = theirs.layer(maps, x, stride=3 if i < 4 else 1, padding=2)
    return theirs.conv("score", x, padding=1), maps


def _torch_judgements(params, audio):
    """The same by torch: judgements by name, and the weights."""
    weights = {name: _Torch(tree) for name, tree in params.items()}
    halved = functional.avg_pool1d(audio, 4, 2, padding=2)
    made = {
        "stft": [_spectral(weights[f"stft{size}"], audio, size) for size in _CONFIG.stft_sizes],
        "scale": [_scale(weights[f"scale{i}"], x, groups=(1, 4, 8, 8)) for i, x in enumerate((audio, halved))],
        "period": [_period(weights["period3"], audio, 3)],
    }
    return made, weights


def _error(ours, theirs):
    theirs = np.moveaxis(theirs, 1, -1)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("family", ["stft", "scale", "period"])
def test_scores_and_maps_are_those_of_torch(judged, family):
    params, _, judgements = judged
    theirs, _ = _torch_judgements(params, torch.tensor(_audio()).transpose(1, 2))
    assert len(judgements[family]) == len(theirs[family])
    for (scores, maps), (their_scores, their_maps) in zip(judgements[family], theirs[family], strict=True):
        assert _error(scores, their_scores.detach().numpy()) < _TOLERANCE
        assert len(maps) == len(their_maps)
        for one, other in zip(maps, their_maps, strict=True):
            assert _error(one, other.detach().numpy()) < _TOLERANCE


def test_gradients_are_those_of_torch(judged):
    """The gradients of the strided convolutions are written by hand."""
    params, (weight_gradient, audio_gradient), _ = judged
    audio = torch.tensor(_audio(), requires_grad=True)
    made, weights = _torch_judgements(params, audio.transpose(1, 2))
    sum(leaf.sin().sum() for leaf in jax.tree.leaves(made)).backward()
    expected = {name: jax.tree.map(lambda leaf: leaf.grad.numpy(), tree.params) for name, tree in weights.items()}
    for ours, theirs in zip(jax.tree.leaves(weight_gradient), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(ours - theirs) < _TOLERANCE * np.linalg.norm(theirs)
    error = np.linalg.norm(audio_gradient - audio.grad.numpy()) / np.linalg.norm(audio.grad.numpy())
    assert error < _TOLERANCE


def test_the_published_discriminator():
    module = Discriminator(DiscriminatorConfig())
    audio = jax.ShapeDtypeStruct((1, 24_000, 1), jnp.float32)
    params, judgements = jax.eval_shape(lambda x: (module.init(jax.random.key(0), x)["params"], module.apply(
        module.init(jax.random.key(0), x), x)), audio)  # fmt: skip
    assert sorted(params) == ["stft1024", "stft128", "stft2048", "stft256", "stft512"]
    for tree in params.values():
        # The first convolution has a plain weight.
        assert sorted(name for name, layer in tree.items() if "scale" not in layer) == ["conv0"]
        assert tree["conv0"]["kernel"].shape == (3, 9, 2, 32)
        assert tree["conv4"]["kernel"].shape == (3, 3, 32, 32)
    scores, maps = judgements["stft"][0]
    assert scores.shape == (1, 90, 65, 1)
    assert [x.shape for x in maps] == [(1, 90, f, 32) for f in (513, 257, 129, 65, 65)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"families": ("stft", "mel")}, "families"),
        ({"families": ("stft", "stft")}, "different"),
        ({"stft_sizes": (1023,)}, "multiples of 4"),
        ({"periods": (0,)}, "1 or more"),
        ({"stft_filters": 0}, "1 or more"),
    ],
)
def test_discriminators_without_meaning(values, message):
    with pytest.raises(ConfigError, match=message):
        DiscriminatorConfig(**values)
