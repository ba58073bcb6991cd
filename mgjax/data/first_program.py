"""Compiles a program on import, as workers do before they have threads: JAX imports much where it first does that."""

import jax

jax.jit(lambda x: x + 1)(0)
