"""Loading takes hardly more memory than the model: each tensor is read, placed and let go before the next."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mgjax.checkpoints import huggingface_config
from mgjax.checkpoints.files import safetensors, torch_file
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.checkpoints.tables import musicgen
from mgjax.config.conditioning import T5Config
from mgjax.config.model import CodecConfig, Fused, LMConfig, ModelConfig

CONFIG = ModelConfig(
    LMConfig(dim=1024, num_layers=3, conditions=(Fused("text", 16),)),
    CodecConfig(num_filters=8),
    T5Config(vocab_size=64, dim=16, ffn_dim=16, num_layers=1, num_heads=1),
)

MEASURE = """
import resource, sys
import jax
from mgjax.checkpoints import huggingface

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

jax.numpy.zeros(3).block_until_ready()
before = peak()
variables = huggingface.read_model(sys.argv[1]).variables
print((peak() - before) / sum(array.nbytes for array in jax.tree.leaves(variables)))
"""


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_peak_memory(tmp_path, form):
    tensors = {}
    for rule in musicgen.huggingface(CONFIG):
        for source, shape in zip(rule.sources, rule.source_shapes, strict=True):
            tensors[source] = Tensor(shape, np.dtype(np.float32), "", lambda shape=shape: np.ones(shape, np.float32))
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config.model_values(CONFIG)))
    if form == "safetensors":
        safetensors.write(tmp_path, tensors)
    else:
        torch_file.write(tmp_path / "pytorch_model.bin", tensors)
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    # Measured: 0.60 and 0.69 here, because starting jax has its own peak; with every array held twice, 1.56 and 1.63.
    # musicgen-small: 1.11 safetensors, 1.14 bin; 1.20 and 1.23 with the 0.2 GB of Python and jax themselves.
    assert float(run.stdout) < 1.1
