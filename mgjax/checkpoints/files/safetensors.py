"""Reads and writes safetensors files tensor by tensor, and finds the files of a directory that hold the weights.

A safetensors file is a header (JSON: dtype, shape and offsets of each tensor) and then the data. It is read by plain
file reads: a memory map would count as memory in use next to the arrays made from it.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mgjax.checkpoints.files import torch_file
from mgjax.checkpoints.files.torch_file import Tensor
from mgjax.errors import CheckpointError
from mgjax.inputs import files

LARGEST_SHARD = 5_000_000_000  # bytes
_LARGEST_HEADER = 16 << 20  # bytes; 100,000 tensors

# "F64", "I8", ...
_DTYPES = {f"{kind[0].upper()}{bits}": np.dtype(f"{kind}{bits}") for kind in ("float", "int") for bits in (64, 32, 16)}
_DTYPES |= {"I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_)}
_DTYPES["BF16"] = np.dtype(ml_dtypes.bfloat16)
_SHARD = re.compile(r"[^/\\\0]{1,200}\.(safetensors|bin)")
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def find(directory: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face style directory, by name.

    Safetensors are preferred to torch's files, and the names that every library writes (`model.safetensors`, or its
    index with all shards) to a variant such as `model.fp32.safetensors`, which is read if it is the only file.

    Raises:
      CheckpointError: There are no weights, or shards are missing.
    """
    incomplete = []
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (directory / name).is_file():
            return read(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = _shards(index)
            absent = sorted({shard for shard in set(shards.values()) if not (directory / shard).is_file()})
            if not absent:
                return _read_shards(index, shards)
            incomplete.append(f"{index.name} also needs {', '.join(absent[:10])}")
    variants = sorted([*directory.glob("model.*.safetensors"), *directory.glob("pytorch_model.*.bin")])
    if len(variants) == 1:
        return read(variants[0])
    present = "; ".join(incomplete + [f"found the variants {[path.name for path in variants]}"] * bool(variants))
    raise CheckpointError(
        f"{directory}: no weights. Expected model.safetensors, pytorch_model.bin, or one of their .index.json with all "
        f"of its shards{'; ' + present if present else ''}. Fetch the missing files"
    )


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or torch, by name."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = torch_file.read(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a plain dictionary of tensors, as a model's state_dict() is")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. The data is read when a tensor's `read()` is called."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; fetch it")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            hint = torch_file.diagnosis(head + file.read(504))
            raise CheckpointError(f"{path}: is not a safetensors file, or was cut off: {hint}")
        header = file.read(length)
    entries = files.parse_json(header, f"{path}: its header is damaged", CheckpointError)
    try:
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in entries.items()}
        offsets = sorted(tuple(entry["data_offsets"]) for entry in entries.values())
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its header is damaged ({error!r}); fetch the file again") from None
    # As in the safetensors library, tensors are contiguous up to the end of the file, and do not overlap.
    ends = [0, *(end for _, end in offsets)]
    if ends[:-1] != [start for start, _ in offsets] or 8 + length + ends[-1] != size:
        raise CheckpointError(
            f"{path}: was cut off or altered: {size} bytes, of which its header describes {8 + length + ends[-1]}, or "
            "tensors overlap; fetch the file again"
        )
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any], data_start: int) -> Tensor:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{path}: {name[:200]} has the type {entry['dtype']!r:.200}; known are {sorted(_DTYPES)}")
    if len(shape) > torch_file.MOST_AXES or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise CheckpointError(f"{path}: {name[:200]} has an impossible shape or place; fetch the file again")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path}: {name[:200]} of shape {shape} does not fit its {end - start} bytes")
    return Tensor(shape, dtype, path.name, lambda: torch_file.read_array(path, data_start + start, shape, dtype))


def _shards(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from an index file."""
    content = files.read_json(index, error=CheckpointError)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(_SHARD.fullmatch(str(shard)) for shard in shards.values()):
        raise CheckpointError(
            f"{index}: not an index of weight files: expected a weight_map from names to files beside it, none of them "
            "outside the directory; fetch it again"
        )
    return shards


def _read_shards(index: Path, shards: dict[str, str]) -> dict[str, Tensor]:
    contents = {shard: read(index.parent / shard) for shard in sorted(set(shards.values()))}
    tensors = {name: tensor for content in contents.values() for name, tensor in content.items()}
    absent = [f"{name} ({shard})" for name, shard in shards.items() if name not in contents[shard]]
    if absent:
        raise CheckpointError(f"{index}: names tensors that its shards do not hold: {', '.join(absent[:10])[:2000]}")
    return tensors


def write(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `model.safetensors`, or shards and an index where it would be larger than `LARGEST_SHARD` bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + _nbytes(tensor) > LARGEST_SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += _nbytes(tensor)
    if len(shards) == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(map(_nbytes, tensors.values()))}, "weight_map": weight_map}
    files.write_json(directory / "model.safetensors.index.json", index)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file, tensor by tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + _nbytes(tensor)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize
