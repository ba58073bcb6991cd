"""Torch's files: the weights that torch itself writes, and audiocraft's two files."""

import zipfile

import tiny_files
from fuzzing import Door

from mgjax.checkpoints import audiocraft
from mgjax.checkpoints.files import safetensors

# What torch 2.11 saves of a matrix, a parameter in bfloat16 and a transposed matrix in an OrderedDict with _metadata.
PICKLE = b"""\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00wq\x02ctorch._utils\n_rebuild_tensor_v2
q\x03((X\x07\x00\x00\x00storageq\x04ctorch\nFloatStorage\nq\x05X\x01\x00\x00\x000q\x06X\x03\x00\x00\x00cpuq\x07K\x06t\
q\x08QK\x00K\x02K\x03\x86q\tK\x03K\x01\x86q\n\x89h\x00)Rq\x0btq\x0cRq\rX\x01\x00\x00\x00pq\x0ectorch._utils\n_rebuild_\
parameter\nq\x0fh\x03((h\x04ctorch\nBFloat16Storage\nq\x10X\x01\x00\x00\x001q\x11h\x07K\x02tq\x12QK\x00K\x02\x85q\x13K\
\x01\x85q\x14\x89h\x00)Rq\x15tq\x16Rq\x17\x88h\x00)Rq\x18\x87q\x19Rq\x1aX\x01\x00\x00\x00vq\x1bh\x03((h\x04ctorch\n\
LongStorage\nq\x1cX\x01\x00\x00\x002q\x1dh\x07K\x06tq\x1eQK\x00K\x03K\x02\x86q\x1fK\x01K\x03\x86q \x89h\x00)Rq!tq"Rq#u\
}q$X\t\x00\x00\x00_metadataq%h\x00)Rq&X\x01\x00\x00\x00aq'}q(X\x07\x00\x00\x00versionq)K\x01sssb."""
MEMBERS = {"data.pkl": PICKLE, "byteorder": b"little", "data/0": bytes(24), "data/1": bytes(4), "data/2": bytes(48)}


def write(folder):
    (folder / "torch").mkdir()
    with zipfile.ZipFile(folder / "torch" / "pytorch_model.bin", "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), content)
    tiny_files.write(folder / "audiocraft", "audiocraft", text_encoder="t5-tiny")
    tiny_files.write(folder / "audiocraft" / "text", "huggingface")


def read(folder):
    if folder.name == "torch":
        for tensor in safetensors.find(folder).values():
            tensor.read()
    else:
        audiocraft.read_model(folder, place=tiny_files.in_place, fetch=lambda name: folder / "text")


DOOR = Door(write, read, ("*.bin",), cases=400)


def test_pickles(endure):
    endure("pickles")
