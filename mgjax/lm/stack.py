"""The layers of the transformer in training form: one program for all, over parameters stacked along a first axis.

Compiling takes as long as for one layer, whatever their number. The parameters of the layers, "layer0", "layer1", ...,
become one tree "layers"; `stack_layers` and `unstack_layers` go from one form to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mgjax.config.model import LMConfig
from mgjax.lm.attention import ATTENDED
from mgjax.lm.transformer import Layer, LayerIndex
from mgjax.nn import WEIGHT, apply

_save, _named = jax.checkpoint_policies.save_from_both_policies, jax.checkpoint_policies.save_only_these_names
_dots = _save(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _named(ATTENDED))

# What is stored of each layer for the backward pass, besides its input.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,  # all
    "weights": _save(_dots, _named(WEIGHT)),  # as "dots", and the gathered weights
    "dots": _dots,  # products with weights, and attention by a kernel, not where it is written out
    "full": jax.checkpoint_policies.nothing_saveable,  # nothing
}


class Stack(nn.Module):
    """All layers, over stacked parameters."""

    config: LMConfig
    remat: str = "none"

    def setup(self) -> None:
        """Initialises the stacked parameters."""
        if self.is_initializing():
            for name, tree in self._initial(self.make_rng("params")).items():
                self.put_variable("params", name, tree)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        valid: Bool[Array, "b s"] | None,
        cross: Float[Array, "b l d"] | None,
        cross_mask: Bool[Array, "b l"],
    ) -> Float[Array, "b s d"]:
        """The last layer's output; `cross` is the condition of cross-attention, or None."""

        def run(layer: Layer, x: Array) -> Array:
            projected = None if cross is None else layer.cross_attn.project(cross)
            return layer(x, valid, projected, cross_mask, None, 0)[0]

        layer = Layer(self.config, 0, parent=None)  # whatever its index

        def body(x: Array, params: Mapping[str, Any]) -> tuple[Array, None]:
            return apply(layer, {"params": params}, x, method=run), None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
        return jax.lax.scan(body, x, self.variables["params"])[0]

    def _initial(self, key: Key[Array, ""]) -> dict[str, Any]:
        """New parameters of all layers, each as it initialises itself, by one program."""
        x = jnp.zeros((1, 1, self.config.dim))

        def use_all(layer: Layer) -> None:
            cross = layer.cross_attn.project(x) if self.config.cross_attention else None
            layer(x, None, cross, jnp.ones((1, 1), bool), None, 0)

        def init(index: LayerIndex, key: Key[Array, ""]) -> dict[str, Any]:
            return Layer(self.config, index, parent=None).init(key, method=use_all)["params"]

        count = self.config.num_layers
        return jax.vmap(init)(jnp.arange(count), jax.random.split(key, count))


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The language model's parameters in training form, from those of its single layers; numpy's stay numpy's."""
    names = [name for name in params if name.startswith("layer")]
    layers = [params[f"layer{i}"] for i in range(len(names))]
    rest = {name: tree for name, tree in params.items() if name not in names}
    numbers = np if isinstance(jax.tree.leaves(layers[0])[0], np.ndarray) else jnp
    return rest | {"layers": jax.tree.map(lambda *leaves: numbers.stack(leaves), *layers)}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    rest = {name: tree for name, tree in params.items() if name != "layers"}
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return rest | {f"layer{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(count)}
