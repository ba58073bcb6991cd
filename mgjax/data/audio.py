"""The old name of `mgjax.audio.files`, which goes on working."""

from mgjax.audio.files import *  # noqa: F403
