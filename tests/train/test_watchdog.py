"""A slow start is reported, and one that hangs ends."""

import faulthandler
import logging
import re
import time

import pytest

from mgjax.train import watchdog
from mgjax.train.watchdog import Watchdog


@pytest.fixture
def watches(monkeypatch):
    """The seconds of the watches that were started, and None for each that was cancelled."""
    found = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: found.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: found.append(None))
    return found


def test_what_takes_long_is_reported_now_and_then(watches, caplog, monkeypatch):
    monkeypatch.setattr(watchdog, "_FIRST_WARNING", 0.05)
    with caplog.at_level(logging.WARNING, "mgjax"), Watchdog(30.0).waiting("reading the first batch"):
        until = time.monotonic() + 30
        while len(caplog.records) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) >= 2
    assert all(re.fullmatch(r"still reading the first batch, after \d+ s", line) for line in said)
    assert watches == [30.0]


def test_what_is_quick_is_not_reported(watches, caplog):
    with Watchdog(30.0).waiting("reading the first batch"):
        pass
    assert not caplog.records


def test_what_may_last_is_not_ended(watches):
    with Watchdog(30.0) as dog, dog.waiting("compiling", may_last=True):
        pass
    assert 30.0 not in watches


def test_without_a_watch_it_is_reported_as_well(watches, caplog, monkeypatch):
    monkeypatch.setattr(watchdog, "_FIRST_WARNING", 0.02)
    with caplog.at_level(logging.WARNING, "mgjax"), Watchdog(0).waiting("compiling"):
        time.sleep(0.1)
    assert caplog.records
    assert not watches
