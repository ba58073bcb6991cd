"""Which of several processes the others wait for."""

import logging
import time

import pytest

from mgjax.train.pulse import Beat, Pulse, remarks


def beat(process, step=7, seconds=1.0, reading=0.1, time=1000.0):
    return Beat(process, f"host-{process}", step, seconds, reading, time)


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ([beat(0), beat(1)], []),
        ([beat(0), beat(1, step=6)], []),  # it has just begun
        ([beat(0, seconds=200.0), beat(1, seconds=200.0)], []),  # all wait: a collective, or the device
        (
            [beat(0, seconds=199.0), beat(1, step=6, seconds=200.0)],
            ["process 1 of 2 on host-1 is behind, in step 6 for 200 s"],
        ),
        ([beat(0), beat(1, reading=0.8)], ["process 1 of 2 on host-1 is slow, it waits for its data 80 % of the time"]),
        ([beat(0, reading=0.7), beat(1, reading=0.8)], []),  # all do
    ],
)
def test_remarks(beats, expected):
    found = remarks(beats)
    assert len(found) == len(expected)
    assert all(remark.startswith(start) for remark, start in zip(found, expected, strict=True))


class Shared(dict):
    """What the client of `jax.distributed` is to processes."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.items() if key.startswith(folder)]


def test_all_say_who_is_slow_and_say_it_once(caplog):
    store = Shared()
    with caplog.at_level(logging.WARNING, "mgjax"), Pulse(store, 0, 0.05) as fast, Pulse(store, 1, 0.05) as slow:
        for step in range(6):
            fast.begin(step)
            slow.begin(step)
            with slow.reading():
                time.sleep(0.05)
    said = [record.getMessage() for record in caplog.records]
    assert {line.partition(" on ")[0] for line in said} == {"process 1 of 2"}
    assert 1 <= len(said) <= 4


def test_a_store_that_is_gone_ends_it(caplog):
    class Gone(Shared):
        def key_value_set(self, *_, **__):
            raise RuntimeError("unavailable")

    with Pulse(Gone(), 0, 0.01) as pulse:
        pulse._thread.join(5.0)
        assert not pulse._thread.is_alive()
    assert not caplog.records


def test_one_process_needs_none():
    with Pulse() as pulse:
        assert not pulse._thread.is_alive()
