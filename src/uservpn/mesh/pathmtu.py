"""The largest message that a datagram link's path carries, found by probes of the messages' own kind.

RFC 8899 (DPLPMTUD), as far as it fits a link whose peer answers every probe. A link starts at a size that
every path carries (BASE_PLPMTU). The first probe is as large as the local network takes, which most paths
carry; if it stays unanswered, the sizes that real paths have (CANDIDATES) are halved until no
candidate is left between what passed and what did not. Nothing is trusted but answers: no ICMP.

                       start                   nothing left to try
          +--------+        +-----------+                          +--------+
          | RESTING| -----> | SEARCHING | -----------------------> | RESTING|
          +--------+        +-----------+                          +--------+
                                  ^      the present size is lost     |  messages are lost,
                                  |      while others are heard       v  or long not confirmed
                                  |                              +------------+
                                  +------- size := base -------- | CONFIRMING |
                                                                 +------------+

Sizes are those of sealed payloads, bytes. Sans-I/O, and quiet: without `used` there is no deadline once
the search has ended.
"""

from __future__ import annotations

import enum
from typing import Final

MTUS: Final = (
    1280,  # the least that IPv6 allows
    1340,
    1380,
    1400,
    1420,  # WireGuard over IPv4
    1440,
    1460,
    1480,  # an IP tunnel
    1492,  # PPPoE
    1500,  # Ethernet
    4352,
    9000,  # jumbo frames
    16_384,
    32_768,
    65_535,
)
"""Sizes of IP packets that networks are set to."""
OVERHEADS: Final = (20 + 8 + 48, 40 + 8 + 48)
"""IPv4 or IPv6, UDP, and our header."""
TRIES: Final = 3
"""RFC 8899 MAX_PROBES: so many unanswered probes of a size mean that it does not pass."""
ANSWER_S: Final = 0.5
"""How long an answer may take, at least; else three round trips."""
RAISE_S: Final = 600.0
"""RFC 8899 PMTU_RAISE_TIMER: a path in use is searched again for more after so long."""
DOUBT_S: Final = 2.0
"""The size is confirmed at most so often because messages were lost."""
DOUBT_COUNT: Final = 4
"""So many resent messages raise doubt."""


class Phase(enum.Enum):
    """What the machine does; see the drawing above."""

    RESTING = 1
    SEARCHING = 2
    CONFIRMING = 3


def candidates(limit: int) -> tuple[int, ...]:
    """Payload sizes worth a probe, ascending; the last is `limit`."""
    sizes = {mtu - overhead for mtu in MTUS for overhead in OVERHEADS}
    return (*sorted(size for size in sizes if size < limit), limit)


class PathMtu:
    """The search for one link. `size` is what its messages may have now, `base` <= size <= `limit`."""

    __slots__ = (
        "_deadline",
        "_doubt_at",
        "_fails",
        "_first_at",
        "_is_started",
        "_probed",
        "_probes",
        "_resent",
        "_tries",
        "base",
        "limit",
        "phase",
        "raise_at",
        "rtt_s",
        "size",
    )

    def __init__(self, base: int, limit: int) -> None:
        self.base = min(base, limit)
        self.limit = limit
        self.size = self.base
        self.phase = Phase.RESTING
        self.raise_at = 0.0
        self.rtt_s = 0.0
        """The link's round trip, as far as its owner knows it; answers are waited for accordingly."""
        self._is_started = False
        self._fails = limit + 1
        """The smallest size that is known not to pass."""
        self._probed = 0
        """The size whose answer is waited for; 0: none."""
        self._probes: list[int] = []
        self._tries = 0
        self._first_at = 0.0
        self._deadline: float | None = None
        self._doubt_at = 0.0
        self._resent = 0

    # --- outside events --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """The peer has answered on this link: its path is worth a search. Once is enough."""
        if not self._is_started:
            self._is_started = True
            self._search(now)

    def used(self, resent_count: int, now: float) -> None:
        """Messages went over the link; so many of the peer's have been resent so far, on all links."""
        if self.phase is not Phase.RESTING or not self._is_started:
            return
        if now >= self.raise_at:
            if self.size < self.limit:
                self._search(now)
            else:
                self._confirm(now)
        elif resent_count - self._resent >= DOUBT_COUNT and now >= self._doubt_at:
            self._resent = resent_count
            self.doubt(now)

    def doubt(self, now: float) -> None:
        """Messages of the present size seem to be lost, or the path may be another one."""
        if self.phase is Phase.RESTING and self._is_started and self.size > self.base:
            self._confirm(now)

    def answered(self, size: int, now: float) -> None:
        """The peer answered a probe of this size."""
        if size != self._probed:
            return  # too late: it may have gone another way
        self._probed = 0
        if self.phase is Phase.SEARCHING:
            self.size = size
            self._next(now)
        else:
            self._rest(now)

    def resize(self, limit: int, now: float) -> None:
        """The local network takes so much now."""
        self.limit = limit
        self.base = min(self.base, limit)
        self.size = min(self.size, limit)
        if self._is_started:
            self._search(now)

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, heard_at: float, now: float) -> None:
        """Due work; harmless when early. `heard_at`: when any message last came over this link."""
        if self._deadline is None or now < self._deadline:
            return
        if self._probed and self._tries < TRIES:
            self._probe(self._probed, now)
        elif self.phase is Phase.SEARCHING:
            self._fails = self._probed
            self._next(now)
        elif heard_at > self._first_at:  # a black hole: small ones pass
            self.size = self.base
            self._fails = self._probed
            self.phase = Phase.SEARCHING
            self._next(now)
        else:  # nothing passes: not for this machine to judge
            self._rest(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called; None while nothing is under way."""
        return self._deadline

    def take_probes(self) -> list[int]:
        """Sizes to probe now."""
        probes = self._probes
        if probes:
            self._probes = []
        return probes

    # --- inside ----------------------------------------------------------------------------------

    def _search(self, now: float) -> None:
        self.phase = Phase.SEARCHING
        self._fails = self.limit + 1
        self._next(now)

    def _confirm(self, now: float) -> None:
        self.phase = Phase.CONFIRMING
        self._tries = 0
        self._first_at = now
        self._probe(self.size, now)

    def _next(self, now: float) -> None:
        """The next size to try: the limit first, then the middle of what is left."""
        left = [size for size in candidates(self.limit) if self.size < size < self._fails]
        if not left:
            self._rest(now)
            return
        self._tries = 0
        self._probe(left[-1] if left[-1] == self.limit else left[len(left) // 2], now)

    def _probe(self, size: int, now: float) -> None:
        self._probed = size
        self._probes.append(size)
        self._tries += 1
        self._deadline = now + max(ANSWER_S, 3 * self.rtt_s)

    def _rest(self, now: float) -> None:
        self.phase = Phase.RESTING
        self._probed = 0
        self._deadline = None
        self._probes.clear()
        self.raise_at = now + RAISE_S
        self._doubt_at = now + DOUBT_S
