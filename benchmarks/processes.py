"""Subprocesses of the benchmarks: they live no longer than they should, and tell what they cost."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

START_LIMIT: Final = 20.0  # seconds until a process must be ready
LIFE_LIMIT: Final = 600.0  # seconds for a process that serves
STOP_LIMIT: Final = 10.0  # seconds between SIGTERM and SIGKILL
TICKS: Final = os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """A measurement that could not be made."""


class Process:
    """A subprocess that lives at most `limit` seconds, and is ended by its own pid."""

    def __init__(self, command: Sequence[str], log: Path, limit: float = LIFE_LIMIT) -> None:
        self.log = log
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self.pid = self._popen.pid
        self._timer = threading.Timer(limit, self._popen.kill)
        self._timer.daemon = True
        self._timer.start()

    def wait_for_line(self, prefix: str, limit: float) -> str:
        """The first line of its output that starts with `prefix`."""
        stdout = _pipe(self._popen.stdout)
        end = time.monotonic() + limit
        seen = b""
        while True:
            *lines, seen = seen.split(b"\n")
            for line in lines:
                if line.decode(errors="replace").startswith(prefix):
                    return line.decode(errors="replace")
            left = end - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise BenchmarkError(f"no line {prefix!r} within {limit:g} s{self._errors()}")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise BenchmarkError(f"ended before a line {prefix!r}{self._errors()}")
            seen += data

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def stop(self) -> None:
        if self.is_running():
            self._popen.terminate()
            try:
                self._popen.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait(STOP_LIMIT)
        self._timer.cancel()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def _errors(self) -> str:
        text = self.log.read_text(errors="replace").strip()
        return f":\n{text[-2000:]}" if text else ""


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("the process was started without this pipe")
    return stream


def run(command: Sequence[str], limit: float) -> str:
    """The output of a command that must succeed in time; it is killed otherwise."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{command[0]}: not done within {limit:g} s") from None
    if done.returncode != 0:
        raise BenchmarkError(
            f"{' '.join(command)}: status {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout


def cpu_seconds(pid: int) -> float:
    """User and system time of the process, with all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kib(pid: int) -> int:
    return _status_number(Path(f"/proc/{pid}/status"), "VmRSS:")


def voluntary_switches(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_status_number(task / "status", "voluntary_ctxt_switches:") for task in tasks)


def _status_number(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise BenchmarkError(f"{path} has no {name}")


_given_ports: set[int] = set()


def free_port() -> int:
    """A port below the usual ephemeral range, given out once, that nobody listens on."""
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise BenchmarkError("no free port")


def wait_for_port(port: int, process: Process) -> None:
    """Until somebody listens there, on the loopback of this thread's host."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and process.is_running():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise BenchmarkError(f"nobody listens on port {port}; see:\n{process.log.read_text()}")
