"""Safetensors, alone and in shards with their index, whole and in fewer bytes."""

from unittest import mock

import tiny_files
from fuzzing import Door

from mgjax.checkpoints.files import safetensors


def write(folder):
    tiny_files.write(folder / "mgjax", "mgjax")
    tiny_files.write(folder / "compact", "mgjax", compact="int8")
    tiny_files.write(folder / "transformers", "huggingface")
    tiny_files.write(folder / "sharded", "huggingface")
    whole = folder / "sharded" / "model.safetensors"
    with mock.patch.object(safetensors, "LARGEST_SHARD", whole.stat().st_size // 2):
        safetensors.write(folder / "sharded", safetensors.read(whole))
    whole.unlink()


DOOR = Door(write, tiny_files.read, ("*.safetensors", "*.index.json"))


def test_weights(endure):
    endure("weights")
