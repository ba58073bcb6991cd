"""Archives of arrays: what numpy writes comes back, and whatever else is in a file ends in one sentence."""

import random
import tracemalloc
import zipfile

import numpy as np
import pytest

from mgjax.inputs import arrays

GOOD = {
    "codes": np.arange(40, dtype=np.int16).reshape(20, 2),
    "columns": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "big": np.arange(5, dtype=">u2"),
    "none": np.zeros((0, 2), np.int32),
    "number": np.int64(3),
    "text": np.array("漢字 é"),
}
PLAIN = "{'descr': '<i4', 'fortran_order': False, 'shape': %s, }\n"


class Trouble(ValueError):
    pass


def read(path, most=1 << 20):
    return arrays.read_npz(path, GOOD, most, Trouble)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_comes_back(tmp_path, save):
    save(tmp_path / "a.npz", **GOOD)
    found = read(tmp_path / "a.npz")
    assert found.keys() == GOOD.keys()
    for name, array in GOOD.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (np.asarray(array).dtype, np.shape(array))


def written(path, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("number.npy", content)
    return path


def array(head, content=bytes(4)):
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head.encode() + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array(PLAIN % "(99999999999999,)"), "another size than it says"),
        (array(PLAIN % "(0, 999999999999999999, 999999999999999999)", b""), "too big"),
        (array(PLAIN % f"({'1, ' * 70})"), "dimension"),
        (array(PLAIN % f"({'1' * 5000})"), "digits"),
        (array("(" * 5000), "no array of numbers"),
        (array(PLAIN.replace("<i4", "|O") % "()"), "no array of numbers"),
        (array(PLAIN.replace("<i4", "<U0") % "(9,)", b""), "no array of numbers"),
        (array(PLAIN.replace("<i4", "<U1") % "()", b"\xff" * 4), "characters that there are not"),
        (b"", "no array of numbers"),
    ],
)
def test_headers_are_not_believed(tmp_path, content, message):
    with pytest.raises(Trouble, match=rf"a\.npz: is no \.npz file of arrays that can be read \(.*{message}"):
        read(written(tmp_path / "a.npz", content))


def test_what_the_header_does_not_announce_is_not_unpacked(tmp_path):
    """A small archive of 64 MiB of zeros costs no more than its header."""
    path = written(tmp_path / "a.npz", array(PLAIN % "()", bytes(64 << 20)), zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        with pytest.raises(Trouble, match="another size than it says"):
            read(path, 1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_ends_early_is_refused(tmp_path):
    """Its header and the archive agree on a size that its compressed bytes do not reach."""
    path = written(tmp_path / "a.npz", array(PLAIN % "(1000,)", bytes(3000)), zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    true, said = ((len(array(PLAIN % "(1000,)")) - 4 + size).to_bytes(4, "little") for size in (3000, 4000))
    path.write_bytes(content.replace(true, said))
    with pytest.raises(Trouble, match="ends early"):
        read(path)


def test_only_what_numpy_uses_is_unpacked(tmp_path):
    with pytest.raises(Trouble, match="compressed in a way"):
        read(written(tmp_path / "a.npz", array(PLAIN % "()"), zipfile.ZIP_BZIP2))
    with pytest.raises(Trouble, match="unpacks to more than 1 MiB"):
        read(written(tmp_path / "a.npz", bytes(1 << 21), zipfile.ZIP_DEFLATED))
    with pytest.raises(Trouble, match="is larger than 1 MiB"):
        read(written(tmp_path / "a.npz", bytes(1 << 21)))
    path = written(tmp_path / "a.npz", array(PLAIN % "()"))
    encrypted = bytearray(path.read_bytes())
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(sign) + place] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(Trouble, match="encrypted"):
        read(path)


def test_damage_is_reported_in_one_way(tmp_path):
    """Whatever bytes are changed, cut off or put in."""
    path, rng = tmp_path / "a.npz", random.Random(0)
    for save in (np.savez, np.savez_compressed):
        save(path, **GOOD)
        whole = path.read_bytes()
        for _ in range(300):
            damaged = bytearray(whole)
            # The list of what is in the archive is at its end.
            start = rng.choice([0, len(whole) - 600])
            for place in rng.sample(range(start, len(whole)), rng.choice([1, 2, 5])):
                damaged[place] = rng.randrange(256)
            if rng.random() < 0.2:
                del damaged[rng.randrange(1, len(damaged)) :]
            path.write_bytes(damaged)
            try:
                read(path)
            except Trouble as error:
                assert str(error).startswith(f"{path}: is no .npz file")  # noqa: PT017 - an error need not be
