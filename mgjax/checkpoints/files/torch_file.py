"""Reads and writes torch's `.bin` and `.pt` files without torch.

Such a file is a zip archive: `data.pkl` describes the object, `data/0`, `data/1`, ... hold the data of its tensors. A
pickle can run any code, so an allow-list applies: it may build dictionaries, lists and tensors, and nothing else. Data
is read from the file only when a tensor's `read()` is called.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mgjax.errors import CheckpointError

Shape = tuple[int, ...]

# The pickle of a model of a thousand tensors takes 0.3 MB and 40,000 instructions, the archive's directory 0.1 MB.
_LARGEST_PICKLE = 4 << 20
_MOST_INSTRUCTIONS = 500_000
MOST_AXES = 32

# The instructions of torch's pickles, and those whose results they memoize. Others could double a value repeatedly, or
# take for ever to look one up.
_INSTRUCTIONS = re.compile(
    "PROTO|FRAME|MARK|STOP|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|(SHORT_)?BINUNICODE|EMPTY_(DICT|LIST|TUPLE)|"
    "TUPLE[123]?|APPENDS?|SETITEMS?|(LONG_)?BIN(PUT|GET)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|BUILD|BINPERSID"
)
_MEMOIZED = re.compile("(SHORT_)?BINUNICODE|EMPTY_(DICT|LIST)|TUPLE[123]?|(STACK_)?GLOBAL|REDUCE")

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGE_OF = {dtype: name for name, dtype in _STORAGES.items()}


class _Inert:
    """An object that a pickle cannot modify: its BUILD instruction would otherwise set attributes."""

    def __setstate__(self, state: Any) -> None:
        raise CheckpointError("the pickle sets attributes of an object that has none")


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor(_Inert):
    """An array in a file, whose data is read by `read()`."""

    shape: Shape
    dtype: np.dtype
    file: str
    read: Callable[[], np.ndarray]


def read(path: str | os.PathLike) -> Any:
    """The object that `torch.save` wrote to `path`, with a `Tensor` for each tensor. No code in the file is run.

    Raises:
      CheckpointError: The file is not a zip archive of torch, is damaged, or holds other objects than plain tensors.
      FileNotFoundError: There is no such file.
    """
    try:
        archive = _Archive(Path(path))
        data = archive.pickle()
        _check(data)
        return _Unpickler(io.BytesIO(data), archive).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        LookupError,
        EOFError,
    ) as error:
        raise CheckpointError(f"{path}: its pickle is damaged ({str(error)[:200]}); fetch the file again") from None


def _check(data: bytes) -> None:
    """Raises CheckpointError for a pickle that could take much more time or memory than its size suggests."""
    memo: dict[int, bool] = {}  # of each memoized value, whether it is a tuple
    before = ""
    argument: Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        fits = number <= _MOST_INSTRUCTIONS and _INSTRUCTIONS.fullmatch(name) is not None
        if name == "LONG1":
            fits &= abs(argument) < 2**63
        elif name.endswith("PUT") or name == "MEMOIZE":
            index = len(memo) if argument is None else argument
            memo[index] = before.startswith("TUPLE")
            fits &= index <= len(data) and _MEMOIZED.fullmatch(before) is not None  # the memo is that large
        elif name.endswith("GET"):
            fits &= not memo.get(argument)  # hashing nested tuples, each used twice, could take for ever
        if not fits:
            raise CheckpointError(f"its pickle is not one that torch writes (instruction {number}: {name})")
        before = name


def read_array(path: str | os.PathLike, offset: int, shape: Shape, dtype: np.dtype, *, swap: bool = False) -> Any:
    """The array of `shape` whose data starts at byte `offset` of a file; `swap` reverses the byte order."""
    count = math.prod(shape) * dtype.itemsize
    raw = np.fromfile(path, np.uint8, count=count, offset=offset)
    if raw.size != count:
        raise CheckpointError(f"{path}: ends {count - raw.size} bytes too early; fetch the file again")
    if swap:
        raw = raw.view(f"u{dtype.itemsize}").byteswap(inplace=True)
    return raw.view(dtype).reshape(shape)


class _Archive:
    """The zip archive of a torch file. Members are stored uncompressed, so that none can inflate."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            head = file.read(512)
            self.size = file.seek(0, os.SEEK_END)
        if not head.startswith(b"PK\x03\x04"):
            raise CheckpointError(diagnosis(head))
        try:
            with _Limited(path) as limited, zipfile.ZipFile(limited) as archive:
                self.members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, ValueError, EOFError, struct.error, NotImplementedError, OSError) as error:
            raise CheckpointError(f"is damaged or was cut off ({error}); fetch the file again") from None
        roots = [name.removesuffix("data.pkl") for name in self.members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError("is a zip archive, but not one that torch.save wrote (no data.pkl in it)")
        self.root = roots[0]
        self.big_endian = self.root + "byteorder" in self.members and self._bytes("byteorder", 16) == b"big"

    def locate(self, name: str) -> tuple[int, int]:
        """Offset and size of a member in bytes."""
        info = self.members.get(self.root + name)
        if info is None:
            raise CheckpointError(f"has no member {name!r}; it was cut off or altered, fetch the file again")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise CheckpointError(f"its member {name!r} is compressed or encrypted, which torch.save never does")
        with self.path.open("rb") as file:
            file.seek(min(max(info.header_offset, 0), self.size))
            header = file.read(30)
        if info.header_offset < 0 or len(header) != 30 or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"its member {name!r} is damaged; fetch the file again")
        offset = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if offset + info.file_size > self.size:
            raise CheckpointError(f"its member {name!r} reaches past the end of the file; fetch the file again")
        return offset, info.file_size

    def pickle(self) -> bytes:
        """The content of `data.pkl`."""
        return self._bytes("data.pkl", _LARGEST_PICKLE)

    def _bytes(self, name: str, limit: int) -> bytes:
        offset, size = self.locate(name)
        if size > limit:
            raise CheckpointError(f"its member {name!r} has {size} bytes, where at most {limit} are sensible")
        return read_array(self.path, offset, (size,), np.dtype(np.uint8)).tobytes()


class _Limited(io.FileIO):
    """A file that refuses large reads: the directory of a hostile archive can have millions of entries."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _LARGEST_PICKLE:
            raise zipfile.BadZipFile(f"its directory has {size} bytes")
        return super().read(size)


def diagnosis(head: bytes) -> str:
    """What a file is that starts with `head` (512 bytes) and holds no weights, and what to do about it."""
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` or fetch the file from the Hub"
    if head[257:262] == b"ustar" or head.startswith(b"\x80"):
        return (
            "was written by a torch older than 1.6, or is a plain pickle; only torch's zip form is read here. Where "
            "torch is installed, convert it: torch.save(torch.load(path, weights_only=True), new_path)"
        )
    return "is not a file that torch.save wrote; it may be cut off or a web page saved by mistake, fetch it again"


@dataclasses.dataclass(frozen=True)
class _StorageType(_Inert):
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Storage(_Inert):
    dtype: np.dtype
    offset: int
    count: int


class _State(dict):
    """Replaces `collections.OrderedDict`, and ignores the attributes (`_metadata`) that torch sets on it."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class _Function(_Inert):
    call: Callable

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class _Unpickler(pickle.Unpickler):
    """The allow-list, as `find_class` and `persistent_load`."""

    def __init__(self, file: io.BytesIO, archive: _Archive):
        super().__init__(file, encoding="utf-8")
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        known = {
            ("collections", "OrderedDict"): _Function(lambda: _State()),
            ("torch.storage", "UntypedStorage"): _StorageType(np.dtype(np.uint8)),
            ("torch._utils", "_rebuild_tensor_v2"): _Function(self._tensor),
            ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
            ("torch", "Size"): _Function(_sizes),
            ("torch", "device"): _Function(lambda kind, *_: f"{kind:.20}"),
        }
        if (module, name) not in known:
            raise CheckpointError(
                f"asks for {module[:99]}.{name[:99]}, which is not needed to store weights and is not allowed. Nothing "
                "was run. If you trust the file, load it where it was made and save a plain dictionary of tensors"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), str(), int(count)) if len(key) < 100:
                offset, size = self.archive.locate(f"data/{key}")
                if count * dtype.itemsize != size:
                    raise CheckpointError(
                        f"data/{key} should hold {count} numbers of type {dtype}, but has {size} bytes; "
                        "fetch the file again"
                    )
                return _Storage(dtype, offset, count)
        raise CheckpointError("refers to its data in an unknown way")

    def _tensor(self, storage: _Storage, offset: int, shape: Shape, strides: Shape, *_: Any) -> Tensor:
        _sizes(shape), _sizes(strides), _sizes((offset,))
        if not isinstance(storage, _Storage):
            raise CheckpointError("holds a tensor without numbers")
        count = math.prod(shape)
        span = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1 if count else 0
        # An expanded tensor has more numbers than the file, so that a small file could fill the memory.
        if offset + span > storage.count or count > storage.count:
            raise CheckpointError(
                f"holds a tensor of shape {shape}, strides {strides} and offset {offset} in {storage.count} numbers"
            )
        path, start = self.archive.path, storage.offset + offset * storage.dtype.itemsize
        read_flat = functools.partial(read_array, path, start, (span,), storage.dtype, swap=self.archive.big_endian)
        return Tensor(shape, storage.dtype, path.name, functools.partial(_strided, read_flat, shape, strides))


def _strided(read_flat: Callable[[], np.ndarray], shape: Shape, strides: Shape) -> np.ndarray:
    """The tensor in the numbers that lie one after the other in a file; `strides` are in numbers."""
    flat = read_flat()
    if flat.size == math.prod(shape) and strides == _contiguous(shape):
        return flat.reshape(shape)
    view = np.lib.stride_tricks.as_strided(flat, shape, [stride * flat.itemsize for stride in strides])
    return np.ascontiguousarray(view)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError("holds a parameter that is no tensor")
    return data


def _sizes(numbers: Any) -> Shape:
    if type(numbers) is not tuple or len(numbers) > MOST_AXES or any(type(n) is not int or n < 0 for n in numbers):
        raise CheckpointError("holds a tensor with an impossible description")
    return numbers


def _contiguous(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def write(path: str | os.PathLike, value: dict[str, Any]) -> None:
    """Writes a dictionary of tensors, strings, numbers and further dictionaries as `torch.save` would.

    `torch.load(path, weights_only=True)` reads it. Tensors (`Tensor`) are read and written one after the other.
    """
    tensors: list[Tensor] = []
    stream = b"\x80\x02" + _pickled(value, tensors) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), stream)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for i, tensor in enumerate(tensors):
            array = np.ascontiguousarray(tensor.read()).reshape(-1)
            with archive.open(zipfile.ZipInfo(f"archive/data/{i}"), "w", force_zip64=True) as member:
                member.write(array.view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


def _pickled(value: Any, tensors: list[Tensor]) -> bytes:
    """Pickle instructions (protocol 2) that push `value`; its tensors are appended to `tensors`."""
    match value:
        case Tensor():
            if value.dtype not in _STORAGE_OF:
                raise CheckpointError(f"torch's files are written here with {list(_STORAGES)}, not {value.dtype}")
            key = str(len(tensors))
            tensors.append(value)
            storage = b"(" + _pickled("storage", tensors) + f"ctorch\n{_STORAGE_OF[value.dtype]}\n".encode()
            storage += _pickled(key, tensors) + _pickled("cpu", tensors) + _pickled(math.prod(value.shape), tensors)
            storage += b"tQ"
            numbers = [_pickled(part, tensors) for part in (0, value.shape, _contiguous(value.shape), False)]
            hooks = b"ccollections\nOrderedDict\n)R"
            return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(numbers) + hooks + b"tR"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            encoded = pickle.encode_long(value)
            return b"\x8a" + bytes([len(encoded)]) + encoded
        case str():
            encoded = value.encode()
            return b"X" + struct.pack("<I", len(encoded)) + encoded
        case tuple():
            return b"(" + b"".join(_pickled(item, tensors) for item in value) + b"t"
        case collections.abc.Mapping():
            items = (_pickled(key, tensors) + _pickled(item, tensors) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
    raise TypeError(f"cannot write {type(value).__name__} into a file of torch")
