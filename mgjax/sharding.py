"""The old name of `mgjax.devices.sharding`, which goes on working."""

from mgjax.devices.sharding import *  # noqa: F403
