"""Reloads that change addresses or options at one port: what stands goes on; it is all or nothing."""

from __future__ import annotations

import re
import socket

import pytest

from mesh import NodeProcess, client_text, free_port, wait_until
from programs import connect, echo
from uservpn.links.ws import self_signed

USERS = '\nusers = { ann = "secret-word" }'


class Server:
    """An exit that is reloaded again and again."""

    def __init__(self, folder, listen: list[str], entry: str) -> None:
        self._folder = folder
        self.node = NodeProcess(folder / "1", self._text(listen, entry))

    def _text(self, listen: list[str], entry: str) -> str:
        endpoints = ", ".join(f'"{endpoint}"' for endpoint in listen)
        return (
            client_text(self._folder / "1", 1, {}).partition("[entry]")[0]
            + f"listen = [{endpoints}]\n"
            + '[exit]\nenabled = true\nallow = ["127.0.0.0/8"]\n'
            + f'[entry]\nlisten = "{entry}"{"" if entry.startswith("127.") else USERS}\n'
        )

    def reload(self, listen: list[str], entry: str, answer: str = "reread") -> str:
        """The line of the log."""
        before = len(self._answers())
        self.node.config.write_text(self._text(listen, entry))
        self.node.process.send_signal(1)
        wait_until(lambda: len(self._answers()) > before)
        last = self._answers()[-1]
        assert answer in last, last
        return last

    def _answers(self) -> list[str]:
        return re.findall(r".*configuration .*", self.node.log.read_text())


@pytest.fixture
def ports():
    return [free_port() for _ in range(4)]


@pytest.fixture(params=["tcp", "udp", "kcp"])
def kind(request):
    return request.param


def test_one_port_with_other_addresses_and_options(tmp_path, ports, kind):
    """Each of these was refused, since the old listener had the port."""
    mesh, entry, programs, spare = ports
    server = Server(tmp_path, [f"{kind}://127.0.0.1:{mesh}"], f"127.0.0.1:{entry}")
    text = client_text(tmp_path / "7", programs, {1: mesh}).replace("tcp://127", f"{kind}://127")
    text += '[exit]\nenabled = true\nallow = ["127.0.0.0/8"]\n'
    client = NodeProcess(tmp_path / "7", text)
    try:
        wait_until(client.is_linked)
        with echo() as port, connect(programs, port) as ours, connect(entry, port) as own:

            def go_on() -> None:
                for sock in (ours, own):
                    sock.sendall(b"still here")
                    assert sock.recv(100) == b"still here"

            go_on()
            links = {link["remote"] for link in client.status()["links"]}
            plain, wide = f"{kind}://127.0.0.1:{mesh}", f"{kind}://0.0.0.0:{mesh}"
            taken = f"tcp://127.0.0.1:{programs}"
            server.reload([wide, taken], f"127.0.0.1:{entry}", "the old one stays")
            go_on()
            server.reload([wide], f"127.0.0.1:{entry}")
            go_on()
            server.reload([wide], f"0.0.0.0:{entry}")
            go_on()
            server.reload([wide, f"ws://127.0.0.1:{entry}/way"], f"127.0.0.1:{spare}")
            go_on()
            server.reload([plain], f"127.0.0.1:{entry}")
            go_on()
            if kind == "tcp":
                server.reload([f"{plain}?shape=text"], f"127.0.0.1:{entry}")
                go_on()
                server.reload([f"ws://127.0.0.1:{mesh}/way"], f"127.0.0.1:{entry}")
                go_on()
                server.reload([plain], f"127.0.0.1:{entry}")
                go_on()
            assert links == {link["remote"] for link in client.status()["links"]}
            connect(entry, port).close()
            connect(programs, port).close()
    finally:
        assert client.stop() == 0 and server.node.stop() == 0
    assert "Traceback" not in server.node.log.read_text()


def test_what_had_to_close_first_is_open_again_when_another_address_cannot_be_had(tmp_path, ports):
    mesh, entry, taken, _ = ports
    kept = [f"tcp://127.0.0.1:{mesh}", f"udp://127.0.0.1:{mesh}"]
    server = Server(tmp_path, kept, f"127.0.0.1:{entry}")
    try:
        with socket.create_server(("127.0.0.1", taken)):
            wanted = [f"tcp://0.0.0.0:{mesh}", f"udp://0.0.0.0:{mesh}", f"tcp://127.0.0.1:{taken}"]
            line = server.reload(wanted, f"0.0.0.0:{entry}", "the old one stays")
            assert str(taken) in line
            (row,) = server.node.status()["sockets"]
            assert row["local"] == f"udp://127.0.0.1:{mesh}" and row["listening"]
            socket.create_connection(("127.0.0.1", mesh), 5).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", mesh), 5)
            socket.create_connection(("127.0.0.1", entry), 5).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", entry), 5)
    finally:
        assert server.node.stop() == 0
    assert "Traceback" not in server.node.log.read_text()


def test_what_could_not_be_opened_again_is_by_the_next_reload(tmp_path, ports):
    """Here the certificate was away for a while."""
    mesh, entry, taken, _ = ports
    (tmp_path / "1").mkdir()
    key, begin, certificate = self_signed("site.test").partition(b"-----BEGIN CERT")
    files = tmp_path / "site.key", tmp_path / "site.pem"
    texts = key, begin + certificate
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text)
    old = [f"wss://127.0.0.1:{mesh}/way?key={files[0]}&cert={files[1]}"]
    server = Server(tmp_path, old, f"127.0.0.1:{entry}")
    try:
        with socket.create_server(("127.0.0.1", taken)):
            files[1].unlink()
            wanted = [f"tcp://0.0.0.0:{mesh}", f"tcp://127.0.0.1:{taken}"]
            server.reload(wanted, f"127.0.0.1:{entry}", "the old one stays")
        assert "is shut" in server.node.log.read_text()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", mesh), 5)
        files[1].write_bytes(texts[1])
        server.reload(old, f"127.0.0.1:{entry}", "reread: node")
        socket.create_connection(("127.0.0.1", mesh), 5).close()
        server.reload(old, f"127.0.0.1:{entry}", "nothing changed")
    finally:
        assert server.node.stop() == 0
    assert "Traceback" not in server.node.log.read_text()


def test_udp_takes_the_port_of_kcp_whose_sessions_end(tmp_path, ports):
    """And the connections of their client go on: it dials the other protocol."""
    mesh, entry, programs, _ = ports
    server = Server(tmp_path, [f"kcp://127.0.0.1:{mesh}"], f"127.0.0.1:{entry}")
    text = client_text(tmp_path / "7", programs, {1: mesh}).replace("tcp://127", "kcp://127")
    text = text.replace(
        f'"kcp://127.0.0.1:{mesh}"', f'"kcp://127.0.0.1:{mesh}", "udp://127.0.0.1:{mesh}"'
    )
    client = NodeProcess(tmp_path / "7", text)
    try:
        wait_until(client.is_linked)
        with echo() as port, connect(programs, port) as sock:
            sock.sendall(b"before")
            assert sock.recv(100) == b"before"
            server.reload([f"udp://127.0.0.1:{mesh}"], f"127.0.0.1:{entry}")
            sock.settimeout(60)
            sock.sendall(b"over UDP")
            assert sock.recv(100) == b"over UDP"
            (row,) = server.node.status()["sockets"]
            assert row["local"] == f"udp://127.0.0.1:{mesh}" and row["listening"]
    finally:
        assert client.stop() == 0 and server.node.stop() == 0
    assert "Traceback" not in server.node.log.read_text()
