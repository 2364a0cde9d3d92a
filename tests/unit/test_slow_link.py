"""Slow links: nothing waits long behind bulk, and a link on which bytes still move is not given up."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from drivers import make_driver
from uservpn.kit.endpoint import Endpoint
from uservpn.links import stream, tcp
from uservpn.links.backlog import LIMIT_MAX, LIMIT_MIN, LIMIT_START, Backlog
from uservpn.mesh import liveness
from world import World


class Wire:
    """A wire of `rate` bytes/s behind a queue, filled to the limit at every step."""

    def __init__(self, rate):
        self.rate = rate
        self.backlog = Backlog()
        self.now = 5.0
        self.sent = self.queued = 0

    def run(self, seconds, step=0.01):
        for _ in range(round(seconds / step)):
            self.queued = max(0, self.queued - int(self.rate * step))
            self.now += step
            self.backlog.look(self.now, self.sent - self.queued, self.queued)
            room = self.backlog.limit - self.queued
            if room > 0:
                self.sent += room
                self.queued += room


@pytest.mark.parametrize(
    "rate, low, high",
    [
        (8_000, LIMIT_MIN, LIMIT_MIN),
        (1_000_000, 50_000, 210_000),
        (12_500_000, LIMIT_MAX, LIMIT_MAX),
        (1_000_000_000, LIMIT_MAX, LIMIT_MAX),
    ],
)
def test_the_queue_is_a_tenth_of_a_second_of_what_the_link_carries(rate, low, high):
    wire = Wire(rate)
    wire.run(3)
    assert low <= wire.backlog.limit <= high
    delivered = wire.sent - wire.queued
    wire.run(3)
    assert wire.sent - wire.queued - delivered >= 0.95 * 3 * rate or rate > LIMIT_MAX * 100


def test_the_queue_follows_a_rate_that_changes():
    wire = Wire(8_000)
    wire.run(5)
    wire.rate = 10_000_000
    wire.run(2)
    assert wire.backlog.limit == LIMIT_MAX
    wire.rate = 8_000
    wire.run(1)
    assert wire.backlog.limit <= LIMIT_MAX // 64
    wire.run(5)
    assert wire.backlog.limit == LIMIT_MIN


def test_small_messages_now_and_then_change_nothing():
    backlog = Backlog()
    for second in range(1000):
        backlog.look(float(second), 100 * second, 0)
    assert backlog.limit == LIMIT_START
    backlog.drained(5.0)
    assert backlog.limit < LIMIT_START


class SlowWorld(World):
    """Each direction of a link carries `rate` bytes/s and queues up to a small limit."""

    rate = 8_000.0
    limit = 4096

    def __init__(self, **options):
        super().__init__(**options)
        self.free_at: dict[int, float] = {}

    def room(self, link):
        queued = (self.free_at.get(link, 0.0) - self.now) * self.rate
        return int(self.limit - max(0.0, queued))

    def carry(self, link, head, body):
        began = max(self.now, self.free_at.get(link, 0.0))
        ended = self.free_at[link] = began + (len(head) + len(body)) / self.rate
        self.at(ended + self.delay, lambda: self.arrive(link, head, body))
        self.at(ended, lambda: self.writable(link))
        moment = began
        while moment < ended:  # as TcpLink watches it
            moment += 2.0
            self.at(moment, lambda: self.writable(link))

    def writable(self, link):
        pair = self.links.get(link)
        if pair is not None:
            pair[0].node.link_progress(link, self.now)
            self.settle(pair[0])


def test_bulk_over_64_kbit_lets_small_messages_by_and_keeps_its_link():
    world = SlowWorld()
    server = world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    world.run(2)
    bulk = client.node.open(1, "bulk.test", 80, None, world.now)
    client.send(bulk, bytes(400_000), finish=True)
    world.settle(client)
    for _ in range(10):
        small = client.node.open(1, "small.test", 80, None, world.now)
        client.send(small, b"key stroke")
        world.settle(client)
        world.run(2.0)
        assert bytes(server.received.get(small.id, b"")) == b"key stroke"
    assert world._link == 2  # one link, ever
    assert bulk.id not in server.finished
    world.run(60)
    assert bulk.id in server.finished
    assert world._link == 2 and client.node.peers[1].tunnel.resent_count == 0


# --- the TCP link, on real sockets behind a narrow forwarder --------------------------------------

RATE = 64_000
BULK = 320_000


class Owner:
    """A stream's owner that takes all and keeps the order."""

    def __init__(self, driver, stream, log):
        self.driver, self.stream, self.log = driver, stream, log

    def stream_opened(self, fault, detail):
        pass

    def stream_data(self, chunk):
        self.log.append((self.stream.id, len(chunk)))
        self.driver.consumed(self.stream, len(chunk))

    def stream_room(self):
        pass

    def stream_finished(self):
        pass

    def stream_reset(self, fault):
        self.log.append((self.stream.id, -1))


async def _narrow(listener, target):
    """Passes what comes on to `target` at RATE, and answers at once."""
    loop = asyncio.get_running_loop()
    near, _ = await loop.sock_accept(listener)
    with near, socket.socket() as far:
        far.setblocking(False)
        await loop.sock_connect(far, ("127.0.0.1", target))

        async def back():
            while data := await loop.sock_recv(far, 1 << 16):
                await loop.sock_sendall(near, data)

        async with asyncio.TaskGroup() as both:
            answers = both.create_task(back())
            while data := await loop.sock_recv(near, RATE // 20):
                await loop.sock_sendall(far, data)
                await asyncio.sleep(len(data) / RATE)
            answers.cancel()


async def _compare(client, log):
    """A small message written behind much bulk arrives long before its end, over the first link."""

    def got(stream):
        return sum(size for number, size in log if number == stream.id)

    bulk = client.open(1, "bulk.test", 1, None)
    client.write(bulk, bytes(BULK))
    while got(bulk) < BULK // 8:
        assert client._last_link <= 1, "the link was given up"
        await asyncio.sleep(0.02)
    small = client.open(1, "small.test", 2, None)
    client.write(small, b"key stroke")
    while got(bulk) < BULK:
        assert client._last_link <= 1, "the link was given up"
        await asyncio.sleep(0.02)
    before = log[: log.index((small.id, 10))]
    assert sum(size for _, size in before) < BULK // 2


def test_a_narrow_tcp_path_is_not_given_up_and_small_messages_pass(monkeypatch):
    """Bytes that take many times the patience for an answer; order decides, not time."""
    monkeypatch.setattr(liveness, "ANSWER_S", 0.7)
    monkeypatch.setattr(stream, "WATCH_S", 0.2)

    async def main():
        log = []

        def offer(stream, host, port):
            stream.owner = Owner(server, stream, log)
            server.node.tunnel(stream).accept(stream)
            server.kick()

        server = make_driver({"tcp": tcp.PLUGIN}, 1, {}, offer)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        await server.listen(Endpoint.parse(f"tcp://127.0.0.1:{port}"))
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            listener.bind(("127.0.0.1", 0))
            listener.listen(8)
            listener.setblocking(False)
            forwarder = asyncio.get_running_loop().create_task(_narrow(listener, port))
            endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
            client = make_driver({"tcp": tcp.PLUGIN}, 7, {1: (endpoint,)})
            client.start()
            try:
                await _compare(client, log)
            finally:
                await client.close()
                forwarder.cancel()
                await asyncio.wait([forwarder], timeout=5)
                await server.close()

    async def bounded():
        async with asyncio.timeout(60):
            await main()

    uvloop.run(bounded())


def test_a_new_connection_begins_with_messages_that_its_first_flight_brings_whole():
    """Until something on it was confirmed; a message of 16 KiB would wait for a second round trip."""
    world = World(delay=0.002)
    world.add(1)
    client = world.add(7, {1: ("sim://10.0.0.1:1",)})
    world.run(1)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    for count in range(2):
        world.tap.clear()
        client.send(stream, bytes(60_000))
        world.settle(client)
        sizes = [len(body) for _, _, body in world.tap]
        assert max(sizes) <= 4096 + 32 if count == 0 else max(sizes) > 16384
        world.run(1)
