"""Compiles a program on import: workers do so before they start threads, as JAX then imports many modules."""

import jax

jax.jit(lambda x: x + 1)(0)
