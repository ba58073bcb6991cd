"""Arrays in files of numpy (.npz) that strangers hand over."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

from mgjax.inputs import files


def read_npz(
    path: str | os.PathLike[str], names: Collection[str], most: int, error: type[ValueError] = ValueError
) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that the file holds, of at most `most` bytes each.

    Raises:
      OSError: There is no such file, or it may not be read.
      ValueError: (as `error`) It is no such file, or damaged, or too large.
    """
    found = {}
    with files.opened(path, error, most) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    if (name := member.filename.removesuffix(".npy")) not in names:
                        continue
                    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise ValueError(f"{member.filename} is encrypted, or compressed by an unknown method")
                    if member.file_size > most:
                        raise ValueError(f"{member.filename} is larger than {most >> 20} MiB")
                    with archive.open(member) as data:
                        version = np.lib.format.read_magic(data)
                        header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version)
                        if header is None:
                            raise ValueError(f"{member.filename} has another version of numpy's format")
                        shape, fortran, dtype = header(data)
                        count = int(np.prod(shape, dtype=object))
                        if dtype.hasobject or fortran or count < 0 or count * dtype.itemsize > member.file_size:
                            raise ValueError(f"{member.filename} is no plain array")
                        content = data.read(count * dtype.itemsize)
                        found[name] = np.frombuffer(content, dtype, count).reshape(shape)
        except (ValueError, SyntaxError, OverflowError, EOFError, zlib.error, zipfile.BadZipFile) as wrong:
            raise error(f"{os.fspath(path)}: is damaged ({wrong})") from wrong
    return found
