"""Archives of numpy arrays (.npz) that strangers hand over, read within bounds."""

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

# The head of an array as numpy writes it, of numbers or texts: no pickles, nothing that would have to be evaluated.
_HEAD = re.compile(
    rb"(?s)\x93NUMPY(?:\x01\0..|[\x02\x03]\0....)\{'descr': '([<>|](?:[iu][1248]|f[248]|U[1-9]\d{0,3}))', "
    rb"'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \} *\n"
)
_DAMAGE = (EOFError, OSError, OverflowError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


def read_npz(
    path: str | os.PathLike[str], names: Collection[str], most: int, error: type[ValueError] = ValueError
) -> dict[str, np.ndarray]:
    """The arrays of an archive as `numpy.savez` and `numpy.savez_compressed` write them, which may be those of `names`.

    Args:
      path: A file or a pipe.
      names: What arrays may be called.
      most: Bytes that the archive may take, and its arrays together.
      error: What is raised.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: (as `error`) It is something else, damaged, too large, or holds other arrays.
    """
    with files.opened(path, error, most) as file:
        try:
            if os.fstat(file.fileno()).st_size > most:
                raise ValueError(f"it is larger than {most >> 20} MiB")
            with zipfile.ZipFile(file) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                if not members.keys() <= set(names):
                    raise ValueError(f"it holds {sorted(members)!r:.200}, expected {sorted(names)}")
                if sum(member.file_size for member in members.values()) > most:
                    raise ValueError(f"it unpacks to more than {most >> 20} MiB")
                return {name: _array(archive, member) for name, member in members.items()}
        except _DAMAGE as wrong:
            raise error(f"{os.fspath(path)}: is no .npz file of arrays that can be read ({wrong})") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The array of a member, in the memory of its bytes."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in a way that numpy does not use")
    with archive.open(member) as file:
        content = file.read(member.file_size)
    head = _HEAD.match(content[:10_000])
    if not head:
        raise ValueError(f"{member.filename} is no array of numbers or texts")
    dtype, shape = np.dtype(head[1].decode()), tuple(map(int, re.findall(rb"\d+", head[3])))
    if math.prod(shape) * dtype.itemsize != len(content) - head.end():
        raise ValueError(f"{member.filename} has another size than it says")
    if dtype.kind == "U" and (np.frombuffer(content, dtype.byteorder + "u4", offset=head.end()) > sys.maxunicode).any():
        raise ValueError(f"{member.filename} holds characters that there are not")
    return np.ndarray(shape, dtype, content, head.end(), order="F" if head[2] == b"True" else "C")
