"""`python -m benchmarks datagrams [options]`: bulk through uservpn's UDP link beside other datagram tunnels.

    program, tunnel's client == veth, MTU 1,500 == tunnel's server, source and sink

Client and server are network namespaces of their own on one cable (it needs root). Every measurement starts
its system anew, and the systems take turns; one TCP connection carries the load, down and then up. What
counts is Gbit/s where the bytes arrive and the CPU time of the programs at both ends for each GB;
source and sink are not in it. A VPN with a TUN device leaves TCP's work to them, a proxy does it itself.

Every peer encrypts with AES and has large buffers. Its packets fit the cable, as a user would see to.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
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
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks import lossy
from benchmarks.lossy import TARGET, TUNNEL, Meter, Place, Target
from benchmarks.processes import START_LIMIT, BenchmarkError, Process, cpu_seconds, run
from tests.netns.lab import Lab, LabError, Router

INSIDE: Final = ("10.99.0.1", "10.99.0.2")
"""Server and client inside a VPN."""
OURS: Final = "uservpn udp"
RATE_ASKED: Final = 2.0
CPU_ASKED: Final = 1 / 3
"""Of the best peer."""


@dataclass(frozen=True)
class System:
    """What is measured."""

    name: str
    start: Callable[[Place], None]
    has_tun: bool
    """The server is reached inside the tunnel; else through a SOCKS proxy."""
    lacks: str = ""


@dataclass(frozen=True)
class Found:
    """What one measurement gave."""

    gbit: float
    cpu: float
    """Seconds for each GB, of all programs of the system."""


# ---- the systems --------------------------------------------------------------------------------


def _start_openvpn(place: Place) -> None:
    """Point to point over UDP; certificates that know each other by their fingerprints."""
    names = ("server", "client")
    prints = [_certificate(place.folder, name) for name in names]
    common = [
        "--dev", "tun0", "--proto", "udp", "--port", str(TUNNEL), "--dh", "none", "--verb", "3",
        "--data-ciphers", "AES-256-GCM", "--fast-io", "--txqueuelen", "1000",
        "--sndbuf", "4194304", "--rcvbuf", "4194304", "--persist-tun", "--tun-mtu", "1500",
        "--mssfix", "1500",
    ]  # fmt: skip
    server, client = INSIDE
    roles = (
        (place.server, "server", prints[1], ["--tls-server", "--ifconfig", server, client]),
        (
            place.client,
            "client",
            prints[0],
            ["--tls-client", "--ifconfig", client, server, "--remote", place.server.address],
        ),
    )
    for host, name, peer, words in roles:
        keys = ["--cert", str(place.folder / f"{name}.pem"), "--key", str(place.folder / name)]
        place.start(
            host,
            name,
            "openvpn",
            *common,
            *keys,
            "--peer-fingerprint",
            peer,
            "--ping",
            "10",
            *words,
        )


def _certificate(folder: Path, name: str) -> str:
    """A certificate of its own for `name`, in files; its fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(encoding.PEM))
    secret = key.private_bytes(
        encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / name
    file.touch(mode=0o600)
    file.write_bytes(secret)
    digest = hashlib.sha256(certificate.public_bytes(encoding.DER)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _start_wireguard(place: Place) -> None:
    """wireguard-go at both ends."""
    secrets = {name: run(["wg", "genkey"], START_LIMIT).strip() for name in ("server", "client")}
    public = {}
    for name, secret in secrets.items():
        file = place.folder / name
        file.touch(mode=0o600)
        file.write_text(secret)
        public[name] = run(["sh", "-c", f"wg pubkey < {file}"], START_LIMIT).strip()
    server, client = INSIDE
    roles = (
        (place.server, "server", server, "client", client, ["listen-port", str(TUNNEL)]),
        (place.client, "client", client, "server", server, []),
    )
    for host, name, address, peer, inside, words in roles:
        device = f"wg{name[0]}{os.getpid()}"  # its control socket is in a folder that all share
        process = place.start(host, name, "wireguard-go", "-f", device)
        _wait_for(lambda device=device: Path(f"/run/wireguard/{device}.sock").exists(), process)
        endpoint = [] if words else ["endpoint", f"{place.server.address}:{TUNNEL}"]
        host.run(
            "wg", "set", device, *words, "private-key", str(place.folder / name),
            "peer", public[peer], "allowed-ips", f"{inside}/32", *endpoint,
        )  # fmt: skip
        host.ip(
            f"addr add {address}/24 dev {device}",
            f"link set {device} mtu 1420 txqueuelen 1000 up",
        )


def _wait_for(is_done: Callable[[], bool], process: Process) -> None:
    end = time.monotonic() + START_LIMIT
    while not is_done():
        if time.monotonic() > end or not process.is_running():
            raise BenchmarkError(f"not up: {process.log.read_text()[-2000:]}")
        time.sleep(0.05)


def systems() -> list[System]:
    """All of them, the first ours."""

    def lack(*programs: str) -> str:
        gone = [program for program in programs if shutil.which(program) is None]
        return f"not installed: {', '.join(gone)}" if gone else ""

    return [
        System(OURS, lambda place: lossy.start_uservpn("udp", place), False),
        System("openvpn udp", _start_openvpn, True, lack("openvpn")),
        System("wireguard-go", _start_wireguard, True, lack("wireguard-go", "wg")),
        System(
            "kcptun + shadowsocks",
            lambda place: lossy.start_kcptun(("0", "0"), place),
            False,
            lack("kcptun-server", "kcptun-client", "ss-server", "ss-local"),
        ),
    ]


# ---- one measurement ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(Place):
    """A place that knows what was started."""

    processes: list[Process] = dataclasses.field(default_factory=list)

    def start(self, host: object, name: str, *command: str) -> Process:
        """As `Place.start`."""
        process = super().start(host, name, *command)  # type: ignore[arg-type]
        self.processes.append(process)
        return process

    def cpu(self) -> float:
        """Seconds that all programs have used."""
        return sum(cpu_seconds(process.pid) for process in self.processes)


def measure(system: System, seconds: tuple[float, float]) -> dict[str, Found]:
    """Seconds: before the counting, and of counting; for each direction."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ub")))
        lab = stack.enter_context(Lab())
        client = Router(lab, "client", "198.18")  # the cable hangs on it
        lab.keep(client)
        server = client.host("server")
        target = Target(server)
        stack.callback(target.close)
        place = Watched(client, server, folder, stack)
        system.start(place)
        return {
            way: _measure_way(system, place, target, way == "up", seconds) for way in ("down", "up")
        }


def _measure_way(
    system: System, place: Watched, target: Target, is_up: bool, seconds: tuple[float, float]
) -> Found:
    bulk = _connect(system, place)
    meter = target.uploaded if is_up else Meter()
    bulk.sendall(b"U" if is_up else b"D")
    worker = threading.Thread(target=lossy.move, args=(bulk, meter, is_up), daemon=True)
    worker.start()
    time.sleep(seconds[0])
    began, count, cpu = time.monotonic(), meter.count, place.cpu()
    time.sleep(seconds[1])
    took, count, cpu = time.monotonic() - began, meter.count - count, place.cpu() - cpu
    with contextlib.suppress(OSError):
        bulk.shutdown(socket.SHUT_RDWR)
    bulk.close()
    if not count:
        raise BenchmarkError("nothing came")
    return Found(count * 8e-9 / took, cpu / (count / 1e9))


def _connect(system: System, place: Place) -> socket.socket:
    if not system.has_tun:
        return lossy.connect(place.client, place.server, False)
    end = time.monotonic() + START_LIMIT
    while True:
        try:
            with place.client:
                return socket.create_connection((INSIDE[0], TARGET), 2.0)
        except OSError as error:
            if time.monotonic() > end:
                logs = "\n".join(file.read_text()[-1000:] for file in place.folder.glob("*.log"))
                raise BenchmarkError(f"no way through the tunnel: {error}\n{logs}") from None
            time.sleep(0.1)


# ---- the whole ----------------------------------------------------------------------------------


def table(found: dict[str, dict[str, list[Found]]]) -> Iterator[str]:
    """Lines of Markdown: medians over the rounds, and what the verdict is made of."""
    yield "| | down, Gbit/s | CPU-s/GB | up, Gbit/s | CPU-s/GB |"
    yield "|---|---:|---:|---:|---:|"
    medians: dict[str, list[float]] = {}
    for name, ways in found.items():
        medians[name] = [
            statistics.median(getattr(one, field) for one in ways[way])
            for way in ("down", "up")
            for field in ("gbit", "cpu")
            if way in ways
        ]
        yield f"| {name} | " + " | ".join(f"{value:.2f}" for value in medians[name]) + " |"
    peers = [values for name, values in medians.items() if name != OURS]
    if OURS in medians and peers:
        yield (
            "| ours / best peer | "
            + " | ".join(
                f"{own / (min if column % 2 else max)(peer[column] for peer in peers):.2f}"
                for column, own in enumerate(medians[OURS])
            )
            + " |"
        )
        yield f"| asked | {RATE_ASKED:.2f} | {CPU_ASKED:.2f} | {RATE_ASKED:.2f} | {CPU_ASKED:.2f} |"


def main(words: Sequence[str]) -> int:
    """The command; 1 when a measurement could not be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks datagrams", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", type=float, default=1.0, help="seconds before the counting")
    parser.add_argument("--seconds", type=float, default=4.0, help="of counting, each way")
    parser.add_argument("--only", nargs="+", help="systems with one of these texts in their names")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [s for s in systems() if not options.only or any(o in s.name for o in options.only)]
    found: dict[str, dict[str, list[Found]]] = {}
    failures = 0
    for number in range(options.rounds):
        for system in chosen:
            if system.lacks:
                continue
            print(f"round {number + 1}: {system.name}", file=sys.stderr, flush=True)
            try:
                ways = measure(system, (options.skip, options.seconds))
            except (BenchmarkError, LabError, OSError) as error:
                failures += 1
                print(f"{system.name}: {error}", file=sys.stderr)
                continue
            for way, one in ways.items():
                print(f"    {way}: {one}", file=sys.stderr, flush=True)
                found.setdefault(system.name, {}).setdefault(way, []).append(one)
    print(
        f"Medians of {options.rounds} round(s) of {options.seconds:g} s; {os.cpu_count()} processors.\n"
    )
    print("\n".join(table(found)))
    for system in chosen:
        if system.lacks:
            print(f"\nNot measured: {system.name}: {system.lacks}.")
    return 1 if failures else 0
