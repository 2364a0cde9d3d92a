"""KCP links without a network: when segments leave, what KCP tells of them, and what a datagram shows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import uvloop

from drivers import make_driver
from uservpn.links import tcp
from uservpn.links.kcp import ANSWER_S, CAPS, HEAD, MANY, MINRTO_MS, MTU, KcpSession
from uservpn.links.stream import stream_caps
from uservpn.wire.header import HeaderCodec
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
