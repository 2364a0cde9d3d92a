"""Connections from this node itself: to the entry they look like streams of the mesh."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from uservpn.errors import Fault
from uservpn.runtime.direct import EARLY_MAX, UNCONSUMED_MAX, DirectDriver
from uservpn.types import NodeId


class Owner:
    """Takes notes."""

    def __init__(self):
        self.notes = []
        self.data = bytearray()
        self.told = asyncio.Event()

    def stream_opened(self, fault, detail):
        self.note(fault)

    def stream_data(self, chunk):
        self.data += chunk
        self.told.set()

    def stream_room(self):
        self.note("room")

    def stream_finished(self):
        self.note("finished")

    def stream_reset(self, fault):
        self.note(("reset", fault))

    def note(self, what):
        self.notes.append(what)
        self.told.set()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                self.told.clear()
                await self.told.wait()


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request):
    def runs(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return runs


async def echo_site(until_end=False):
    async def serve(reader, writer):
        try:
            if until_end:
                writer.write(await reader.read())
                writer.write_eof()
            else:
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def test_bytes_go_both_ways_early_ones_first_and_ends_are_passed_on(run):
    async def main():
        server, port = await echo_site(until_end=True)
        owner = Owner()
        driver = DirectDriver(asyncio.get_running_loop(), ("127.0.0.1",))
        stream = driver.open(NodeId(0), "site.test", port, owner)
        assert driver.write(stream, b"early ")
        await owner.until(lambda: owner.notes)
        assert owner.notes == [Fault.NONE]
        driver.write(stream, b"and late")
        driver.finish(stream)
        await owner.until(lambda: "finished" in owner.notes)
        assert bytes(owner.data) == b"early and late"
        assert (stream.sent_size, stream.recv_offset) == (14, 14)
        server.close()
        await asyncio.sleep(0.01)
        assert owner.notes == [Fault.NONE, "finished"]

    run(main)


def test_a_refused_connection_is_told_as_what_it_is(run):
    async def main():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            owner = Owner()
            driver = DirectDriver(asyncio.get_running_loop(), ("127.0.0.1",))
            driver.open(NodeId(0), "site.test", probe.getsockname()[1], owner)
            await owner.until(lambda: owner.notes)
        assert owner.notes == [Fault.REFUSED]

    run(main)


def test_the_second_address_serves_where_the_first_does_not(run):
    async def main():
        server, port = await echo_site()
        owner = Owner()
        driver = DirectDriver(asyncio.get_running_loop(), ("127.0.0.77", "127.0.0.1"))
        stream = driver.open(NodeId(0), "site.test", port, owner)
        await owner.until(lambda: owner.notes)
        assert owner.notes == [Fault.NONE]
        driver.reset(stream, Fault.CANCELLED)
        server.close()
        await asyncio.sleep(0.01)

    run(main)


def test_a_program_that_does_not_read_stops_the_site(run):
    async def main():
        server, port = await echo_site()
        owner = Owner()
        driver = DirectDriver(asyncio.get_running_loop(), ("127.0.0.1",))
        stream = driver.open(NodeId(0), "site.test", port, owner)
        await owner.until(lambda: owner.notes)
        size = 8 * UNCONSUMED_MAX
        driver.write(stream, bytes(size))
        await owner.until(lambda: len(owner.data) >= UNCONSUMED_MAX)
        for _ in range(20):
            await asyncio.sleep(0)
        held = len(owner.data)
        assert held < 3 * UNCONSUMED_MAX
        taken = 0
        while taken < size:
            driver.consumed(stream, len(owner.data) - taken)
            taken = len(owner.data)
            if taken < size:
                await owner.until(lambda seen=taken: len(owner.data) > seen)
        driver.reset(stream, Fault.CANCELLED)
        server.close()
        await asyncio.sleep(0.01)

    run(main)


def test_too_much_early_data_makes_the_program_wait(run):
    async def main():
        server, port = await echo_site()
        owner = Owner()
        driver = DirectDriver(asyncio.get_running_loop(), ("127.0.0.1",))
        stream = driver.open(NodeId(0), "site.test", port, owner)
        assert not driver.write(stream, bytes(EARLY_MAX))
        await owner.until(lambda: "room" in owner.notes)
        driver.reset(stream, Fault.CANCELLED)
        server.close()
        await asyncio.sleep(0.01)

    run(main)
