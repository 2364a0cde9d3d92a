"""A client whose datagrams suddenly come from elsewhere, as when a router on the way forgot it (R05)."""

from __future__ import annotations

import contextlib
import hashlib
import selectors
import socket
import subprocess
import threading
import time

import pytest

from mesh import NodeProcess, client_text, curl, digest_of, free_port, server_text, wait_until

MIB = 1 << 20


class Router:
    """Passes datagrams between clients and one server; what it is outside can change."""

    def __init__(self, target: int) -> None:
        self.inside = _socket("127.0.0.1")
        self.port = self.inside.getsockname()[1]
        self.outside = _socket("127.0.0.2")
        self.recorded: list[bytes] = []
        self._target = ("127.0.0.1", target)
        self._client = ("", 0)
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def move(self, host: str) -> None:
        """From now on the server sees another address, and nothing comes by the old one."""
        old, self.outside = self.outside, _socket(host)
        old.close()

    def close(self) -> None:
        self._is_over = True
        self._thread.join(5)
        self.inside.close()
        self.outside.close()

    def _run(self) -> None:
        while not self._is_over:
            with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
                outside = self.outside
                selector.register(self.inside, selectors.EVENT_READ)
                selector.register(outside, selectors.EVENT_READ)
                while not self._is_over and outside is self.outside:
                    for key, _ in selector.select(0.01):
                        self._pass(key.fileobj)

    def _pass(self, sock) -> None:
        for _ in range(64):
            try:
                data, source = sock.recvfrom(65_535)
            except BlockingIOError:
                return
            if sock is self.inside:
                self._client = source
                if len(self.recorded) < 2000:
                    self.recorded.append(data)
                self.outside.sendto(data, self._target)
            else:
                self.inside.sendto(data, self._client)


def _socket(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


@pytest.fixture
def roaming(tmp_path):
    """A server, a client that reaches it over datagrams alone, through a router."""
    port, entry = free_port(), free_port()
    router = Router(port)
    server_config = server_text(tmp_path / "1", port).replace("tcp://", "udp://")
    client_config = client_text(tmp_path / "7", entry, {1: router.port}).replace("tcp://", "udp://")
    server = NodeProcess(tmp_path / "1", server_config)
    client = NodeProcess(tmp_path / "7", client_config)
    try:
        wait_until(client.is_linked)
        yield router, server, entry
    finally:
        client.stop()
        server.stop()
        router.close()


def _places(server: NodeProcess) -> list[str]:
    """Where the server has links to, without ports, the measured ones."""
    links = server.status()["links"]
    return [link["remote"].rpartition(":")[0] for link in links if link["rtt_ms"] is not None]


def test_a_download_follows_a_new_address_and_a_replay_does_not_move_it(site, roaming):
    router, server, entry = roaming
    size = 20 * MIB
    words = ["curl", "-sS", "-m", "60", "-x", f"socks5h://127.0.0.1:{entry}"]
    words += [f"http://127.0.0.1:{site.port}/{size}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as download:
        digest, done, stall_s, moved = hashlib.sha256(), 0, 0.0, False
        last = time.monotonic()
        while part := download.stdout.read1(1 << 16):
            stall_s = max(stall_s, time.monotonic() - last)
            digest.update(part)
            done += len(part)
            if done > size // 3 and not moved:
                moved = True
                router.move("127.0.0.3")
            time.sleep(0.005)  # a program that takes some 13 MB/s
            last = time.monotonic()
    assert done == size and digest.hexdigest() == digest_of(size)
    print(f"longest stall {stall_s:.2f} s")
    assert stall_s < 0.5
    assert "udp://127.0.0.3" in _places(server)
    forger = _socket("127.0.0.9")
    for data in router.recorded:
        forger.sendto(data, ("127.0.0.1", router._target[1]))
    assert curl(entry, f"http://127.0.0.1:{site.port}/5000").stdout
    assert "udp://127.0.0.9" not in _places(server)
    with pytest.raises(BlockingIOError):  # nothing was ever sent to him
        forger.recvfrom(1)
    forger.close()
