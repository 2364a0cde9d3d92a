"""File descriptors: a low soft limit is raised, and where the hard one is reached the log says so, once."""

from __future__ import annotations

import contextlib
import sys

import pytest

from mesh import NodeProcess, client_text, free_port, server_text, wait_until
from programs import connect, echo

ENOUGH = 150


def _limited(soft: int, hard: int) -> tuple[str, ...]:
    """The node below a process with these limits."""
    code = (
        "import resource, subprocess, sys; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "sys.exit(subprocess.call(sys.argv[1:]))"
    )
    return (sys.executable, "-c", code)


@contextlib.contextmanager
def _mesh(folder, client=(), server=()):
    port, entry = free_port(), free_port()
    one = NodeProcess(folder / "1", server_text(folder / "1", port), server)
    try:
        seven = NodeProcess(folder / "7", client_text(folder / "7", entry, {1: port}), client)
        try:
            wait_until(seven.is_linked)
            yield one, seven, entry
        finally:
            assert seven.stop() in (0, -15)
    finally:
        assert one.stop() in (0, -15)


def _connects(entry: int, port: int) -> bool:
    with contextlib.suppress(OSError), connect(entry, port, 10):
        return True
    return False


def _connect_many(entry: int, port: int, stack: contextlib.ExitStack) -> int:
    """How many of ENOUGH connections stand, side by side."""
    count = 0
    for _ in range(ENOUGH):
        with contextlib.suppress(OSError):
            sock = stack.enter_context(connect(entry, port, 10))
            sock.sendall(b"there?")
            count += sock.recv(10) == b"there?"
    return count


def test_a_low_soft_limit_is_raised(tmp_path):
    limits = _limited(64, 4096)
    stack = contextlib.ExitStack()
    with _mesh(tmp_path, limits, limits) as (_, _, entry), echo() as port, stack:
        assert _connect_many(entry, port, stack) == ENOUGH


@pytest.mark.parametrize("who", ["client", "server"])
def test_connections_beyond_the_hard_limit_are_told_once(tmp_path, who):
    with _mesh(tmp_path, **{who: _limited(64, 100)}) as (one, seven, entry), echo() as port:
        node, other = (seven, one) if who == "client" else (one, seven)
        with contextlib.ExitStack() as stack:
            assert 20 < _connect_many(entry, port, stack) < 100
            assert node.log.read_text().count("the limit of 100 open files is") == 1
            assert "open files" not in other.log.read_text()
        wait_until(lambda: _connects(entry, port))  # those have ended: there is place again
        assert "Traceback" not in node.log.read_text()
