"""Memory that is given back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from uservpn.runtime import allocator
from uservpn.runtime.pump import SHARED

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of maps")
def test_what_is_read_goes_where_no_forked_process_sees_it():
    """An anonymous map is shared with forked processes unless it is asked to be private."""
    at = ctypes.addressof(ctypes.c_char.from_buffer(SHARED))
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, kind = line.split()[:2]
        first, end = (int(number, 16) for number in place.split("-"))
        if first <= at < end:
            assert kind == "rw-p"
            return
    raise AssertionError("no map holds it")
