"""The mesh over UDP alone: transfers, many connections at once, strangers, an observer (R31)."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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

SIZE = 16 << 20


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
