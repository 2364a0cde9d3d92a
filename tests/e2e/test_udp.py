"""The mesh over UDP alone: transfers, many connections at once, strangers, an observer (R31)."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import socks

from mesh import (
    BLOCK,
    NodeProcess,
    client_text,
    curl,
    digest_of,
    free_port,
    server_text,
    wait_until,
)
from test_wire_looks import CHANCE
from test_wire_looks import _first_repeat as first_repeat
from test_wire_looks import _looks_even as looks_even

SIZE = 16 << 20
KILLED_S = 10.0
"""A program whose exit was killed hears it within so long; nothing but silence tells over UDP."""


class UdpMesh:
    """A server (1) and a client (7) that know only udp:// endpoints of each other."""

    def __init__(self, folder: Path) -> None:
        self.port, self.entry = free_port(), free_port()
        self.server = NodeProcess(folder / "1", _udp(server_text(folder / "1", self.port)))
        self.client = NodeProcess(
            folder / "7", _udp(client_text(folder / "7", self.entry, {1: self.port}))
        )
        wait_until(self.client.is_linked)

    def close(self) -> None:
        for node in (self.client, self.server):
            assert node.stop() == 0
            assert "Traceback" not in node.log.read_text()


def _udp(text: str) -> str:
    return text.replace("tcp://", "udp://")


@pytest.fixture(scope="module")
def mesh():
    with tempfile.TemporaryDirectory(prefix="uv") as folder:
        made = UdpMesh(Path(folder))
        yield made
        made.close()


def test_a_large_file_arrives_whole_both_ways(mesh, site):
    got = curl(mesh.entry, f"http://127.0.0.1:{site.port}/{SIZE}")
    assert hashlib.sha256(got.stdout).hexdigest() == digest_of(SIZE), got.stderr
    data = os.urandom(SIZE)
    done = subprocess.run(
        [
            *("curl", "-sS", "-m", "60", "-x", f"socks5h://127.0.0.1:{mesh.entry}"),
            *("--data-binary", "@-", f"http://127.0.0.1:{site.port}/upload"),
        ],
        input=data,
        capture_output=True,
        timeout=70,
        check=False,
    )
    assert done.stdout.decode() == hashlib.sha256(data).hexdigest(), done.stderr


def test_fifty_requests_at_once(mesh, site):
    sizes = [1000 * (number + 1) for number in range(50)]

    def fetch(size: int) -> bool:
        return curl(mesh.entry, f"http://127.0.0.1:{site.port}/{size}").stdout == BLOCK[:size]

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(fetch, sizes))


def test_the_status_shows_the_link_and_its_socket(mesh):
    status = mesh.client.status()
    (link,) = status["links"]
    assert (link["peer"], link["protocol"]) == (1, "udp")
    assert link["remote"] == f"udp://127.0.0.1:{mesh.port}"
    assert link["local"].startswith("udp://127.0.0.1:")
    (row,) = status["sockets"]
    assert row["receive_buffer"] > 0 and row["send_buffer"] > 0
    (listening,) = mesh.server.status()["sockets"]
    assert listening["listening"] and listening["local"] == f"udp://127.0.0.1:{mesh.port}"


def test_foreign_datagrams_have_no_effect_and_get_no_answer(mesh, site):
    rng = random.Random(5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect(("127.0.0.1", mesh.port))
        for size in (
            0,
            1,
            47,
            48,
            63,
            64,
            65,
            1200,
            9000,
            65_000,
            *(rng.randrange(2000) for _ in range(200)),
        ):
            stranger.send(rng.randbytes(size))
        wait_until(lambda: mesh.server.status()["sockets"][0]["foreign"] >= 200)
        stranger.settimeout(0)
        with pytest.raises(BlockingIOError):
            stranger.recv(100)
    assert len(mesh.server.status()["links"]) == 1
    assert curl(mesh.entry, f"http://127.0.0.1:{site.port}/5000").stdout == BLOCK[:5000]


def _stalled(port: int) -> socket.socket:
    """A site that takes a connection and says nothing."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(20)
    return listener


def test_connections_end_when_the_exit_is_killed(site, tmp_path):
    """R39 without any TCP link: the peer's machine says that nobody is there, once it is asked."""
    mesh = UdpMesh(tmp_path)
    try:
        with _stalled(free_port()) as listener:
            program = socks.socksocket()
            program.set_proxy(socks.SOCKS5, "127.0.0.1", mesh.entry, rdns=True)
            program.settimeout(30)
            program.connect(("127.0.0.1", listener.getsockname()[1]))
            program.sendall(b"hello")
            peer, _ = listener.accept()
            assert peer.recv(5) == b"hello"
            peer.sendall(b"x")
            assert program.recv(1) == b"x"
            mesh.server.process.kill()
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):
                assert program.recv(1) == b""
            assert time.monotonic() - began < KILLED_S
            program.close()
            peer.close()
    finally:
        mesh.server.stop()
        mesh.client.stop()


def test_a_node_with_both_kinds_of_links_survives_the_loss_of_either(site, tmp_path):
    """Server and client have udp:// and tcp://; a restarted server is found over one of them again."""
    port, entry = free_port(), free_port()

    def both(text: str) -> str:
        return re.sub(r'"tcp://([^"]*)"', r'"udp://\1", "tcp://\1"', text)

    server = NodeProcess(tmp_path / "1", both(server_text(tmp_path / "1", port)))
    client = NodeProcess(tmp_path / "7", both(client_text(tmp_path / "7", entry, {1: port})))
    try:
        wait_until(client.is_linked)
        assert curl(entry, f"http://127.0.0.1:{site.port}/70000").stdout == BLOCK[:70_000]
        server.process.kill()
        server.stop()
        server = NodeProcess(tmp_path / "1", both(server_text(tmp_path / "1", port)))
        wait_until(
            lambda: curl(entry, f"http://127.0.0.1:{site.port}/70000").stdout == BLOCK[:70_000]
        )
    finally:
        client.stop()
        server.stop()


class Tap:
    """Stands between clients and a server, passes every datagram on and keeps a copy."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.near = self._socket()
        self.near.bind(("127.0.0.1", 0))
        self.port = self.near.getsockname()[1]
        self.far: dict[tuple[str, int], socket.socket] = {}
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        threading.Thread(target=self._pass_up, daemon=True).start()

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        return sock

    def _pass_up(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, address = self.near.recvfrom(70_000)
                if not data:
                    return  # shut down
                if address not in self.far:
                    self.far[address] = self._socket()
                    self.far[address].connect(("127.0.0.1", self.target))
                    threading.Thread(target=self._pass_down, args=(address,), daemon=True).start()
                self.up.append(data)
                self.far[address].send(data)

    def _pass_down(self, address: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = self.far[address].recv(70_000)
                if not data:
                    return
                self.down.append(data)
                self.near.sendto(data, address)

    def close(self) -> None:
        for sock in (self.near, *self.far.values()):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@pytest.mark.parametrize("protocol", ["udp", "kcp"])
def test_datagrams_look_random_from_their_first_byte_on(site, tmp_path, protocol):
    """R23: bytes, pairs, bits and each of the first 64 places; no 16 bytes ever come twice."""
    port, entry = free_port(), free_port()
    texts = (server_text(tmp_path / "1", port), client_text(tmp_path / "7", entry, {1: 9}))
    server_config, client_config = (text.replace("tcp://", f"{protocol}://") for text in texts)
    server = NodeProcess(tmp_path / "1", server_config)
    tap = Tap(port)
    client_config = client_config.replace('127.0.0.1:9"', f'127.0.0.1:{tap.port}"')
    client = NodeProcess(tmp_path / "7", client_config)
    try:
        wait_until(client.is_linked)
        url = f"http://127.0.0.1:{site.port}/2000"
        with ThreadPoolExecutor(8) as pool:  # many small messages
            assert all(done.stdout for done in pool.map(lambda _: curl(entry, url), range(60)))
        assert len(curl(entry, f"http://127.0.0.1:{site.port}/{2 << 20}").stdout) == 2 << 20
    finally:
        client.stop()
        server.stop()
        tap.close()
    for datagrams in (tap.up, tap.down):
        sizes = Counter(size for size in map(len, datagrams) if size < 600)
        assert max(sizes.values()) < 0.2 * len(datagrams), sizes.most_common(3)
        data = b"".join(datagrams)
        assert len(datagrams) > 100
        assert looks_even(data, 256)
        ones = int.from_bytes(data, "big").bit_count()
        bits = 8 * len(data)
        assert abs(ones - bits / 2) < math.sqrt(bits * math.log(2 / CHANCE) / 2)
        for place in range(64):
            column = [datagram[place] for datagram in datagrams if len(datagram) > place]
            assert looks_even((value >> 4 for value in column), 16), place
            assert looks_even((value & 15 for value in column), 16), place
    assert first_repeat(b"".join(tap.up + tap.down)) is None
