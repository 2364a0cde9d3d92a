"""How long a NAT remembers us: the interval of keep-alives is found, not assumed.

A node that wants to be reached keeps its mappings to some peers alive. One of them helps to find out how
seldom that is needed: it is told to be silent for a time and to send a probe then. If the probe comes,
the mapping lasted; the next try is twice as long. If it does not, what lasted before is the interval.
The whole node is silent meanwhile, as to many NATs its links are one mapping. Another port, seen after
less silence than should be harmless, halves the interval.

              lasted: interval := tried, tried := 2 x tried
              +--------+
              |        v
        +---------------------+    did not last, or MAX_S lasts     +---------+
        |       TRYING        | ----------------------------------> | SETTLED |
        +---------------------+ <---------------------------------- +---------+
                                    another network, or AGAIN_S

What was found is remembered for each network (the address others see us at), also over a restart: `found` and
`restore`. Sans-I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from uservpn.types import LinkId

START_S: Final = 25.0
"""The first guess: below what almost every NAT keeps (RFC 4787 asks for 120 s, many give 30)."""
MIN_S: Final = 10.0
MAX_S: Final = 500.0
"""Below the usual time between keep-alives, less what they may be early."""
GRACE_S: Final = 3.0
"""How much later than told the probe may come: the flight, and a peer's coarse timers."""
SETTLING_S: Final = 10.0
"""For so long after a trial that failed another port tells nothing."""
AGAIN_S: Final = 6 * 3600.0
NETWORKS_MAX: Final = 16


class Binding:
    """The search of one node, and its result."""

    def __init__(self, jitter: Callable[[float], float]) -> None:
        self._jitter = jitter
        self._found: dict[str, float] = {}
        self._network = ""
        self._tried_s = START_S
        self._failed_s = 0.0
        self._again_at: float | None = None
        self._link: LinkId | None = None
        self._asked_at = 0.0
        self._ended_at = 0.0
        self.interval_s = START_S
        """Silence that a mapping is known, or at first assumed, to outlast."""

    # --- outside events --------------------------------------------------------------------------

    def enter(self, network: str, now: float) -> None:
        """We are seen at this address from now on ("": at none). Another one begins another search."""
        if network == self._network:
            return
        self._network = network
        self._link = None
        self._again_at = None
        self._ended_at = now
        self.interval_s = self._found.get(network, START_S)
        self._tried_s = START_S if network not in self._found else min(MAX_S, 2 * self.interval_s)
        self._failed_s = 0.0

    def asked(self, link: LinkId, now: float) -> float:
        """A trial begins on this link: silence for so many seconds, then the peer's probe."""
        self._link = link
        self._asked_at = now
        return self._tried_s

    def probed(self, link: LinkId, now: float) -> bool:
        """The peer's probe came over this link; True: it ended a trial, which has passed."""
        if link != self._link or now < self._asked_at + 0.9 * self._tried_s:
            return False
        self._link = None
        self.interval_s = self._tried_s
        self._remember()
        if self._tried_s >= MAX_S or self._failed_s:
            self._settle(now)
        else:
            self._tried_s = min(MAX_S, 2 * self._tried_s)
        return True

    def remapped(self, now: float) -> None:
        """We are seen at another port though nothing was silent for longer than the interval."""
        if self._link is not None or now < self._ended_at + SETTLING_S:
            return  # a trial that failed makes a new mapping
        self._ended_at = now
        self.interval_s = self._tried_s = max(MIN_S, self.interval_s / 2)
        self._failed_s = 2 * self.interval_s
        self._remember()

    def disturbed(self, now: float) -> None:
        """Something was sent or heard during the trial: it tells nothing."""
        self._link = None
        self._ended_at = now

    def on_deadline(self, now: float) -> bool:
        """True: a trial has ended because no probe came; the mapping is to be made anew at once."""
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._tried_s = min(MAX_S, 2 * self.interval_s)
            self._failed_s = 0.0
        if self._link is None or now < self._due():
            return False
        self._link = None
        self._ended_at = now
        self._failed_s = self._tried_s
        if self._tried_s <= self.interval_s:  # not even what was assumed
            self.interval_s = self._tried_s = max(MIN_S, self._tried_s / 2)
            if self._failed_s <= MIN_S:
                self._settle(now)
        else:
            self._settle(now)
        self._remember()
        return True

    def restore(self, found: Mapping[str, float]) -> None:
        """What was `found` before a restart; what makes no sense is left out."""
        for network, interval_s in found.items():
            if MIN_S <= interval_s <= MAX_S and len(self._found) < NETWORKS_MAX:
                self._found.setdefault(network, interval_s)

    # --- questions -------------------------------------------------------------------------------

    @property
    def found(self) -> dict[str, float]:
        """The intervals of the last networks, by address; the newest at the end."""
        return dict(self._found)

    @property
    def trial(self) -> LinkId | None:
        """The link that is silent on purpose."""
        return self._link

    @property
    def trial_began(self) -> float:
        """When it fell silent."""
        return self._asked_at

    def wants_trial(self) -> bool:
        """Is there something to find out?"""
        return bool(self._network) and self._link is None and self._again_at is None

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        return self._due() if self._link is not None else self._again_at

    # --- inside ----------------------------------------------------------------------------------

    def _due(self) -> float:
        return self._asked_at + self._tried_s + GRACE_S

    def _settle(self, now: float) -> None:
        self._again_at = now + AGAIN_S * (0.75 + self._jitter(0.5))

    def _remember(self) -> None:
        self._found.pop(self._network, None)
        self._found[self._network] = self.interval_s
        if len(self._found) > NETWORKS_MAX:
            del self._found[next(iter(self._found))]
