"""Counts operations from the shapes in a function's trace: XLA's own count takes the body of a loop for one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params


def products(function: Callable, *arguments: Any) -> float:
    """The floating point operations of all convolutions and matrix products of `function` (two for each product).

    All blocks of a kernel count, skipped ones too.
    """

    def count(jaxpr: Any) -> float:
        total = 0.0
        for equation in jaxpr.eqns:
            inner = [count(sub) for sub in jaxprs_in_params(equation.params)]
            total += (max(inner) if equation.primitive.name == "cond" else sum(inner)) * _times(equation)
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                total += 2.0 * equation.outvars[0].aval.size * np.prod([left[axis] for axis in contracted])
            elif equation.primitive.name == "conv_general_dilated":
                numbers = equation.params["dimension_numbers"].rhs_spec
                kernel = equation.invars[1].aval.shape
                total += 2.0 * equation.outvars[0].aval.size * np.prod([kernel[axis] for axis in numbers[1:]])
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _times(equation: Any) -> int:
    """How often the body of an equation runs: in a loop, on the devices, on the blocks of a kernel."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        return equation.params["mesh"].size
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return 1
