"""SOCKS as the entry speaks it: the handshake machine, and the entry's rules around it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.chooser.affinity import Key
from uservpn.chooser.cases import Choice, refusal
from uservpn.chooser.measure import Trip
from uservpn.errors import Fault, StreamFault
from uservpn.kit.endpoint import Address
from uservpn.runtime.entry import Entry
from uservpn.socks.handshake import Handshake, Kind, Request, State, host_name, is_user
from uservpn.types import NodeId

USERS = {"alice": "secret", "empty": ""}
HELLO = b"\x05\x01\x00"
TO_NAME = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
TO_IPV4 = b"\x05\x01\x00\x01\xcb\x00\x71\x05\x1f\x90"
TO_IPV6 = b"\x05\x01\x00\x04" + socket.inet_pton(socket.AF_INET6, "2001:db8::5") + b"\x00\x50"
GRANTED = b"\x05\x00\x00\x01\0\0\0\0\0\0"


# ---- the machine -------------------------------------------------------------------------------


def login(name: bytes, password: bytes) -> bytes:
    return bytes((1, len(name))) + name + bytes((len(password),)) + password


def run(data: bytes, users: Mapping[str, str] | None = None, cuts: tuple[int, ...] = ()) -> Any:
    """Everything that can be seen from outside, after `data` came in these pieces."""
    shake = Handshake(users or {})
    out = b""
    rest = b""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    for start, end in itertools.pairwise(edges):
        if shake.state is State.SHAKING:
            out += shake.receive(data[start:end])
        elif shake.state is State.DONE:
            rest += data[start:end]
    return out, shake.state, shake.request, shake.rest + rest


def run_bytewise(data: bytes, users: Mapping[str, str] | None = None) -> Any:
    return run(data, users, tuple(range(len(data))))


CONVERSATIONS = [
    (HELLO + TO_NAME, {}, b"\x05\x00", Request(Kind.NAME, "example.com", 443, "", 5)),
    (HELLO + TO_IPV4, {}, b"\x05\x00", Request(Kind.IPV4, "203.0.113.5", 8080, "", 5)),
    (HELLO + TO_IPV6, {}, b"\x05\x00", Request(Kind.IPV6, "2001:db8::5", 80, "", 5)),
    (
        b"\x05\x02\x00\x02" + login(b"exit=3", b"") + TO_NAME,
        {},
        b"\x05\x02\x01\x00",
        Request(Kind.NAME, "example.com", 443, "exit=3", 5),
    ),
    (
        b"\x05\x03\x00\x01\x02" + login(b"alice", b"secret") + TO_NAME,
        USERS,
        b"\x05\x02\x01\x00",
        Request(Kind.NAME, "example.com", 443, "alice", 5),
    ),
    (
        b"\x04\x01\x00\x50\xcb\x00\x71\x05me\0",
        {},
        b"",
        Request(Kind.IPV4, "203.0.113.5", 80, "me", 4),
    ),
    (
        b"\x04\x01\x00\x50\0\0\0\x01me\0example.com\0",
        {},
        b"",
        Request(Kind.NAME, "example.com", 80, "me", 4),
    ),
]


@pytest.mark.parametrize(("data", "users", "replies", "request_"), CONVERSATIONS)
def test_a_good_handshake_ends_with_the_request(
    data: bytes, users: dict[str, str], replies: bytes, request_: Request
) -> None:
    expected = (replies, State.DONE, request_, b"GET /")
    assert run(data + b"GET /", users) == expected
    assert run_bytewise(data + b"GET /", users) == expected


@pytest.mark.parametrize(
    ("data", "users", "replies"),
    [
        (b"\x06", {}, b""),
        (b"\x05\x00", {}, b"\x05\xff"),
        (b"\x05\x01\x01", {}, b"\x05\xff"),
        (b"\x05\x01\x00", USERS, b"\x05\xff"),
        (b"\x05\x01\x02" + login(b"alice", b"wrong"), USERS, b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02" + login(b"bob", b"secret"), USERS, b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02" + login(b"bob", b""), USERS, b"\x05\x02\x01\x01"),
        (b"\x05\x01\x02\x05", USERS, b"\x05\x02\x01\x01"),
        (HELLO + b"\x04\x01\x00\x01\x00", {}, b"\x05\x00"),
        (HELLO + b"\x05\x01\x00\x02\x00", {}, b"\x05\x00\x05\x08\x00\x01\0\0\0\0\0\0"),
        (HELLO + b"\x05\x02" + TO_NAME[2:], {}, b"\x05\x00\x05\x07\x00\x01\0\0\0\0\0\0"),
        (HELLO + b"\x05\x03" + TO_IPV4[2:], {}, b"\x05\x00\x05\x07\x00\x01\0\0\0\0\0\0"),
        (HELLO + b"\x05\x01\x00\x03\x00\x00\x50", {}, b"\x05\x00\x05\x04\x00\x01\0\0\0\0\0\0"),
        (HELLO + b"\x05\x01\x00\x03\x03a\0b\x00\x50", {}, b"\x05\x00\x05\x04\x00\x01\0\0\0\0\0\0"),
        (HELLO + TO_IPV4[:-2] + b"\0\0", {}, b"\x05\x00\x05\x05\x00\x01\0\0\0\0\0\0"),
        (b"\x04\x02\x00\x50\xcb\x00\x71\x05\0", {}, b"\x00\x5b\0\0\0\0\0\0"),
        (b"\x04\x01\x00\x50\xcb\x00\x71\x05alice\0", USERS, b"\x00\x5b\0\0\0\0\0\0"),
        (b"\x04\x01\x00\x50\0\0\0\x01\0two words\0", {}, b"\x00\x5b\0\0\0\0\0\0"),
        (b"\x04\x01\x00\x50\xcb\x00\x71\x05" + b"u" * 256, {}, b"\x00\x5b\0\0\0\0\0\0"),
        (b"\x04\x01\x00\x50\0\0\0\x01\0" + b"h" * 256, {}, b"\x00\x5b\0\0\0\0\0\0"),
    ],
)
def test_a_bad_handshake_is_told_so(data: bytes, users: dict[str, str], replies: bytes) -> None:
    out, state, _, rest = run(data, users)
    assert (out, state, rest) == (replies, State.FAILED, b"")
    assert run_bytewise(data, users)[:2] == (replies, State.FAILED)
    assert run(data + b"more" * 500, users)[:2] == (replies, State.FAILED)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.sampled_from([c[0] for c in CONVERSATIONS]).flatmap(
            lambda good: st.tuples(
                st.integers(0, len(good) - 1), st.binary(max_size=3), st.binary(max_size=12)
            ).map(lambda c: good[: c[0]] + c[1] + good[c[0] + len(c[1]) :] + c[2])
        ),
    ),
    st.lists(st.integers(0, 100), max_size=10),
    st.booleans(),
)
def test_splits_change_nothing(data: bytes, cuts: list[int], has_users: bool) -> None:
    users = USERS if has_users else {}
    assert run(data, users, tuple(cuts)) == run(data, users)
    assert run_bytewise(data, users) == run(data, users)


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=20))
def test_what_is_kept_of_an_unfinished_handshake_is_bounded(pieces: list[bytes]) -> None:
    shake = Handshake({})
    for piece in pieces:
        if shake.state is State.SHAKING:
            shake.receive(piece)
            assert len(shake._data) <= 520 or shake.state is not State.SHAKING


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.NONE, 0),
        (Fault.FAILED, 1),
        (Fault.NOT_ALLOWED, 2),
        (Fault.NETWORK_UNREACHABLE, 3),
        (Fault.HOST_UNREACHABLE, 4),
        (Fault.REFUSED, 5),
        (Fault.TIMEOUT, 6),
        (Fault.LIMIT, 1),
        (Fault.EXIT_DEAD, 1),
    ],
)
def test_the_reply_tells_the_fault(fault: Fault, code: int) -> None:
    five, four = Handshake({}), Handshake({})
    five.receive(HELLO + TO_NAME)
    four.receive(b"\x04\x01\x00\x50\xcb\x00\x71\x05\0")
    assert five.answer(fault) == bytes((5, code)) + GRANTED[2:]
    assert four.answer(fault) == bytes((0, 0x5B if fault else 0x5A)) + bytes(6)


def test_host_names() -> None:
    assert host_name(b"a" * 255) == "a" * 255
    assert host_name("bücher.example".encode()) == "bücher.example"
    assert host_name(b"fe80::1%eth0") == "fe80::1%eth0"
    for bad in (b"", b"a" * 256, b"a b", b"a\nb", b"\xff.com", b"a/b", b"u@h", b"\x7f", b"[::1]"):
        assert host_name(bad) is None
    assert host_name("a\u200bb".encode()) is None


def test_users_are_checked_whole() -> None:
    assert is_user({}, "anybody", b"anything")
    assert is_user(USERS, "alice", b"secret")
    assert is_user(USERS, "empty", b"")
    for name, password in (("alice", b"secre"), ("alice", b""), ("bob", b""), ("", b"secret")):
        assert not is_user(USERS, name, password)


# ---- a driver that the test plays ---------------------------------------------------------------


class FakeStream:
    """What the entry did with a stream; the test is the exit."""

    def __init__(self, driver: FakeDriver, exit: int, host: str, port: int, owner: Any) -> None:
        self.driver = driver
        self.opened_for = (exit, host, port)
        self.owner = owner
        self.is_over = False
        self.piece = 0
        self.written = b""
        self.consumed = 0
        self.is_finished = False
        self.reset_fault: Fault | None = None


class FakeDriver:
    """Opens fake streams, and tells the test of every change."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.streams: list[FakeStream] = []
        self.open_fault: Fault | None = None
        self.has_room = True
        self._changed = asyncio.Event()

    def open(self, exit: int, host: str, port: int, owner: Any) -> FakeStream:
        if self.open_fault is not None:
            raise StreamFault(self.open_fault)
        self.streams.append(FakeStream(self, exit, host, port, owner))
        self._changed.set()
        return self.streams[-1]

    def write(self, stream: FakeStream, chunk: Any) -> bool:
        assert len(chunk)
        stream.written += bytes(chunk)
        self._changed.set()
        return self.has_room

    def finish(self, stream: FakeStream) -> None:
        stream.is_finished = True
        self._changed.set()

    def reset(self, stream: FakeStream, fault: Fault) -> None:
        stream.is_over = True
        stream.reset_fault = fault
        self._changed.set()

    def consumed(self, stream: FakeStream, size: int) -> None:
        stream.consumed += size
        self._changed.set()

    def told(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def stream(self, number: int = 0) -> FakeStream:
        await self.until(lambda: len(self.streams) > number)
        return self.streams[number]


class FakeChooser:
    """One exit for everything; `waits` keeps connections waiting until `decide`."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.exit: int | None = 1
        self.known: set[tuple[int, str, int]] = set()
        self.users: list[str | None] = []
        self.waits = False
        self.waiting: list[Any] = []
        self.refusal = (Fault.EXIT_DEAD, "")
        self.faults: list[Fault] = []
        self.trips: list[str] = []
        self.ended_count = 0

    def choice(self) -> Choice:
        if self.exit is None:
            return refusal("", *self.refusal)
        return Choice(NodeId(self.exit), "test", Key("site"), "site")

    def choose(self, host: str, port: int, user: str, waiter: Any) -> Choice | None:
        self.users.append(user)
        if self.waits:
            self.waiting.append(waiter)
            self.driver.told()
            return None
        return self.choice()

    def decide(self) -> None:
        for waiter in self.waiting:
            waiter.chosen(self.choice())
        self.waiting.clear()

    def knows(self, exit: int, host: str, port: int) -> bool:
        return (exit, host, port) in self.known

    def connected(self, choice: Choice, host: str, port: int) -> None:
        self.known.add((choice.exit, host, port))

    def failed(self, choice: Choice, host: str, port: int, fault: Fault) -> None:
        self.known.discard((choice.exit, host, port))
        self.faults.append(fault)

    def replied(self, choice: Choice, trip: Trip) -> None:
        self.trips.append("replied")

    def unanswered(self, choice: Choice, trip: Trip, is_broken: bool) -> None:
        self.trips.append("broken" if is_broken else "unanswered")

    def ended(self, choice: Choice, stream: Any) -> None:
        self.ended_count += 1
        self.driver.told()

    def driver_of(self, choice: Choice) -> FakeDriver:
        return self.driver


class Bench:
    """An entry on loopback, and programs that come to it."""

    def __init__(self, entry: Entry, driver: FakeDriver, chooser: FakeChooser) -> None:
        self.entry = entry
        self.driver = driver
        self.chooser = chooser
        self.writers: list[asyncio.StreamWriter] = []

    async def program(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.entry.address)
        self.writers.append(writer)
        writer.write(data)
        return reader, writer


def on_bench(
    test: Callable[[Bench], Awaitable[None]],
    users: Mapping[str, str] | None = None,
    optimistic: Any = "auto",
    **limits: Any,
) -> None:
    async def main() -> None:
        driver = FakeDriver()
        chooser = FakeChooser(driver)
        fakes: Any = (driver, chooser)
        entry = Entry(Address("127.0.0.1", 0), users or {}, *fakes, optimistic, **limits)
        await entry.start()
        bench = Bench(entry, driver, chooser)
        try:
            async with asyncio.timeout(20):
                await test(bench)
        finally:
            await entry.close(0)
            for writer in bench.writers:
                writer.close()
            await asyncio.sleep(0)
        assert entry._timer is None

    import uvloop

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())


def opened(stream: FakeStream, fault: Fault = Fault.NONE) -> None:
    """The exit's result; as the tunnel does, a refused stream is over."""
    stream.is_over = bool(fault)
    stream.owner.stream_opened(fault, b"")


def vanish(writer: asyncio.StreamWriter) -> None:
    """The program dies: its socket is reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# ---- the entry ---------------------------------------------------------------------------------


def test_a_new_target_is_answered_when_it_is_connected() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(HELLO + TO_NAME + b"early")
        stream = await bench.driver.stream()
        assert stream.opened_for == (1, "example.com", 443)
        await bench.driver.until(lambda: stream.written == b"early")
        assert await reader.readexactly(2) == b"\x05\x00"
        assert not reader._buffer  # type: ignore[attr-defined]
        opened(stream)
        assert await reader.readexactly(10) == GRANTED
        stream.owner.stream_data(b"from the site")
        assert await reader.readexactly(13) == b"from the site"
        assert stream.consumed == 13
        writer.write(b" and late")
        writer.write_eof()
        await bench.driver.until(lambda: stream.is_finished)
        assert stream.written == b"early and late"
        assert stream.owner.target == "example.com:443"
        stream.owner.stream_finished()
        assert await reader.read() == b""

    on_bench(test)


def test_a_known_target_is_answered_at_once_and_a_wrong_guess_is_a_reset() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.known.add((1, "example.com", 443))
        reader, _ = await bench.program(HELLO + TO_NAME)
        assert await reader.readexactly(12) == b"\x05\x00" + GRANTED
        opened(bench.driver.streams[0], Fault.REFUSED)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert not bench.chooser.known
        reader, _ = await bench.program(HELLO + TO_NAME)
        opened(await bench.driver.stream(1), Fault.REFUSED)
        assert await reader.read() == b"\x05\x00\x05\x05" + GRANTED[2:]  # honest now
        assert bench.entry.snapshot()["refused"] == 2

    on_bench(test)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("optimistic", [True, False])
def test_optimism_can_be_forced(known: bool, optimistic: bool) -> None:
    async def test(bench: Bench) -> None:
        if known:
            bench.chooser.known.add((1, "example.com", 443))
        reader, _ = await bench.program(HELLO + TO_NAME)
        stream = await bench.driver.stream()
        if optimistic:
            assert await reader.readexactly(12) == b"\x05\x00" + GRANTED
        else:
            assert not stream.owner._is_answered
        opened(stream)
        await reader.readexactly(0 if optimistic else 12)
        assert (1, "example.com", 443) in bench.chooser.known

    on_bench(test, optimistic=optimistic)


def test_a_dead_exit_is_a_refusal_before_the_answer_and_a_reset_behind_it() -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(HELLO + TO_NAME)
        (await bench.driver.stream()).owner.stream_reset(Fault.EXIT_DEAD)
        assert await reader.read() == b"\x05\x00\x05\x01" + GRANTED[2:]
        reader, _ = await bench.program(HELLO + TO_NAME)
        opened(await bench.driver.stream(1))
        await reader.readexactly(12)
        bench.driver.streams[1].owner.stream_reset(Fault.EXIT_DEAD)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)

    on_bench(test)


def test_data_that_overtakes_the_result_comes_behind_the_answer() -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(HELLO + TO_NAME)
        stream = await bench.driver.stream()
        stream.owner.stream_data(b"220 hello")
        stream.owner.stream_opened(Fault.NONE, b"")
        assert await reader.readexactly(21) == b"\x05\x00" + GRANTED + b"220 hello"

    on_bench(test)


def test_without_an_exit_the_program_is_told() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.exit = None
        reader, _ = await bench.program(HELLO + TO_NAME)
        assert await reader.read() == b"\x05\x00\x05\x01" + GRANTED[2:]
        bench.chooser.exit = 1
        bench.driver.open_fault = Fault.HOST_UNREACHABLE
        reader, _ = await bench.program(b"\x04\x01\x00\x50\xcb\x00\x71\x05\0")
        assert await reader.read() == b"\x00\x5b" + bytes(6)

    on_bench(test)


def test_a_program_that_goes_away_takes_its_stream_along() -> None:
    async def test(bench: Bench) -> None:
        _, writer = await bench.program(HELLO + TO_NAME)
        stream = await bench.driver.stream()
        vanish(writer)
        await bench.driver.until(lambda: stream.reset_fault)
        assert not bench.entry.connections

    on_bench(test)


def test_a_full_tunnel_stops_reading_also_with_early_data() -> None:
    async def test(bench: Bench) -> None:
        bench.driver.has_room = False
        _, writer = await bench.program(HELLO + TO_NAME + b"early")
        stream = await bench.driver.stream()
        await bench.driver.until(lambda: stream.written == b"early")
        assert not stream.owner.transport.is_reading()
        bench.driver.has_room = True
        stream.owner.stream_room()
        writer.write(b" late")
        await bench.driver.until(lambda: stream.written == b"early late")

    on_bench(test)


def test_what_is_no_protocol_is_closed_without_a_word() -> None:
    async def test(bench: Bench) -> None:
        for first in (b"\x00", b"\x16\x03\x01", b"\xff" * 2000, b"\n", b"\x05\x00", b"\x06"):
            reader, _ = await bench.program(first)
            assert await reader.read() == (b"\x05\xff" if first == b"\x05\x00" else b"")

    on_bench(test)


def test_a_slow_program_is_cut_by_the_one_timer() -> None:
    async def test(bench: Bench) -> None:
        one, _ = await bench.program(b"\x05")
        two, _ = await bench.program()
        good, _ = await bench.program(HELLO + TO_NAME)
        stream = await bench.driver.stream()
        for reader in (one, two):
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        assert bench.entry._timer is None and not bench.entry._waiting
        assert bench.entry.refused_count == 2
        opened(stream)
        assert await good.readexactly(12) == b"\x05\x00" + GRANTED

    on_bench(test, handshake_limit_s=0.2)


def test_there_is_a_place_for_so_many_and_no_more() -> None:
    async def test(bench: Bench) -> None:
        first, writer = await bench.program(HELLO)
        await first.readexactly(2)
        second, _ = await bench.program(HELLO)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await second.readexactly(1)
        assert bench.entry.snapshot() == {"open": 1, "accepted": 2, "refused": 1}
        writer.write(TO_NAME)
        await bench.driver.stream()

    on_bench(test, connections_max=1)


def test_a_program_waits_for_its_exit_and_what_it_sent_ahead_is_kept() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.waits = True
        reader, writer = await bench.program(HELLO + TO_NAME + b"early")
        await bench.driver.until(lambda: bench.chooser.waiting)
        writer.write(b" and more")
        await writer.drain()
        assert not bench.driver.streams
        bench.chooser.known.add((1, "example.com", 443))  # the test has connected
        bench.chooser.decide()
        assert await reader.readexactly(12) == b"\x05\x00" + GRANTED
        stream = await bench.driver.stream()
        await bench.driver.until(lambda: stream.written == b"early and more")

    on_bench(test)


def test_a_program_that_left_while_it_waited_gets_no_stream() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.waits = True
        _, writer = await bench.program(HELLO + TO_NAME)
        await bench.driver.until(lambda: bench.chooser.waiting)
        (waiter,) = bench.chooser.waiting
        waiter.abort()
        bench.chooser.decide()
        assert not bench.driver.streams
        writer.close()

    on_bench(test)


def test_a_choice_that_is_a_refusal_has_its_own_code() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.exit, bench.chooser.refusal = None, (Fault.NOT_ALLOWED, "no")
        reader, _ = await bench.program(HELLO + TO_NAME)
        assert await reader.read() == b"\x05\x00\x05\x02" + GRANTED[2:]

    on_bench(test)


def test_first_round_trips_are_told_once_for_each_connection() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(HELLO + TO_NAME + b"hello")
        stream = await bench.driver.stream()
        opened(stream)
        await reader.readexactly(12)
        stream.owner.stream_data(b"hi")
        stream.owner.stream_data(b"again")
        await reader.readexactly(7)
        assert bench.chooser.trips == ["replied"]
        vanish(writer)
        await bench.driver.until(lambda: bench.chooser.ended_count)
        reader, writer = await bench.program(HELLO + TO_NAME + b"hello")
        await reader.readexactly(12)
        stream = await bench.driver.stream(1)
        opened(stream)
        stream.owner.stream_reset(Fault.CONNECTION_LOST)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert bench.chooser.trips == ["replied", "broken"]
        assert bench.chooser.ended_count == 2

    on_bench(test)


def test_users_change_while_connections_stand() -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(b"\x05\x01\x02" + login(b"exit=3", b"") + TO_NAME)
        opened(await bench.driver.stream())
        await reader.readexactly(14)
        assert bench.chooser.users == ["exit=3"]
        bench.entry.reconfigure(USERS, True)
        stranger, _ = await bench.program(HELLO)
        assert await stranger.read() == b"\x05\xff"
        bench.driver.streams[0].owner.stream_data(b"still here")
        assert await reader.readexactly(10) == b"still here"

    on_bench(test)


def test_closing_waits_for_connections_in_use_only() -> None:
    async def test(bench: Bench) -> None:
        shaking, _ = await bench.program(HELLO)
        await shaking.readexactly(2)
        reader, writer = await bench.program(HELLO + TO_NAME)
        stream = await bench.driver.stream()
        opened(stream)
        await reader.readexactly(12)
        closing = asyncio.ensure_future(bench.entry.close(10))
        with pytest.raises(ConnectionResetError):
            await shaking.readexactly(1)
        assert not closing.done()
        writer.write_eof()
        await bench.driver.until(lambda: stream.is_finished)
        stream.owner.stream_data(b"last")
        stream.owner.stream_finished()
        assert await reader.read() == b"last"
        await closing

    on_bench(test)


def test_an_entry_that_never_saw_http_has_not_loaded_it() -> None:
    code = "import sys, uservpn.runtime.entry as e; sys.exit('h11' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
