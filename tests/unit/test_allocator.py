"""Memory that is given back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from uservpn.runtime import allocator

PROGRAM = """
import hashlib, sqlite3, ssl, time
from uservpn.runtime.allocator import give_back

def code_kib():
    total, is_code = 0, False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0] and len(words) >= 5:
            is_code = words[1] == "r-xp" and words[4] != "0"
        elif words[0] == "Rss:" and is_code:
            total += int(words[1])
    return total

def work():
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE t (a TEXT)")
    db.executemany("INSERT INTO t VALUES (?)", [(str(number),) for number in range(100)])
    found = db.execute("SELECT count(*) FROM t").fetchone()
    return found, hashlib.sha256(b"x").hexdigest(), len(ssl.create_default_context().get_ciphers()) > 0

before, first = code_kib(), work()
give_back()
after, second = code_kib(), work()
assert first == second
print(before, after)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is done")
def test_code_that_ran_once_costs_no_memory_and_runs_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < before / 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is done")
def test_only_code_of_files_is_touched() -> None:
    """Never what was written to: that would be lost."""
    with open("/proc/self/maps") as file:
        rights = {}
        for line in file:
            place, right, _, _, inode, *path = line.split(maxsplit=5)
            rights[int(place.split("-")[0], 16)] = (right, inode, path)
    found = allocator._code()
    assert found
    for start, size in found:
        right, inode, path = rights[start]
        assert right == "r-xp" and inode != "0" and path and size > 0


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    allocator.give_back()
    allocator.keep_message_blocks()
