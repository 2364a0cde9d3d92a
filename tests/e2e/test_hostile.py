"""Strangers and bad neighbours at every open door: silence or one clear error, and nobody else notices.

The transfers are checked by SHA-256; after each test both logs hold no traceback and a fresh
connection works.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh import (
    BLOCK,
    KEY,
    NodeProcess,
    client_text,
    curl,
    free_port,
    run_refused,
    wait_until,
)
from programs import Beat, echo
from uservpn.wire.constants import PAYLOAD_SIZE_MAX
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing

MIB = 1 << 20


@pytest.fixture
def mesh(mesh, site):
    """A connection beats all the time, undisturbed; afterwards a new one works, and nobody has raised."""
    with echo() as target:
        beat = Beat(mesh.entry, target)
        yield mesh
        beat.end()
    wait_until(lambda: mesh.curl(f"http://127.0.0.1:{site.port}/9").stdout == BLOCK[:9], 30)
    assert "Traceback" not in mesh.client.log.read_text() + mesh.server.log.read_text()


def test_lengths_that_lie_are_bounded(mesh, site):
    """A genuine header with an absurd length is a stranger's; one with more than comes just waits."""
    codec = HeaderCodec(KeyRing((base64.b64decode(KEY),)))
    socks_open = []
    for length in (PAYLOAD_SIZE_MAX + 1, (1 << 32) - 1, PAYLOAD_SIZE_MAX, 16):
        fields = pack_fields(1, 9, 1, length, 5, 0, b"\0\0\0")
        sock = socket.create_connection(("127.0.0.1", mesh.server_port), 5)
        sock.sendall(codec.seal(fields) + bytes(100))
        socks_open.append(sock)
    mesh.download(site, 4 * MIB)
    for sock in socks_open:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.close()


def test_one_byte_at_a_time_holds_nobody_up(mesh, site):
    """Half-open strangers at both doors, dripping, while a transfer runs; a slow program is served."""
    doors = [
        socket.create_connection(("127.0.0.1", port), 5)
        for port in [mesh.server_port, mesh.entry]
        for _ in range(50)
    ]
    for byte in (b"\5", b"\1", b"\0"):
        for door in doors:
            door.send(byte)
        mesh.download(site, MIB)
    slow = doors[-1]  # an entry connection that has said a whole greeting by now
    slow.settimeout(10)
    assert slow.recv(2) == b"\5\0"
    target = b"\5\1\0\1\x7f\0\0\1" + site.port.to_bytes(2, "big")
    for index in range(len(target)):
        slow.send(target[index : index + 1])
    assert slow.recv(10)[1] == 0
    for door in doors:
        door.close()


def _resident_mib(node: NodeProcess) -> int:
    memory = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(memory.split("VmRSS:")[1].split()[0]) // 1024


@pytest.mark.parametrize(
    ("head", "filling", "answers"),
    [
        (b"\4\1\0\x50\0\0\0\1", b"u", (b"", b"\0[")),  # SOCKS4: a user name without end
        (b"GET http://x/ HTTP/1.1\r\nX: ", b"y", (b"HTTP/1.1 431",)),
        (b"CONNECT x:80 HTTP/1.1\r\nX: ", b"y", (b"HTTP/1.1 431",)),
        (b"GET ", b"/", (b"HTTP/1.1 431",)),
        (b"\x16\x03\x01", b"\0", (b"",)),  # TLS
    ],
)
def test_oversized_handshakes_are_cut(mesh, head, filling, answers):
    """Forty at once, a megabyte each: refused in the protocol's own words, and none is kept in memory."""
    before = _resident_mib(mesh.client)

    def send(_: int) -> bytes:
        heard = b""
        with socket.create_connection(("127.0.0.1", mesh.entry), 20) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(head)
                for _ in range(16):
                    sock.sendall(filling * (1 << 16))
            with contextlib.suppress(ConnectionError):
                while part := sock.recv(65536):
                    heard += part
        return heard

    with ThreadPoolExecutor(40) as pool:
        for heard in pool.map(send, range(40)):
            assert heard[:12] in answers or heard[:2] in answers, heard[:100]
    assert _resident_mib(mesh.client) < before + 16


def test_a_wrong_key_is_named_at_its_owner_and_disturbs_nobody(mesh, site, tmp_path):
    """The log of the node with the wrong key says so; the server stays silent."""
    other = base64.b64encode(os.urandom(32)).decode()
    entry = free_port()
    text = client_text(tmp_path / "8", entry, {1: mesh.server_port}, other)
    stranger = NodeProcess(tmp_path / "8", text)
    try:
        mesh.download(site, 8 * MIB)
        done = curl(entry, f"http://127.0.0.1:{site.port}/9", timeout=1)
        assert done.returncode != 0
        wait_until(lambda: "wrong key" in stranger.status()["nodes"][0]["problem"], 30)
    finally:
        assert stranger.stop() == 0
    assert "Traceback" not in stranger.log.read_text()


def test_a_peer_that_stops_reading_stalls_only_itself(mesh, site, tmp_path):
    """SIGSTOP of one client in its download: the server serves the other and keeps its memory."""
    entry = free_port()
    text = client_text(tmp_path / "9", entry, {1: mesh.server_port})
    stopped = NodeProcess(tmp_path / "9", text)
    try:
        wait_until(stopped.is_linked)
        process = subprocess.Popen(
            ["curl", "-sS", "-o", "/dev/null", "-x", f"socks5h://127.0.0.1:{entry}",
             f"http://127.0.0.1:{site.port}/{4096 * MIB}"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: stopped.status()["links"][0]["bytes_in"] > 20 * MIB)
            stopped.process.send_signal(signal.SIGSTOP)
            mesh.download(site, 64 * MIB)
            assert _resident_mib(mesh.server) < 250
        finally:
            stopped.process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(5)
    finally:
        stopped.stop()


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ('[network]\nkey_file = "/nowhere/key"\n[node]\nid = 3\n', 2, ("key_file", "/nowhere/key")),
        (
            f'[network]\nkey = "{KEY}"\nkey = "{KEY}"\n[node]\nid = 3\n',
            2,
            ("c.toml:3: key", "second time"),
        ),
        (f'[network]\nkey = "{KEY}"\n[node]\nid = 3\nidd = 4\n', 2, ("idd",)),
    ],
)
def test_configuration_mistakes_are_one_clear_error(tmp_path, text, status, words):
    done = run_refused(tmp_path / "c.toml", text)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in (*words, "c.toml")), done.stderr


def test_an_entry_port_in_use_is_one_clear_error(mesh, tmp_path):
    text = client_text(tmp_path / "11", mesh.entry, {1: mesh.server_port})
    done = run_refused(tmp_path / "c.toml", text)
    assert done.returncode == 1, done.stderr
    assert str(mesh.entry) in done.stderr and "Traceback" not in done.stderr


def test_many_strangers_leave_no_descriptor_behind(mesh):
    """Connections that come and go without a word."""
    folder = Path(f"/proc/{mesh.server.process.pid}/fd")
    before = len(list(folder.iterdir()))

    def knock() -> None:
        for _ in range(50):
            socket.create_connection(("127.0.0.1", mesh.server_port), 5).close()

    threads = [threading.Thread(target=knock) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    wait_until(lambda: len(list(folder.iterdir())) <= before + 3)
