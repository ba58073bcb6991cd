"""The command `mgjax`, which `python -m mgjax` is too."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this process again, before anything is imported, so that its memory is in pages of 2 MB; once.

    XLA on CPU takes memory for each call and gives it back: in pages of 4 KB, a training step of `mini` takes 260,000
    page faults, a fifth of its time or, beside an adapter, half. Linux gives large pages to those who ask, and glibc
    asks if it is told so when the process starts. Elsewhere, and where GLIBC_TUNABLES is set, nothing is done.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        version = re.fullmatch(r"glibc 2\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
        asks = "[madvise]" in _HUGE_PAGES.read_text()
    except (OSError, ValueError):  # there are no such pages; this is no glibc
        return
    if not asks or version is None or int(version[1]) < 35:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> int:
    """Runs the command line of this process; returns its exit status."""
    if sys.argv[1:2] in (["train"], ["finetune"]):
        use_huge_pages()
    from mgjax.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
