"""Arguments of public functions: one form inside, one clear error for what has none."""

import numpy as np
import pytest
import torch

from mgjax.inputs import arguments


def test_numbers():
    assert arguments.number(np.float32(0.5), "a") == 0.5
    for value in [float("nan"), float("inf"), 10**400, 10**5000]:
        with pytest.raises(ValueError, match="gain must be a finite number of decibels, got"):
            arguments.number(value, "gain", " of decibels")
    for value in [None, "loud", [1, 2], 1j]:
        with pytest.raises(TypeError, match="gain must be a number, got"):
            arguments.number(value, "gain")


@pytest.mark.parametrize("value", [44_100, 44_100.0, np.int64(44_100), np.float32(44_100)])
def test_rates(value):
    found = arguments.rate(value)
    assert (found, type(found)) == (44_100, int)


@pytest.mark.parametrize("value", [0, -1, 999, 10**12, 2**63, 10**400, True, 44_100.5, float("nan"), float("inf")])
def test_what_is_no_rate(value):
    with pytest.raises(ValueError, match="sample_rate must be a"):
        arguments.rate(value)


def test_long_values_are_cut_in_messages():
    assert len(arguments.shown("a" * 10**6)) < 300
    assert arguments.shown(10**5000) == "a huge int"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arrays_of_torch(dtype):
    tensor = torch.tensor([0.5, -0.25], dtype=dtype, requires_grad=True)
    np.testing.assert_array_equal(arguments.array(tensor, "a"), [0.5, -0.25])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("song.wav", TypeError, "the song must be audio, not the name of a file"),
        ({"a": 1}, TypeError, "must be an array of numbers, got"),
        (["a"], TypeError, "must be an array of numbers, got"),
        ([10**400], TypeError, "must be an array of numbers, got"),
        ([[1.0], [1.0, 2.0]], ValueError, "must be an array of numbers"),
        (torch.zeros(3, device="meta"), (ValueError, NotImplementedError), "meta"),
    ],
)
def test_what_is_no_array(value, kind, message):
    with pytest.raises(kind, match=message):
        arguments.array(value, "the song")


def test_rows():
    a, b = np.zeros(3), np.ones((4, 2))
    stems = {"vocals": a}
    assert arguments.rows(None, "a") == [None]
    assert arguments.rows(stems, "a") == [stems]
    assert arguments.rows([a, None, b], "a")[2] is b
    assert [row.shape for row in arguments.rows(np.zeros((2, 5, 1)), "a")] == [(5, 1), (5, 1)]
    assert [row.shape for row in arguments.rows([0.5, 0.25, 0.1], "a")] == [(3,)]
    assert arguments.rows([], "a") == []
