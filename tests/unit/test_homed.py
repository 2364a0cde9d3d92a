"""Datagrams at a wildcard address: the answer leaves from the address that was dialled."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable

import pytest
import uvloop

from drivers import make_driver
from uservpn.kit.endpoint import Endpoint
from uservpn.links import gso, homed
from uservpn.links.homed import HomedTransport
from uservpn.links.kcp import KcpPlugin

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where a datagram came"),
]


async def _until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    ("bound", "dialled"), [("0.0.0.0", "127.0.0.2"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]")]
)
def test_a_kcp_link_to_any_address_of_the_machine_stands(run, bound, dialled) -> None:
    async def main() -> None:
        plugin, server = KcpPlugin(), make_driver({}, 1, {})
        listener = await plugin.serve(Endpoint("kcp", bound, 0), server.node.codec, server)
        port = listener._transport.get_extra_info("sockname")[1]
        where = f"kcp://{dialled}:{port}"
        client = make_driver({"kcp": KcpPlugin()}, 7, {1: (where,)})
        client.start()
        try:
            await _until(lambda: bool(server.links) and bool(client.links))
            (link,), (other,) = server.links.values(), client.links.values()
            await _until(lambda: server.link_is_proved(link) and client.link_is_proved(other))
            assert (link.local, other.remote) == (where, where)
        finally:
            await client.close()
            await server.close()
            listener._transport.close()

    run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_sessions_go_on_with_the_next_socket_at_their_port(run) -> None:
    """A listener that is closed keeps its port for them; the next one there takes it, and them, over."""

    async def main() -> None:
        owner = Owner()

        def offer(stream, host, port) -> None:
            stream.owner = owner
            server.node.tunnel(stream).accept(stream)
            server.kick()

        plugin, server = KcpPlugin(), make_driver({}, 1, {}, offer)

        async def serve(host: str, port: int):
            return await plugin.serve(Endpoint("kcp", host, port), server.node.codec, server)

        first = await serve("0.0.0.0", 0)
        port = first.address.port
        client = make_driver({"kcp": KcpPlugin()}, 7, {1: (f"kcp://127.0.0.2:{port}",)})
        client.start()
        try:
            await _until(lambda: bool(server.links) and bool(client.links))
            (link,), (other,) = server.links.values(), client.links.values()

            stream = client.open(1, "site.test", 80, Owner())

            async def go_on() -> None:
                heard, answered = owner.size, other.bytes_in
                client.write(stream, b"x")
                await _until(lambda: owner.size > heard and other.bytes_in > answered)

            await _until(lambda: server.link_is_proved(link) and client.link_is_proved(other))
            first.close()
            await go_on()
            narrow = await serve("127.0.0.2", port)
            await go_on()
            narrow.close()
            with pytest.raises(OSError):
                await serve("192.0.2.77", port)  # no address of this machine, and not in the way
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
                taken.bind(("127.0.0.1", port))
                with pytest.raises(OSError):
                    await serve("0.0.0.0", port)
                await go_on()
            wide = await serve("0.0.0.0", port)
            await go_on()
            wide.close()
            assert len(server.links) == len(client.links) == 1
            link.close()
            await asyncio.sleep(0.01)
            assert wide.address is None, "the port is free with the last session"
        finally:
            await client.close()
            await server.close()
            for listener in plugin._listeners:
                listener.close()

    run(main())


class Owner:
    """A stream's owner that counts."""

    def __init__(self) -> None:
        self.size = 0

    def stream_data(self, chunk) -> None:
        self.size += len(chunk)

    def __getattr__(self, name: str):
        return lambda *words: None


class Protocol(asyncio.DatagramProtocol):
    """Keeps what came."""

    def __init__(self) -> None:
        self.came: list = []
        self.errors: list = []

    def datagram_received(self, data, addr) -> None:
        self.came.append((data, addr))

    def error_received(self, exc) -> None:
        self.errors.append(exc)


class Sock:
    """A socket whose next sends fail as `trouble` says."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.trouble: list[OSError] = []

    def __getattr__(self, name: str):
        return getattr(self._sock, name)

    def sendmsg(self, *words):
        if self.trouble:
            raise self.trouble.pop(0)
        return self._sock.sendmsg(*words)


def _on_bench(work) -> None:
    async def main() -> None:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setblocking(False)
        bound.bind(("0.0.0.0", 0))
        kind = gso.tell_destinations(bound)
        sock, protocol = Sock(bound), Protocol()
        transport = HomedTransport(sock, kind, protocol)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.connect(("127.0.0.2", bound.getsockname()[1]))  # hears nobody else
            peer.settimeout(5)
            peer.send(b"hello")
            await _until(lambda: protocol.came)
            await work(transport, sock, protocol, peer)
        transport.close()
        transport.close()

    uvloop.run(main())


def test_what_the_kernel_does_not_take_now_goes_later_in_its_order_within_a_bound(monkeypatch):
    monkeypatch.setattr(homed, "QUEUE_MAX", 20)

    async def work(transport, sock, protocol, peer) -> None:
        (_, remote), *_ = protocol.came
        sock.trouble = [BlockingIOError()]
        for number in range(9):
            transport.sendto(b"number %d" % number, remote)
        await _until(lambda: not transport._queue)
        assert [peer.recv(100) for _ in range(3)] == [b"number 0", b"number 1", b"number 2"]
        transport.sendto(b"later", remote)
        assert peer.recv(100) == b"later", "what came beyond the bound is lost"

    _on_bench(work)


def test_what_the_network_says_of_one_datagram_is_weather():
    async def work(transport, sock, protocol, peer) -> None:
        (_, remote), *_ = protocol.came
        sock.trouble = [OSError(errno.ENETUNREACH, "no way out")]
        transport.sendto(b"lost", remote)
        assert [error.errno for error in protocol.errors] == [errno.ENETUNREACH]
        transport.sendto(b"there", remote)
        assert peer.recv(100) == b"there"
        peer.send(b"again")
        await _until(lambda: len(protocol.came) == 2)

    _on_bench(work)


def test_the_addresses_of_strangers_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(homed, "NAMES_MAX", 10)

    async def work(transport, sock, protocol, peer) -> None:
        for number in range(50):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b"%d" % number, peer.getpeername())
        await _until(lambda: len(protocol.came) == 51)
        assert len(transport._remotes) <= 10
        transport.sendto(b"there", protocol.came[0][1])
        assert peer.recv(100) == b"there"

    _on_bench(work)
