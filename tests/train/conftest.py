"""What tests of training share."""

import functools

import jax
import pytest

from mgjax import sharding
from mgjax.train import lm


@pytest.fixture
def one_device(monkeypatch):
    """Has runs of language models use one of the devices, for which programs are compiled in half the time."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(lm, "fit", functools.partial(lm.fit, mesh=mesh))
