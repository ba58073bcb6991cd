"""Torch's files are read without torch, and nothing in them is run."""

import collections
import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from mgjax.checkpoints.files import torch_file
from mgjax.checkpoints.files.torch_file import CheckpointError, Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.bin"


def rezip(path, change):
    """Rewrites the archive; `change` maps (name, content) to the new content, or None to leave the member out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            if (changed := change(name.split("/", 1)[1], content)) is not None:
                archive.writestr(name, changed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_every_type(path, dtype):
    tensor = (torch.arange(24) % 7).to(dtype).reshape(2, 3, 4)
    torch.save({"a": tensor}, path)
    read = torch_file.read(path)["a"]
    assert read.shape == (2, 3, 4)
    np.testing.assert_array_equal(read.read(), as_numpy(tensor))
    assert read.read().dtype == read.dtype == as_numpy(tensor).dtype


def test_reads_views_parameters_and_nested_values(path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "transposed": base.transpose(0, 2),
        "slice": base[1:, ::2, 3],
        "offset": base[2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base[0]),
    }
    state = torch.nn.Linear(2, 3).state_dict()
    value = views | {"state": state, "n": [1, 2.5, None, (True, "x")], "size": base.shape, "device": base.device}
    torch.save(value, path)
    read = torch_file.read(path)
    for name, view in views.items():
        np.testing.assert_array_equal(read[name].read(), view.detach().numpy(), err_msg=name)
    np.testing.assert_array_equal(read["state"]["weight"].read(), state["weight"].numpy())
    assert read["n"] == [1, 2.5, None, (True, "x")]
    assert read["size"] == (3, 4, 5)
    assert read["device"] == "cpu"


def test_reads_only_what_is_asked(path, monkeypatch):
    torch.save({"a": torch.zeros(1000), "b": torch.ones(10)}, path)
    tensors = torch_file.read(path)
    asked = []
    fromfile = np.fromfile
    monkeypatch.setattr(
        np, "fromfile", lambda *args, **kwargs: asked.append(kwargs["count"]) or fromfile(*args, **kwargs)
    )
    tensors["b"].read()
    assert asked == [40]


def test_big_endian(path):
    tensor = torch.arange(5, dtype=torch.float32)
    torch.save({"a": tensor, "b": tensor.to(torch.bfloat16)}, path)

    def swap(name, content):
        if name == "byteorder":
            return b"big"
        width = {"data/0": 4, "data/1": 2}.get(name)
        return np.frombuffer(content, f"u{width}").byteswap().tobytes() if width else content

    rezip(path, swap)
    read = torch_file.read(path)
    np.testing.assert_array_equal(read["a"].read(), tensor.numpy())
    np.testing.assert_array_equal(read["b"].read(), as_numpy(tensor.to(torch.bfloat16)))


class Malicious:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, eval, getattr], ids=lambda call: call.__name__)
def test_runs_nothing(path, tmp_path, call):
    witness = tmp_path / "witness"
    arguments = {os.system: (f"touch {witness}",), eval: (f"open({str(witness)!r}, 'w')",), getattr: ("", "join")}[call]
    torch.save({"a": torch.zeros(2), "b": Malicious(call, *arguments)}, path)
    with pytest.raises(CheckpointError, match=rf"{path}.*asks for \w+\.{call.__name__}.*Nothing was run"):
        torch_file.read(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"ccollections\nOrderedDict\n}(X\x01\x00\x00\x00aK\x01ub.",  # BUILD on the class
        b"ctorch._utils\n_rebuild_tensor_v2\n}(X\x04\x00\x00\x00callK\x01ub.",  # BUILD on an allowed function
        b"ctorch\nFloatStorage\n}(X\x05\x00\x00\x00dtypeK\x01ub.",
        b"\x82\x01.",  # an extension code
        b"I" + b"9" * 10_000 + b"\n.",
        b"}(((",
        b"(2220.",  # DUP, which doubles
        b"\x8f(K\x01\x90.",  # a set
        b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",  # a key that is hashed for ever
        b"}" + b"K\x01\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
        b"\x8a\xff" + b"\x01" * 255 + b".",
        b"N" * 600_000 + b".",
    ],
)
def test_hostile_pickles_are_errors(path, stream):
    torch.save({"a": torch.zeros(2)}, path)
    rezip(path, lambda name, content: b"\x80\x02" + stream if name == "data.pkl" else content)
    with pytest.raises(CheckpointError, match=str(path)):
        torch_file.read(path)
    assert collections.OrderedDict(a=1) == {"a": 1}


def test_a_memo_index_that_would_fill_the_memory(path):
    torch.save({"a": torch.zeros(2)}, path)
    stream = b"\x80\x02K\x01r\xff\xff\xff\x02."  # pickle would make room for a hundred million entries
    rezip(path, lambda name, content: stream if name == "data.pkl" else content)
    with pytest.raises(CheckpointError, match="not one that torch writes"):
        torch_file.read(path)


def described(storage_count, offset, shape, strides, size=16):
    """An archive with one tensor of this description over `size` bytes."""
    stream = io.BytesIO()

    class Writer(pickle._Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", storage_count) if item == "STORAGE" else None

    class Rebuilt:
        def __reduce__(self):
            hooks = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, ("STORAGE", offset, shape, strides, False, hooks)

    Writer(stream, protocol=2).dump({"a": Rebuilt()})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", stream.getvalue())
        file.writestr("archive/data/0", bytes(size))
    return archive.getvalue()


@pytest.mark.parametrize(
    "description",
    [
        (4, 0, (5,), (1,)),  # longer than the storage
        (4, 1, (4,), (1,)),  # past the end by its offset
        (4, 0, (2, 2), (3, 1)),  # past the end by its strides
        (4, 0, (1 << 40, 2), (0, 1)),  # expanded without end
        (4, -1, (2,), (1,)),
        (4, 3, (2,), (-1,)),
        (4, 0, (2, 2), (1,)),
        (4, 0, ("2",), (1,)),
        (1 << 40, 0, (2,), (1,)),  # a storage that its member does not hold
        (2, 0, (2,), (1,)),
    ],
)
def test_impossible_tensors_are_errors(path, description):
    path.write_bytes(described(*description))
    with pytest.raises(CheckpointError, match=str(path)):
        torch_file.read(path)


def test_the_possible_tensor_is_none(path):
    path.write_bytes(described(4, 1, (3,), (1,)))
    assert torch_file.read(path)["a"].read().tolist() == [0, 0, 0]


def test_damaged_files_are_errors(path):
    torch.save({"a": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for length in (0, 3, 20, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{path}.*fetch"):
            torch_file.read(path)
    path.write_bytes(whole)
    rezip(path, lambda name, content: None if name == "data/0" else content)
    with pytest.raises(CheckpointError, match="no member 'data/0'"):
        torch_file.read(path)
    path.write_bytes(whole)
    rezip(path, lambda name, content: content[:-4] if name == "data/0" else content)
    with pytest.raises(CheckpointError, match="should hold 100 numbers"):
        torch_file.read(path)


def test_a_member_reaching_past_the_end(path):
    torch.save({"a": torch.zeros(100)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        sizes = struct.pack("<II", *[archive.getinfo(f"{archive.namelist()[0].split('/')[0]}/data/0").file_size] * 2)
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    assert content[at + 20 : at + 28] == sizes
    content[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="past the end"):
        torch_file.read(path)


def test_compressed_members_are_errors(path):
    torch.save({"a": torch.zeros(100)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="compressed"):
        torch_file.read(path)


def test_other_files_are_told_apart(path):
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"older than 1\.6"):
        torch_file.read(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        torch_file.read(path)
    path.write_text("<html>")
    with pytest.raises(CheckpointError, match="not a file that torch"):
        torch_file.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "none")
    with pytest.raises(CheckpointError, match="not one that torch"):
        torch_file.read(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_reads_what_is_written(path, dtype):
    tensor = (torch.arange(24) % 7).to(dtype).reshape(2, 3, 4)
    array = as_numpy(tensor)
    state = {
        "matrix": Tensor(array.shape, array.dtype, "", lambda: array),
        "view": Tensor(array.T.shape, array.dtype, "", lambda: array.T),
        "scalar": Tensor((), array.dtype, "", lambda: array[1, 1, 1].reshape(())),
    }
    torch_file.write(path, {"best_state": state, "xp.cfg": "a: ü\n", "exported": True, "n": (-1, 2**40, 0)})
    for options in ({}, {"mmap": True}):
        read = torch.load(path, weights_only=True, **options)
        assert read["xp.cfg"] == "a: ü\n"
        assert read["exported"] is True
        assert read["n"] == (-1, 2**40, 0)
        assert torch.equal(read["best_state"]["matrix"], tensor)
        assert torch.equal(read["best_state"]["view"], tensor.permute(2, 1, 0))
        assert torch.equal(read["best_state"]["scalar"], tensor[1, 1, 1])
    again = torch_file.read(path)
    np.testing.assert_array_equal(again["best_state"]["view"].read(), array.T)
