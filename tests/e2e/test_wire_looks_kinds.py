"""As test_wire_looks.py, for the other kinds of links on TCP that are no TLS, and for what is relayed (R23).

What is not ours is taken off first: the line of letters that an endpoint asks for; the words with which a
WebSocket begins, and the heads and masks of its frames (without TLS they show anybody that it is one); and a
SOCKS5 proxy's own words, by listening behind it. The rest has to look random. (Datagrams: test_udp.py. Who
hears both sides of a relay sees the same sealed payloads on both, below other headers.)
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import socks

from cutter import Cutter, Flow
from mesh import NodeProcess, client_text, free_port, server_text, wait_until
from test_link_kinds import Proxy
from test_wire_looks import _first_repeat, _looks_even, _most

ROUNDS = 24
PLAIN = bytes(500_000) + b"the same text again and again " * 8_000
FIRST = 48
"""Bytes at the start of a connection that are looked at place by place: the first header."""
EXIT = '[exit]\nenabled = true\nallow = ["127.0.0.0/8"]\n'


def _bare(heard: bytes, is_upstream: bool) -> bytes:
    return heard


def _without_line(heard: bytes, is_upstream: bool) -> bytes:
    return heard.partition(b"\r\n")[2] if is_upstream else heard


def _of_frames(heard: bytes, is_upstream: bool) -> bytes:
    """What the binary frames of a WebSocket carry."""
    data = heard.partition(b"\r\n\r\n")[2]
    out = []
    at = 0
    while at + 2 <= len(data):
        kind, size = data[at] & 15, data[at + 1] & 127
        is_masked = data[at + 1] >> 7
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        mask = data[at : at + 4] if is_masked else b""
        at += len(mask)
        part = data[at : at + size]
        at += size
        if mask:
            key = (mask * (len(part) // 4 + 1))[: len(part)]
            number = int.from_bytes(part, "big") ^ int.from_bytes(key, "big")
            part = number.to_bytes(len(part), "big")
        if kind in (0, 2):
            out.append(part)
    return b"".join(out)


Peel = Callable[[bytes, bool], bytes]
KINDS: dict[str, tuple[str, str, Peel]] = {
    "shaped": (
        "tcp://127.0.0.1:{port}?shape=text",
        "tcp://127.0.0.1:{cut}?shape=text",
        _without_line,
    ),
    "ws": ("ws://127.0.0.1:{port}/way", "ws://127.0.0.1:{cut}/way", _of_frames),
    "socks5": ("tcp://127.0.0.1:{port}", "socks5://127.0.0.1:{proxy}/127.0.0.1:{cut}", _bare),
    "relayed": ("tcp://127.0.0.1:{port}", "tcp://127.0.0.1:{cut}", _bare),
}


class Captured:
    """Two dozen connections of one kind, both directions, without what is not ours."""

    def __init__(self, folder: Path, kind: str) -> None:
        listen, dial, peel = KINDS[kind]
        port, self.entry = free_port(), free_port()
        self.cutter = Cutter(port)
        self.proxy = Proxy()
        self.exit = 3 if kind == "relayed" else 1
        self.nodes: list[NodeProcess] = []
        words = {"port": port, "cut": self.cutter.port, "proxy": self.proxy.server_address[1]}
        record = self.cutter.record = []
        try:
            text = server_text(folder / "1", 9).replace("tcp://127.0.0.1:9", listen.format(**words))
            self.nodes.append(NodeProcess(folder / "1", text))
            for number, entry in ((7, self.entry), (3, free_port()))[: 1 + (self.exit == 3)]:
                text = client_text(folder / str(number), entry, {1: 9})
                way = dial if number == 7 else listen  # the relay's other side is not listened to
                text = text.replace("tcp://127.0.0.1:9", way.format(**words))
                text += EXIT if number == 3 else ""
                self.nodes.append(NodeProcess(folder / str(number), text))
            self._echo(PLAIN)

            def whole() -> int:
                return sum(1 for pair in record if self._is_whole(pair, peel))

            while (have := whole()) < ROUNDS:
                self.cutter.cut()
                wait_until(lambda least=have: whole() > least, 60)
        finally:
            for node in reversed(self.nodes):
                node.stop()
            self.cutter.close()
            self.proxy.shutdown()
            self.proxy.server_close()
        whole = [pair for pair in record if self._is_whole(pair, peel)]
        self.flows = [[peel(flow.heard, flow.is_upstream) for flow in pair] for pair in whole]

    @staticmethod
    def _is_whole(pair: tuple[Flow, Flow], peel: Peel) -> bool:
        return all(len(peel(flow.heard[:65536], flow.is_upstream)) >= FIRST for flow in pair)

    def _echo(self, text: bytes) -> None:
        """The text goes to a site and comes back."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            wait_until(lambda: self._connects(listener), 30)
            with self._connected(listener) as sock:
                peer, _ = listener.accept()
                with peer:
                    for source, sink in ((sock, peer), (peer, sock)):
                        sending = threading.Thread(target=source.sendall, args=(text,), daemon=True)
                        sending.start()
                        left = len(text)
                        while left:
                            left -= len(sink.recv(min(left, 1 << 16)))
                        sending.join(20)

    def _connected(self, listener: socket.socket) -> socks.socksocket:
        sock = socks.socksocket()
        user = f"exit={self.exit}"
        sock.set_proxy(socks.SOCKS5, "127.0.0.1", self.entry, True, user, "x")
        sock.settimeout(20)
        sock.connect(listener.getsockname()[:2])
        return sock

    def _connects(self, listener: socket.socket) -> bool:
        try:
            with self._connected(listener):
                listener.accept()[0].close()
        except (OSError, socks.ProxyError):
            return False
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_observer_sees_looks_random(tmp_path, kind):
    """Bytes, pairs, each place of the first header, lengths that come first; and nothing comes twice."""
    flows = Captured(tmp_path, kind).flows
    assert len(flows) >= ROUNDS
    assert _first_repeat(b"".join(data for pair in flows for data in pair)) is None
    for direction in range(2):
        whole = b"".join(pair[direction] for pair in flows)
        assert len(whole) > len(PLAIN) and _looks_even(whole, 256)
        assert _looks_even(memoryview(whole[: len(whole) // 2 * 2]).cast("H"), 65_536)
        for place in range(FIRST):
            column = bytes(pair[direction][place] for pair in flows)
            for shift in (0, 2, 4, 6):
                assert _looks_even((value >> shift & 3 for value in column), 4), place
            assert Counter(column).most_common(1)[0][1] < _most(len(column), 256), place
        sizes = Counter(len(pair[direction]) for pair in flows)
        assert sizes.most_common(1)[0][1] < _most(len(flows), 64), sizes
