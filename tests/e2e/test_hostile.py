"""Bad input on every open door: the damage is survived or ends in silence, and nothing else notices.

The transfers are checked by SHA-256; after each test both logs hold no traceback and a fresh
connection works.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import socks

from mesh import (
    BLOCK,
    KEY,
    USERVPN,
    Mesh,
    NodeProcess,
    Site,
    client_text,
    digest_of,
    free_port,
    wait_until,
)
from uservpn.wire.constants import PAYLOAD_SIZE_MAX
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing

MIB = 1 << 20


@pytest.fixture(scope="module")
def site():
    with Site() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def shared():
    made = Mesh(Path(tempfile.mkdtemp(prefix="uv")), with_cutter=True)
    yield made
    made.close()


@pytest.fixture
def mesh(shared, site):
    """A mesh behind a forwarder; afterwards it works, and nobody has raised."""
    yield shared
    shared.cutter.mangle = shared.cutter.record = None
    wait_until(lambda: shared.curl(f"http://127.0.0.1:{site.port}/9").stdout == BLOCK[:9], 30)
    assert "Traceback" not in shared.client.log.read_text() + shared.server.log.read_text()


def _download(mesh, site, size: int) -> None:
    got = mesh.curl(f"http://127.0.0.1:{site.port}/{size}", timeout=110)
    assert hashlib.sha256(got.stdout).hexdigest() == digest_of(size), (len(got.stdout), got.stderr)


def _every(size: int, change):
    """A mangler that applies `change` to one piece in about `size` carried bytes, with a seed."""
    rng = random.Random(size)
    left = [size]

    def mangle(is_upstream: bool, data: bytes) -> bytes:
        left[0] -= len(data)
        if left[0] > 0 or len(data) < 64:
            return data
        left[0] = size
        mangle.count += 1
        return change(rng, data)

    mangle.count = 0
    return mangle


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _reorder(rng: random.Random, data: bytes) -> bytes:
    middle = rng.randrange(1, len(data))
    return data[middle:] + data[:middle]


def _double(rng: random.Random, data: bytes) -> bytes:
    return data + data


@pytest.mark.parametrize("change", [_flip, _truncate, _reorder, _double])
def test_a_damaged_connection_loses_no_byte(mesh, site, change):
    """What does not open is asked for again, over a new link where the old one lost its step."""
    mesh.cutter.mangle = _every(10 * MIB, change)
    _download(mesh, site, 32 * MIB)
    assert mesh.cutter.mangle.count >= 3


def test_a_recorded_connection_played_again_does_nothing(mesh, site):
    """Every message of it, whole, in order, also after a restart of the server: silence, no dial."""
    mesh.cutter.record = []
    mesh.cutter.cut()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wait_until(lambda: mesh.cutter.record)
        wait_until(mesh.client.is_linked)
        sock = socks.socksocket()
        sock.set_proxy(socks.SOCKS5, "127.0.0.1", mesh.entry, rdns=True)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", listener.getsockname()[1]))
        listener.accept()[0].close()
        sock.close()
        heard = bytes(mesh.cutter.record[-1])
        mesh.cutter.record = None
        assert len(heard) > 96
        for is_restarted in (False, True):
            if is_restarted:
                mesh.server.stop()
                mesh.server = mesh.start_server()
            with socket.create_connection(("127.0.0.1", mesh.server_port), 5) as replay:
                replay.sendall(heard)
                replay.settimeout(1.5)
                with pytest.raises(TimeoutError):
                    # A NOTICE may only go to an origin whose boot is newer than what is known.
                    while not is_restarted or replay.recv(65536):
                        assert replay.recv(65536) != b""
            listener.settimeout(0.2)
            with pytest.raises(TimeoutError):
                listener.accept()


def test_lengths_that_lie_are_bounded(mesh, site):
    """A genuine header with an absurd length is a stranger's; one with more than comes just waits."""
    codec = HeaderCodec(KeyRing((base64.b64decode(KEY),)))
    socks_open = []
    for length in (PAYLOAD_SIZE_MAX + 1, (1 << 32) - 1, PAYLOAD_SIZE_MAX, 16):
        fields = pack_fields(1, 9, 1, length, 5, 0, b"\0\0\0")
        sock = socket.create_connection(("127.0.0.1", mesh.server_port), 5)
        sock.sendall(codec.seal(fields) + bytes(100))
        socks_open.append(sock)
    _download(mesh, site, 4 * MIB)
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
        _download(mesh, site, MIB)
    slow = doors[-1]  # an entry connection that has said a whole greeting by now
    slow.settimeout(10)
    assert slow.recv(2) == b"\5\0"
    target = b"\5\1\0\1\x7f\0\0\1" + site.port.to_bytes(2, "big")
    for index in range(len(target)):
        slow.send(target[index : index + 1])
    assert slow.recv(10)[1] == 0
    for door in doors:
        door.close()


def test_oversized_handshakes_are_cut(mesh):
    """Each ends within its limit in bytes; the entry's memory does not hold them."""

    def send(data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", mesh.entry), 5) as sock:
            sock.settimeout(20)
            heard = b""
            try:
                sock.sendall(data)
                while part := sock.recv(65536):
                    heard += part
            except ConnectionError:
                pass
            return heard

    assert send(b"\4\1\0\x50\0\0\0\1" + b"u" * (1 << 20))[:1] in (b"", b"\0")
    assert send(b"GET http://x/ HTTP/1.1\r\n" + b"X: " + b"y" * (1 << 20))[:12] in (
        b"", b"HTTP/1.1 431", b"HTTP/1.1 400",
    )  # fmt: skip
    assert send(b"\x16\x03\x01" + bytes(1 << 16)) == b""


def test_a_wrong_key_is_named_at_its_owner_and_disturbs_nobody(mesh, site, tmp_path):
    """The log of the node with the wrong key says so; the server stays silent."""
    other = base64.b64encode(os.urandom(32)).decode()
    entry = free_port()
    text = client_text(tmp_path / "8", entry, {1: mesh.server_port}, other)
    stranger = NodeProcess(tmp_path / "8", text)
    try:
        _download(mesh, site, 8 * MIB)
        done = subprocess.run(
            ["curl", "-sS", "-m", "3", "-x", f"socks5h://127.0.0.1:{entry}",
             f"http://127.0.0.1:{site.port}/9"],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
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
            _download(mesh, site, 64 * MIB)
            memory = Path(f"/proc/{mesh.server.process.pid}/status").read_text()
            resident = int(memory.split("VmRSS:")[1].split()[0]) // 1024
            assert resident < 250, f"{resident} MiB"
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
        (f'[network]\nkey = "{KEY}"\nkey = "{KEY}"\n[node]\nid = 3\n', 2, ("key",)),
        (f'[network]\nkey = "{KEY}"\n[node]\nid = 3\nidd = 4\n', 2, ("idd",)),
    ],
)
def test_configuration_mistakes_are_one_clear_error(tmp_path, text, status, words):
    config = tmp_path / "c.toml"
    config.write_text(text)
    config.chmod(0o600)
    done = subprocess.run(
        [*USERVPN, "run", "-c", str(config)],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == status and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in (*words, "c.toml")), done.stderr


def test_an_entry_port_in_use_is_one_clear_error(mesh, tmp_path):
    config = tmp_path / "c.toml"
    text = client_text(tmp_path / "11", mesh.entry, {1: mesh.server_port})
    config.write_text(text)
    config.chmod(0o600)
    done = subprocess.run(
        [*USERVPN, "run", "-c", str(config)],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
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
