"""The loss of the language model against torch and the published definition, codebook by codebook."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mgjax.lm import loss as losses
from mgjax.lm import pattern as patterns

SPECIAL = 11
PATTERNS = {
    "delay": patterns.delay(4),
    "stereo": patterns.delay(4, (0, 0, 1, 1)),
    "parallel": patterns.parallel(4),
    "flattened": patterns.flattened(4),
}


@functools.partial(jax.jit, static_argnames="pattern")
def summed(pattern, table, codes, num_frames):
    """The loss of a model whose prediction depends on what it is told, and its parts."""
    steps = losses.teacher_forced(pattern, codes, num_frames, SPECIAL)
    logits = jnp.sum(table[jnp.arange(4)[None, None], steps.inputs], axis=2)
    sums, counts = losses.cross_entropy(logits, steps)
    return losses.mean(sums, counts), sums, counts, steps


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("lengths", [(9, 9), (9, 5), (2, 1)])
def test_loss_and_gradient_are_those_of_the_definition(name, lengths):
    """The mean over codebooks of the mean over their codes that the cut layout predicts, within each piece's length."""
    pattern, rng = PATTERNS[name], np.random.default_rng(1)
    codes = rng.integers(0, SPECIAL, (2, 9, 4)).astype(np.int32)
    table = rng.normal(size=(4, SPECIAL + 1, 4, SPECIAL)).astype(np.float32)
    args = (jnp.asarray(codes), jnp.asarray(lengths, jnp.int32))
    grad = jax.jit(jax.grad(lambda table: summed(pattern, table, *args)[0]))(jnp.asarray(table))
    value = summed(pattern, jnp.asarray(table), *args)[0]

    weights = torch.tensor(table, dtype=torch.float64, requires_grad=True)
    layout = pattern.layout(9)[: pattern.valid_steps(9)]
    parts = [[] for _ in range(4)]
    for row in range(2):
        told = np.full(layout.shape, SPECIAL)
        for step, codebook in np.argwhere((layout >= 0) & (layout < lengths[row])):
            told[step, codebook] = codes[row, layout[step, codebook], codebook]
        for step in range(1, len(layout)):
            logits = sum(weights[k, told[step - 1, k]] for k in range(4))
            for k in range(4):
                if 0 <= layout[step, k] < lengths[row]:
                    target = torch.tensor(codes[row, layout[step, k], k], dtype=torch.int64)
                    parts[k].append(torch.nn.functional.cross_entropy(logits[k], target))
    expected = sum(torch.stack(part).mean() if part else torch.zeros(()) for part in parts) / 4
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-6)  # measured 8.5e-8
    assert np.abs(grad - weights.grad.numpy()).max() < 1e-6 * np.abs(grad).max()  # measured 1.8e-7


def test_the_last_frames_of_a_delayed_codebook_are_not_learned():
    codes = jnp.zeros((2, 9, 4), jnp.int32)
    *_, counts, steps = summed(PATTERNS["delay"], jnp.zeros((4, 12, 4, 11)), codes, jnp.array([9, 5], jnp.int32))
    assert counts.tolist() == [14, 13, 12, 11]  # a piece that ends before the layout does loses nothing
    assert steps.inputs.shape == (2, 9, 4)
    assert np.all(steps.inputs[:, 0] == SPECIAL)


def test_the_loss_is_that_of_each_codes_prediction():
    """The same sum by `revert_logits`, which says for each code where its prediction stands."""
    pattern, rng = PATTERNS["delay"], np.random.default_rng(2)
    codes = jnp.asarray(rng.integers(0, SPECIAL, (2, 9, 4)), jnp.int32)
    logits = jnp.asarray(rng.normal(size=(2, 10, 4, SPECIAL)), jnp.float32)

    def both(codes, logits):
        steps = losses.teacher_forced(pattern, codes, jnp.array([9, 9], jnp.int32), SPECIAL)
        predicted, known = pattern.revert_logits(logits, 9)
        lost = -jnp.take_along_axis(jax.nn.log_softmax(predicted), codes[..., None], axis=-1)[..., 0]
        return losses.cross_entropy(logits[:, :-1], steps)[0], jnp.sum(jnp.where(known[None], lost, 0), axis=(0, 1))

    ours, theirs = jax.jit(both)(codes, logits)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # measured 1.2e-7


def test_a_codebook_without_codes_adds_nothing():
    value, sums, counts, _ = summed(
        PATTERNS["delay"], jnp.ones((4, 12, 4, 11)), jnp.zeros((1, 3, 4), jnp.int32), jnp.array([3], jnp.int32)
    )
    assert counts.tolist() == [3, 2, 1, 0]
    assert sums[3] == 0
    assert float(value) == pytest.approx(0.75 * np.log(11), rel=1e-6)


def test_codebooks_may_weigh_more_than_others():
    sums, counts = jnp.array([6.0, 8.0, 0.0]), jnp.array([3.0, 2.0, 0.0])
    assert losses.mean(sums, counts) == 2.0
    assert losses.mean(sums, counts, (3.0, 1.0, 1.0)) == 2.0
    assert losses.mean(sums, counts, (1.0, 3.0, 0.5)) == pytest.approx(14 / 4.5)


def test_many_logits_are_made_in_parts(monkeypatch):
    """Of 9 steps in 4 parts: the same sums and gradients, and never all logits."""
    pattern, rng = PATTERNS["delay"], np.random.default_rng(3)
    codes = jnp.asarray(rng.integers(0, SPECIAL, (2, 9, 4)), jnp.int32)
    steps = losses.teacher_forced(pattern, codes, jnp.array([9, 5], jnp.int32), SPECIAL)
    hidden, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 3), (3, 4, SPECIAL)))
    seen = []

    def summed(hidden, kernel):
        def predict(part):
            seen.append(part.shape)
            return jnp.einsum("bsd,dkv->bskv", part, kernel)

        return losses.cross_entropy_in_parts(predict, hidden, steps)

    def both():
        return jax.jit(jax.jacrev(summed, (0, 1)))(hidden, kernel), jax.jit(summed)(hidden, kernel)

    expected = both()
    seen.clear()
    monkeypatch.setattr(losses, "_AT_ONCE", 2 * 9 * 4 * SPECIAL // 4 + 1)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), both(), expected)
    assert set(seen) == {(2, 9, 3), (2, 3, 3)}  # that of all is asked for its shape alone
