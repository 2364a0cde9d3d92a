"""Relaying: what passes, in whose turn, and what is dropped."""

from __future__ import annotations

import random

import pytest

from uservpn.node import relay
from uservpn.node.relay import Freshness, Relay, RelayQueue, Waiting, next_hop
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing

KEYS = (bytes(32), bytes(range(32)))
CODEC = HeaderCodec(KeyRing(KEYS))


def _header(origin=1, destination=9, hops=(2, 0), boot=1, number=0, codec=CODEC, length=100):
    packed = pack_fields(
        1, origin, destination, length, boot, number, b"\1\2\3", hops[0] << 8 | hops[1]
    )
    header = codec.open(codec.seal(packed))
    assert header is not None
    return header


def _put(queue: RelayQueue, origin: int, size: int, at: float = 0.0) -> int:
    return queue.put(Waiting(_header(origin), bytes(size), False, at))


def test_each_hop_knows_the_one_before_and_the_next():
    one, two = _header(hops=(2, 0)), _header(hops=(2, 3))
    assert next_hop(one, 2) == (1, 9)
    assert next_hop(two, 2) == (1, 3)
    assert next_hop(two, 3) == (2, 9)
    assert next_hop(one, 3) is None and next_hop(_header(hops=(0, 0)), 2) is None


@pytest.mark.parametrize("hops", [(1, 0), (9, 0), (2, 2), (2, 1), (2, 9), (0, 2), (255, 2)])
def test_a_way_that_holds_a_node_twice_or_no_node_leads_nowhere(hops):
    header = _header(hops=hops)
    assert all(next_hop(header, me) is None for me in (1, 2, 9))


@pytest.mark.parametrize("key", KEYS)
def test_a_relay_stamps_and_changes_nothing_else(key):
    """Under the key it came with: the mesh may be in the middle of changing it."""
    theirs = HeaderCodec(KeyRing([key]))
    header = CODEC.open(theirs.seal(pack_fields(1, 1, 9, 100, 7, 5, b"\1\2\3", 2 << 8 | 3)))
    assert header is not None
    first = theirs.open(CODEC.reseal(header, False, b"\4\5\6"))
    second = theirs.open(CODEC.reseal(header, True, b"\4\5\6"))
    assert first is not None and second is not None
    assert (first.stamp_hop1, first.stamp_hop2) == (b"\4\5\6", b"\0\0\0")
    assert (second.stamp_hop1, second.stamp_hop2) == (b"\0\0\0", b"\4\5\6")
    for passed in (first, second):
        assert passed.associated == header.associated
        assert (passed.hop1, passed.hop2, passed.stamp) == (2, 3, b"\1\2\3")


def test_nothing_passes_twice_nor_from_a_boot_that_is_gone():
    seen = Freshness()
    assert seen.admit(_header(number=5)) and not seen.admit(_header(number=5))
    assert seen.admit(_header(number=4)), "several ways: the order may change"
    assert seen.admit(_header(boot=2, number=5))
    assert not seen.admit(_header(boot=1, number=6))
    assert seen.admit(_header(destination=8, number=5))


def test_a_pair_that_was_forgotten_lets_nothing_old_pass(monkeypatch):
    monkeypatch.setattr(relay, "FLOWS_MAX", 2)
    seen = Freshness()
    assert seen.admit(_header(number=7))
    for destination in (10, 11, 12):
        assert seen.admit(_header(destination=destination))
    assert not seen.admit(_header(number=7)) and not seen.admit(_header(number=3))
    assert seen.admit(_header(number=8))


def test_origins_take_turns_by_bytes():
    queue = RelayQueue()
    for _ in range(40):
        _put(queue, 1, 64 << 10)
    for _ in range(400):
        _put(queue, 5, 1 << 10)
    taken, _ = queue.take(1 << 20, 0.0)
    sizes = {1: 0, 5: 0}
    for waiting in taken:
        sizes[waiting.header.origin] += len(waiting.body)
    assert sizes[5] >= 256 << 10, "the busy one leaves the other its share"


def test_the_origin_with_most_loses_its_newest_when_the_queue_is_full():
    queue = RelayQueue()
    assert _put(queue, 5, 1000) == 0
    dropped = sum(_put(queue, 1, 64 << 10) for _ in range(100))
    assert queue.size <= relay.QUEUE_MAX and dropped > 0
    taken, _ = queue.take(1 << 30, 0.0)
    assert sum(1 for waiting in taken if waiting.header.origin == 5) == 1
    assert queue.size == 0


def test_small_messages_are_bounded_by_their_count():
    queue = RelayQueue()
    assert _put(queue, 5, 16) == 0
    dropped = sum(_put(queue, 1, 16) for _ in range(relay.COUNT_MAX + 99))
    assert queue.count == relay.COUNT_MAX and dropped == 100
    taken, _ = queue.take(1 << 30, 0.0)
    assert sum(1 for waiting in taken if waiting.header.origin == 5) == 1
    assert queue.count == queue.size == 0


def test_what_waited_too_long_is_dropped():
    queue = RelayQueue()
    _put(queue, 1, 100, at=0.0)
    _put(queue, 1, 100, at=1.9)
    taken, dropped = queue.take(1 << 20, relay.QUEUE_S + 0.5)
    assert (len(taken), dropped) == (1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_sizes_add_up_whatever_happens(seed):
    rng = random.Random(seed)
    station = Relay(2)
    put = 0
    got = 0
    for step in range(500):
        now = step / 100
        if rng.random() < 0.6:
            station.put(_header(rng.choice((1, 5, 6))), bytes(rng.randrange(1, 200_000)), 9, now)
            put += 1
        elif 9 in station.queues:
            got += len(station.take(9, rng.randrange(1, 500_000), now))
        queue = station.queues.get(9)
        if queue is not None:
            assert 0 < queue.size <= relay.QUEUE_MAX
    lost = station.counters.dropped
    left = len(station.drop(9))
    assert put == got + lost + left and station.counters.passed == got
    assert station.counters.dropped == lost + left and station.queues == {}
