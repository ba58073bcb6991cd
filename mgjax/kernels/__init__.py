"""Kernels for what XLA does slowly."""
