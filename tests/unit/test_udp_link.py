"""The UDP link on real loopback sockets: what is sent arrives as it was, and no error ends a socket."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import uvloop

from uservpn.kit.endpoint import Endpoint
from uservpn.links import gso, knock, udp, udp_socket
from uservpn.links.base import NodePlugin, PluginFactory
from uservpn.links.udp import PAYLOAD_BASE, PLUGIN, UNPROVED_MAX, UdpPlugin
from uservpn.links.udp_socket import QUEUE_MAX, ROOM, Stretch, UdpSocket
from uservpn.wire.constants import Kind
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing
from world import KEY

CODEC = HeaderCodec(KeyRing((KEY,)))
ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))
PATIENCE_S = 10.0
KNOCKS = 1
"""Foreign datagrams of a dial itself: the question whether anybody is there."""


def _message(number: int, size: int, rng: random.Random) -> list[bytes]:
    body = rng.randbytes(size)
    return [CODEC.seal(pack_fields(Kind.DATA, 9, 1, size, 5, number, b"\0\0\0")), body]


class Owner:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.last_id = 0
        self.opened: list = []
        self.closed: list = []
        self.resized: list = []
        self.writable: list = []
        self.calls = 0
        self.got: list[tuple[int, bytes]] = []
        self.by: list = []
        self.proved: set = set()
        self.news = asyncio.Event()

    def new_link_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def link_opened(self, link) -> None:
        self.opened.append(link)

    def link_runs(self, link, runs) -> None:
        self.calls += 1
        messages = [message for run in runs for message in run.messages()]
        self.got += [(header.number, bytes(body)) for header, body in messages]
        self.by += [link] * len(messages)
        self.news.set()

    def link_resized(self, link) -> None:
        self.resized.append(link.caps.payload_size_max)
        self.news.set()

    def link_writable(self, link) -> None:
        self.writable.append(link)
        self.news.set()

    def link_is_proved(self, link) -> bool:
        return link in self.proved

    def link_closed(self, link, reason) -> None:
        self.closed.append((link, reason))
        self.news.set()

    def link_refused(self, link) -> None:
        self.closed.append((link, "refused"))
        link.close()
        self.news.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()


class Bench:
    """A listening node and one that dials it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.server, self.client = UdpPlugin(), UdpPlugin()
        self.there, self.here = Owner(), Owner()

    async def listen(self, host: str = "") -> UdpSocket:
        listener = await self.server.serve(Endpoint("udp", host or self.host, 0), CODEC, self.there)
        return listener.sock

    async def dial(self, port: int):
        return await self.client.connect(Endpoint("udp", self.host, port), CODEC, self.here)

    async def accepted(self, rng: random.Random):
        """The listening node's end of the link, once its first message came."""
        self.link.send(_message(1, 100, rng))
        await self.there.until(lambda: self.there.got)
        (link,) = self.there.opened
        return link

    async def __aenter__(self):
        self.sock = await self.listen()
        self.link = await self.dial(self.sock.port)
        return self

    async def __aexit__(self, *error) -> None:
        self.client.close()
        self.server.close()
        await asyncio.sleep(0)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run(work) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work(), 3 * PATIENCE_S))

    return run


SIZES = {
    "equal": [1200] * 150,
    "equal and a rest": ([1400] * 47 + [500]) * 3,
    "all kinds": [16, 17, 1200, 1200, 1200, 16, 16, 9000, 9001, 9001, 60_000, 64, 65_459, 1200],
    "falling": list(range(2000, 16, -40)),
    "rising": list(range(16, 2000, 40)),
    "one": [16],
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("offload", ["both", "segments", "joined", "none"])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_message_arrives_as_it_was_and_in_order(run, monkeypatch, host, offload, sizes):
    """Loopback keeps the order. With offload and without, both ways."""
    if offload not in ("both", "segments"):
        monkeypatch.setattr(gso, "can_send_segments", lambda sock: False)
    if offload not in ("both", "joined"):
        monkeypatch.setattr(gso, "receive_joined", lambda sock: False)
    rng = random.Random(sizes)
    bodies = [size if host != "::1" else min(size, 65_439) for size in SIZES[sizes]]
    sent = [_message(number, size, rng) for number, size in enumerate(bodies)]
    expected = [(number, message[1]) for number, message in enumerate(sent)]

    async def work() -> None:
        async with Bench(host) as bench:
            for start in range(0, len(sent), 50):  # fewer bytes than the smallest socket buffer
                bench.link.send([part for message in sent[start : start + 50] for part in message])
                await bench.there.until(lambda: len(bench.there.got) >= min(start + 50, len(sent)))  # noqa: B023
            assert bench.there.got == expected
            (accepted,) = bench.there.opened
            assert set(bench.there.by) == {accepted}
            assert accepted.remote == bench.link.local and bench.link.remote == accepted.local
            accepted.send(sent[0])
            await bench.here.until(lambda: bench.here.got)
            assert bench.here.got == expected[:1] and bench.here.by == [bench.link]
            total = sum(len(header) + len(body) for header, body in sent)
            assert bench.link.bytes_out == accepted.bytes_in == total
            assert not bench.here.opened and bench.sock.counters.foreign == KNOCKS

    run(work)


def test_many_datagrams_take_few_calls(run):
    """With offload: 44 of 1,472 bytes in one system call, and one call of the owner for each read."""
    rng = random.Random(1)
    batch = [part for number in range(44) for part in _message(number, 1424, rng)]

    async def work() -> None:
        async with Bench() as bench:
            calls = []
            sock = bench.link.sock
            sendmsg = sock._sendmsg
            sock._sendmsg = lambda *words: calls.append(1) or sendmsg(*words)
            bench.link.send(batch)
            await bench.there.until(lambda: len(bench.there.got) == 44)
            assert len(calls) == 1 and bench.there.calls == 1

    run(work)


@pytest.mark.parametrize("with_segments", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_runs_are_what_the_kernel_takes(with_segments, seed):
    rng = random.Random(seed)
    sizes = [rng.choice((64, 65, 1472, 65_507)) for _ in range(rng.randrange(300))]
    cuts = list(gso.runs(sizes, with_segments))
    assert [place for start, end in cuts for place in range(start, end)] == list(range(len(sizes)))
    for start, end in cuts:
        run = sizes[start:end]
        assert len(run) <= (gso.SEGMENTS_MAX if with_segments else 1)
        assert len(run) == 1 or sum(run) <= gso.BYTES_MAX
        assert all(size == run[0] for size in run[:-1]) and run[-1] <= run[0]
    if with_segments and sizes:
        assert len(list(gso.runs([1472] * 440, True))) == 10


class Kernel:
    """Stands before `sendmsg`: fails as told."""

    def __init__(self, sock: UdpSocket) -> None:
        self._sendmsg = sock._sendmsg
        self.failures: list[int] = []
        self.cannot_cut = 0
        self.size_max = 1 << 20
        sock._sendmsg = self.sendmsg

    def sendmsg(self, parts, ancillary, flags, address) -> int:
        is_cut = any(kind == gso.UDP_SEGMENT for _, kind, _ in ancillary)
        size = sum(map(len, parts[:2]))
        number = self.failures.pop(0) if self.failures else 0
        if is_cut and self.cannot_cut:
            number = self.cannot_cut
        elif size > self.size_max:
            number = errno.EINVAL if is_cut else errno.EMSGSIZE
        if number:
            raise OSError(number, "as told")
        return self._sendmsg(parts, ancillary, flags, address)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT])
def test_a_device_that_cannot_cut_gets_single_datagrams_from_then_on(run, number):
    rng = random.Random(number)
    batch = [part for serial in range(20) for part in _message(serial, 1000, rng)]

    async def work() -> None:
        async with Bench() as bench:
            kernel = Kernel(bench.link.sock)
            kernel.cannot_cut = number
            bench.link.send(batch)
            await bench.there.until(lambda: len(bench.there.got) == 20)
            assert not bench.link.sock.has_segments
            kernel.cannot_cut = 0
            bench.link.send(batch)
            await bench.there.until(lambda: len(bench.there.got) == 40)
            assert [serial for serial, _ in bench.there.got] == [*range(20), *range(20)]

    run(work)


def test_too_large_datagrams_are_counted_reported_and_do_not_end_the_offload(run, monkeypatch):
    rng = random.Random(1)

    async def work() -> None:
        async with Bench() as bench:
            sock = bench.link.sock
            kernel = Kernel(sock)
            kernel.size_max = 1300
            monkeypatch.setattr(gso, "route", lambda *words: (1328, "127.0.0.1"))
            bench.link.send([part for serial in range(5) for part in _message(serial, 1424, rng)])
            bench.link.send(_message(7, 1252, rng))
            await bench.there.until(lambda: bench.there.got)
            assert [serial for serial, _ in bench.there.got] == [7]
            assert sock.counters.too_large == 5 and sock.has_segments
            await bench.here.until(lambda: bench.here.resized)
            assert bench.here.resized == [1252]

    run(work)


def test_an_interface_that_takes_less_than_it_says_is_believed_after_a_few_refusals(run):
    rng = random.Random(1)

    async def work() -> None:
        async with Bench() as bench:
            Kernel(bench.link.sock).size_max = 40_000
            while bench.link.caps.payload_size_max + 48 > 40_000:
                count = len(bench.here.resized)
                bench.link.send(_message(1, bench.link.caps.payload_size_max, rng))
                await bench.here.until(lambda: len(bench.here.resized) > count)  # noqa: B023
            assert len(bench.here.resized) < 10
            assert bench.link.caps.payload_size_max > 30_000

    run(work)


def test_a_full_socket_queues_within_a_bound_and_says_when_it_has_room(run):
    rng = random.Random(1)
    message = _message(0, 60_000, rng)

    async def work() -> None:
        async with Bench() as bench:
            link, sock = bench.link, bench.link.sock
            kernel = Kernel(sock)
            assert link.room() == ROOM
            kernel.failures = [errno.EAGAIN]
            for serial in range(3):
                link.send(_message(serial, 1000, rng))
            assert link.room() <= 0 and not bench.there.got
            await bench.here.until(lambda: bench.here.writable)
            assert bench.here.writable == [link] and link.room() == ROOM
            await bench.there.until(lambda: len(bench.there.got) == 3)
            assert [serial for serial, _ in bench.there.got] == [0, 1, 2]
            kernel.failures = [errno.EAGAIN]
            for _ in range(2 * QUEUE_MAX // 60_000):
                link.send(message)
            assert -link.room() <= QUEUE_MAX + 61_000
            assert sock.counters.unsent >= QUEUE_MAX // 61_000 - 1
            link.close()
            await bench.here.until(lambda: bench.here.closed)

    run(work)


@pytest.mark.parametrize(
    "number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.ENOBUFS, errno.ENETDOWN]
)
def test_what_the_network_says_of_one_datagram_is_weather(run, number):
    rng = random.Random(1)

    async def work() -> None:
        async with Bench() as bench:
            Kernel(bench.link.sock).failures = [number]
            bench.link.send(_message(1, 100, rng))
            bench.link.send(_message(2, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            assert [serial for serial, _ in bench.there.got] == [2]
            assert bench.link.sock.counters.unsent == 1

    run(work)


def test_datagrams_to_a_port_where_nobody_is_do_not_hurt_the_socket(run, monkeypatch):
    """The kernel hears "port unreachable" from the other side; neither reads nor writes fail."""
    rng = random.Random(1)

    async def work() -> None:
        async with Bench() as bench:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("127.0.0.1", 0))
                nobody = other.getsockname()[1]
            monkeypatch.setattr(knock, "SILENCE_S", PATIENCE_S)
            dead = await bench.dial(nobody)
            assert dead.sock is bench.link.sock
            for serial in range(50):
                dead.send(_message(serial, 100, rng))
                await asyncio.sleep(0)
            bench.link.send(_message(99, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            bench.there.opened[0].send(_message(98, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            assert not bench.here.closed and not dead.sock.counters.errors

    run(work)


def test_a_socket_that_cannot_be_read_is_left_alone_for_a_while(run, monkeypatch):
    monkeypatch.setattr(udp_socket, "PAUSE_S", 0.05)
    rng = random.Random(1)

    async def work() -> None:
        async with Bench() as bench:
            read = bench.sock._recvmsg_into
            failures = [OSError(errno.ENOMEM, "no memory")] * 3

            def recvmsg_into(*words):
                if failures:
                    raise failures.pop()
                return read(*words)

            bench.sock._recvmsg_into = recvmsg_into
            bench.link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            assert bench.sock.counters.errors == 3

    run(work)


@contextmanager
def _stranger():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def test_foreign_datagrams_make_no_link_and_get_no_answer(run):
    """Random ones, cut ones, longer ones than their header says, one bit wrong, and empty ones."""
    rng = random.Random(3)
    header, body = _message(1, 500, rng)
    wrong = bytearray(header)
    wrong[20] ^= 1
    datagrams = [
        *(rng.randbytes(size) for size in (0, 1, 47, 48, 63, 64, 65, 1200, 60_000)),
        header,
        header + body[:-1],
        header + body + b"x",
        bytes(wrong) + body,
    ]

    async def work() -> None:
        async with Bench() as bench:
            with _stranger() as stranger:
                for datagram in datagrams:
                    stranger.sendto(datagram, ("127.0.0.1", bench.sock.port))
                bench.link.send([header, body])
                await bench.there.until(lambda: bench.there.got)
                assert bench.there.got == [(1, body)] and len(bench.there.opened) == 1
                # an empty one is nothing
                assert bench.sock.counters.foreign == len(datagrams) - 1 + KNOCKS
                stranger.setblocking(False)
                with pytest.raises(BlockingIOError):
                    stranger.recv(10)

    run(work)


@pytest.mark.parametrize("seed", range(20 * ROUNDS))
def test_no_read_raises_or_makes_a_message_of_what_is_none(seed):
    """Random bytes and genuine pieces, joined in every way that a kernel, or a broken one, may say."""
    rng = random.Random(seed)
    data = b"".join(
        b"".join(_message(number, rng.choice((16, 100, 300)), rng))
        if rng.random() < 0.5
        else rng.randbytes(rng.randrange(400))
        for number in range(8)
    )

    async def work() -> None:
        async with Bench() as bench:
            for segment in (1, 47, 64, 148, 348, len(data), 1 << 20, rng.randrange(1, 400)):
                runs: list = []
                start = rng.randrange(1000)
                bench.sock._landing.view[start : start + len(data)] = data
                bench.sock._open(Stretch(start, start + len(data), segment), runs)
                for run in runs:
                    for header, body in run.messages():
                        assert header.length == len(body)

    asyncio.run(work())


def test_what_came_faster_than_it_was_read_is_counted():
    rng = random.Random(1)

    async def work() -> None:
        async with Bench() as bench:
            assert bench.server.describe()[0]["overrun"] == 0
            bench.sock._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for number in range(50):  # nobody reads meanwhile
                bench.link.send(_message(number, 1000, rng))
            assert bench.server.describe()[0]["overrun"] > 0

    asyncio.run(work())


def test_links_of_nobody_are_bounded_and_the_oldest_goes(run):
    """Whoever repeats genuine datagrams from many ports has at most so many links; proved ones stay."""
    rng = random.Random(3)
    header, body = _message(1, 100, rng)

    async def work() -> None:
        async with Bench() as bench:
            with ExitStack() as strangers:
                await beset(bench, strangers)

    async def beset(bench: Bench, strangers: ExitStack) -> None:
        bench.link.send([header, body])
        await bench.there.until(lambda: bench.there.opened)
        mine = bench.there.opened[0]
        bench.there.proved.add(mine)
        for count in range(2, UNPROVED_MAX + 22):
            stranger = strangers.enter_context(_stranger())
            stranger.sendto(header + body, ("127.0.0.1", bench.sock.port))
            await bench.there.until(lambda: len(bench.there.opened) == count)  # noqa: B023
        await bench.there.until(lambda: len(bench.there.closed) == 20)
        assert len(bench.sock.links) == UNPROVED_MAX + 1
        assert [link for link, _ in bench.there.closed] == bench.there.opened[1:21]
        assert bench.sock.links[mine.address] is mine

    run(work)


def test_a_closed_link_is_forgotten_and_its_address_makes_a_new_one(run):
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            bench.link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            bench.there.opened[0].close()
            await bench.there.until(lambda: bench.there.closed)
            assert not bench.sock.links
            bench.link.send(_message(2, 100, rng))
            await bench.there.until(lambda: len(bench.there.got) == 2)
            assert len(bench.there.opened) == 2

    run(work)


def test_a_node_that_listens_dials_from_there_and_one_link_serves_both(run):
    """One NAT binding for all; a dial to whom has dialled us takes the accepted link's place."""
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            other = await bench.client.serve(Endpoint("udp", "127.0.0.1", 0), CODEC, bench.here)
            link = await bench.dial(bench.sock.port)
            assert link.sock is other.sock
            link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            (accepted,) = bench.there.opened
            assert accepted.address == ("127.0.0.1", other.sock.port)
            back = await bench.server.connect(
                Endpoint("udp", "127.0.0.1", other.sock.port), CODEC, bench.there
            )
            await bench.there.until(lambda: bench.there.closed)
            assert bench.there.closed == [(accepted, "dialled anew")]
            link.send(_message(2, 100, rng))
            await bench.there.until(lambda: len(bench.there.got) == 2)
            assert bench.there.by[-1] is back and len(bench.there.opened) == 1

    run(work)


def test_answers_leave_from_the_address_that_was_dialled(run):
    """A server with several addresses, listening on all: another source would be a stranger to the client."""
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            everywhere = await bench.listen("0.0.0.0")
            link = await bench.client.connect(
                Endpoint("udp", "127.0.0.2", everywhere.port), CODEC, bench.here
            )
            link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            (accepted,) = bench.there.opened
            assert accepted.local == f"udp://127.0.0.2:{everywhere.port}"
            accepted.send(_message(2, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            assert bench.here.by == [link]
            Kernel(everywhere).failures = [errno.EINVAL]  # the address is gone
            accepted.send(_message(3, 100, rng))
            await bench.here.until(lambda: len(bench.here.got) == 2)
            assert not accepted.ancillary

    run(work)


def test_dialled_links_move_to_a_fresh_socket_and_go_on(run):
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            before = bench.link.local
            bench.link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            bench.client.rebind()
            assert bench.link.local != before and not bench.here.closed
            bench.link.send(_message(2, 100, rng))
            await bench.there.until(lambda: len(bench.there.got) == 2)
            assert [link.remote for link in bench.there.opened] == [before, bench.link.local]
            bench.there.opened[1].send(_message(3, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            assert bench.here.by == [bench.link]

    run(work)


def test_links_of_a_socket_that_listens_no_more_go_on_from_another(run):
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            accepted = await bench.accepted(rng)
            bench.server.unlisten(bench.sock)
            async with asyncio.timeout(PATIENCE_S):
                while accepted.sock is bench.sock:
                    await asyncio.sleep(0.01)
            accepted.send(_message(2, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            assert accepted.sock is not bench.sock and not bench.there.closed
            (row,) = bench.server.describe()
            assert not row["listening"] and row["links"] == 1

    run(work)


def test_links_go_on_at_the_same_port_where_a_listener_is_replaced(run):
    """As in a reload from one address to a wider one: the peers notice nothing."""
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            accepted = await bench.accepted(rng)
            port = bench.sock.port
            await bench.listen()  # another one, which could have the links
            bench.server.unlisten(bench.sock)
            wider = await bench.server.serve(Endpoint("udp", "0.0.0.0", port), CODEC, bench.there)
            for number in range(2, 12):  # the peer sends all the while
                bench.link.send(_message(number, 100, rng))
                await asyncio.sleep(udp.PARTING_S / 5)
            await bench.there.until(lambda: len(bench.there.got) == 11)
            accepted.send(_message(12, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            assert accepted.sock is wider.sock and set(bench.there.by) == {accepted}
            assert bench.there.opened == [accepted] and not bench.there.closed
            assert bench.here.by == [bench.link] and not bench.here.opened

    run(work)


@pytest.mark.parametrize("is_proved", [True, False])
def test_a_proved_link_that_moves_ends_an_unproved_one_of_the_same_peer(run, is_proved):
    """As where a listener is replaced by one at another port, to which the peer has found by itself."""
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            accepted = await bench.accepted(rng)
            if is_proved:
                bench.there.proved.add(accepted)
            other = await bench.listen()
            newer = bench.server.accept(other, accepted.address)
            bench.server.unlisten(bench.sock)
            await bench.there.until(lambda: bench.there.closed)
            stays, ends = (accepted, newer) if is_proved else (newer, accepted)
            assert [link for link, _ in bench.there.closed] == [ends]
            assert other.links == {accepted.address: stays} and stays.sock is other

    run(work)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dial_to_where_nobody_is_ends_refused(run, host):
    """So that a node that was killed counts as dead at once, over UDP alone too."""

    async def work() -> None:
        async with Bench(host) as bench:
            bench.sock.close()
            link = await bench.dial(bench.sock.port)
            await bench.here.until(lambda: (link, "closed") in bench.here.closed)
            assert (link, "refused") in bench.here.closed
            assert link.address not in link.sock.links

    run(work)


def test_a_link_whose_peer_was_killed_ends_refused_with_the_first_repeated_question(
    run, monkeypatch
):
    monkeypatch.setattr(udp_socket, "QUIET_S", 0.05)
    monkeypatch.setattr(knock, "SILENCE_S", 0.05)
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            bench.link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)
            bench.there.opened[0].send(_message(2, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            bench.sock.close()
            for serial in range(100):
                bench.link.send(_message(3 + serial, 100, rng))
                if bench.here.closed:
                    break
                await asyncio.sleep(0.02)
            assert bench.here.closed[0] == (bench.link, "refused")

    run(work)


def test_what_is_seldom_sent_and_never_answered_raises_no_question(run):
    """Keep-alives: an idle node would else ask, and wake up, with each of them."""
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            bench.link.heard()
            bench.link.send(_message(1, 100, rng))
            bench.link.asked_at -= udp_socket.RECENT_S + 1  # so long ago was that
            bench.link.send(_message(2, 100, rng))
            assert bench.link.knock is None
            bench.link.asked_at -= udp_socket.QUIET_S + 1
            bench.link.send(_message(3, 100, rng))
            assert bench.link.knock is not None

    run(work)


def test_a_refusal_of_a_link_that_is_heard_counts_for_nothing(run, monkeypatch):
    """A router may refuse what does not come from the link's own port; ICMP can be forged."""
    monkeypatch.setattr(knock, "SILENCE_S", 0.1)
    rng = random.Random(3)

    async def work() -> None:
        async with Bench() as bench:
            accepted = await bench.accepted(rng)
            asked = bench.link.knock
            assert asked is not None
            asked.cancel()  # as if the refusal had just been read
            asked._timer = asyncio.get_running_loop().call_later(0.1, bench.link._refused)
            accepted.send(_message(2, 100, rng))
            await bench.here.until(lambda: bench.here.got)
            await asyncio.sleep(0.2)
            assert not bench.here.closed

    run(work)


def test_without_a_descriptor_for_the_question_the_message_leaves_all_the_same(run, monkeypatch):
    """The question whether anybody is there is asked in passing: that it cannot be is no failure."""
    rng = random.Random(3)

    def none_left(*words):
        raise OSError(errno.EMFILE, "Too many open files")

    async def work() -> None:
        async with Bench() as bench:
            bench.link.heard()
            bench.link.is_unanswered = True
            bench.link.asked_at = asyncio.get_running_loop().time() - udp_socket.QUIET_S
            monkeypatch.setattr(
                knock, "socket", SimpleNamespace(socket=none_left, SOCK_DGRAM=socket.SOCK_DGRAM)
            )
            bench.link.send(_message(1, 100, rng))
            await bench.there.until(lambda: bench.there.got)

    run(work)


def test_no_way_there_is_an_error_of_the_dial():
    async def work() -> None:
        async with Bench() as bench:
            with pytest.raises(OSError):
                await bench.client.connect(Endpoint("udp", "255.255.255.255", 9), CODEC, bench.here)

    asyncio.run(work())


def test_a_port_in_use_is_an_error_of_the_listener():
    async def work() -> None:
        async with Bench() as bench:
            with pytest.raises(OSError):
                await bench.server.serve(
                    Endpoint("udp", "127.0.0.1", bench.sock.port), CODEC, bench.there
                )

    asyncio.run(work())


def test_sizes_follow_the_interface_and_are_never_below_the_base(monkeypatch):
    async def work(mtu: int) -> int:
        monkeypatch.setattr(gso, "route", lambda *words: (mtu, "127.0.0.1"))
        async with Bench() as bench:
            assert bench.link.caps.payload_size_base == PAYLOAD_BASE == 1200 - 48
            assert bench.link.sock.has_no_fragments
            return bench.link.caps.payload_size_max

    assert asyncio.run(work(1500)) == 1500 - 20 - 8 - 48
    assert asyncio.run(work(9000)) == 9000 - 20 - 8 - 48
    assert asyncio.run(work(65_536)) == 65_535 - 20 - 8 - 48
    assert asyncio.run(work(552)) == PAYLOAD_BASE  # a forged "too large" cannot make it less


def test_where_fragments_cannot_be_forbidden_no_message_is_above_the_base(monkeypatch):
    monkeypatch.setattr(gso, "forbid_fragments", lambda sock: False)

    async def work() -> None:
        async with Bench() as bench:
            assert bench.link.caps.payload_size_max == PAYLOAD_BASE

    asyncio.run(work())


def test_each_node_has_sockets_of_its_own():
    assert isinstance(PLUGIN, PluginFactory)
    one, two = PLUGIN.for_node(), PLUGIN.for_node()
    assert isinstance(one, NodePlugin) and one is not two and udp.PLUGIN.scheme == "udp"


def test_without_privileges_the_kernel_gives_what_it_allows_and_that_is_told(monkeypatch, caplog):
    monkeypatch.setattr(gso, "SO_RCVBUFFORCE", 9999)  # refused, as to all but root
    monkeypatch.setattr(gso, "SO_SNDBUFFORCE", 9999)
    monkeypatch.setattr(gso, "BUFFER_WANTED", 1 << 30)  # more than any system allows
    caplog.set_level("INFO")

    async def work() -> None:
        async with Bench() as bench:
            row = bench.server.describe()[0]
            sock = bench.sock._sock
            assert (
                row["receive_buffer"] == sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
            )
            assert row["send_buffer"] == sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
            assert 4096 < row["receive_buffer"] < 1 << 30
            assert f"gave {row['receive_buffer'] >> 10} KiB to receive" in caplog.text

    asyncio.run(work())
