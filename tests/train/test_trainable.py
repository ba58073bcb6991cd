"""The filter over the paths of parameters that says what trains."""

import jax
import numpy as np
import optax

from mgjax.train.trainable import mask, partition, path_filter

PARAMS = {
    "lm": {"layer0": {"kernel": np.ones(2)}, "head": {"kernel": np.ones(3)}},
    "text": {"embed": {"embedding": np.ones(4)}},
    "texture": {"kernel": np.ones(5)},
    "style": {"features": {"kernel": np.ones(6)}, "layer0": {"kernel": np.ones(7)}},
}


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)}


def test_parameters_are_split_by_their_paths():
    trained, frozen = partition(PARAMS, path_filter("text/", r"style/(?!features/)"))
    assert paths(trained) == {"text/embed/embedding", "style/layer0/kernel"}
    assert set(frozen) == {"lm", "texture", "style"}
    assert paths(frozen["style"]) == {"features/kernel"}
    assert paths(trained) | paths(frozen) == paths(PARAMS)
    assert paths(trained).isdisjoint(paths(frozen))
    np.testing.assert_array_equal(trained["text"]["embed"]["embedding"], PARAMS["text"]["embed"]["embedding"])
    assert partition(PARAMS, path_filter("lm/", "te", "style"))[1] == {}


def test_a_filter_of_nothing_accepts_nothing():
    assert not path_filter("lora/")("lm/layer0/kernel")
    assert not path_filter("layer0/")("lm/layer0/kernel")  # from the beginning
    assert partition(PARAMS, path_filter("nothing/"))[0] == {}


def test_a_mask_tells_optimisers_what_to_change():
    slow = optax.masked(optax.scale(0.1), lambda params: mask(params, path_filter("text/")))
    updates, _ = slow.update(PARAMS, slow.init(PARAMS))
    np.testing.assert_allclose(updates["text"]["embed"]["embedding"], 0.1)
    np.testing.assert_array_equal(updates["texture"]["kernel"], 1.0)
