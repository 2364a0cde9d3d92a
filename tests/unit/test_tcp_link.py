"""The TCP link's framing: any messages, in any pieces, arrive as they were; anything else is thrown away."""

from __future__ import annotations

import asyncio
import os
import random
import socket

import pytest

from uservpn.links import stream as tcp
from uservpn.links.backlog import LIMIT_MAX
from uservpn.links.stream import BUFFER_SIZE, STRANGER_S, UNPROVEN_S
from uservpn.links.tcp import TcpLink
from uservpn.wire.constants import HEADER_SIZE, KIB, PAYLOAD_SIZE_MAX, Kind
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing
from world import KEY

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))
CODEC = HeaderCodec(KeyRing((KEY,)))
SIZES = (
    0,
    1,
    16,
    47,
    48,
    49,
    1000,
    64 * KIB - 48,
    64 * KIB,
    64 * KIB + 1,
    256 * KIB,
    PAYLOAD_SIZE_MAX,
)


class Timer:
    def __init__(self, at: float, action) -> None:
        self.at = at
        self.action = action
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """The event loop as far as a link asks for it: timers, in simulated time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, action) -> Timer:
        self.timers.append(Timer(self.now + delay, action))
        return self.timers[-1]

    def time(self) -> float:
        return self.now

    def pass_on(self, seconds: float) -> None:
        self.now += seconds
        for timer in self.timers:
            if not timer.is_cancelled and timer.at <= self.now:
                timer.is_cancelled = True
                timer.action()

    @property
    def waiting(self) -> int:
        return sum(not timer.is_cancelled for timer in self.timers)


class Socket:
    """Takes every option."""

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """As a kernel that has it."""

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """Of the `tcp_info`: state, congestion, time-outs, probes."""
        return self.info[:size]

    info = bytes(4)


class Transport:
    """What a link asks of its transport."""

    def __init__(self) -> None:
        self.is_aborted = False
        self.written = b""
        self.socket: Socket | socket.socket = Socket()

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        """The link's wish."""

    def get_extra_info(self, name: str):
        return self.socket if name == "socket" else ("127.0.0.1", 7000)

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def writelines(self, parts) -> None:
        self.written += b"".join(parts)

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Owner:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.opened = 0
        self.progress = 0
        self.stalls: list[float] = []

    def new_link_id(self) -> int:
        return 1

    def link_opened(self, link) -> None:
        self.opened += 1

    def link_runs(self, link, runs) -> None:
        for run in runs:
            for header, body in run.messages():
                self.messages.append((header.number, bytes(body)))

    def link_progress(self, link) -> None:
        self.progress += 1

    def link_stalled(self, link, silent_s) -> None:
        self.stalls.append(silent_s)


class Bench:
    """One link and what it is joined to."""

    def __init__(self, accepted: bool = True) -> None:
        self.owner = Owner()
        self.transport = Transport()
        self.link = TcpLink(CODEC, self.owner, accepted)
        self.link.connection_made(self.transport)

    def feed(self, data: bytes, rng: random.Random, piece_max: int) -> None:
        """`data` as a socket would bring it, up to `piece_max` bytes at once."""
        view = memoryview(data)
        while len(view):
            room = self.link.get_buffer(-1)
            assert len(room), "no room: the event loop would take this for the end"
            size = min(len(view), len(room), rng.randint(1, piece_max))
            room[:size] = view[:size]
            self.link.buffer_updated(size)
            view = view[size:]
            assert len(self.link._buffer) <= BUFFER_SIZE


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    yield made


def _message(number: int, body: bytes) -> bytes:
    fields = pack_fields(Kind.DATA, 9, 1, len(body), 5, number, b"\0\0\0")
    return CODEC.seal(fields) + body


@pytest.mark.parametrize("piece_max", [1, 7, 48, 1000, 65_536, 1 << 20])
@pytest.mark.parametrize("seed", range(3 * ROUNDS))
def test_any_messages_in_any_pieces_arrive_as_they_were(clock, seed, piece_max):
    """Sizes around every limit of the buffer; one byte at a time with small messages only."""
    rng = random.Random(f"{seed}/{piece_max}")
    sizes = SIZES if piece_max > 48 else SIZES[:7]
    bodies = [rng.randbytes(rng.choice(sizes)) for _ in range(30)]
    bench = Bench()
    bench.feed(b"".join(map(_message, range(30), bodies)), rng, piece_max)
    assert bench.owner.messages == list(enumerate(bodies))
    assert bench.owner.opened == 1 and not bench.transport.is_aborted
    assert clock.waiting == 0


@pytest.mark.parametrize("seed", range(10 * ROUNDS))
@pytest.mark.parametrize("accepted", [True, False])
def test_after_one_wrong_bit_of_a_header_nothing_is_heard(clock, seed, accepted):
    """Accepted: read and thrown away for STRANGER_S, without a word. Dialled: closed at once."""
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.choice(SIZES[:9])) for _ in range(8)]
    messages = [bytearray(_message(number, body)) for number, body in enumerate(bodies)]
    broken = rng.randrange(8)
    messages[broken][rng.randrange(HEADER_SIZE)] ^= 1 << rng.randrange(8)
    bench = Bench(accepted)
    bench.feed(b"".join(messages), rng, 70_000)
    assert bench.owner.messages == list(enumerate(bodies))[:broken]
    assert bench.transport.is_aborted is not accepted
    assert bench.transport.written == b""
    if accepted:
        bench.feed(rng.randbytes(3 << 20), rng, 1 << 20)
        assert clock.waiting == 1
        clock.pass_on(STRANGER_S - 1)
        assert not bench.transport.is_aborted
        clock.pass_on(1)
        assert bench.transport.is_aborted


def test_what_is_passed_on_leaves_from_its_buffer_and_what_is_kept_is_copied(clock):
    """The kernel takes some of it at once; the buffer is used again before the rest has left."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        bench = Bench()
        bench.transport.socket = near
        bench.link.connection_made(bench.transport)
        assert not bench.link._is_bare, "who knows what such a transport does to the bytes"
        bench.link._is_bare = True  # as with a loop's own
        body = random.Random(1).randbytes(4 << 20)
        buffer = bytearray(body)
        bench.link.send([b"head", memoryview(buffer)])
        sent = 4 + len(body) - len(bench.transport.written)
        assert 0 < sent < len(body), "the test wants a kernel that takes some, not all"
        bench.link.send([b"next", memoryview(buffer)[:99]])  # behind what waits
        buffer[:] = bytes(len(body))
        got = b""
        while len(got) < sent:
            got += far.recv(1 << 20)
        assert got + bench.transport.written == b"head" + body + b"next" + body[:99]
        assert bench.link.bytes_out == len(got) + len(bench.transport.written)


def test_lengths_that_lie(clock):
    """Beyond the limit: foreign bytes. Within it: waited for, in a buffer that holds one such message."""
    rng = random.Random(1)
    for length in (PAYLOAD_SIZE_MAX + 1, (1 << 32) - 1):
        bench = Bench()
        bench.feed(CODEC.seal(pack_fields(1, 9, 1, length, 5, 0, b"\0\0\0")), rng, 99)
        bench.feed(_message(1, b"genuine"), rng, 99)
        assert not bench.owner.messages
    bench = Bench()
    bench.feed(CODEC.seal(pack_fields(1, 9, 1, PAYLOAD_SIZE_MAX, 5, 0, b"\0\0\0")), rng, 99)
    bench.feed(_message(1, b"genuine"), rng, 99)  # swallowed: part of the body that was announced
    assert not bench.owner.messages and len(bench.link._buffer) <= BUFFER_SIZE


@pytest.mark.parametrize(
    ("data", "rate", "seconds_max"),
    [
        (_message(0, bytes(1000)), 1, UNPROVEN_S),
        (bytes(1000), 1, UNPROVEN_S),
        (bytes(1000), 10, 4 + STRANGER_S),  # its first 48 bytes are no header
    ],
)
def test_a_few_bytes_a_second_buy_no_more_time_than_silence(clock, data, rate, seconds_max):
    """An accepted connection without one whole genuine message ends, however it drips."""
    bench = Bench()
    seconds = 0
    while not bench.transport.is_aborted:
        assert seconds < seconds_max
        bench.feed(data[rate * seconds :][:rate], random.Random(1), rate)
        clock.pass_on(1)
        seconds += 1
    assert seconds == seconds_max
    assert not bench.owner.messages and bench.transport.written == b""


@pytest.mark.parametrize("info", [b"\1\4\2\0", b"\1\0\0\1"], ids=["time-outs", "full reader"])
def test_the_owner_is_told_that_nothing_is_acknowledged(clock, monkeypatch, info):
    """Once the kernel has sent the same bytes again; after one second, then after twice as long each time."""
    monkeypatch.setattr("uservpn.links.tcp._writev", None)  # the socket is made up
    bench = Bench(accepted=False)
    held = [0]
    monkeypatch.setattr(TcpLink, "unacknowledged_below", lambda link: held[0])
    bench.link.send([bytes(100)])
    bench.transport.written = b""  # the kernel has it
    held[0] = 100
    clock.pass_on(1.0)
    assert bench.owner.stalls == [], "a long path: not sent again yet"
    monkeypatch.setattr(Socket, "info", info)
    clock.pass_on(2.0)
    clock.pass_on(4.0)
    assert bench.owner.stalls == [3.0, 7.0] and not bench.owner.progress
    bench.link.send([bytes(50)])
    bench.transport.written = b""
    held[0] = 50
    clock.pass_on(8.0)
    assert len(bench.owner.stalls) == 2, "some came through"
    held[0] = 0
    clock.pass_on(1.0)
    assert not bench.owner.progress, "small messages: whoever has the port acknowledges those"
    assert clock.waiting == 0, "and the watch ends"


def test_acknowledged_bytes_of_a_large_message_are_progress(clock, monkeypatch):
    """Told each PROGRESS_SIZE; small ones that are all acknowledged do not add up to it."""
    monkeypatch.setattr("uservpn.links.tcp._writev", None)  # the socket is made up
    bench = Bench(accepted=False)
    held = [0]
    monkeypatch.setattr(TcpLink, "unacknowledged_below", lambda link: held[0])
    for _ in range(100):
        bench.link.send([bytes(100)])
        bench.transport.written = b""
        clock.pass_on(1.0)
    assert clock.waiting == 0 and not bench.owner.progress
    bench.link.send([bytes(10_000)])
    bench.transport.written = b""
    told = []
    for held[0] in (9_000, 7_000, 5_500, 1_500, 0):
        clock.pass_on(1.0)
        told.append(bench.owner.progress)
    assert told == [0, 0, 1, 1, 2]


def test_a_fast_link_with_nothing_queued_gets_all_of_a_read_and_else_half_a_megabyte(
    clock, monkeypatch
):
    monkeypatch.setattr("uservpn.links.tcp._writev", None)  # the socket is made up
    monkeypatch.setattr(TcpLink, "unsent_below", lambda link: 0)
    bench = Bench(accepted=False)
    while bench.link.room() < tcp.BURST:  # it carries whatever it gets
        bench.link.send([bytes(bench.link.room())])
        bench.transport.written = b""
    assert bench.link.room() == tcp.BURST + 1 >= BUFFER_SIZE
    bench.transport.written = bytes(1)
    assert bench.link.room() == LIMIT_MAX
    bench.transport.written = bytes(LIMIT_MAX + 1)
    assert bench.link.room() == 0


def test_the_limits_are_those_of_the_wire():
    """docs/wire.md, section 12."""
    assert (tcp.UNPROVEN_S, tcp.STRANGER_S) == (20.0, 60.0)
