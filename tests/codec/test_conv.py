"""The convolutions' edges, against padding the whole signal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgjax.codec.conv import convolve, convolve_padded, convolve_transpose, paddings, reflect
from mgjax.config.model import CodecConfig


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("width", "stride", "dilation"), [(7, 1, 1), (3, 1, 4), (8, 4, 1), (10, 5, 1), (4, 3, 1)])
def test_ends_are_those_of_the_whole_signal_padded_by_reflection(width, stride, dilation, causal):
    """For every length that a buffer may hold, down to one sample."""
    config = dataclasses.replace(CodecConfig(), causal=causal)
    rng = np.random.default_rng(width)
    x = jnp.asarray(rng.standard_normal((2, 120 * stride, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((width, 3, 4)), jnp.float32)
    left, right = paddings(config, (width - 1) * dilation + 1, stride)

    @jax.jit
    def both(length):
        whole = convolve(reflect(x, length, left, right, stride), kernel, stride, dilation, (0, 0))
        return whole, convolve_padded(x, length, kernel, stride, dilation, config)

    size = x.shape[1]
    for length in [*range(1, 30), size // 2, *range(size - 12, size + 1)]:
        whole, padded = both(jnp.int32(length))
        counted = -(-length // stride)
        error = np.abs(np.asarray(whole - padded))[:, :counted].max()
        assert error < 1e-5, (length, error)  # measured 0


@pytest.mark.parametrize(("width", "stride"), [(16, 8), (10, 5), (4, 2), (7, 3), (3, 3)])
def test_transposed_convolutions_are_those_of_torch(width, stride):
    rng = np.random.default_rng(width)
    x = rng.standard_normal((2, 9, 3)).astype(np.float32)
    kernel = rng.standard_normal((width, 3, 4)).astype(np.float32)
    theirs = torch.nn.functional.conv_transpose1d(
        torch.tensor(x).transpose(1, 2), torch.tensor(kernel).permute(1, 2, 0), stride=stride
    )
    ours = np.asarray(convolve_transpose(jnp.asarray(x), jnp.asarray(kernel), stride)).transpose(0, 2, 1)
    error = np.abs(ours[:, :, : theirs.shape[2]] - theirs.numpy()).max()
    assert error < 1e-5, error  # measured 4.8e-7
    assert np.all(ours[:, :, theirs.shape[2] :] == 0)
