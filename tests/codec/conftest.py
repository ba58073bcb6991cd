"""Codecs with the same random weights here and in transformers."""

import pytest
from torch_codec import config_of, torch_codec, variables_of

from mgjax.codec.codec import Codec


@pytest.fixture(scope="session")
def pair():
    """`pair(form)`: (codec of transformers, ours) of "32khz", "16khz", "24khz" or "48khz"."""
    made = {}

    def get(form):
        if form not in made:
            theirs = torch_codec(form)
            made[form] = theirs, Codec(config_of(theirs.config), variables_of(theirs))
        return made[form]

    return get
