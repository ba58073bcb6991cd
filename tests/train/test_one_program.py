"""All processes of a run have to compile the same program, whatever the order of Python's sets is in each of them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

CHILD = """
import hashlib
import dataclasses

import jax
import numpy as np

from mgjax import sharding
from mgjax.codec.discriminator import DiscriminatorConfig
from mgjax.codec.losses import LossConfig
from mgjax.config.model import Fused, LMConfig
from mgjax.checkpoints.native import Checkpoint
from mgjax.checkpoints.random_weights import DEBUG, random_variables
from mgjax.train import codec, lm
from mgjax.train.programs import Programs

codec_run = codec.CodecRun(
    model=dataclasses.replace(DEBUG.codec, ratios=(8,), num_lstm_layers=0),
    loss=LossConfig(mel_sizes=(64,), num_mels=(8,)),
    discriminator=DiscriminatorConfig(families=("stft", "scale"), stft_sizes=(64,)),
)
lm_config = LMConfig(dim=32, num_layers=1, num_heads=8, ffn_dim=64, codebook_size=64, conditions=(Fused("text", 16),))
model = dataclasses.replace(DEBUG, lm=lm_config, text=dataclasses.replace(DEBUG.text, num_layers=1))
start = Checkpoint(model, {"text": random_variables(model)["text"]})


def row(*shape, dtype=np.int32):
    return jax.ShapeDtypeStruct((2, *shape), dtype)


tasks = {
    "codec": (codec.task(codec_run), {"audio": row(400, 1, dtype=np.float32), "num_samples": row()}),
    "lm": (
        lm.task(lm.LMRun(lm=lm_config, codec="any"), start, "tokens"),
        {
            "codes": row(12, 4),
            "num_frames": row(),
            "text_ids": row(6),
            "text_mask": row(6, dtype=bool),
        },
    ),
}
for name, (task, batch) in tasks.items():
    lowered = Programs(task, codec_run.loop, sharding.make_mesh()).lowered(batch)
    print(name, hashlib.sha256(lowered.as_text().encode()).hexdigest())
"""


def test_every_process_compiles_the_same_program():
    def programs(seed):
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "JAX_PLATFORMS": "cpu"}
        found = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment)
        assert found.returncode == 0, found.stderr
        return found.stdout

    with ThreadPoolExecutor() as pool:
        one, other = pool.map(programs, (1, 4))
    assert one == other
    assert len(one.splitlines()) == 2
