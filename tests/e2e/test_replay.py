"""A recorded connection played again, to the server and to the client: nothing takes it for new."""

from __future__ import annotations

import contextlib
import socket

import pytest

from mesh import BLOCK, Mesh, NodeProcess, Site, wait_until
from programs import LIMIT_S, connect
from uservpn.wire.constants import HEADER_SIZE

MIB = 1 << 20


@pytest.fixture
def mesh():
    made = Mesh(with_cutter=True)
    yield made
    logs = [node.log.read_text() for node in (made.client, made.server)]
    made.close()
    assert not any("Traceback" in log or "broke the protocol" in log for log in logs)


def _restart_client(mesh: Mesh) -> None:
    mesh.client.stop()
    mesh.client = NodeProcess(mesh.client.config.parent, mesh.client.config.read_text())
    wait_until(mesh.client.is_linked)


def _download(mesh: Mesh, site: Site) -> None:
    """A megabyte; by its end both nodes have dealt with whatever came before."""
    assert mesh.curl(f"http://127.0.0.1:{site.port}/{MIB}").stdout == BLOCK


def _has_nothing(sock: socket.socket, read) -> bool:
    sock.setblocking(False)
    try:
        read(sock)
    except BlockingIOError:
        return True
    return False


def test_a_connection_from_its_first_contact_on_played_to_the_server(mesh, site):
    """Running: silence. Restarted, and ahead of the real client: a challenge, but no dial."""
    mesh.cutter.record = []
    _restart_client(mesh)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with connect(mesh.entry, listener.getsockname()[1]) as sock:
            sock.sendall(b"pay 100")
            peer, _ = listener.accept()
            assert peer.recv(100) == b"pay 100"
            peer.close()
        ((up, _),) = mesh.cutter.record
        mesh.cutter.record = None
        heard = bytes(up.heard)
        _download(
            mesh, site
        )  # what is still under way would be new to the server, whoever brings it
        with socket.create_connection(("127.0.0.1", mesh.server_port), 5) as replay:
            replay.sendall(heard)
            _download(mesh, site)
            assert _has_nothing(replay, lambda sock: sock.recv(1))
        assert _has_nothing(listener, lambda sock: sock.accept())
        mesh.client.stop()
        mesh.server.stop()
        mesh.server = mesh.start_server()
        with socket.create_connection(("127.0.0.1", mesh.server_port), LIMIT_S) as replay:
            replay.sendall(heard)
            assert replay.recv(1 << 16)  # docs/wire.md, section 14: the price of a static key
            _restart_client(mesh)
            _download(mesh, site)
        assert _has_nothing(listener, lambda sock: sock.accept())


def test_a_recorded_server_played_to_the_client(mesh, site):
    """Messages of the very same boots, seen before: a connection that waits for its answer is not fooled."""
    mesh.cutter.record = []
    mesh.cutter.cut()
    wait_until(lambda: mesh.cutter.record)
    _download(mesh, site)
    heard = mesh.cutter.record[-1][1].heard
    mesh.cutter.record = None
    assert len(heard) > MIB
    with (
        socket.create_server(("127.0.0.1", 0)) as impostor,
        connect(mesh.entry, site.port) as sock,
    ):
        sock.sendall(b"GET /1000 HTTP/1.1\r\n")  # not yet a whole request
        mesh.cutter.target = impostor.getsockname()[1]
        mesh.cutter.cut()
        impostor.settimeout(LIMIT_S)
        peer, _ = impostor.accept()
        with peer:
            peer.settimeout(LIMIT_S)
            peer.sendall(heard)
            peer.sendall(bytes(HEADER_SIZE))  # no header: when it comes to this, the client closes
            with contextlib.suppress(ConnectionError):
                while peer.recv(1 << 16):
                    pass
        mesh.cutter.target = mesh.server_port
        sock.sendall(b"Host: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(BLOCK[:1000])
