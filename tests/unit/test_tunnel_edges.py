"""Edges of the tunnel alone: lost tails, hostile frames, what is kept and for how long."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from uservpn.errors import Fault, PeerFault, StreamFault
from uservpn.kit.slots import Slots
from uservpn.tunnel import limits
from uservpn.tunnel.events import Data, Finished
from uservpn.tunnel.path import Path
from uservpn.tunnel.tunnel import Tunnel
from uservpn.wire import frames
from uservpn.wire.constants import Kind
from world import take

ROOM = 1 << 19
SIZE = 60_000


def _tunnel(me=7, peer=1):
    tunnel = Tunnel(me, peer, lambda limit: 0)
    tunnel.path_up(Path(1), False)
    return tunnel


def _data(seq, *parts):
    return frames.SEQ.pack(seq) + b"".join(parts)


def _chunk(stream, offset, chunk):
    return frames.DATA_HEAD.pack(frames.DATA, stream, offset, len(chunk)) + chunk


def _accepted():
    """An exit's end with one accepted stream (number 1), and nothing waiting."""
    sink = _tunnel(1, 7)
    sink.receive(Kind.DATA, _data(0, frames.open_frame(1, 1 << 18, b"site.test", 80)), 0.0)
    (offered,) = sink.take_events()
    sink.accept(offered.stream)
    take(sink, ROOM, SIZE, 0.0)
    return sink, offered.stream


def test_the_tail_is_asked_for_after_a_report_that_did_not_cover_it():
    """The report says "all below 1" while message 1 is lost: the source must still ask."""
    source = _tunnel()
    stream = source.open("site.test", 80, None)
    take(source, ROOM, SIZE, 0.0)
    source.write(stream, b"tail")
    take(source, ROOM, SIZE, 0.0)  # lost
    source.receive(Kind.SINK, frames.have_frame(1), 0.1)
    assert not source.has_outgoing()
    due = source.next_deadline()
    assert due is not None and due <= 0.1 + limits.ASK_DELAY_S
    source.on_deadline(due)
    ((kind, probe),) = take(source, ROOM, SIZE, due)
    assert kind == Kind.DATA and frames.SEQ.unpack_from(probe)[0] == 2
    have = frames.have_frame(1, 1, [(1, 1)])  # the empty message came, the one before did not
    source.receive(Kind.SINK, have + frames.WANT_FRAME.pack(frames.WANT, 3), due + 0.1)
    late = due + 0.1
    ((kind, again),) = take(source, ROOM, SIZE, late)
    assert kind == Kind.DATA and frames.SEQ.unpack_from(again)[0] == 1 and b"tail" in again
    source.receive(Kind.SINK, frames.have_frame(3), late + 0.1)
    assert source.next_deadline() is None and source.cache_size == 0


@pytest.mark.parametrize(
    "first, second",
    [
        (_chunk(1, 0, b"abc"), _chunk(1, 3, b"d")),  # behind the end, in order
        (b"", _chunk(1, 2, b"cd")),  # across the end, ahead of a gap
        (b"", frames.FIN_FRAME.pack(frames.FIN, 1, 4)),  # another end
    ],
)
def test_data_behind_the_end_is_a_fault_of_the_peer(first, second):
    """It must never reach the owner, whose socket has been shut down."""
    sink, _ = _accepted()
    sink.receive(Kind.DATA, _data(1, first, frames.FIN_FRAME.pack(frames.FIN, 1, 3)), 0.0)
    before = [type(event) for event in sink.take_events()]
    assert before == ([Data, Finished] if first else [])
    with pytest.raises(PeerFault):
        sink.receive(Kind.DATA, _data(2, second), 0.0)
    assert not sink.take_events()


@pytest.mark.parametrize(
    "frame",
    [
        frames.open_frame(3, 1 << 18, b"site.test", 80)[:-1],
        frames.opened_frame(2, Fault.NONE, 1 << 18, b"detail")[:-1],
        frames.OPEN_HEAD.pack(frames.OPEN, 3, 1 << 18, 80, 0),
        frames.open_frame(3, 1 << 18, b"\xff\xfe", 80),
        frames.RESET_FRAME.pack(frames.RESET, 3, 1)[:-1],
        frames.CREDIT_FRAME.pack(frames.CREDIT, 1, 9)[:-1],
        frames.HAVE_HEAD.pack(frames.HAVE, 0, 0, 0, 0, frames.RUNS_MAX + 1),
        frames.HAVE_HEAD.pack(frames.HAVE, 0, 0, 0, 0, 2) + frames.RUN.pack(1, 1),
        frames.have_frame(1 << 40),
        frames.have_frame(0, 0, [(1, 1)]),
        frames.WANT_FRAME.pack(frames.WANT, 2)[:-1],
        b"\x20",
    ],
)
def test_frames_that_do_not_fit_are_a_fault_and_nothing_else(frame):
    sink, _ = _accepted()
    with pytest.raises(PeerFault):
        sink.receive(Kind.DATA, _data(1, frame), 0.0)
    assert not sink.take_events()


def test_many_chunks_behind_one_gap_are_delivered():
    """A whole window of small datagrams, in any order, behind one that was lost."""
    sink, stream = _accepted()
    stream.recv_limit = 16 << 20
    rng = random.Random(1)
    count, size = 3000, 1200
    text = rng.randbytes(count * size)
    order = list(range(1, count))
    rng.shuffle(order)
    for index in [*order, 0]:
        assert not sink.take_events()
        chunk = text[index * size : (index + 1) * size]
        sink.receive(Kind.DATA, _data(1 + index, _chunk(1, index * size, chunk)), 0.0)
    assert b"".join(bytes(event.chunk) for event in sink.take_events()) == text


def test_chunks_cut_anew_that_overlap_are_trimmed():
    sink, stream = _accepted()
    text = bytes(range(100))
    for seq, (start, end) in enumerate([(10, 30), (5, 20), (40, 60), (28, 45), (0, 7), (55, 100)]):
        sink.receive(Kind.DATA, _data(1 + seq, _chunk(1, start, text[start:end])), 0.0)
    assert b"".join(bytes(event.chunk) for event in sink.take_events()) == text
    assert stream.held is None


def test_a_small_chunk_behind_a_gap_does_not_keep_its_whole_message():
    sink, stream = _accepted()
    message = _data(2, _chunk(1, 10, b"x"), bytes(200_000))
    sink.receive(Kind.DATA, message, 0.0)
    assert stream.held is not None
    assert isinstance(stream.held[10], bytes)


def test_what_overtook_its_open_ends_with_all_others_and_is_never_opened():
    sink = _tunnel(1, 7)
    room = sink._table.unread_max
    sink.receive(Kind.DATA, _data(1, *(_chunk(at, 0, b"x") for at in (1, 3, 5))), 0.0)
    assert sink._table.unread_max < room
    sink.fail_all(Fault.FAILED)
    assert sink._table.unread_max == room
    assert len(sink.take_events()) == 3
    opens = (frames.open_frame(at, 1 << 18, b"site.test", 80) for at in (1, 3, 5, 7))
    sink.receive(Kind.DATA, _data(0, *opens), 0.0)
    assert [event.stream.id for event in sink.take_events()] == [7]


@pytest.mark.parametrize("size", [1, 60_000])
def test_what_overtook_its_open_is_taken_whole_or_not_at_all(size):
    """And what did not overtake it is taken however much is held."""
    sink = _tunnel(1, 7)
    for seq in range(1, 400):
        numbers = range(2000 * seq + 1, 2000 * seq + (2000 if size == 1 else 2), 2)
        sink.receive(Kind.DATA, _data(seq, *(_chunk(at, 0, bytes(size)) for at in numbers)), 0.0)
        if numbers[0] not in sink.streams:
            break
    assert sink.inbox._top == seq, "not confirmed"
    assert not sink.streams.keys() & set(numbers)
    early = len(sink.streams)
    assert early <= limits.HELD_EARLY_MAX and early * size <= limits.HELD_EARLY_SIZE
    opens = [frames.open_frame(at, 1 << 18, b"site.test", 80) for at in numbers]
    both = (*opens, *(_chunk(at, 0, bytes(size)) for at in numbers))
    sink.receive(Kind.DATA, _data(seq + 1, *both), 0.0)
    events = sink.take_events()
    assert sum(type(event) is Data for event in events) == len(numbers)


def test_messages_never_exceed_the_link():
    """Ends of many streams, reports of many gaps: all fit the smallest link there is."""
    size_max = 1100
    source = _tunnel()
    streams = [source.open("site.test", 80, None) for _ in range(300)]
    for stream in streams:
        source.write(stream, b"x" * 10)
        source.finish(stream)
    for stream in streams[:50]:
        source.write(stream, b"")
    for seq in range(0, 400, 2):
        source.receive(Kind.DATA, _data(seq + 1), 0.0)
    source.on_deadline(10.0)
    messages = take(source, ROOM, size_max, 10.0)
    assert max(len(data) for _, data in messages) <= size_max


def test_bulk_streams_that_end_together_fit_the_link_too():
    source = _tunnel()
    streams = [source.open("site.test", 80, None) for _ in range(200)]
    for stream in streams:
        stream.send_limit = 1 << 30
        stream.sent_size = stream.send_offset = limits.FRESH_SIZE
    take(source, ROOM, SIZE, 0.0)
    for stream in streams:
        source.write(stream, bytes(limits.SMALL_CHUNK + 1))
        source.finish(stream)
    messages = take(source, 1 << 24, 9000, 0.0)
    assert max(len(data) for _, data in messages) <= 9000


def test_a_tunnel_without_streams_keeps_no_payload():
    """The peer is dead: what it never confirmed is not kept for the day it comes back."""
    source = _tunnel()
    stream = source.open("site.test", 80, None)
    stream.send_limit = 1 << 24
    source.write(stream, bytes(300_000))
    take(source, ROOM, SIZE, 0.0)
    assert source.cache_size > 300_000
    source.fail_all(Fault.EXIT_DEAD)
    assert source.cache_size < 1000 and not source.streams
    sink = _tunnel(1, 7)
    source.path_up(Path(2), True)
    for now in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        for near, far in ((source, sink), (sink, source)):
            near.on_deadline(now)
            for kind, data in take(near, ROOM, SIZE, now):
                far.receive(kind, bytes(data), now)
    assert not sink.streams  # the reset came, its open did not
    assert source.cache_size == 0


def test_confirming_far_above_a_gap_costs_no_more_each_time():
    """Each report names the same ranges again: only what is new in them is work."""
    source = _tunnel()
    stream = source.open("site.test", 80, None)
    stream.send_limit = 1 << 30
    count = 2000
    for _ in range(count):
        source.write(stream, b"x" * 9000)
        take(source, ROOM, SIZE, 0.0)
    top = source.outbox.next_seq
    dropped = []
    drop = source.outbox._drop
    source.outbox._drop = lambda start, end, now: (
        dropped.append(end - start),
        drop(start, end, now),
    )
    for end in range(2, top, 20):
        source.receive(Kind.SINK, frames.have_frame(0, 0, [(1, end - 1)]), 0.0)
    source.receive(Kind.SINK, frames.have_frame(0, 0, [(1, top - 1)]), 0.0)
    assert sum(dropped) == top - 1 and source.cache_size > 0
    source.receive(Kind.SINK, frames.have_frame(top), 0.0)
    assert source.cache_size == 0


def test_stream_numbers_that_run_out_are_a_stream_fault():
    source = _tunnel()
    source._table._next_id = (1 << 32) - 1
    last = source.open("site.test", 80, None)
    with pytest.raises(StreamFault):
        source.open("site.test", 80, None)
    assert list(source.streams) == [last.id]


@pytest.mark.parametrize("seed", range(20))
def test_messages_that_come_together_mean_the_same_as_one_by_one(seed):
    """In runs, with losses, doubles, another order, ends and other frames among them."""
    rng = random.Random(seed)
    sinks = [_accepted(), _accepted()]
    for sink, stream in sinks:
        sink.receive(Kind.DATA, _data(1, frames.open_frame(3, 1 << 18, b"b.test", 80)), 0.0)
        sink.accept(sink.take_events()[0].stream)
        stream.recv_limit = 1 << 20
    sent, offsets = [], {1: 0, 3: 0}
    for seq in range(2, 120):
        number = rng.choice((1, 1, 1, 3))
        chunk = rng.randbytes(rng.choice((1, 90, 200, *[1000] * 9)))
        parts = [_chunk(number, offsets[number], chunk)]
        offsets[number] += len(chunk)
        if rng.random() < 0.1:
            parts.append(frames.CREDIT_FRAME.pack(frames.CREDIT, 1, seq << 20))
        sent.append(_data(seq, *parts))
    order = [m for m in sent if rng.random() > 0.1]
    order += [m for m in sent if rng.random() < 0.2] + sent
    if seed % 2:
        rng.shuffle(order)
    got = []
    for index, (sink, _) in enumerate(sinks):
        text: dict[int, bytes] = {1: b"", 3: b""}
        rest = list(order)
        while rest:
            batch, rest = rest[:17], rest[17:]
            if index:
                for size, alike in groupby(batch, len):
                    burst, messages = Slots(1 << 16), b"".join(alike)
                    burst.view[: len(messages)] = messages
                    sink.receive_burst(burst, size, len(messages) // size, 0.0, True)
                    burst.view[:] = bytes(burst.size)  # nothing is kept of it
            else:
                for message in batch:
                    sink.receive(Kind.DATA, message, 0.0, True)
            for event in sink.take_events():
                text[event.stream.id] += bytes(event.chunk)
        got.append((text, sink.inbox.take_report(1400, 0.0)))
    assert got[0] == got[1]
    assert {k: len(v) for k, v in got[0][0].items()} == offsets


def test_a_report_may_leave_a_little_before_what_it_reports_came():
    """Due work runs up to 2 ms ahead of the clock: what was held and came then is newer than now."""
    sink, stream = _accepted()
    sink.receive(Kind.DATA, _data(1, _chunk(stream.id, 0, b"x")), 5.002)
    sink.take_events()
    sink.link_up()
    reports = [payload for kind, payload in take(sink, ROOM, SIZE, 5.0) if kind == Kind.SINK]
    _, below, _, held, _, _ = frames.HAVE_HEAD.unpack_from(reports[0])
    assert below == 2 and held == 0
