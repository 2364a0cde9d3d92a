"""`python -m benchmarks lossy [options]`: a long path that loses packets, uservpn beside others.

    program, proxy's client == emulated path: rate, delay, queue, loss == router -- proxy's server, source

Every measurement starts its system anew, in network namespaces of its own (it needs root), and the
systems take turns. A bulk stream runs for some seconds, and beside it, through the same proxy, a
stream that asks one byte 20 times a second. Goodput is counted where the bytes arrive, after the
first seconds; those are told apart.

The rate is that of IP packets, headers included: TCP without a proxy carries 96.5 % of it at best (1,448
of 1,500 bytes). A lost packet has used the bottleneck, so at 10 % loss 10 % of that is gone as well.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from benchmarks.processes import START_LIMIT, BenchmarkError, Process, run, wait_for_port
from tests.netns.emulator import Emulator
from tests.netns.lab import Host, Lab, LabError

TARGET: Final = 5001  # ports; every host has its own
PROXY: Final = 1080
TUNNEL: Final = 7000
BLOCK: Final = os.urandom(1 << 18)
ASK_EVERY_S: Final = 0.05
LIMIT_S: Final = 60.0
_USERVPN: Final = (sys.executable, "-m", "uservpn")


# ---- source and sink ----------------------------------------------------------------------------


class Meter:
    """Bytes that arrived."""

    def __init__(self) -> None:
        self.count = 0

    def drain(self, sock: socket.socket) -> None:
        """Reads to the end."""
        buffer = bytearray(1 << 18)
        while size := sock.recv_into(buffer):
            self.count += size


class Target:
    """The server of the load: "D": it sends without end, "U": it reads, "E": it answers each byte."""

    def __init__(self, host: Host) -> None:
        self.uploaded = Meter()
        with host:
            self._listener = socket.create_server(("0.0.0.0", TARGET))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with peer, contextlib.suppress(OSError):
            kind = peer.recv(1)
            if kind == b"U":
                self.uploaded.drain(peer)
            while kind == b"D":
                peer.sendall(BLOCK)
            while kind == b"E" and (byte := peer.recv(1)):
                peer.sendall(byte)

    def close(self) -> None:
        """Nobody is served any more."""
        self._listener.close()


# ---- the systems --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a system is started."""

    client: Host
    server: Host
    folder: Path
    stack: contextlib.ExitStack

    def start(self, host: Host, name: str, *command: str) -> Process:
        """A process in a host, ended with the measurement."""
        with host:
            process = Process(command, self.folder / f"{name}.log")
        self.stack.callback(process.stop)
        return process


@dataclass(frozen=True)
class System:
    """What is measured: the congestion control of both hosts' TCP, and how it is started."""

    name: str
    congestion: str
    start: Callable[[Place], None] | None
    """None: without a proxy."""
    lacks: str = ""
    """What is not here; it is then not measured."""


def start_uservpn(protocol: str, place: Place) -> None:
    key = str(place.folder / "key")
    public = f"{protocol}://{place.server.address}:{TUNNEL}"
    listen = f"{protocol}://0.0.0.0:{TUNNEL}"
    roles: list[tuple[Host, str, list[str]]] = [
        (place.server, "1", ["--listen", listen, "--public", public, "--exit"]),
        (place.client, "7", ["--entry", f"127.0.0.1:{PROXY}", "--server", f"1={public}"]),
    ]
    for host, number, options in roles:
        config, state = place.folder / f"{number}.toml", place.folder / number
        state.mkdir(mode=0o700)
        command = [
            *_USERVPN,
            "init",
            "-c",
            str(config),
            "--id",
            number,
            "--key-file",
            key,
            *options,
        ]
        run(command, START_LIMIT)
        text = config.read_text()
        text = text.replace("[node]\n", f"[node]\nstate_dir = {json.dumps(str(state))}\n")
        text = text.replace("enabled = true\n", 'enabled = true\nallow = ["127.0.0.0/8"]\n')
        config.write_text(text)
        process = place.start(host, number, *_USERVPN, "-c", str(config), "run")
        process.wait_for_line("ready", START_LIMIT)


def _start_shadowsocks(place: Place) -> None:
    _start_ss_server(place)
    _start_ss_local(place, place.server.address, 8388)


def _start_ss_server(place: Place) -> None:
    common = ("-k", "benchmark", "-m", "aes-256-gcm", "-t", "600", "--no-delay")
    server = place.start(
        place.server, "ss-server", "ss-server", "-s", "0.0.0.0", "-p", "8388", *common
    )
    with place.server:
        wait_for_port(8388, server)


def _start_ss_local(place: Place, address: str, port: int) -> None:
    common = ("-k", "benchmark", "-m", "aes-256-gcm", "-t", "600", "--no-delay")
    words = ("-s", address, "-p", str(port), "-b", "127.0.0.1", "-l", str(PROXY))
    local = place.start(place.client, "ss-local", "ss-local", *words, *common)
    with place.client:
        wait_for_port(PROXY, local)


def start_kcptun(shards: tuple[str, str], place: Place) -> None:
    """In front of shadowsocks; windows and buffers for twice what the path holds."""
    common = [
        "--key", "benchmark", "--crypt", "aes", "--mode", "fast3", "--mtu", "1400", "--nocomp", "--quiet",
        "--sndwnd", "2048", "--rcvwnd", "2048", "--datashard", shards[0], "--parityshard", shards[1],
        "--sockbuf", "16777216", "--smuxver", "2", "--smuxbuf", "16777216", "--streambuf", "8388608",
    ]  # fmt: skip
    _start_ss_server(place)
    words = ["kcptun-server", "-l", f":{TUNNEL}", "-t", "127.0.0.1:8388", *common]
    place.start(place.server, "kcptun-server", *words)
    remote = f"{place.server.address}:{TUNNEL}"
    words = ["kcptun-client", "-l", "127.0.0.1:8389", "-r", remote, *common]
    client = place.start(place.client, "kcptun-client", *words)
    with place.client:
        wait_for_port(8389, client)
    _start_ss_local(place, "127.0.0.1", 8389)


def systems() -> list[System]:
    """All that can be named; the first of them ours."""
    schemes = {point.name for point in entry_points(group="uservpn.links")}
    ss = "" if shutil.which("ss-server") else "shadowsocks-libev is not installed"
    kcp = ss or ("" if shutil.which("kcptun-server") else "kcptun is not installed")
    found = [
        System(
            f"uservpn {scheme}{', ' + congestion if scheme in ('tcp', 'ws', 'wss') else ''}",
            congestion,
            functools.partial(start_uservpn, scheme),
            "" if scheme in schemes else f"there is no link plug-in {scheme!r}",
        )
        for scheme, congestion in (
            ("udp", "cubic"),
            ("kcp", "cubic"),
            ("tcp", "bbr"),
            ("tcp", "cubic"),
            ("wss", "bbr"),
            ("wss", "cubic"),
            ("ws", "bbr"),
        )
    ]
    for congestion in ("bbr", "cubic"):
        found.append(System(f"no proxy, {congestion}", congestion, None))
        found.append(System(f"shadowsocks-libev, {congestion}", congestion, _start_shadowsocks, ss))
    for name, shards in (("10/3 FEC", ("10", "3")), ("no FEC", ("0", "0"))):
        start = functools.partial(start_kcptun, shards)
        found.append(System(f"kcptun {name} + shadowsocks", "cubic", start, kcp))
    return found


# ---- one measurement ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditions:
    """The way between client and server."""

    rate_mbit: float
    rtt_ms: float
    queue: int
    loss: float

    def lay(self, emulator: Emulator) -> None:
        """Both directions alike."""
        emulator.set(
            "both",
            rate_mbit=self.rate_mbit,
            delay_ms=self.rtt_ms / 2,
            queue=self.queue,
            loss=self.loss,
        )


@dataclass(frozen=True)
class Found:
    """What one measurement gave."""

    goodput_mbit: float
    first_mbit: float
    """In the seconds before the counting."""
    quiet_ms: float
    """The interactive stream's median round trip before the bulk stream."""
    median_ms: float
    p95_ms: float


def connect(client: Host, server: Host, is_direct: bool) -> socket.socket:
    end = time.monotonic() + START_LIMIT
    while True:
        with client:
            address = (server.address, TARGET) if is_direct else ("127.0.0.1", PROXY)
            sock = socket.create_connection(address, LIMIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_direct:
            return sock
        sock.sendall(b"\5\1\0")
        if sock.recv(2) == b"\5\0":
            sock.sendall(b"\5\1\0\1\x7f\0\0\1" + TARGET.to_bytes(2, "big"))
            if sock.recv(10)[1:2] == b"\0":
                return sock
        sock.close()
        if time.monotonic() > end:
            raise BenchmarkError(f"the proxy connects nothing within {START_LIMIT:g} s")
        time.sleep(0.1)


class Asker(threading.Thread):
    """The interactive stream: one byte there and one back, every 50 ms or as soon as it is back."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._sock.sendall(b"E")
        self._ended = threading.Event()
        self._took: list[float] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                before = time.monotonic()
                self._sock.sendall(b"?")
                if not self._sock.recv(1):
                    return
                took = time.monotonic() - before
                self._took.append(took * 1e3)
                self._ended.wait(max(0.0, ASK_EVERY_S - took))

    def take(self) -> list[float]:
        """Round trips since the last call, ms; those under way count as what they took so far."""
        taken, self._took = self._took, []
        return taken

    def end(self) -> None:
        """After the round trip under way."""
        self._ended.set()
        self.join(LIMIT_S)
        self._sock.close()


def measure(system: System, path: Conditions, is_up: bool, seconds: tuple[float, float]) -> Found:
    """Seconds: before the counting, and of counting."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ub")))
        lab = stack.enter_context(Lab())
        net = lab.internet()
        client, server = net.host("client", delay_ms=0), net.host("server")
        for host in (client, server):
            host.sysctl(net__ipv4__tcp_congestion_control=system.congestion)
        target = Target(server)
        stack.callback(target.close)
        path.lay(client.path)
        if system.start is not None:
            system.start(Place(client, server, folder, stack))
        asker = Asker(connect(client, server, system.start is None))
        stack.callback(asker.end)
        time.sleep(1.5)
        quiet = asker.take()
        bulk = stack.enter_context(connect(client, server, system.start is None))
        meter = target.uploaded if is_up else Meter()
        bulk.sendall(b"U" if is_up else b"D")
        worker = threading.Thread(target=move, args=(bulk, meter, is_up), daemon=True)
        worker.start()
        marks = []
        for pause in (*seconds, 0):
            if len(marks) == 1:
                asker.take()  # of the time before the counting
            marks.append((time.monotonic(), meter.count))
            time.sleep(pause)
        beside = asker.take() or [seconds[1] * 1e3]
        with contextlib.suppress(OSError):
            bulk.shutdown(socket.SHUT_RDWR)
        first, counted = (
            (late[1] - early[1]) * 8e-6 / (late[0] - early[0])
            for early, late in itertools.pairwise(marks)
        )
        return Found(
            counted,
            first,
            statistics.median(quiet),
            statistics.median(beside),
            sorted(beside)[len(beside) * 95 // 100],
        )


def move(sock: socket.socket, meter: Meter, is_up: bool) -> None:
    with contextlib.suppress(OSError):
        if not is_up:
            meter.drain(sock)
        while is_up:
            sock.sendall(BLOCK)


# ---- the whole ----------------------------------------------------------------------------------


def table(
    rows: Sequence[str], losses: Sequence[float], cells: dict[tuple[str, float], str]
) -> Iterator[str]:
    """Lines of Markdown: a row for each system and direction, a column for each loss rate."""
    yield "| | " + " | ".join(f"{loss * 100:g} % loss" for loss in losses) + " |"
    yield "|---|" + "---:|" * len(losses)
    for row in rows:
        yield f"| {row} | " + " | ".join(cells.get((row, loss), "-") for loss in losses) + " |"


def main(words: Sequence[str]) -> int:
    """The command; 1 when a measurement could not be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lossy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--loss", type=float, nargs="+", default=[0, 1, 3, 10], help="per cent")
    parser.add_argument("--rate", type=float, default=100, help="Mbit/s of IP packets")
    parser.add_argument("--rtt", type=float, default=100, help="ms")
    parser.add_argument(
        "--queue", type=int, default=0, help="bytes (default: rate times round trip)"
    )
    parser.add_argument("--skip", type=float, default=3, help="seconds before the counting")
    parser.add_argument("--seconds", type=float, default=10, help="of counting")
    parser.add_argument("--way", choices=["down", "up"], nargs="+", default=["down", "up"])
    parser.add_argument("--only", nargs="+", help="systems with one of these texts in their names")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    queue = options.queue or int(options.rate * options.rtt * 125)
    chosen = [s for s in systems() if not options.only or any(o in s.name for o in options.only)]
    losses = [percent / 100 for percent in options.loss]
    with congestion_controls({system.congestion for system in chosen}):
        found, failures = _measure_all(options, queue, chosen, losses)
    _print(options, queue, chosen, losses, found)
    return 1 if failures else 0


def _measure_all(
    options: argparse.Namespace, queue: int, chosen: Sequence[System], losses: Sequence[float]
) -> tuple[dict[tuple[str, float], Found], int]:
    found: dict[tuple[str, float], Found] = {}
    failures = 0
    for loss in losses:
        path = Conditions(options.rate, options.rtt, queue, loss)
        for way in options.way:
            for system in chosen:
                row = f"{system.name}, {way}"
                if system.lacks:
                    continue
                print(f"{loss * 100:g} % loss: {row}", file=sys.stderr, flush=True)
                try:
                    one = measure(system, path, way == "up", (options.skip, options.seconds))
                except (BenchmarkError, LabError, OSError) as error:
                    failures += 1
                    print(f"{row}: {error}", file=sys.stderr)
                    continue
                found[row, loss] = one
                print(f"    {one}", file=sys.stderr, flush=True)
    return found, failures


@contextlib.contextmanager
def congestion_controls(names: set[str]) -> Iterator[None]:
    """A namespace may choose only what the machine allows to all: allowed here, and taken back."""
    file = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    before = file.read_text()
    try:
        file.write_text(" ".join(sorted(names | set(before.split()))))
        yield
    finally:
        file.write_text(before)


def _print(
    options: argparse.Namespace,
    queue: int,
    chosen: Sequence[System],
    losses: Sequence[float],
    found: dict[tuple[str, float], Found],
) -> None:
    rows = [f"{s.name}, {way}" for s in chosen if not s.lacks for way in options.way]
    print(
        f"{options.rate:g} Mbit/s of IP packets, {options.rtt:g} ms, a queue of {queue:,} bytes; "
        f"{os.cpu_count()} processors.\n\n"
        f"Goodput, Mbit/s, over {options.seconds:g} s (in brackets: in the {options.skip:g} s before):\n"
    )
    goodput = {key: f"{one.goodput_mbit:.1f} ({one.first_mbit:.0f})" for key, one in found.items()}
    print("\n".join(table(rows, losses, goodput)))
    print(
        "\nRound trip of an interactive stream beside it, median / 95 % (in brackets: alone), ms:\n"
    )
    trips = {
        key: f"{one.median_ms:.0f} / {one.p95_ms:.0f} ({one.quiet_ms:.0f})"
        for key, one in found.items()
    }
    print("\n".join(table(rows, losses, trips)))
    for system in chosen:
        if system.lacks:
            print(f"\nNot measured: {system.name}: {system.lacks}.")
