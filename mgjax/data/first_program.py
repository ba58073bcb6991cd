"""Compiles a program when it is imported, as workers do before they have threads: JAX imports much where it first does."""

import jax

jax.jit(lambda x: x + 1)(0)
