"""Training of the language model (Copet et al. 2023)."""

from mgjax.train.lm.config import LMRun
from mgjax.train.lm.resolver import pretrained, pretrained_shapes, resolve
from mgjax.train.lm.step import task
from mgjax.train.lm.training import run

__all__ = ["LMRun", "pretrained", "pretrained_shapes", "resolve", "run", "task"]
