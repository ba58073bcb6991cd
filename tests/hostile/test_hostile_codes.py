"""The .npz of codes that `mgjax encode` writes."""

import numpy as np
from fuzzing import Door

from mgjax.cli.coding import CodeFile, read_codes, write_codes


def write(folder):
    codes, scales = np.arange(24, dtype=np.uint8).reshape(6, 4), np.ones(2, np.float32)
    for name, shape, scale in (("whole", (6, 4), None), ("chunks", (2, 3, 4), scales)):
        (folder / name).mkdir()
        write_codes(folder / name / "song.npz", CodeFile(codes.reshape(shape), 600, 32_000, 1, "mini", "0" * 16, scale))


DOOR = Door(write, lambda folder: read_codes(folder / "song.npz"))


def test_codes(endure):
    endure("codes")
