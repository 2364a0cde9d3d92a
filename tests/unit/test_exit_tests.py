"""The exit's side of tests: policy, bounds, connections that are kept for the OPEN that follows."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from test_exit import LOOPBACK, FakeDriver, FakeResolver, Site
from uservpn.chooser.testing import KEEP, RESOLVE, Inquiry, decode_tested
from uservpn.errors import Fault, StreamFault
from uservpn.exits.policy import Policy
from uservpn.runtime import exit_tests, kept
from uservpn.runtime.exit import Exit
from uservpn.runtime.exit_tests import ExitTests
from uservpn.runtime.kept import KeptConnections
from uservpn.tunnel.stream import Stream

CLIENT = 7


class Driver(FakeDriver):
    """Also carries messages."""

    def __init__(self, loop):
        super().__init__(loop)
        self.handlers = {}
        self.answers = []
        self.post = self

    def on_message(self, topic, handler):
        self.handlers[topic] = handler

    def send_message(self, peer, topic, payload):
        self.answers.append((peer, decode_tested(payload)))
        self._told.set()


class Bench:
    def __init__(self, policy=LOOPBACK, answers=None):
        loop = asyncio.get_running_loop()
        self.driver = Driver(loop)
        self.kept = KeptConnections(loop)
        self.exit = Exit(self.driver, policy, FakeResolver(answers or {}), kept=self.kept)
        self.is_enabled = True
        self.tests = ExitTests(
            self.driver, self.exit, self.kept, lambda: self.is_enabled, lambda address: "XX"
        )

    async def ask(self, host, port, flags=0, client=CLIENT):
        """The answer to one test."""
        count = len(self.driver.answers)
        self.send(host, port, flags, client)
        await self.driver.until(lambda: len(self.driver.answers) > count)
        peer, finding = self.driver.answers[-1]
        assert peer == client
        return finding

    def send(self, host, port, flags=0, client=CLIENT):
        self.driver.handlers["exit.test"](client, Inquiry(9, flags, host, port).encode())

    def close(self):
        self.tests.close()
        self.kept.close()
        self.exit.close()


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request):
    def runs(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return runs


def test_connect_time_and_country_are_told(run):
    async def main():
        site = await Site().start()
        bench = Bench(answers={"site.test": ["127.0.0.1"]})
        finding = await bench.ask("site.test", site.port)
        assert (finding.token, finding.fault, finding.country) == (9, Fault.NONE, "XX")
        assert 0 < finding.connect_ms < 5000
        assert len(bench.kept) == 0
        bench.close()
        await site.close()

    run(main)


def test_what_was_kept_is_the_streams_connection(run):
    """The site speaks first, before anybody is there; nothing of that is lost, nobody dials again."""

    async def main():
        site = await Site(b"hello").start()
        bench = Bench()
        await bench.ask("127.0.0.1", site.port, KEEP)
        assert len(bench.kept) == 1
        stream = Stream(1, CLIENT, False, 1 << 20)
        bench.exit.offer(stream, "127.0.0.1", site.port)
        assert stream in bench.driver.accepted  # at once
        await bench.driver.until(lambda: bench.driver.received.get(stream) == b"hello")
        bench.driver.accepted[stream].stream_data(b"and you")
        bench.driver.accepted[stream].stream_finished()
        async with asyncio.timeout(5):
            while not site.got:
                await asyncio.sleep(0.005)
        bench.driver.accepted[stream].abort()
        await site.close()
        assert len(site.peers) == 1 and bench.kept.used_count == 1
        assert site.got == [b"and you"]
        bench.close()
        await asyncio.sleep(0.01)

    run(main)


def test_others_get_nothing_of_it_and_it_ends_by_itself(run, monkeypatch):
    monkeypatch.setattr(kept, "KEPT_S", 0.05)

    async def main():
        site = await Site().start()
        bench = Bench()
        await bench.ask("127.0.0.1", site.port, KEEP)
        assert bench.kept.take(CLIENT + 1, "127.0.0.1", site.port) is None
        assert bench.kept.take(CLIENT, "127.0.0.2", site.port) is None
        async with asyncio.timeout(5):
            while len(bench.kept) or not site.got:
                await asyncio.sleep(0.005)
        assert bench.kept._timer is None
        bench.close()
        await site.close()

    run(main)


def test_the_policy_holds_for_tests_too(run):
    async def main():
        site = await Site().start()
        bench = Bench(
            Policy(), {"site.test": ["127.0.0.1"], "gone.test": StreamFault(Fault.HOST_UNREACHABLE)}
        )
        for host in ("127.0.0.1", "site.test"):
            assert (await bench.ask(host, site.port, KEEP)).fault is Fault.NOT_ALLOWED
        assert (await bench.ask("gone.test", 80)).fault is Fault.HOST_UNREACHABLE
        assert not site.peers and len(bench.kept) == 0
        bench.close()
        await site.close()

    run(main)


def test_a_refused_port_is_told_and_a_name_can_be_only_resolved(run):
    async def main():
        site = await Site().start()
        port = site.port
        await site.close()
        bench = Bench(answers={"site.test": ["192.0.2.1", "2001:db8::1"]})
        assert (await bench.ask("127.0.0.1", port)).fault is Fault.REFUSED
        finding = await bench.ask("site.test", 0, RESOLVE)
        assert finding.addresses == ("192.0.2.1", "2001:db8::1")
        bench.close()

    run(main)


def test_a_client_cannot_make_too_many_at_once_or_in_a_minute(run, monkeypatch):
    monkeypatch.setattr(exit_tests, "TESTS_PER_CLIENT_MAX", 3)
    monkeypatch.setattr(exit_tests, "TESTS_PER_MINUTE", 5)

    async def main():
        site = await Site().start()
        bench = Bench()
        for _ in range(6):
            bench.send("127.0.0.1", site.port)
        await bench.driver.until(lambda: len(bench.driver.answers) == 6)
        assert sum(finding.fault is Fault.LIMIT for _, finding in bench.driver.answers) == 3
        assert (await bench.ask("127.0.0.1", site.port)).fault is Fault.NONE
        assert (await bench.ask("127.0.0.1", site.port)).fault is Fault.NONE
        assert (await bench.ask("127.0.0.1", site.port)).fault is Fault.LIMIT
        assert (await bench.ask("127.0.0.1", site.port, client=8)).fault is Fault.NONE
        assert bench.tests.snapshot()["refused"] == 4
        bench.close()
        await site.close()

    run(main)


def test_no_more_is_kept_than_there_is_room_for(run, monkeypatch):
    monkeypatch.setattr(kept, "KEPT_PER_CLIENT_MAX", 2)

    async def main():
        sites = [await Site().start() for _ in range(3)]
        bench = Bench()
        for site in sites:
            await bench.ask("127.0.0.1", site.port, KEEP)
        assert len(bench.kept) == 2
        await bench.ask("127.0.0.1", sites[2].port, KEEP, client=8)
        assert len(bench.kept) == 3
        bench.close()
        for site in sites:
            await site.close()

    run(main)


def test_a_node_that_is_no_exit_says_nothing(run):
    async def main():
        bench = Bench()
        bench.is_enabled = False
        bench.send("127.0.0.1", 80)
        bench.driver.handlers["exit.test"](CLIENT, b"nonsense")
        await asyncio.sleep(0.01)
        assert not bench.driver.answers
        bench.close()

    run(main)
