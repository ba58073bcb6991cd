"""Records: the bytes are those of tensorflow's own class, which is not needed for them."""

import subprocess
import sys

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from mgjax.data import records


def test_bytes_are_those_of_the_original():
    values = {"name": "ü".encode(), "metadata": b"", "audio": bytes(range(256)), "chunk": 300, "empty": 0, "minus": -3}
    example = tf_example_pb2.Example()
    for name, value in values.items():
        feature = example.features.feature[name]
        kind = feature.int64_list if isinstance(value, int) else feature.bytes_list
        kind.value.append(value)
    assert records.write(**values) == example.SerializeToString(deterministic=True)


def test_what_others_wrote_is_read(tmp_path):
    example = tf_example_pb2.Example()
    example.features.feature["many"].int64_list.value.extend([1, 2**40, -1])
    example.features.feature["floats"].float_list.value.extend([0.5, 2.0])
    write(tmp_path / "file", [example.SerializeToString(), b"\xff\xff"])
    (found,) = records.Readers().read(tmp_path / "file", [0])
    assert list(found["many"].int64_list.value) == [1, 2**40, -1]
    assert (found["floats"].WhichOneof("kind"), list(found["floats"].float_list.value)) == ("float_list", [0.5, 2.0])
    with pytest.raises(records.RecordError, match=r"cannot be read \(Error parsing"):
        records.Readers().read(tmp_path / "file", [1])


def write(path, contents):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for content in contents:
        writer.write(content)
    writer.close()


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "other", "beyond"])
def test_damage_is_reported(tmp_path, damage):
    path = tmp_path / "file"
    write(path, [bytes(50_000)] * 2)
    content = path.read_bytes()
    contents = {"missing": None, "empty": b"", "short": content[:-10], "other": b"x" * len(content), "beyond": content}
    path.unlink() if contents[damage] is None else path.write_bytes(contents[damage])
    with pytest.raises(records.RecordError, match="cannot be read"):
        records.Readers().read(path, [2 if damage == "beyond" else 0])


def test_a_fault_of_the_program_is_no_damage(tmp_path, monkeypatch):
    def broken(*_):
        raise ImportError("cannot import name")

    monkeypatch.setattr(records, "ArrayRecordReader", broken)
    with pytest.raises(ImportError):
        records.Readers().read(tmp_path / "file", [0])


def test_tensorflow_datasets_is_not_needed():
    code = "import sys; from mgjax.data import corpus, corpus_writing, datasets; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mgjax.data.records" in result.stdout
    assert "tensorflow" not in result.stdout
