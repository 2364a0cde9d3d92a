"""The largest message that a datagram link's path carries, found by probes of the messages' own kind.

RFC 8899 (DPLPMTUD), as far as it fits a link whose peer answers every probe. A link starts at a size that
every path carries (BASE_PLPMTU). The first probe is as large as the local network takes, which most paths
carry; if it stays unanswered, the sizes that real paths have (CANDIDATES) are halved until no
candidate is left between what passed and what did not. Nothing is trusted but answers: no ICMP.

Two questions are asked, each by itself, of TRIES probes at most:

    what more passes?        after the start, and again after a while in use
    does the present size?   when messages are lost, or after a while in use. If not, while others are
                             heard (a black hole): back to the base, and the search starts below

A path on which all large messages get lost while small ones pass need not wait for that: `swallowed`.

Sizes are those of sealed payloads, bytes. Sans-I/O, and quiet: without `used` there is no deadline once
the search has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
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
DOUBT_S: Final = 1.0
"""The size is confirmed at most so often because messages were lost."""
CONFIRM_S: Final = 0.25
"""As ANSWER_S for a size that has passed before: to doubt it wrongly costs little, to keep it a stall."""
BLIND_S: Final = 5.0
"""The size of a link that carries messages of others is confirmed so often."""
SMALL: Final = 0
"""Beside the first probe of a size in doubt goes a short one: does anything at all pass?"""
DOUBT_COUNT: Final = 4
"""So many resent messages raise doubt."""
DOUBT_MANY: Final = 32
DOUBT_MANY_S: Final = 0.25
"""So many within the time raise it again so soon: on a fast path that is cheap."""


@dataclass(slots=True)
class Question:
    """Probes of one size, and when an answer is given up."""

    least_s: float
    """How long an answer may take, at least."""
    size: int = 0
    """0: nothing is asked."""
    tries: int = 0
    first_at: float = 0.0
    deadline: float = 0.0


def candidates(limit: int) -> tuple[int, ...]:
    """Payload sizes worth a probe, ascending; the last is `limit`."""
    sizes = {mtu - overhead for mtu in MTUS for overhead in OVERHEADS}
    return (*sorted(size for size in sizes if size < limit), limit)


class PathMtu:
    """The search for one link. `size` is what its messages may have now, `base` <= size <= `limit`."""

    __slots__ = (
        "_blind_at",
        "_doubt_at",
        "_fails",
        "_is_started",
        "_more",
        "_present",
        "_probes",
        "_raise_at",
        "_resent",
        "_swallowed_at",
        "base",
        "limit",
        "rtt_s",
        "size",
    )

    def __init__(self, base: int, limit: int) -> None:
        self.base = min(base, limit)
        self.limit = limit
        self.size = self.base
        self.rtt_s = 0.0
        """The link's round trip, as far as its owner knows it; answers are waited for accordingly."""
        self._is_started = False
        self._fails = limit + 1
        """The smallest size that is known not to pass."""
        self._more = Question(ANSWER_S)
        self._present = Question(CONFIRM_S)
        self._probes: list[int] = []
        self._raise_at = 0.0
        self._doubt_at = 0.0
        self._blind_at = 0.0
        self._swallowed_at = -DOUBT_S
        self._resent = 0

    @property
    def is_searching(self) -> bool:
        """Larger sizes are being tried."""
        return bool(self._more.size)

    # --- outside events --------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """The peer has answered on this link: its path is worth a search. Once is enough."""
        if not self._is_started:
            self._is_started = True
            self._search(now)

    def used(self, resent_count: int, now: float) -> None:
        """Messages went over the link; so many of the peer's have been resent so far, on all links."""
        if not self._is_started:
            return
        if now >= self._raise_at:
            self._search(now)
            self.doubt(now)
            return
        resent = resent_count - self._resent
        early = DOUBT_S - DOUBT_MANY_S if resent >= DOUBT_MANY else 0.0
        if resent >= DOUBT_COUNT and now >= self._doubt_at - early:
            self._resent = resent_count
            self.doubt(now)

    def relayed(self, now: float) -> None:
        """Messages of others went over the link: nobody here would hear that they are lost."""
        if now >= self._blind_at:
            self._blind_at = now + BLIND_S
            self.doubt(now)

    def doubt(self, now: float) -> None:
        """Messages of the present size seem to be lost, or the path may be another one."""
        if self._is_started and self.size > self.base and not self._present.size:
            self._doubt_at = now + DOUBT_S
            self._ask(self._present, self.size, now)
            self._probes.append(SMALL)

    def swallowed(self, now: float) -> None:
        """Small messages pass, and none of the present size: the base, until that size is proved anew.

        RFC 8899 4.3. Should it be chance after all, an answer undoes it within a round trip.
        """
        if self.size == self.base or now < self._swallowed_at + DOUBT_S:
            return
        self._swallowed_at = self._doubt_at = now
        was = self.size
        self.size = self.base
        self._present.size = 0
        self._ask(self._more, was, now)

    def answered(self, size: int, now: float) -> None:
        """The peer answered a probe of this size."""
        if size == self._present.size:
            self._present.size = 0
        elif size == self._more.size:
            self.size = size
            self._present.size = 0
            self._next(now)  # else it is too late: it may have gone another way

    def resize(self, limit: int, now: float) -> None:
        """The local network takes so much now."""
        self.limit = limit
        self.base = min(self.base, limit)
        self.size = min(self.size, limit)
        if self._is_started:
            self._present.size = 0
            self._search(now)

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, heard_at: float, now: float) -> None:
        """Due work; harmless when early. `heard_at`: when any message last came over this link."""
        present, more = self._present, self._more
        if present.size and now >= present.deadline:
            if present.tries < TRIES:
                self._probe(present, now)
            else:
                if heard_at > present.first_at:
                    self._leave_black_hole(now)
                present.size = 0  # where nothing is heard at all others judge
        if more.size and now >= more.deadline:
            if more.tries < TRIES:
                self._probe(more, now)
            else:
                self._fails = more.size
                self._next(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called; None while nothing is under way."""
        times = [asked.deadline for asked in (self._present, self._more) if asked.size]
        return min(times, default=None)

    def take_probes(self) -> list[int]:
        """Sizes to probe now; SMALL: a probe as short as they usually are."""
        probes = self._probes
        if probes:
            self._probes = []
        return probes

    # --- inside ----------------------------------------------------------------------------------

    def _search(self, now: float) -> None:
        self._raise_at = now + RAISE_S
        self._fails = self.limit + 1
        self._next(now)

    def _leave_black_hole(self, now: float) -> None:
        self._fails = self.size
        self.size = self.base
        self._raise_at = now + RAISE_S
        self._next(now)

    def _next(self, now: float) -> None:
        """The next size to try: the limit first, then the middle of what is left."""
        left = [size for size in candidates(self.limit) if self.size < size < self._fails]
        if not left:
            self._more.size = 0
            return
        size = left[-1] if left[-1] == self.limit else left[len(left) // 2]
        self._ask(self._more, size, now)

    def _ask(self, question: Question, size: int, now: float) -> None:
        question.size = size
        question.tries = 0
        question.first_at = now
        self._probe(question, now)

    def _probe(self, question: Question, now: float) -> None:
        self._probes.append(question.size)
        question.tries += 1
        question.deadline = now + max(question.least_s, 3 * self.rtt_s)
