"""The exit's dialler and resolver on real loopback sockets, with a driver that only takes notes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from typing import ClassVar

import aiohappyeyeballs
import pytest
import uvloop

from uservpn.errors import ConfigError, Fault, StreamFault
from uservpn.exits.policy import Policy
from uservpn.runtime import resolver as resolver_module
from uservpn.runtime.dialling import fault_of
from uservpn.runtime.exit import Dial, Exit, ExitConnection
from uservpn.runtime.resolver import Resolver
from uservpn.tunnel.stream import Stream

LOOPBACK = Policy(allow=["127.0.0.0/8", "::1/128"])


class FakeDriver:
    """Takes notes; `told` wakes who waits for the result of a dial."""

    all: ClassVar[list[FakeDriver]] = []

    def __init__(self, loop):
        self.all.append(self)
        self.loop = loop
        self.accepted = {}
        self.refused = {}
        self.received = {}
        self.finished = set()
        self.resets = {}
        self.consumed_size = {}
        self._told = asyncio.Event()

    def accept(self, stream, owner, detail=b""):
        owner.attach(stream)
        self.accepted[stream] = owner
        self._told.set()

    def refuse(self, stream, fault, detail=b""):
        assert stream not in self.refused and stream not in self.accepted
        stream.owner = None
        stream.is_over = True
        self.refused[stream] = fault
        self._told.set()

    def write(self, stream, chunk):
        self.received[stream] = self.received.get(stream, b"") + bytes(chunk)
        self._told.set()
        return True

    def finish(self, stream):
        self.finished.add(stream)
        self._told.set()

    def reset(self, stream, fault):
        stream.is_over = True
        self.resets[stream] = fault

    def consumed(self, stream, size):
        assert stream in self.accepted, "credit before the connection stands"
        self.consumed_size[stream] = self.consumed_size.get(stream, 0) + size

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                self._told.clear()
                await self._told.wait()


async def back_to(before):
    """Until as few sockets are open as there were."""
    async with asyncio.timeout(5):
        while socket_count() != before:
            await asyncio.sleep(0.005)


class FakeResolver:
    def __init__(self, answers):
        self.answers = answers
        self.calls = 0

    async def resolve(self, host):
        self.calls += 1
        await asyncio.sleep(0)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Site:
    """A listener that keeps what it is told and answers `greeting` at once."""

    def __init__(self, greeting=b""):
        self.greeting = greeting
        self.server = None
        self.port = 0
        self.got = []
        self.peers = []

    async def start(self, host="127.0.0.1", port=0):
        self.server = await asyncio.start_server(self._serve, host, port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader, writer):
        self.peers.append(writer)
        if self.greeting:
            writer.write(self.greeting)
        try:
            self.got.append(await reader.read())
        except ConnectionError as error:
            self.got.append(error)
        writer.close()

    async def close(self):
        self.server.close()
        for peer in self.peers:
            peer.transport.abort()
        await asyncio.sleep(0.01)


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request):
    async def tidied(main):
        """A failed test leaves no open transport: they would make uvloop's close hang."""
        FakeDriver.all.clear()
        try:
            return await main()
        finally:
            for driver in FakeDriver.all:
                for pump in driver.accepted.values():
                    pump.abort()
            await asyncio.sleep(0.01)

    def runs(main):
        problems = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: problems.append(context))
            result = runner.run(tidied(main))
        assert not problems
        return result

    return runs


def make(answers=None, policy=LOOPBACK, **limits):
    driver = FakeDriver(asyncio.get_running_loop())
    return driver, Exit(driver, policy, FakeResolver(answers or {}), **limits)


def stream(number=1, peer=7):
    return Stream(number, peer, False, 1 << 16)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def socket_count():
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


def deaf_listener():
    """A listener whose backlog is full, so that further SYNs are dropped, and what fills it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    return listener, fillers


async def eventually(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def settle(exit):
    await eventually(lambda: not exit.open_counts and not exit._dials)


# --- one address ---------------------------------------------------------------------------------


def test_bytes_flow_both_ways_and_a_greeting_is_not_lost(run):
    async def main():
        site = await Site(b"220 hello\r\n").start()
        driver, exit = make()
        one = stream()
        exit.offer(one, "127.0.0.1", site.port)
        assert isinstance(one.owner, Dial)
        await driver.until(lambda: driver.received.get(one) == b"220 hello\r\n")
        pump = driver.accepted[one]
        assert one.owner is pump
        assert isinstance(pump, ExitConnection)
        assert (pump.host, pump.port, pump.peer) == ("127.0.0.1", site.port, 7)
        sock = pump.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert exit.snapshot()["open"] == 1 and exit.snapshot()["dialing"] == 0
        one.owner.stream_data(b"QUIT")
        one.owner.stream_finished()
        await driver.until(lambda: one in driver.finished)
        assert site.got == [b"QUIT"]
        pump.abort()
        await settle(exit)
        assert exit.snapshot()["open"] == 0 and exit.snapshot()["connected"] == 1
        await site.close()

    run(main)


def test_early_data_and_an_early_end_go_first(run):
    async def main():
        site = await Site().start()
        driver, exit = make()
        one = stream()
        exit.offer(one, "127.0.0.1", site.port)
        message = bytearray(b"GET / HTTP/1.0\r\n\r\n")
        one.owner.stream_data(memoryview(message)[:5])
        one.owner.stream_data(memoryview(message)[5:])
        one.owner.stream_room()
        one.owner.stream_finished()
        message[:] = bytes(len(message))  # the buffer is not ours after the call
        assert not driver.consumed_size
        await driver.until(lambda: one in driver.finished)
        assert site.got == [b"GET / HTTP/1.0\r\n\r\n"]
        assert driver.consumed_size == {one: 18}
        await settle(exit)
        await site.close()

    run(main)


def test_early_data_of_a_refused_stream_is_forgotten(run):
    async def main():
        driver, exit = make()
        one = stream()
        exit.offer(one, "127.0.0.1", free_port())
        dial = one.owner
        dial.stream_data(b"x" * 1000)
        await driver.until(lambda: driver.refused)
        assert driver.refused == {one: Fault.REFUSED}
        assert dial.early == [] and one.owner is None and not exit.open_counts

    run(main)


def test_a_target_the_policy_forbids_is_refused_at_once_and_never_dialled(run):
    async def main():
        site = await Site().start()
        driver, exit = make(policy=Policy())
        targets = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"]
        streams = [stream(number) for number in range(len(targets))]
        for one, host in zip(streams, targets, strict=True):
            exit.offer(one, host, site.port)
        last = stream(99)
        exit.reconfigure(LOOPBACK)
        exit.offer(last, "127.0.0.1", 0)
        assert driver.refused == dict.fromkeys([*streams, last], Fault.NOT_ALLOWED)
        assert exit.snapshot()["refused"] == {"not_allowed": 6}
        assert not exit.open_counts and not site.peers
        await site.close()

    run(main)


def test_reconfigure_holds_for_the_next_dial_and_leaves_connections_alone(run):
    async def main():
        site = await Site().start()
        driver, exit = make({"a.test": ["127.0.0.1"]})
        one, two, three = stream(1), stream(2), stream(3)
        exit.offer(one, "127.0.0.1", site.port)
        await driver.until(lambda: one in driver.accepted)
        exit.offer(two, "a.test", site.port)  # still resolving when the policy changes
        exit.reconfigure(Policy(allow=["127.0.0.0/8"], deny=["127.0.0.1"]))
        exit.offer(three, "127.0.0.1", site.port)
        await driver.until(lambda: len(driver.refused) == 2)
        assert set(driver.refused.values()) == {Fault.NOT_ALLOWED}
        assert driver.accepted[one].transport is not None
        driver.accepted[one].abort()
        await settle(exit)
        await site.close()

    run(main)


def test_no_answer_ends_at_the_limit_and_later_dials_at_theirs(run):
    async def main():
        listener, fillers = deaf_listener()
        before = socket_count()
        driver, exit = make(connect_timeout_s=0.2)
        loop = asyncio.get_running_loop()
        start = loop.time()
        one, two = stream(1), stream(2)
        exit.offer(one, *listener.getsockname())
        await asyncio.sleep(0.1)
        exit.offer(two, *listener.getsockname())
        await driver.until(lambda: one in driver.refused)
        assert loop.time() - start > 0.18
        await driver.until(lambda: two in driver.refused)
        assert loop.time() - start > 0.28
        assert set(driver.refused.values()) == {Fault.TIMEOUT}
        await back_to(before)
        assert not exit.open_counts and exit._timer is None
        for sock in (listener, *fillers):
            sock.close()

    run(main)


def test_a_reset_while_dialing_cancels_the_dial_and_tells_nobody(run):
    async def main():
        listener, fillers = deaf_listener()
        before = socket_count()
        driver, exit = make({"a.test": ["127.0.0.1", "127.0.0.2"]})
        streams = [stream(number) for number in range(4)]
        port = listener.getsockname()[1]
        exit.offer(streams[0], "127.0.0.1", port)
        exit.offer(streams[1], "a.test", port)
        await asyncio.sleep(0.05)
        exit.offer(streams[2], "127.0.0.1", port)  # cancelled before their tasks ran at all
        exit.offer(streams[3], "a.test", port)
        for one in streams:
            one.is_over = True
            one.owner.stream_reset(Fault.CANCELLED)
        assert not exit.open_counts
        await back_to(before)
        assert not driver.refused and not driver.accepted
        assert exit.snapshot()["cancelled"] == 4
        exit.close()
        for sock in (listener, *fillers):
            sock.close()

    run(main)


def test_a_reset_at_every_turn_of_the_loop_leaks_nothing(run):
    async def main():
        site = await Site().start()
        driver, exit = make({"a.test": ["127.0.0.1", "127.0.0.1"]})
        before = None
        for turns in range(24):
            for host in ("127.0.0.1", "a.test"):
                one = stream(turns)
                exit.offer(one, host, site.port)
                for _ in range(turns // 2):
                    await asyncio.sleep(0)
                one.is_over = True
                if one.owner is not None:
                    one.owner.stream_reset(Fault.CANCELLED)
            await settle(exit)
            await asyncio.sleep(0.01)
            before = socket_count() if before is None else before
        await asyncio.sleep(0.05)
        assert socket_count() <= before + 2
        assert not driver.refused and not exit.open_counts
        exit.close()
        await site.close()

    run(main)


def test_streams_per_client_are_limited_and_come_free_again(run):
    async def main():
        site = await Site().start()
        driver, exit = make(streams_per_client=2)
        streams = [stream(number) for number in range(3)]
        other = stream(9, peer=8)
        for one in (*streams, other):
            exit.offer(one, "127.0.0.1", site.port)
        assert driver.refused == {streams[2]: Fault.LIMIT}
        await driver.until(lambda: len(driver.accepted) == 3)
        assert exit.open_counts == {7: 2, 8: 1}
        streams[0].owner.stream_reset(Fault.CANCELLED)
        await eventually(lambda: exit.open_counts[7] == 1)
        again = stream(10)
        exit.offer(again, "127.0.0.1", site.port)
        await driver.until(lambda: again in driver.accepted)
        for pump in driver.accepted.values():
            pump.abort()
        await settle(exit)
        await site.close()

    run(main)


# --- names and several addresses -----------------------------------------------------------------


def test_a_name_is_resolved_and_the_resolved_address_is_judged(run):
    async def main():
        site = await Site().start()
        driver, exit = make(
            {
                "good.test": ["127.0.0.1"],
                "evil.test": ["169.254.169.254", "10.0.0.1"],
                "mixed.test": ["10.0.0.1", "127.0.0.1"],
            },
        )
        good, evil, mixed = stream(1), stream(2), stream(3)
        exit.offer(good, "good.test", site.port)
        exit.offer(evil, "evil.test", site.port)
        exit.offer(mixed, "mixed.test", site.port)
        await driver.until(lambda: len(driver.accepted) == 2 and driver.refused)
        assert driver.refused == {evil: Fault.NOT_ALLOWED}
        for pump in driver.accepted.values():
            peer = pump.transport.get_extra_info("peername")
            assert peer[0] == "127.0.0.1"
            pump.abort()
        await settle(exit)
        await site.close()

    run(main)


@pytest.mark.parametrize(
    "error",
    [
        (StreamFault(Fault.HOST_UNREACHABLE), Fault.HOST_UNREACHABLE),
        (StreamFault(Fault.TIMEOUT), Fault.TIMEOUT),
        (socket.gaierror(-2, "unknown"), Fault.HOST_UNREACHABLE),
        (RuntimeError("unforeseen"), Fault.FAILED),
    ],
    ids=lambda case: repr(case[0]),
)
def test_a_name_that_does_not_resolve_tells_why(run, error):
    async def main():
        driver, exit = make({"a.test": error[0]})
        one = stream()
        exit.offer(one, "a.test", 80)
        await driver.until(lambda: driver.refused)
        assert driver.refused == {one: error[1]}

    run(main)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_refused_first_address_gives_way_to_the_next_at_once(run):
    async def main():
        site = await Site().start()
        first = "::1" if has_ipv6() else "127.0.0.2"
        driver, exit = make({"a.test": [first, "127.0.0.1"]})
        start = asyncio.get_running_loop().time()
        one = stream()
        exit.offer(one, "a.test", site.port)
        one.owner.stream_data(b"early")
        one.owner.stream_finished()
        await driver.until(lambda: one in driver.finished)
        assert asyncio.get_running_loop().time() - start < 0.2
        assert site.got == [b"early"]
        await settle(exit)
        await site.close()

    run(main)


def test_a_dead_first_address_gives_way_after_its_head_start(run):
    async def main():
        listener, fillers = deaf_listener()
        port = listener.getsockname()[1]
        site = await Site().start("127.0.0.2", port)
        driver, exit = make({"a.test": ["127.0.0.1", "127.0.0.2"]})
        before = socket_count()
        start = asyncio.get_running_loop().time()
        one = stream()
        exit.offer(one, "a.test", port)
        await driver.until(lambda: one in driver.accepted)
        assert 0.2 < asyncio.get_running_loop().time() - start < 0.6
        pump = driver.accepted[one]
        assert pump.transport.get_extra_info("peername")[0] == "127.0.0.2"
        sock = pump.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await asyncio.sleep(0.01)
        assert socket_count() == before + 2  # the connection and the site's end of it
        pump.abort()
        await settle(exit)
        for sock in (listener, *fillers):
            sock.close()
        await site.close()

    run(main)


def test_when_every_address_fails_the_nearest_failure_is_told(run, monkeypatch):
    async def main():
        driver, exit = make({"a.test": ["127.0.0.1", "127.0.0.2"]})
        port = free_port()
        one = stream()
        exit.offer(one, "a.test", port)
        await driver.until(lambda: driver.refused)
        assert driver.refused == {one: Fault.REFUSED}

        loop = asyncio.get_running_loop()

        class Loop:
            async def sock_connect(self, sock, address):
                code = errno.ENETUNREACH if address[0] == "127.0.0.1" else errno.ECONNREFUSED
                raise OSError(code, os.strerror(code))

        real = aiohappyeyeballs.start_connection

        async def start_connection(infos, **options):
            return await real(infos, **{**options, "loop": Loop()})

        monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
        two = stream(2)
        exit.offer(two, "a.test", port)
        await driver.until(lambda: two in driver.refused)
        assert driver.refused[two] is Fault.REFUSED
        assert loop is driver.loop

    run(main)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ECONNREFUSED, Fault.REFUSED),
        (errno.EHOSTUNREACH, Fault.HOST_UNREACHABLE),
        (errno.ENETUNREACH, Fault.NETWORK_UNREACHABLE),
        (errno.ETIMEDOUT, Fault.TIMEOUT),
        (errno.EMFILE, Fault.LIMIT),
        (errno.EIO, Fault.FAILED),
    ],
)
def test_every_errno_has_its_fault(code, fault):
    assert fault_of(OSError(code, os.strerror(code))) is fault
    assert fault_of(TimeoutError()) is Fault.TIMEOUT
    assert fault_of(socket.gaierror(-2, "x")) is Fault.HOST_UNREACHABLE


# --- the resolver --------------------------------------------------------------------------------


class FakeLoop:
    """The running loop, with a `getaddrinfo` and a clock of the test's own."""

    def __init__(self, answer):
        self._loop = asyncio.get_running_loop()
        self.answer = answer
        self.now = 100.0
        self.asked = []
        self.gate = asyncio.Event()
        self.gate.set()

    def time(self):
        return self.now

    def create_task(self, coroutine):
        return self._loop.create_task(coroutine)

    async def getaddrinfo(self, host, port, *, type):
        assert type == socket.SOCK_STREAM
        self.asked.append(host)
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(0, type, 6, "", (address, 0)) for address in self.answer]


def test_answers_are_kept_for_a_minute_and_the_store_is_bounded(run, monkeypatch):
    async def main():
        loop = FakeLoop(["::1", "127.0.0.1", "::1"])
        resolver = Resolver(loop)
        assert await resolver.resolve("A.Test") == ["::1", "127.0.0.1"]
        assert await resolver.resolve("a.test") == ["::1", "127.0.0.1"]
        loop.now += 59.9
        await resolver.resolve("a.test")
        assert loop.asked == ["a.test"]
        loop.now += 0.2
        await resolver.resolve("a.test")
        assert loop.asked == ["a.test", "a.test"]
        monkeypatch.setattr(resolver_module, "KEPT_MAX", 3)
        for number in range(10):
            await resolver.resolve(f"{number}.test")
        assert list(resolver._kept) == ["7.test", "8.test", "9.test"]
        loop.answer = [f"127.0.0.{number}" for number in range(100)]
        assert len(await resolver.resolve("many.test")) == resolver_module.ADDRESSES_MAX

    run(main)


def test_who_waits_for_one_name_waits_for_one_look_up(run):
    async def main():
        loop = FakeLoop(["127.0.0.1"])
        loop.gate.clear()
        resolver = Resolver(loop)
        tasks = [asyncio.create_task(resolver.resolve("a.test")) for _ in range(5)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0)
        loop.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [["127.0.0.1"]] * 4
        assert loop.asked == ["a.test"] and not resolver._asking

    run(main)


def test_failures_are_told_and_not_kept(run, monkeypatch):
    async def main():
        loop = FakeLoop(socket.gaierror(-2, "unknown"))
        resolver = Resolver(loop)

        async def fault(name, resolver=resolver):
            with pytest.raises(StreamFault) as caught:
                await resolver.resolve(name)
            return caught.value.fault

        assert await fault("a.test") is Fault.HOST_UNREACHABLE
        assert await fault("a.test") is Fault.HOST_UNREACHABLE
        assert len(loop.asked) == 2
        loop.answer = UnicodeError("label too long")
        assert await fault("a.test") is Fault.HOST_UNREACHABLE
        loop.answer = []
        assert await fault("a.test") is Fault.HOST_UNREACHABLE
        asked = len(loop.asked)
        for name in ("", "a b", "a\0b", "x%y", "a/b", "x" * 255, "::1x", "a\n"):
            assert await fault(name) is Fault.HOST_UNREACHABLE
        assert len(loop.asked) == asked
        loop.gate.clear()
        hasty = Resolver(loop, time_limit_s=0.05)
        assert await fault("slow.test", hasty) is Fault.TIMEOUT
        assert not hasty._asking
        abandoned = asyncio.create_task(resolver.resolve("slow.test"))
        await asyncio.sleep(0)
        abandoned.cancel()
        monkeypatch.setattr(resolver_module, "ASKING_MAX", 1)
        await asyncio.sleep(0)
        assert await fault("other.test") is Fault.LIMIT
        loop.gate.set()
        async with asyncio.timeout(20):
            while resolver._asking:
                await asyncio.sleep(0.001)

    run(main)


def test_the_systems_resolver_answers_for_real(run):
    async def main():
        resolver = Resolver(asyncio.get_running_loop())
        assert set(await resolver.resolve("localhost")) <= {"127.0.0.1", "::1"}
        await resolver.close()

    run(main)


def test_servers_without_the_extra_are_a_clear_error(run, monkeypatch):
    async def main():
        monkeypatch.setitem(__import__("sys").modules, "aiodns", None)
        with pytest.raises(ConfigError, match="uservpn\\[dns\\]"):
            Resolver(asyncio.get_running_loop(), ["192.0.2.1"])

    run(main)


class NameServer(asyncio.DatagramProtocol):
    """Answers A questions for a.test with 127.0.0.1 and TTL 7, all else with NXDOMAIN."""

    def __init__(self):
        self.questions = 0

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.questions += 1
        end = data.index(b"\0", 12) + 5
        kind = struct.unpack_from(">H", data, end - 4)[0]
        known = data[12:].lower().startswith(b"\x01a\x04test\0")
        answer = b"\xc0\x0c" + struct.pack(">HHIH4B", 1, 1, 7, 4, 127, 0, 0, 1)
        count = 1 if known and kind == 1 else 0
        flags = 0x8180 if known else 0x8183
        head = data[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0)
        self.transport.sendto(head + data[12:end] + answer * count, address)


def test_given_servers_are_asked_and_their_time_to_live_holds(run):
    pytest.importorskip("aiodns")

    async def main():
        loop = asyncio.get_running_loop()
        transport, server = await loop.create_datagram_endpoint(
            NameServer, local_addr=("127.0.0.1", 0)
        )
        address = f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
        resolver = Resolver(loop, [address])
        assert await resolver.resolve("a.test") == ["127.0.0.1"]
        assert 5 < resolver._kept["a.test"][0] - loop.time() <= 7.1
        asked = server.questions
        assert await resolver.resolve("A.test") == ["127.0.0.1"]
        assert server.questions == asked
        with pytest.raises(StreamFault) as caught:
            await resolver.resolve("b.test")
        assert caught.value.fault is Fault.HOST_UNREACHABLE
        await resolver.close()
        transport.close()
        await asyncio.sleep(0.01)

    run(main)
