"""What became of connections, and what the chooser learns from it for the next ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uservpn.chooser.affinity import Sessions
from uservpn.chooser.cases import Choice
from uservpn.chooser.directs import Directs
from uservpn.chooser.liveness import Liveness
from uservpn.chooser.measure import NEVER_MS, Knowledge
from uservpn.chooser.reached import Reached
from uservpn.errors import Fault
from uservpn.types import NodeId

_UNREACHED: Final = frozenset(
    (Fault.TIMEOUT, Fault.HOST_UNREACHABLE, Fault.NETWORK_UNREACHABLE, Fault.NOT_ALLOWED)
)
"""Results of a dial that another exit may not have."""
_TOO_SLOW: Final = frozenset((Fault.TIMEOUT, Fault.NETWORK_UNREACHABLE))
"""Results that count as a reply that never came."""


class Outcomes:
    """Whoever has a connection tells of it here. `now` is monotonic seconds."""

    def __init__(
        self,
        knowledge: Knowledge,
        sessions: Sessions,
        liveness: Liveness,
        reached: Reached,
        directs: Directs,
        wall_s: Callable[[], float],
    ) -> None:
        self._knowledge = knowledge
        self._sessions = sessions
        self._liveness = liveness
        self._reached = reached
        self._directs = directs
        self._wall_s = wall_s

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has this target connected through this exit before (and not failed since)?"""
        return self._reached.has(exit, host, port)

    def connected(self, choice: Choice, host: str, port: int) -> None:
        """The exit reached the target."""
        self._reached.add(choice.exit, host, port)
        if choice.is_direct:
            self._directs.connected(choice)
        if choice.key is not None:
            session = self._sessions.peek(choice.key)
            if session is not None and session.exit == choice.exit:
                session.is_proved = True

    def failed(self, choice: Choice, host: str, port: int, fault: Fault, now: float) -> None:
        """It did not: the next answer waits for the result. A session that never worked is over."""
        self._reached.drop(choice.exit, host, port)
        if choice.is_direct or choice.key is None or fault not in _UNREACHED:
            return
        if fault in _TOO_SLOW:  # else there may be no such name, which is nobody's fault
            self.replied(choice, NEVER_MS, now)
        session = self._sessions.peek(choice.key)
        if session is not None and session.exit == choice.exit and not session.is_proved:
            self._sessions.give_up(choice.key)

    def replied(self, choice: Choice, ms: float, now: float) -> None:
        """A first round trip of a connection, or none (NEVER_MS and more)."""
        if not choice.site:
            return
        if choice.is_direct:
            self._directs.replied(choice, ms, now + self._wall_s())
            return
        if ms < NEVER_MS:
            self._liveness.speaks(choice.exit)
        elif self._knowledge.has_answered(choice.site, choice.exit):
            self._liveness.silent(choice.exit, choice.site, now)
        self._knowledge.replied(choice.site, choice.exit, ms, now + self._wall_s())

    def expected_ms(self, choice: Choice, now: float) -> float | None:
        """The first round trip to expect."""
        return self._knowledge.expected_at(choice.site, choice.exit, now + self._wall_s())

    def ended(self, choice: Choice, bytes_in: int, bytes_out: int) -> None:
        """A connection is over."""
        if choice.is_direct:
            self._directs.ended(choice, bytes_in, bytes_out)
        elif choice.site:
            self._knowledge.moved(choice.site, choice.exit, bytes_in, bytes_out)

    def exit_died(self, exit: NodeId) -> None:
        """Its connections ended with it."""
        self._liveness.died(exit)
