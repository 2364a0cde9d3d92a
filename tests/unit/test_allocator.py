"""Memory that is given back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from uservpn.runtime import allocator

PROGRAM = """
from uservpn.runtime.allocator import give_back, keep_message_blocks

def resident_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

keep_message_blocks()
blocks = [bytes(60_000) for _ in range(200)]
del blocks
before = resident_kib()
give_back()
print(before - resident_kib())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is done")
def test_free_memory_below_the_threshold_is_given_back() -> None:
    """12 MB of freed blocks are kept for messages, until the node rests."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) > 8_000


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    allocator.give_back()
    allocator.keep_message_blocks()
