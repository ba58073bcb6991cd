"""Codecs to train, as `--config=configs/codec.py:NAME`; `mgjax.train.presets.codec` says what each preset is."""

from mgjax.train.presets.codec import get_config as get_config
