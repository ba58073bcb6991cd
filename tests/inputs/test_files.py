"""Files of strangers: bounded, read once, and a clear error for what they should not be."""

import contextlib
import json
import os
import threading

import pytest

from mgjax.inputs import files


class Trouble(ValueError):
    pass


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 101)
    assert len(files.read_bytes(tmp_path / "a", 101)) == 101
    with pytest.raises(Trouble, match="is larger than"):
        files.read_bytes(tmp_path / "a", 100, Trouble)


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "/dev/null"])
def test_devices_are_no_files(device):
    with pytest.raises(OSError, match=f"{device}: is a device"):
        files.read_bytes(device)


def test_folders_and_names_that_are_none_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        files.read_bytes(tmp_path)
    with pytest.raises(Trouble, match="is no name of a file"):
        files.read_bytes("a\0b", error=Trouble)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_pipe_is_read_once_and_can_be_sought_in(tmp_path, size):
    path, content = tmp_path / "pipe", os.urandom(size)
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    with files.opened(path) as file:
        assert file.read() == content
        file.seek(3)
        assert file.read(2) == content[3:5]
    writer.join()


def test_an_endless_pipe_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write():
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(b"x" * 1_000_000)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(Trouble, match="gives more than"):
        files.read_bytes(path, 1000, Trouble)
    writer.join()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200 + "]" * 200, "levels deep"),
        ("[" * 200_000, "levels deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "levels deep"),
        ("1" + "0" * 400, "does not fit into 64 bits"),
        (str(2**63), "does not fit into 64 bits"),
        ("9" * 5000, "does not fit into 64 bits"),
        (r'{"a": "\ud83d"}', "half of a character"),
        (b"\xff\xfe{", "is not text in UTF-8"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_json_that_no_reader_should_meet(text, message):
    with pytest.raises(Trouble, match=f"^here: .*{message}"):
        files.parse_json(text, "here", Trouble)


def test_json_that_is_fine():
    value = {"a": [2**63 - 1, -(2**63) + 1, 1e300, "\N{MUSICAL SYMBOL G CLEF}", None], "b": [[[[1]]]]}
    assert files.parse_json(json.dumps(value), "here") == value


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    path, link = tmp_path / "there" / "a.json", tmp_path / "link"
    path.parent.mkdir()
    path.write_text("old")
    link.symlink_to(path)

    def interrupted():
        with files.replacing(link) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with files.replacing(link) as file:
        file.write(b"new")
    assert path.read_text() == link.read_text() == "new"
    assert link.is_symlink()
    assert os.listdir(path.parent) == ["a.json"]
