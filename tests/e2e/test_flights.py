"""How many flights a first byte takes, shown by holding up one direction at a time: no clock decides.

While the downward gate is shut nothing of the server reaches the client, so what reaches the site then
needed no answer; while the upward one is shut, what reaches the program needed no further question.
"""

from __future__ import annotations

import socket
import struct
import threading

import pytest
import socks

from mesh import Mesh, NodeProcess, wait_until

REQUEST, ANSWER = b"request", b"answer"
LIMIT_S = 20


@pytest.fixture
def mesh():
    made = Mesh(with_cutter=True)
    yield made
    made.close()
    logs = made.client.log, made.server.log
    assert not any(log.exists() and "Traceback" in log.read_text() for log in logs)


@pytest.fixture
def site():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        yield listener


class Program(threading.Thread):
    """Connects through the proxy, asks, and says when it heard what."""

    def __init__(self, mesh: Mesh, site: socket.socket) -> None:
        super().__init__(daemon=True)
        self.connected = threading.Event()
        self.answered = threading.Event()
        self._sock = socks.socksocket()
        self._sock.set_proxy(socks.SOCKS5, "127.0.0.1", mesh.entry, rdns=True)
        self._sock.settimeout(LIMIT_S)
        self._target = site.getsockname()[:2]
        self.start()

    def run(self) -> None:
        with self._sock as sock:
            sock.connect(self._target)
            self.connected.set()
            sock.sendall(REQUEST)
            assert sock.recv(100) == ANSWER
            self.answered.set()


def _accept(site: socket.socket) -> socket.socket:
    peer, _ = site.accept()
    peer.settimeout(LIMIT_S)
    return peer


def _up(mesh: Mesh) -> None:
    """From now on only flights to the server arrive."""
    mesh.cutter.set_open(True, False)


def _down(mesh: Mesh) -> None:
    """From now on only flights to the client arrive."""
    mesh.cutter.set_open(False, True)


def _both(mesh: Mesh) -> None:
    mesh.cutter.set_open(True, True)


def _ask_once(mesh: Mesh, site: socket.socket) -> None:
    """A whole exchange, so that the target has connected before."""
    program = Program(mesh, site)
    with _accept(site) as peer:
        assert peer.recv(100) == REQUEST
        peer.sendall(ANSWER)
        assert program.answered.wait(LIMIT_S)
    program.join(LIMIT_S)


def test_a_new_target_takes_two_round_trips(mesh, site):
    """OPEN, its true result, the request, the answer (`optimistic = "auto"` is the default)."""
    _up(mesh)
    program = Program(mesh, site)
    with _accept(site) as peer:
        assert not program.connected.is_set()
        _down(mesh)
        assert program.connected.wait(LIMIT_S)
        _up(mesh)
        assert peer.recv(100) == REQUEST
        peer.sendall(ANSWER)
        _down(mesh)
        assert program.answered.wait(LIMIT_S)
    _both(mesh)


def test_a_target_that_connected_before_takes_one_round_trip(mesh, site):
    _ask_once(mesh, site)
    for _ in range(3):
        _up(mesh)
        program = Program(mesh, site)
        with _accept(site) as peer:
            assert peer.recv(100) == REQUEST
            peer.sendall(ANSWER)
            _down(mesh)
            assert program.answered.wait(LIMIT_S)
        _both(mesh)
        program.join(LIMIT_S)


def test_a_new_link_costs_no_round_trip_of_its_own(mesh, site):
    """It is dialled, and its first flight carries the request: no handshake (R24)."""
    _ask_once(mesh, site)
    mesh.cutter.record = []
    _up(mesh)
    mesh.cutter.cut()
    program = Program(mesh, site)
    with _accept(site) as peer:
        assert peer.recv(100) == REQUEST
        assert mesh.cutter.record, "it went over a link that was there before"
        peer.sendall(ANSWER)
        _both(mesh)
        assert program.answered.wait(LIMIT_S)


def test_a_client_just_started_needs_no_answer_before_its_data_leave(mesh, site):
    """The first contact of a new boot carries OPEN, and what the program sent ahead of its answer."""
    mesh.client.stop()
    _up(mesh)
    mesh.client = NodeProcess(mesh.client.config.parent, mesh.client.config.read_text())
    host, port = site.getsockname()[:2]
    with socket.create_connection(("127.0.0.1", mesh.entry), LIMIT_S) as sock:
        target = b"\5\1\0\1" + socket.inet_aton(host) + struct.pack(">H", port)
        sock.sendall(b"\5\1\0" + target + REQUEST)
        with _accept(site) as peer:
            assert peer.recv(100) == REQUEST
            peer.sendall(ANSWER)
            _both(mesh)
            heard = b""
            while len(heard) < 2 + 10 + len(ANSWER):
                heard += sock.recv(100)
            assert heard[:4] == b"\5\0\5\0" and heard.endswith(ANSWER)
    wait_until(mesh.client.is_linked)
