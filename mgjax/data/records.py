"""Reads and writes records of array_record files, tf.train.Example, without TensorFlow or tensorflow-datasets.

These import many modules, some of them lazily, so that concurrent imports in threads may deadlock. So the class of the
protocol buffer is built here from its definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

_FILE = descriptor_pb2.FileDescriptorProto()
_DEFINITION = """
    name: "mgjax/example.proto" package: "mgjax" syntax: "proto3"
    message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
    message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
    message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
    message_type { name: "Feature" oneof_decl { name: "kind" }
      field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: "BytesList" oneof_index: 0 }
      field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: "FloatList" oneof_index: 0 }
      field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: "Int64List" oneof_index: 0 } }
    message_type { name: "Features"
      field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "FeatureEntry" }
      nested_type { name: "FeatureEntry" options { map_entry: true }
        field { name: "key" number: 1 type: TYPE_STRING }
        field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" } } }
    message_type { name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" } }
"""
_POOL = descriptor_pool.DescriptorPool()  # its own, so that other definitions of Example do not clash
_POOL.AddSerializedFile(text_format.Parse(_DEFINITION, _FILE).SerializeToString())
_Example = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("mgjax.Example"))


class RecordError(ValueError):
    """Records that cannot be read; the message is to follow the name of the file."""


def read(readers: dict[Path, ArrayRecordReader], path: Path, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
    """The features of records of the file `path`, by their `numbers`; `readers` caches the open files.

    Raises RecordError if the file is missing or damaged.
    """
    try:
        if path not in readers:  # without threads of its own, a reader is cheap to keep open
            readers[path] = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        return [_Example.FromString(record).features.feature for record in readers[path].read(list(numbers))]
    except (RuntimeError, DecodeError) as error:
        raise RecordError(f"cannot be read ({error})") from error


def write(**values: bytes | int) -> bytes:
    """The bytes of a record with the features `values`."""
    example = _Example()
    for name, value in values.items():
        if isinstance(value, int):
            example.features.feature[name].int64_list.value.append(value)
        else:
            example.features.feature[name].bytes_list.value.append(value)
    return example.SerializeToString(deterministic=True)  # the order of a protobuf map is not defined
