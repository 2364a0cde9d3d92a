"""The exit's side of tests: it resolves and connects for a client that asks which exit is best.

Every test is a dial like any other (policy, resolver, time limit), without a stream. Where the client
wants it (KEEP), the connection stays open for a moment (runtime/kept.py), so that the OPEN that
follows has nothing to wait for. Bounds: tests at once and per minute for each client; beyond, LIMIT.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from uservpn.chooser.testing import (
    KEEP,
    RESOLVE,
    TOPIC_TEST,
    TOPIC_TESTED,
    Budget,
    Finding,
    Inquiry,
    decode_test,
)
from uservpn.errors import Fault, StreamFault
from uservpn.runtime.clock import monotonic
from uservpn.runtime.descriptors import SHORTAGE
from uservpn.runtime.dialling import fault_of
from uservpn.runtime.driver import Driver
from uservpn.runtime.exit import Exit
from uservpn.runtime.kept import KeptConnections, Waiting
from uservpn.types import NodeId

log: Final = logging.getLogger("uservpn")
TESTS_PER_CLIENT_MAX: Final = 64
"""At once."""
TESTS_PER_MINUTE: Final = 240
CLIENTS_MAX: Final = 254
TEST_LIMIT_S: Final = 5.0


class ExitTests:
    """Answers `exit.test` for one node; keeps what its clients may open next."""

    def __init__(
        self,
        driver: Driver,
        exit: Exit,
        kept: KeptConnections,
        is_enabled: Callable[[], bool],
        country_of: Callable[[str], str | None] = lambda address: None,
    ) -> None:
        self.country_of = country_of
        self.answered_count = 0
        self.refused_count = 0
        self._driver = driver
        self._exit = exit
        self._kept = kept
        self._is_enabled = is_enabled
        self._running: dict[NodeId, int] = {}
        self._budgets: dict[NodeId, Budget] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        driver.post.on_message(TOPIC_TEST, self._asked)

    def close(self) -> None:
        """Ends everything; nobody is told."""
        self._driver.post.on_message(TOPIC_TEST, None)
        for task in self._tasks:
            task.cancel()

    def snapshot(self) -> dict[str, Any]:
        """Counts for the status document."""
        return {
            "answered": self.answered_count,
            "refused": self.refused_count,
            "kept": len(self._kept),
            "used": self._kept.used_count,
        }

    # --- one test --------------------------------------------------------------------------------

    def _asked(self, client: NodeId, payload: bytes) -> None:
        test = decode_test(payload)
        if test is None or not self._is_enabled():
            return
        if not self._may_run(client, not test.flags & RESOLVE):
            self.refused_count += 1
            self._answer(client, Finding(test.token, Fault.LIMIT))
            return
        self._running[client] = self._running.get(client, 0) + 1
        task = self._driver.loop.create_task(self._run(client, test))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _may_run(self, client: NodeId, connects: bool) -> bool:
        """Only what connects counts by the minute: look-ups are bounded by the resolver."""
        if self._running.get(client, 0) >= TESTS_PER_CLIENT_MAX:
            return False
        if not connects:
            return True
        budget = self._budgets.get(client)
        if budget is None:
            if len(self._budgets) >= CLIENTS_MAX:
                del self._budgets[next(iter(self._budgets))]
            budget = self._budgets[client] = Budget(TESTS_PER_MINUTE)
        return budget.take(monotonic())

    async def _run(self, client: NodeId, test: Inquiry) -> None:
        try:
            async with asyncio.timeout(TEST_LIMIT_S):
                tested = await self._test(client, test)
        except TimeoutError:
            tested = Finding(test.token, Fault.TIMEOUT)
        except StreamFault as error:
            tested = Finding(test.token, error.fault)
        except OSError as error:
            SHORTAGE.met(error)
            tested = Finding(test.token, fault_of(error))
        except Exception:
            log.exception("a test failed in a way nobody thought of")
            tested = Finding(test.token, Fault.FAILED)
        finally:
            left = self._running[client] - 1
            if left:
                self._running[client] = left
            else:
                del self._running[client]
        self._answer(client, tested)

    async def _test(self, client: NodeId, test: Inquiry) -> Finding:
        began = monotonic()
        addresses = await self._exit.resolve(test.host)
        resolved = monotonic()
        resolve_ms = int((resolved - began) * 1000)
        if test.flags & RESOLVE:
            country = self.country_of(addresses[0]) or ""
            return Finding(test.token, Fault.NONE, resolve_ms, 0.0, country, tuple(addresses))
        waiting = Waiting()
        try:
            await self._exit.connect(lambda: waiting, addresses, test.port)
            connect_ms = (monotonic() - resolved) * 1000
            transport = waiting.transport
            peer = transport.get_extra_info("peername") if transport is not None else None
        except BaseException:
            waiting.drop()
            raise
        if not test.flags & KEEP or not self._kept.keep((client, test.host, test.port), waiting):
            waiting.drop()
        country = (self.country_of(peer[0]) if peer else None) or ""
        return Finding(test.token, Fault.NONE, resolve_ms, connect_ms, country)

    def _answer(self, client: NodeId, tested: Finding) -> None:
        self.answered_count += 1
        self._driver.post.send_message(client, TOPIC_TESTED, tested.encode())
