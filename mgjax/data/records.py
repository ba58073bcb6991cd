"""Reads and writes records of array_record files, tf.train.Example, without TensorFlow or tensorflow-datasets.

These import many modules, some of them lazily, so that concurrent imports in threads may deadlock. So the class of the
protocol buffer is built here from its definition.
"""

from __future__ import annotations

import pathlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from mgjax.storage import cache
from mgjax.storage.paths import Path

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


class Readers:
    """Open files of records. Those in buckets are read from local copies (`mgjax.storage.cache`).

    Copies of open files stay, so that at most half of the cache's capacity is open at once.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, tuple[ArrayRecordReader, pathlib.Path | None, int]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """The features of records of the file `path`, by their `numbers`.

        Raises RecordError if the file is missing or damaged, and OSError where it cannot be fetched.
        """
        try:
            found = self._open.get(path)
            reader = self._opened(path) if found is None else found[0]
            return [_Example.FromString(record).features.feature for record in reader.read(list(numbers))]
        except (RuntimeError, DecodeError) as error:
            raise RecordError(f"cannot be read ({error})") from error

    def _opened(self, path: Path) -> ArrayRecordReader:
        copy = None if isinstance(path, pathlib.Path) else cache.local_file(path)
        # Without threads of its own, a reader is cheap to keep open.
        reader = ArrayRecordReader(str(copy or path), "readahead_buffer_size:0,max_parallelism:0")
        with self._lock:
            self._open[path] = (reader, copy, 0 if copy is None else copy.stat().st_size)
            total = sum(size for _, _, size in self._open.values())
            for oldest, (_, old, size) in list(self._open.items()) if copy and total > cache.capacity() / 2 else []:
                if old is not None and oldest != path and total > cache.capacity() / 2:
                    del self._open[oldest]  # whoever reads from it at this moment still has it
                    cache.unpin(old)
                    total -= size
        return reader


def write(**values: bytes | int) -> bytes:
    """The bytes of a record with the features `values`."""
    example = _Example()
    for name, value in values.items():
        if isinstance(value, int):
            example.features.feature[name].int64_list.value.append(value)
        else:
            example.features.feature[name].bytes_list.value.append(value)
    return example.SerializeToString(deterministic=True)  # the order of a protobuf map is not defined
