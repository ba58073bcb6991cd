"""Embeddings and heads that are made of the codec's codewords."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_lm import CONFIG, make

from mgjax.lm.codewords import init_from_codebooks

K, V, D, WIDTH = CONFIG.num_codebooks, CONFIG.codebook_size, CONFIG.dim, 6


def codebooks():
    """Each smaller than the one before, as residuals are; the last two codes of each sound nearly alike."""
    books = np.random.default_rng(0).normal(size=(K, V, WIDTH)) * 0.5 ** np.arange(K)[:, None, None] + 3
    books[:, -1] = books[:, -2] + 1e-3
    return jnp.asarray(books, jnp.float32)


def distances(vectors):
    """Of all pairs of codes of a codebook [v, n], without the diagonal."""
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[~np.eye(len(vectors), dtype=bool)]


def test_codes_that_sound_alike_are_read_and_predicted_alike():
    _, params = make()
    silent = params | {"embed": {"embedding": jnp.zeros_like(params["embed"]["embedding"])}}
    books = codebooks()
    found = init_from_codebooks(silent, books, jax.random.key(0))
    embedding, heads = np.asarray(found["embed"]["embedding"]), np.asarray(found["head"]["kernel"])
    for k in range(K):
        heard = distances(np.asarray(books[k]))
        for vectors in (embedding[k, :V], heads[:, k].T):
            assert np.corrcoef(heard, distances(vectors))[0, 1] > 0.8  # measured 0.93 and more
            assert np.linalg.norm(vectors[-1] - vectors[-2]) < 0.01 * np.mean(distances(vectors))


def test_their_sizes():
    _, params = make()
    found = init_from_codebooks(params, codebooks(), jax.random.key(0))
    old, new = (np.asarray(tree["embed"]["embedding"]) for tree in (params, found))
    assert np.array_equal(new[:, V], old[:, V])  # the special token sounds like nothing
    moved = (new - old)[:, :V]
    assert 0.5 < np.sum(np.var(moved, axis=(1, 2))) < 2  # that of a sum of codes drawn apart; about 1
    assert np.all(np.diff(np.std(moved, axis=(1, 2))) < 0)
    assert np.abs(np.mean(moved, axis=1)).max() < 1e-5
    np.testing.assert_allclose(np.std(found["head"]["kernel"], axis=(0, 2)), D**-0.5, rtol=0.3)
    rest = {name for name in params if name not in ("embed", "head")}
    assert all(found[name] is params[name] for name in rest)
