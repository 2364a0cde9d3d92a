"""Nodes that are forked from a process which has the program loaded: a start takes a tenth of the CPU.

Hundreds of nodes start in these tests, and most of what a start costs is the interpreter and its imports.
Each of them is a process like any other, with its own memory, output and network namespace, in which
`uservpn.cli.daemon` runs, as it does after `uservpn run` has read its options.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

NAMESPACE = "/proc/thread-self/ns/net"
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Fork:
    """A child of this process, with what the tests use of `subprocess.Popen`."""

    def __init__(self, config: Path, errors: int) -> None:
        reading, writing = os.pipe()
        space = os.open(NAMESPACE, os.O_RDONLY)
        try:
            socket.send_fds(_forge(), [os.fsencode(config)], [writing, errors, space])
            self.pid = int(_forge().recv(16))
        finally:
            os.close(space)
            os.close(writing)
        self.stdout = os.fdopen(reading)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, as in Popen; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        """How it ended; raises subprocess.TimeoutExpired."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("uservpn", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens once it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As kill -9."""
        self.send_signal(signal.SIGKILL)


@cache
def _forge() -> socket.socket:
    """The process that forks, for as long as this one lives; what it forks are children of this one."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
        )
    process.returncode = 0  # it ends when `mine` is closed, which is when this process ends
    return mine


def _serve(sock: socket.socket) -> Path | None:
    """Forks whenever it is told to; in the forked process the configuration, at the end None."""
    while True:
        path, files, _, _ = socket.recv_fds(sock, 4096, 3)
        if not path:
            return None
        reading, writing = os.pipe()
        if (middle := os.fork()) == 0:
            if os.fork() != 0:
                os._exit(0)  # so that the one that stays is no child of this process
            os.write(writing, b"%d" % os.getpid())
            for file in (reading, writing):
                os.close(file)
            sock.close()
            _stand(files)
            return Path(os.fsdecode(path))
        os.waitpid(middle, 0)  # only now it is a child of who waits for it
        os.close(writing)
        sock.send(os.read(reading, 16))
        for file in (reading, *files):
            os.close(file)


def _stand(files: list[int]) -> None:
    """This process has this output, these errors, and is in this network namespace."""
    output, errors, space = files
    os.dup2(output, 1)
    os.dup2(errors, 2)
    if os.fstat(space).st_ino != os.stat(NAMESPACE).st_ino and _libc.setns(space, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    for file in files:
        os.close(file)


def main() -> int:
    """What `_forge` starts."""
    import uvloop  # noqa: F401

    from uservpn import app  # noqa: F401
    from uservpn.cli import daemon
    from uservpn.links import tcp, udp  # noqa: F401

    gc.collect()
    gc.freeze()  # pages stay shared
    config = _serve(socket.socket(fileno=int(sys.argv[1])))
    return 0 if config is None else daemon.run(config, ())


if __name__ == "__main__":
    sys.exit(main())
