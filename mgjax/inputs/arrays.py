"""Reads untrusted archives of numpy arrays (.npz) within limits."""

from __future__ import annotations

import math
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

from mgjax.inputs import files

# The .npy header of an array of numbers or strings as numpy writes it: no pickles, nothing that needs evaluating.
_HEADER = re.compile(
    rb"(?s)\x93NUMPY(?:\x01\0..|[\x02\x03]\0....)\{'descr': '([<>|](?:[iu][1248]|f[248]|U[1-9]\d{0,3}))', "
    rb"'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n"
)
_DAMAGE = (EOFError, OSError, OverflowError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


def read_npz(
    path: files.PathLike, names: Collection[str], max_bytes: int, error: files.Error = ValueError
) -> dict[str, np.ndarray]:
    """The arrays of an archive that `numpy.savez` or `numpy.savez_compressed` wrote, by name.

    Arrays may have only those `names`. `max_bytes` limits the size of the archive, and of its arrays together.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: (as `error`) It is something else, damaged, too large, or holds arrays of other names.
    """
    with files.opened(path, error, max_bytes) as file:
        try:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise ValueError(f"it is larger than {max_bytes >> 20} MiB")
            with zipfile.ZipFile(file) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                if not members.keys() <= set(names):
                    raise ValueError(f"it holds {sorted(members)!r:.200}, expected {sorted(names)}")
                if sum(member.file_size for member in members.values()) > max_bytes:
                    raise ValueError(f"it unpacks to more than {max_bytes >> 20} MiB")
                return {name: _array(archive, member) for name, member in members.items()}
        except _DAMAGE as wrong:
            raise error(f"{os.fspath(path)}: is no .npz file of arrays that can be read ({wrong})") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The array of a member, a view of its bytes."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in a way that numpy does not use")
    with archive.open(member) as file:
        # The header first: what it does not announce is not unpacked, however small it is in the archive.
        header = _HEADER.match(file.read(10_000))
        if not header:
            raise ValueError(f"{member.filename} is no array of numbers or texts")
        dtype, shape = np.dtype(header[1].decode()), tuple(map(int, re.findall(rb"\d+", header[3])))
        if math.prod(shape) * dtype.itemsize != member.file_size - header.end():
            raise ValueError(f"{member.filename} has another size than it says")
        file.seek(0)
        content = file.read(member.file_size)
    if len(content) != member.file_size:
        raise ValueError(f"{member.filename} ends early")
    start = header.end()
    if dtype.kind == "U" and (np.frombuffer(content, dtype.byteorder + "u4", offset=start) > sys.maxunicode).any():
        raise ValueError(f"{member.filename} holds characters that there are not")
    return np.ndarray(shape, dtype, content, start, order="F" if header[2] == b"True" else "C")
