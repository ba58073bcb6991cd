"""Messages are for a terminal, whatever the files have in them."""

import pickle

import pytest

from mgjax import errors

KINDS = [kind for name, kind in vars(errors).items() if name.endswith("Error") and name[0] != "_"]


@pytest.mark.parametrize("kind", KINDS)
def test_messages_can_be_printed_and_have_an_end(kind):
    error = kind("song.wav: \x1b[2J \0 \ud83d\ttwo\nlines é \N{MUSICAL SYMBOL G CLEF}")
    assert str(error) == "song.wav: \\x1b[2J \\x00 \\ud83d\ttwo\nlines é \N{MUSICAL SYMBOL G CLEF}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, ValueError)
    assert len(str(kind("a" * 10**6))) < 5000
