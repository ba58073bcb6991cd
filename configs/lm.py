"""Language models to train, as `--config=configs/lm.py:NAME`; `mgjax.train.presets.lm` says what each preset is."""

from mgjax.train.presets.lm import get_config as get_config
