"""The path emulator's process (emulator.c): built once, started between two namespaces, told what to be."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("emulator.c")
BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "netns"
ANSWER_LIMIT_S: Final = 20.0
PRIORITY: Final = -10
"""A path does not become slower because its ends are busy."""


def program() -> Path:
    """The built program; built first where its source is new. Several processes may ask at once."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise RuntimeError("gcc is needed to build tests/netns/emulator.c: install it")
    target = BUILD / f"emulator-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = target.with_suffix(".part")
            command = [gcc, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(part), str(SOURCE)]
            subprocess.run(command, check=True, timeout=60)
            part.rename(target)
    return target


class Emulator:
    """One path between two TUN devices; both go when it is closed.

    Direction "ab" is from the first device to the second. Settings and counters are those of
    emulator.c, but times are in milliseconds (`delay_ms`, `jitter_ms`, `reorder_ms`) and the rate in
    Mbit/s of IP packets (`rate_mbit`).
    """

    def __init__(self, ends: tuple[tuple[str, str], tuple[str, str]], seed: int = 1) -> None:
        """Args: (path of the namespace, name of the device) of either end; what chance starts from."""
        (space_a, device_a), (space_b, device_b) = ends
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [str(program()), str(seed), space_a, device_a, space_b, device_b],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._buffer = b""
        os.setpriority(os.PRIO_PROCESS, self._process.pid, PRIORITY)
        try:
            answer = self._answer()
            if answer != "ready":
                raise RuntimeError(
                    f"the emulator did not start: {answer!r} (see its own words above)"
                )
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process, for those who measure what it costs."""
        return self._process.pid

    def set(self, way: str = "both", /, **settings: float) -> None:
        """Changes settings of "ab", "ba" or "both" directions, from now on."""
        words = [_native(name, value) for name, value in settings.items()]
        answer = self._ask(f"set {way} {' '.join(words)}")
        if answer != "ok":
            raise ValueError(answer)

    def stats(self) -> dict[str, dict[str, int]]:
        """What was counted since the start or `clear`, by direction."""
        document: dict[str, dict[str, int]] = json.loads(self._ask("stats"))
        return document

    def clear(self) -> None:
        """All counters start anew."""
        self._ask("clear")

    def close(self) -> None:
        """Ends the process, and with it the devices."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, line: str) -> str:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], ANSWER_LIMIT_S)[0]:
                raise TimeoutError("the emulator does not answer")
            data = os.read(fd, 4096)
            if not data:
                return "it ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


def _native(name: str, value: float) -> str:
    stem, _, unit = name.rpartition("_")
    if unit == "ms":
        return f"{stem}_us={value * 1e3:.12g}"
    if unit == "mbit":
        return f"{stem}={value * 1e6:.12g}"
    return f"{name}={value:.12g}"
