"""The chooser on the event loop: its tests of exits go out, their answers come in, nobody waits too long.

A choice that is known costs no message and no turn of the loop. One that has to wait for a test is
told to its waiter when the test is decided, at the latest when its time is up. One timer a test, none
while there is none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from uservpn.chooser.cases import Choice
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.measure import Trip
from uservpn.chooser.testing import TOPIC_TEST, TOPIC_TESTED, Trial, decode_tested
from uservpn.errors import Fault
from uservpn.runtime.clock import monotonic
from uservpn.runtime.direct import DirectDriver
from uservpn.runtime.driver import Driver
from uservpn.runtime.entry import Waiter
from uservpn.runtime.pump import Carrier
from uservpn.tunnel.stream import Stream
from uservpn.types import NodeId

log: Final = logging.getLogger("uservpn")


class Choosing:
    """What the entry asks; one for all entries of a node."""

    def __init__(
        self, chooser: Chooser, driver: Driver, changed: Callable[[], None] = lambda: None
    ) -> None:
        """`changed` is told that there may be something new for the disk; it must be cheap."""
        self.chooser = chooser
        self.driver = driver
        self.changed = changed
        self._timers: dict[int, asyncio.TimerHandle] = {}
        driver.post.on_message(TOPIC_TESTED, self._tested)

    def close(self) -> None:
        """No timer stays."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.driver.post.on_message(TOPIC_TESTED, None)

    # --- for the entry ---------------------------------------------------------------------------

    def choose(self, host: str, port: int, user: str, waiter: Waiter) -> Choice | None:
        """Where this target's connection goes; None: the waiter is told, soon."""
        chooser = self.chooser
        found = chooser.choose(host, port, user, monotonic())
        if chooser.has_news:
            self._carry_out()
        if type(found) is Choice:
            return found
        assert isinstance(found, Trial)
        found.waiters.append(waiter)
        return None

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has it connected there before?"""
        return self.chooser.outcomes.knows(exit, host, port)

    def connected(self, choice: Choice, host: str, port: int) -> None:
        """It has."""
        self.chooser.outcomes.connected(choice, host, port)

    def failed(self, choice: Choice, host: str, port: int, fault: Fault) -> None:
        """It has not; or the exit died under a connection."""
        if fault is Fault.EXIT_DEAD:
            self.chooser.outcomes.exit_died(choice.exit)
        self.chooser.outcomes.failed(choice, host, port, fault, monotonic())
        self.changed()

    def replied(self, choice: Choice, trip: Trip) -> None:
        """The first data came back."""
        now = monotonic()
        ms = trip.replied(now, self._flight_s(choice))
        if ms is not None:
            self.chooser.outcomes.replied(choice, ms, now)
            self.changed()

    def unanswered(self, choice: Choice, trip: Trip, is_broken: bool) -> None:
        """The connection ended without a reply; `is_broken`: by the site's side."""
        now = monotonic()
        if self.chooser.mesh.heard_at(choice.exit) < trip.sent_at:
            return  # the exit itself was silent: this says nothing of the site
        flight_s = self._flight_s(choice)
        if is_broken:
            ms = trip.broken(now, flight_s)
        else:
            ms = trip.ended(now, flight_s, self.chooser.outcomes.expected_ms(choice, now))
        if ms is not None:
            self.chooser.outcomes.replied(choice, ms, now)

    def ended(self, choice: Choice, stream: Stream) -> None:
        """The connection is over."""
        self.chooser.outcomes.ended(choice, stream.recv_offset, stream.sent_size)
        self.changed()

    def driver_of(self, choice: Choice) -> Carrier:
        """Who opens its stream."""
        return DirectDriver(self.driver.loop, choice.addresses) if choice.is_direct else self.driver

    def _flight_s(self, choice: Choice) -> float:
        return (self.chooser.mesh.flight_ms(choice.exit) or 0.0) / 1000

    # --- tests -----------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        """Sends what is to be asked, tells what is decided, logs what is news."""
        chooser = self.chooser
        for trial in chooser.take_begun():
            self._arm(trial)
        for exit, test in chooser.take_requests():
            self.driver.post.send_message(exit, TOPIC_TEST, test.encode())
        for text in chooser.take_moved():
            log.warning("%s", text)
        for waiter, choice in chooser.take_decided():
            try:
                waiter.chosen(choice)
            except Exception:  # one connection's trouble must not cost the others their answer
                log.exception("a connection could not go on with its exit")
        self.changed()

    def _arm(self, trial: Trial) -> None:
        old = self._timers.get(trial.token)
        if old is not None:
            old.cancel()
        delay = max(0.0, trial.cut_at - monotonic())
        self._timers[trial.token] = self.driver.loop.call_later(delay, self._cut, trial)

    def _cut(self, trial: Trial) -> None:
        self._timers.pop(trial.token, None)
        self.chooser.cut(trial, monotonic())
        self._carry_out()

    def _tested(self, exit: NodeId, payload: bytes) -> None:
        tested = decode_tested(payload)
        if tested is None:
            return
        trial = self.chooser.tested(exit, tested, monotonic())
        if trial is not None and tested.token in self._timers:
            if trial.is_decided:
                self._timers.pop(tested.token).cancel()
            else:
                self._arm(trial)
        self._carry_out()
