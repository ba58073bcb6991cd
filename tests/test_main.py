"""What happens before the command line is read."""

import os
import subprocess
import sys

import pytest

from mgjax import __main__


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What the process is started again with, on a machine that gives large pages to those who ask."""
    calls = []
    monkeypatch.setattr(__main__.os, "execv", lambda path, arguments: calls.append((path, arguments)))
    monkeypatch.setattr(__main__.sys, "platform", "linux")
    monkeypatch.setattr(__main__.os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(__main__, "_HUGE_PAGES", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    # Set and deleted again, so that it is gone after the test too.
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("GLIBC_TUNABLES")
    return calls


def test_a_training_process_asks_for_large_pages_once(started):
    __main__.use_huge_pages()
    __main__.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, *sys.orig_argv[1:]])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("why", ["other system", "older glibc", "no glibc", "never", "no such pages", "set already"])
def test_elsewhere_nothing_is_done(started, monkeypatch, tmp_path, why):
    libc = {"older glibc": "glibc 2.31", "no glibc": None}
    monkeypatch.setattr(__main__.os, "confstr", lambda name: libc.get(why, "glibc 2.36"))
    if why == "other system":
        monkeypatch.setattr(__main__.sys, "platform", "darwin")
    if why == "never":
        (tmp_path / "enabled").write_text("always madvise [never]\n")
    if why == "no such pages":
        (tmp_path / "enabled").unlink()
    if why == "set already":
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    __main__.use_huge_pages()
    assert not started


@pytest.mark.parametrize("words", [["-m", "mgjax", "train", "--help"], ["-m", "mgjax", "generate", "--help"]])
def test_the_command_is_the_same_after_it(words):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith(f"usage: mgjax {words[2]}")
