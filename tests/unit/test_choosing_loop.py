"""The chooser on the event loop: questions go out, waiters are told, at the latest when time is up."""

from __future__ import annotations

import asyncio
from typing import Any

from test_choosing import WALL, FakeMesh, state
from uservpn.chooser.cases import Choice
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.measure import NEVER_MS, Trip
from uservpn.chooser.site import site_of
from uservpn.chooser.testing import TOPIC_TEST, TOPIC_TESTED, Finding, decode_test
from uservpn.errors import Fault
from uservpn.runtime.choosing import Choosing
from uservpn.runtime.clock import monotonic


class Driver:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.handlers: dict[str, Any] = {}
        self.sent: list[tuple[int, Any]] = []
        self.post = self

    def on_message(self, topic: str, handler: Any) -> None:
        self.handlers[topic] = handler

    def send_message(self, exit: int, topic: str, payload: bytes) -> None:
        assert topic == TOPIC_TEST
        self.sent.append((exit, decode_test(payload)))


class Waiter:
    def __init__(self) -> None:
        self.choice: Choice | None = None
        self.told = asyncio.Event()

    def chosen(self, choice: Choice) -> None:
        self.choice = choice
        self.told.set()


class Bench:
    def __init__(self, wait_s: float = 0.05) -> None:
        self.mesh = FakeMesh(state(1, "a", "DE", 10.0), state(2, "b", "US", 20.0))
        self.driver = Driver()
        chooser = Chooser(self.mesh, site_of=site_of, wall_s=lambda: WALL, wait_s=wait_s)
        self.changes = 0
        self.choosing = Choosing(chooser, self.driver, self._changed)  # type: ignore[arg-type]

    def _changed(self) -> None:
        self.changes += 1

    def answer(self, exit: int, connect_ms: float) -> None:
        test = next(test for node, test in self.driver.sent if node == exit)
        payload = Finding(test.token, Fault.NONE, 0, connect_ms).encode()
        self.driver.handlers[TOPIC_TESTED](exit, payload)


def run(test: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(main())


def test_a_waiter_is_told_when_the_best_exit_is_found() -> None:
    async def test() -> None:
        bench, waiter, other = Bench(wait_s=5.0), Waiter(), Waiter()
        assert bench.choosing.choose("a.test", 80, "", waiter) is None
        assert bench.choosing.choose("a.test", 81, "", other) is None
        assert [exit for exit, _ in bench.driver.sent] == [1, 2]
        bench.answer(2, 1.0)
        assert waiter.choice is None  # exit 1 is nearer, and may be better
        bench.answer(1, 1.0)
        assert waiter.choice is not None and waiter.choice.exit == 1
        assert other.choice is not None and other.choice.exit == 1
        assert not bench.choosing._timers
        assert bench.choosing.choose("a.test", 80, "", waiter) is not None

    run(test)


def test_a_waiter_is_told_when_time_is_up() -> None:
    async def test() -> None:
        bench, waiter = Bench(), Waiter()
        assert bench.choosing.choose("a.test", 80, "", waiter) is None
        await waiter.told.wait()
        assert waiter.choice is not None and waiter.choice.exit == 1
        assert not bench.choosing._timers

    run(test)


def test_nonsense_is_not_heard_and_a_waiters_trouble_is_its_own() -> None:
    class Broken(Waiter):
        def chosen(self, choice: Choice) -> None:
            raise RuntimeError("on purpose")

    async def test() -> None:
        bench, waiter = Bench(), Waiter()
        bench.choosing.choose("a.test", 80, "", Broken())
        bench.choosing.choose("a.test", 80, "", waiter)
        bench.driver.handlers[TOPIC_TESTED](1, b"nonsense")
        bench.answer(1, 1.0)
        bench.driver.handlers[TOPIC_TESTED](9, b"")
        await waiter.told.wait()
        assert waiter.choice is not None

    run(test)


def test_closing_leaves_no_timer() -> None:
    async def test() -> None:
        bench = Bench()
        bench.choosing.choose("a.test", 80, "", Waiter())
        bench.choosing.close()
        assert not bench.choosing._timers

    run(test)


def test_a_session_moves_at_once_when_its_connections_died_with_its_exit(caplog: Any) -> None:
    """Before any try to dial that exit again has failed."""

    async def test() -> None:
        bench, waiter = Bench(wait_s=5.0), Waiter()
        assert bench.choosing.choose("a.test", 80, "", waiter) is None
        bench.answer(1, 1.0)
        bench.answer(2, 1.0)
        assert waiter.choice is not None and waiter.choice.exit == 1
        bench.mesh.unlinked.add(1)
        same = bench.choosing.choose("a.test", 80, "", Waiter())
        assert same is not None and same.exit == 1  # perhaps only its link broke
        bench.choosing.failed(same, "a.test", 80, Fault.EXIT_DEAD)
        other = bench.choosing.choose("a.test", 80, "", Waiter())
        assert other is not None and other.exit == 2
        assert "exit 1 died" in caplog.text

    run(test)


def test_silence_counts_against_a_site_only_if_its_exit_was_heard() -> None:
    async def test() -> None:
        bench = Bench()
        bench.mesh.states.pop(2)
        choice = bench.choosing.choose("a.test", 80, "", Waiter())
        assert choice is not None
        trip = Trip()
        trip.sent(monotonic() - 30)
        bench.mesh.heard_at = lambda exit: monotonic() - 60  # type: ignore[method-assign]
        bench.choosing.unanswered(choice, trip, is_broken=False)
        series = bench.choosing.chooser.knowledge.pairs("a.test")
        assert not series or not series[1].real.count(WALL + monotonic())
        trip = Trip()
        trip.sent(monotonic() - 30)
        bench.mesh.heard_at = lambda exit: monotonic()  # type: ignore[method-assign]
        bench.choosing.unanswered(choice, trip, is_broken=False)
        pair = bench.choosing.chooser.knowledge.pairs("a.test")[1]
        assert pair.real.mean(WALL + monotonic()) >= NEVER_MS

    run(test)
