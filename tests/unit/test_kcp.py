"""KCP links: when segments leave, what KCP tells of them, what a datagram shows, and who gets an answer."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import uvloop

from drivers import make_driver
from uservpn.kit.endpoint import Endpoint
from uservpn.links import gso, kcp, tcp
from uservpn.links.kcp import (
    ANSWER_S,
    CAPS,
    HEAD,
    MANY,
    MINRTO_MS,
    MTU,
    MUTE_MAX,
    SMALL,
    UNPROVED_MAX,
    KcpDialler,
    KcpListener,
    KcpPlugin,
    KcpSession,
)
from uservpn.links.stream import stream_caps
from uservpn.wire.constants import Kind
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing


class Lossy:
    """Two sessions whose datagrams take a turn of the event loop, or get lost."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.near = KcpSession(7, lambda data: self.carry(self.far, data), lambda: None)
        self.far = KcpSession(7, lambda data: self.carry(self.near, data), lambda: None)
        self.sent: list[int] = []
        self.is_hole = False

    def carry(self, session: KcpSession, data: bytes) -> None:
        self.sent.append(len(data))
        if not self.is_hole:
            self.loop.call_soon(session.receive, data)

    async def turns(self, count: int = 10) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so():
                await asyncio.sleep(0.001)

    def close(self) -> None:
        self.near.abort()
        self.far.abort()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_written_leaves_in_the_same_turn_also_while_a_timer_runs(run) -> None:
    async def main() -> None:
        pair = Lossy()
        pair.is_hole = True
        for number in range(
            1, 4
        ):  # from the second on, what waits for its acknowledgement has a timer
            pair.near.writelines([b"key stroke"])
            await pair.turns(3)
            assert len(pair.sent) == number
        pair.close()

    run(main())


def test_what_is_small_leaves_before_bulk_of_another_session() -> None:
    async def main() -> None:
        sent: list[str] = []
        bulk = KcpSession(1, lambda data: sent.append("bulk"), lambda: None)
        small = KcpSession(2, lambda data: sent.append("small"), lambda: None)
        bulk.writelines([bytes(SMALL + 1)])
        small.writelines([b"key stroke"])
        assert sent == ["small"]
        await asyncio.sleep(0)
        assert sent[1:] == ["bulk"] * 3
        bulk.abort()
        small.abort()

    uvloop.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_comes_while_the_loop_is_busy_waits_in_large_buffers(run, monkeypatch) -> None:
    """The system's own hold 92 datagrams: a busy listener would lose those of all sessions."""

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            gso.size_buffers(other)
            most = other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        made: list = []
        begin = KcpDialler.connection_made

        def note(dialler, transport) -> None:
            made.append(transport.get_extra_info("socket"))
            begin(dialler, transport)

        monkeypatch.setattr(KcpDialler, "connection_made", note)
        judge, codec = Judge(), HeaderCodec(KeyRing([bytes(32)]))
        listener = await KcpPlugin().serve(Endpoint("kcp", "127.0.0.1", 0), codec, judge)
        port = listener._transport.get_extra_info("sockname")[1]
        link = await KcpPlugin().connect(Endpoint("kcp", "127.0.0.1", port), codec, judge)
        for sock in (listener._transport.get_extra_info("socket"), made[-1]):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == most
        link.close()
        listener._transport.abort()

    run(main())


def test_a_round_trip_is_measured_to_the_moment_its_acknowledgement_comes() -> None:
    """Not to the last update, which may be longer ago than the round trip takes."""

    async def main() -> None:
        pair = Lossy()
        pair.is_hole = True
        pair.near.writelines([bytes(100)])
        await pair.turns(3)  # it has left, and is lost
        kcp = pair.near._kcp
        kcp.current = 1  # long ago
        pair.near.receive(bytes(24))
        assert kcp.current > 1
        pair.close()

    uvloop.run(main())


def test_what_kcp_tells_of_its_segments() -> None:
    async def main() -> None:
        pair, size = Lossy(), MTU - HEAD
        pair.near.writelines([bytes(40 * size)])
        await pair.until(lambda: pair.near.held() == 0)
        below = pair.near.below()
        assert (below.delivered, below.inflight, below.unsent) == (40 * size, 0, 0)
        assert below.resent <= 2 * MTU, "nothing was lost"
        pair.is_hole = True
        pair.near.writelines([bytes(20 * size)])
        await pair.turns()
        assert pair.near.below().inflight == 20 * size == pair.near.held()
        assert pair.near.below().delivered == 40 * size
        before = len(pair.sent)
        await pair.until(lambda: len(pair.sent) >= before + 20)  # resent after a time-out
        assert pair.near.below().resent >= 18 * MTU
        pair.close()

    uvloop.run(main())


def test_who_acknowledges_nothing_is_told_from_one_that_answers() -> None:
    async def main() -> None:
        pair = Lossy()
        pair.near.writelines([bytes(100)])
        await pair.until(lambda: pair.near.held() == 0)
        assert not pair.near.is_resending()
        pair.is_hole = True
        pair.near.writelines([bytes(100)])
        await pair.turns()
        assert not pair.near.is_resending(), "there was no time yet for an answer"
        await pair.until(pair.near.is_resending)
        pair.is_hole = False
        await pair.until(lambda: pair.near.held() == 0)
        assert not pair.near.is_resending()
        pair.close()

    uvloop.run(main())


def test_one_lost_segment_is_no_silence() -> None:
    """What was sent again may be answered yet. Else few small messages on a lossy path make a link silent."""

    async def main() -> None:
        pair = Lossy()
        pair.is_hole = True
        pair.near.writelines([bytes(100)])
        await pair.until(lambda: len(pair.sent) == 2)  # again, after KCP's time-out
        await pair.turns()
        assert not pair.near.is_resending()
        await pair.until(pair.near.is_resending)
        pair.close()

    uvloop.run(main())


def test_datagrams_that_follow_each_other_closely_have_one_answer() -> None:
    """Each answer costs a datagram, and work along all segments under way at the other end."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sent: list[bytes] = []
        answers: list[bytes] = []
        near = KcpSession(7, sent.append, lambda: None)
        far = KcpSession(7, answers.append, lambda: None)
        near.writelines([bytes(40 * (MTU - HEAD))])
        await asyncio.sleep(0)
        assert len(sent) == 40
        began = loop.time()
        for datagram in sent[:40]:
            far.receive(datagram)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        while len(b"".join(answers)) < 40 * HEAD:
            await asyncio.sleep(0.001)
        assert len(answers) <= 2 + (loop.time() - began) / ANSWER_S
        assert loop.time() - began < 1
        near.abort()
        far.abort()

    uvloop.run(main())


def test_with_many_segments_under_way_a_growing_queue_resends_nothing() -> None:
    """Later segments tell of a gap: the time-out need not be close to the round trip. A few have only it."""

    async def main() -> None:
        pair, size = Lossy(), MTU - HEAD
        pair.near.writelines([bytes(40 * size)])
        await pair.until(lambda: pair.near.held() == 0)
        pair.is_hole = True
        kcp = pair.near._kcp
        for count, least_ms in ((MANY, MINRTO_MS), (1, 2 * kcp.rx_srtt)):
            pair.near.writelines([bytes(count * size)])
            await pair.turns()
            pair.near.writelines([b""])
            await pair.turns()
            assert kcp.rx_minrto == least_ms
        pair.close()

    uvloop.run(main())


def test_the_node_knows_that_kcp_costs_work_of_ours_and_tcp_does_not() -> None:
    async def main() -> None:
        for caps, is_costly in ((CAPS, True), (tcp.CAPS, False), (stream_caps("x", False), False)):
            driver = make_driver({}, 1, {})
            link = SimpleNamespace(id=driver.new_link_id(), caps=caps, remote="x://x")
            driver.link_opened(link)
            entry = driver.node.links[link.id]
            assert entry.is_costly is is_costly
            assert entry.new_path(link.id).is_costly is is_costly

    uvloop.run(main())


def test_a_sealed_datagram_opens_under_any_listed_key_and_is_never_the_same():
    old, new = os.urandom(32), os.urandom(32)
    sender, receiver = HeaderCodec(KeyRing([old])), HeaderCodec(KeyRing([new, old]))
    sealed = [sender.seal_datagram(b"segment" * 10) for _ in range(50)]
    assert len(set(sealed)) == 50
    assert {receiver.open_datagram(data) for data in sealed} == {b"segment" * 10}


@pytest.mark.parametrize("size", [0, 1, 15, 16, 48, 1000])
def test_anything_else_is_foreign(size):
    codec = HeaderCodec(KeyRing([bytes(32)]))
    assert codec.open_datagram(os.urandom(size)) is None
    sealed = bytearray(codec.seal_datagram(os.urandom(size)))
    sealed[-1] ^= 1
    assert codec.open_datagram(bytes(sealed)) is None
    assert codec.open(codec.seal_datagram(bytes(28))) is None, "a datagram is no header"


# --- who gets an answer --------------------------------------------------------------------------


class Recording(KcpListener):
    """Keeps what came."""

    def __init__(self, codec, owner) -> None:
        super().__init__(codec, owner)
        self.came: list[bytes] = []

    def datagram_received(self, data, addr) -> None:
        self.came.append(data)
        super().datagram_received(data, addr)


async def _within(is_so: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_replay_draws_no_answer_and_harms_no_session(run, monkeypatch) -> None:
    """With real nodes: recordings of all that a client sent, again and again, from other ports."""

    async def main() -> None:
        monkeypatch.setattr(kcp, "KcpListener", Recording)
        server = make_driver({}, 1, {})
        listener = await KcpPlugin().serve(
            Endpoint("kcp", "127.0.0.1", 0), server.node.codec, server
        )
        port = listener._transport.get_extra_info("sockname")[1]
        client = make_driver({"kcp": KcpPlugin()}, 7, {1: (f"kcp://127.0.0.1:{port}",)})
        client.start()
        await _within(lambda: 7 in server.node.peers and bool(server.links))
        (link,) = server.links.values()
        await _within(lambda: server.link_is_proved(link) and link.session.held() == 0)
        strangers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(300)]
        try:
            recorded = listener.came[:8]
            assert recorded
            due = len(listener.came)
            for number, stranger in enumerate(strangers):
                stranger.setblocking(False)
                stranger.connect(("127.0.0.1", port))
                for data in recorded:
                    stranger.send(data)
                due += len(recorded)
                if number % 10 == 9:  # no more than a socket's buffer holds
                    await _within(lambda: len(listener.came) >= due)  # noqa: B023
            await asyncio.sleep(0.3)
            for stranger in strangers:
                with pytest.raises(BlockingIOError):
                    stranger.recv(2048)
            assert len(listener._sessions) <= 1 + UNPROVED_MAX
            assert link.session in listener._sessions.values() and link.id in server.links
            heard = link.bytes_in
            next(iter(client.links.values())).session.writelines([b"x"])
            await _within(lambda: link.bytes_in > heard)
        finally:
            for stranger in strangers:
                stranger.close()
            await client.close()
            await server.close()
            listener._transport.abort()

    run(main())


class Judge:
    """An owner that answers, or proves, what it chooses."""

    def __init__(self) -> None:
        self.last_id = 0
        self.opened: list = []
        self.closed: list = []
        self.proved: set = set()
        self.on_message: Callable = lambda link: None

    def new_link_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def link_opened(self, link) -> None:
        self.opened.append(link)

    def link_runs(self, link, runs) -> None:
        self.on_message(link)

    def link_progress(self, link) -> None: ...

    def link_is_proved(self, link) -> bool:
        return link in self.proved

    def link_closed(self, link, reason) -> None:
        self.closed.append(link)


class Sink:
    """A socket of which only the datagrams count that were sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, object]] = []
        self.socket = SimpleNamespace(setsockopt=lambda *_: None, getsockopt=lambda *_: 0)

    def sendto(self, data, addr) -> None:
        self.sent.append((data, addr))

    def get_extra_info(self, name):
        return self.socket if name == "socket" else ("127.0.0.1", 1)

    def close(self) -> None: ...


class Listening:
    """A listener, and the sealed datagrams of dialled sessions, which are brought to it by hand."""

    def __init__(self) -> None:
        self.codec = HeaderCodec(KeyRing([bytes(32)]))
        self.judge, self.sink = Judge(), Sink()
        self.listener = KcpListener(self.codec, self.judge)
        self.listener.connection_made(self.sink)

    def message(self) -> list[bytes]:
        return [self.codec.seal(pack_fields(Kind.DATA, 9, 1, 5, 5, 1, b"\0\0\0")), b"hello"]

    async def segments(self, conversation: int, count: int = 1) -> list[bytes]:
        """The datagrams of a session that writes so many messages, and hears nothing."""
        sent: list[bytes] = []
        session = KcpSession(conversation, sent.append, lambda: None)
        for _ in range(count):
            session.writelines(self.message())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        session.abort()
        assert len(sent) == count
        return sent

    def bring(self, segments: bytes, place: int = 1) -> None:
        self.listener.datagram_received(self.codec.seal_datagram(segments), ("127.0.0.1", place))

    def close(self) -> None:
        for session in list(self.listener._sessions.values()):
            session.abort()


@pytest.mark.parametrize("how", ["answered", "proved", "neither"])
def test_a_session_is_acknowledged_once_it_is_answered_or_proved(how) -> None:
    async def main() -> None:
        bench = Listening()
        if how == "answered":
            bench.judge.on_message = lambda link: link.send(bench.message())
        elif how == "proved":
            bench.judge.on_message = bench.judge.proved.add
        (first,) = await bench.segments(7)
        bench.bring(first)
        await asyncio.sleep(0.05)
        assert bool(bench.sink.sent) == (how != "neither")
        if how == "answered":  # in one datagram with its acknowledgement
            opened = bench.codec.open_datagram(bench.sink.sent[0][0])
            assert opened is not None and len(opened) > 2 * HEAD + 48
        bench.close()

    uvloop.run(main())


def test_one_that_is_proved_later_is_acknowledged_with_what_comes_next() -> None:
    async def main() -> None:
        bench = Listening()
        (first,) = await bench.segments(7)
        bench.bring(first)
        await asyncio.sleep(0.02)
        assert not bench.sink.sent
        bench.judge.proved.update(bench.judge.opened)
        bench.bring(first)  # again, since it was not acknowledged
        await asyncio.sleep(0.02)
        assert bench.sink.sent
        bench.close()

    uvloop.run(main())


def test_only_the_first_segment_of_a_stream_begins_a_session() -> None:
    """Behind a restart of the listener, or out of a recording: what is missing before it never comes."""

    async def main() -> None:
        bench = Listening()
        first, second, third = await bench.segments(7, 3)
        for datagram in (third, second):
            bench.bring(datagram)
        assert not bench.judge.opened
        got: list = []
        bench.judge.on_message = got.append
        for datagram in (first, second):
            bench.bring(datagram)
        assert len(bench.judge.opened) == 1 and len(got) == 2
        bench.close()

    uvloop.run(main())


def test_who_is_not_answered_cannot_fill_the_memory() -> None:
    async def main() -> None:
        bench = Listening()
        first, *_, later = await bench.segments(7, 3)
        bench.bring(first)
        for _ in range(MUTE_MAX // len(later) + 1):
            bench.bring(later)
        await asyncio.sleep(0)
        assert not bench.listener._sessions and bench.judge.closed == bench.judge.opened
        bench.bring(first)  # a genuine one is sent again, and begins anew
        assert len(bench.listener._sessions) == 1
        bench.close()

    uvloop.run(main())


def test_replays_take_the_place_of_nobody_who_was_answered_or_is_proved() -> None:
    async def main() -> None:
        bench = Listening()
        (first,) = await bench.segments(7)
        judge = bench.judge
        judge.on_message = judge.proved.add
        bench.bring(first, 1)
        judge.on_message = lambda link: link.send(bench.message())
        bench.bring(first, 2)
        judge.on_message = lambda link: None
        proved, answered = judge.opened
        for place in range(3, 3 + 3 * UNPROVED_MAX):
            bench.bring(first, place)
        await asyncio.sleep(0)
        assert len(bench.listener._sessions) == UNPROVED_MAX + 1
        assert proved not in judge.closed and answered not in judge.closed
        assert judge.closed == judge.opened[2 : 2 + len(judge.closed)], "the oldest ones ended"
        bench.close()

    uvloop.run(main())


def test_a_proved_session_ends_only_for_another_proved_one(monkeypatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(kcp, "SESSIONS_MAX", 10)
        bench = Listening()
        (first,) = await bench.segments(7)
        judge = bench.judge
        judge.on_message = judge.proved.add
        for place in range(12):
            bench.bring(first, place)
        judge.on_message = lambda link: None
        for place in range(12, 12 + 2 * UNPROVED_MAX):
            bench.bring(first, place)
        await asyncio.sleep(0)
        living = [
            link for link in judge.opened if link in judge.proved and link not in judge.closed
        ]
        assert living == judge.opened[2:12]
        assert len(bench.listener._sessions) <= 10 + UNPROVED_MAX
        bench.close()

    uvloop.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_memory_of_a_session_that_ended_is_free_at_once(run) -> None:
    """KCP's own object is not seen by the garbage collector: a circle through it would stay for ever."""

    async def main() -> None:
        bench = Listening()
        (first,) = await bench.segments(7)
        bench.bring(first)
        (link,) = bench.judge.opened
        known = [weakref.ref(link), weakref.ref(link.session)]
        link.close()
        await asyncio.sleep(0.01)
        assert bench.judge.closed == [link]
        assert (link.room(), link.unacknowledged_below(), link.below()) == (0, 0, None)
        link.send(bench.message())
        bench.judge.opened.clear()
        bench.judge.closed.clear()
        del link
        assert [ref() for ref in known] == [None, None]

    run(main())


def test_sessions_whose_old_address_cannot_be_had_again_go_on_with_the_next_socket(
    monkeypatch,
) -> None:
    """A reload that failed, while somebody else took the port: the next one has the sessions."""

    async def main() -> None:
        server = make_driver({}, 1, {})
        plugin, codec = KcpPlugin(), server.node.codec
        listener = await plugin.serve(Endpoint("kcp", "127.0.0.1", 0), codec, server)
        port = listener.address.port
        client = make_driver({"kcp": KcpPlugin()}, 7, {1: (f"kcp://127.0.0.1:{port}",)})
        client.start()
        await _within(lambda: 7 in server.node.peers and bool(server.links))
        try:
            (link,) = server.links.values()
            await _within(lambda: server.link_is_proved(link))
            listener.close()
            with monkeypatch.context() as patch:

                def taken(*_):
                    raise OSError(errno.EADDRINUSE, "taken")

                patch.setattr(kcp, "_bound", taken)
                for host in ("0.0.0.0", "127.0.0.1"):
                    with pytest.raises(OSError):
                        await plugin.serve(Endpoint("kcp", host, port), codec, server)
            wider = await plugin.serve(Endpoint("kcp", "0.0.0.0", port), codec, server)
            heard = link.bytes_in
            next(iter(client.links.values())).session.writelines([b"x"])
            await _within(lambda: link.bytes_in > heard)
            assert link.id in server.links and link.session in wider._sessions.values()
        finally:
            await client.close()
            await server.close()
            for one in plugin._listeners:
                if one._transport is not None:
                    one._transport.abort()

    uvloop.run(main())
