"""One link to a peer: is it still there?

A `LinkState` holds what is known of one open link, and judges by it. A peer that owes an answer is asked
(PROBE) after a patience of four seconds or four round trips, and after twice that the link is *lost*.
On links that may lose messages, and on ways over relays, it is asked sooner, and again; then the link is
*silent* (`probed`): others are used meanwhile where there are any. A connection whose other end does not even
confirm what was sent is silent at once (`stalled`). A link on which nothing was heard for the keep-alive time
is asked, too, by who dialled it if it is one of datagrams (those end without a word), and never over relays.
A NAT's binding may need a word more often (`keep_s`), which nobody has to answer. A connection that only the
peer could open anew is held for longer than it takes to be lost (`hold_s`).
What follows for the peer, `Contact` decides (mesh/contact.py).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from uservpn.types import LinkId

ANSWER_S: Final = 4.0
"""A link whose peer owes an answer is probed after so long (or 4 round trips), and given up after twice."""
HURRY_S: Final = 0.3
"""After `wake` a peer has so long (or 3 round trips) to answer before it is dialled anew."""
RETRY_S: Final = 1.0
"""A lossy link whose peer owes an answer is probed after so long, then after 3 and 7 times that (RFC 6298's
start value and back-off): one lost datagram must not cost ANSWER_S, nor two of them the link."""
STALL_S: Final = 1.0
"""A connection is silent when nothing of what was sent was confirmed for so long (or 4 round trips)."""
FLOW_COUNT: Final = 8
FLOW_GAP_S: Final = 0.2
FLOW_S: Final = 0.5
"""A connection of ours that brought so many messages, each within FLOW_GAP_S of the one before, and then none
for so long, is probed once: whoever only downloads has nothing on its way that could stay unconfirmed."""
CHECK_S: Final = 0.4
"""A datagram link of ours that was just used is probed after so much silence (or 3 round trips); a way over
relays whose peer owes an answer, too (or 1.5 round trips), and left for another one after twice that."""
PUNCH_RETRY_S: Final = 0.1
PUNCH_S: Final = 2.5
"""A link that opens a way through a NAT is probed after 0.1 s, then ever less often, for so long."""


SILENT_SPANS: Final = 2.5
"""A link is lost when it was not heard for so many times the keep-alive time, and could not be asked."""


class Verdict(enum.Enum):
    """What a look at a link came to."""

    FINE = 1
    ASK = 2
    """A PROBE is due."""
    KEEP = 3
    """A KEEPALIVE is due."""
    LOST = 4
    """Nobody is there any more."""
    UNANSWERED = 5
    """As LOST, and nobody was ever heard on it."""


@dataclass(slots=True)
class LinkState:
    """What is known of one open link to the peer."""

    link: LinkId
    protocol: str
    dialled: bool
    endpoint: str
    up_at: float
    heard_at: float
    sent_at: float
    asked_at: float = 0.0
    """When it was last asked because it had not been heard for long."""
    owed_since: float | None = None
    """Since when the peer owes an answer on this link; None: it does not."""
    probed: bool = False
    """It is silent though its peer owes an answer: others are used where there are any."""
    early: float = 0.0
    """How much before its time it is asked, as a share: a mesh's messages do not fall together."""
    check_s: float = 0.0
    """While streams wait on a silent link: how much silence until it is probed; doubles."""
    in_s: float | None = None
    """Smoothed flight time of what comes over it, from the stamps (mesh/flight.py)."""
    rtt_s: float | None = None
    """Smoothed round trip of this link (RFC 6298, alpha 1/8)."""
    relayed: bool = False
    """It goes over other nodes: used while no direct one carries."""
    is_lossy: bool = False
    """Messages may be lost on it, and it ends without a word."""
    is_tentative: bool = False
    """A lossy one that was dialled and has not been answered yet."""
    is_unproved: bool = False
    """One that may lead to somebody else, and has not been answered yet."""
    is_punch: bool = False
    """It opens a way through a NAT: probed often, for a short time."""
    keep_s: float = 0.0
    """How long it may be silent so that a NAT remembers it; 0: nobody needs that."""
    retry_s: float = RETRY_S
    """When, after `owed_since`, the next probe of a lossy link, or of a relayed one, goes."""
    flow: int = 0
    """So many messages came over this connection, one soon after the other."""
    is_doubted: bool = False
    """A relayed one that was probed once because its peer owes an answer; next time it is silent."""
    hold_s: float = 0.0
    """So long it may owe an answer before it is lost, if that is longer than usual (mesh/contact.py)."""
    is_held: bool = False
    """It would be lost, but for `hold_s`."""

    # --- outside events --------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """A genuine message came over it, from where it leads."""
        if not self.is_lossy:
            self.flow = self.flow + 1 if now < self.heard_at + FLOW_GAP_S else 0
        self.heard_at = now
        self.owed_since = None
        self.probed = self.is_doubted = self.is_held = False
        self.retry_s = RETRY_S
        if self.relayed and self.rtt_s is not None:
            self.retry_s = max(CHECK_S, 1.5 * self.rtt_s)

    def measured(self, rtt_s: float) -> None:
        """One round trip."""
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) / 8

    def used(self, grace_s: float) -> None:
        """Streams moved on it: silence from now on is asked about early, then ever less often."""
        if self.is_lossy and self.dialled:
            # no connection breaks when its peer is killed, or a NAT on the way forgets us: ask
            self.check_s = max(CHECK_S, 3 * self.rtt_s) if self.rtt_s else CHECK_S
        else:
            self.check_s = max(ANSWER_S, grace_s / 2)

    def stalled(self, silent_s: float, now: float) -> bool:
        """The other machine has confirmed nothing for so long; True: so it is asked, and is silent now."""
        if self.probed or silent_s < max(STALL_S, 4 * (self.rtt_s or 0.0)):
            return False
        self.doubt(now if self.owed_since is None else self.owed_since)
        return True

    # --- commands --------------------------------------------------------------------------------

    def doubt(self, since: float) -> None:
        """The PROBE that goes now has to be answered; until it was, others are preferred."""
        self.owed_since = since
        self.probed = True
        self.retry_s = HURRY_S

    # --- time ------------------------------------------------------------------------------------

    def look(
        self, now: float, keepalive_s: float, is_used: bool, jitter: Callable[[float], float]
    ) -> Verdict:
        """Due work; FINE when there is none. `is_used`: streams to the peer are open."""
        owed = self.owed_since  # sums as in `due_at`, or the last bit would decide
        patience = self._patience()
        if owed is not None and now >= owed + 2 * patience:
            if now < owed + self.hold_s:
                self.is_held = True
                return Verdict.FINE
            self.owed_since = None
            is_new = self.heard_at == self.up_at and not self.is_tentative
            return Verdict.UNANSWERED if is_new else Verdict.LOST
        if owed is not None and not self.probed and now >= owed + patience:
            self.probed = True
            return Verdict.ASK
        if owed is not None and self._is_retried() and now >= owed + self.retry_s:
            self._retry(jitter)
            return Verdict.ASK
        if is_used and owed is None and now >= self._check_at():
            self.check_s = min((1 if self._is_flowing() else 2) * self.check_s, keepalive_s)
            self.flow = 0
            return Verdict.ASK
        if owed is None and self.is_ours_to_ask and now >= self._ask_at(keepalive_s):
            self.asked_at = now
            self.early = jitter(0.1)
            return Verdict.ASK
        if self.keep_s and now >= self._keep_at():
            self.sent_at = now
            self.early = jitter(0.1)
            return Verdict.KEEP
        if now >= self.heard_at + SILENT_SPANS * keepalive_s:
            self.heard_at = now
            return Verdict.LOST
        return Verdict.FINE

    def due_at(self, keepalive_s: float, is_used: bool) -> float:
        """When `look` will have something."""
        due = self.heard_at + SILENT_SPANS * keepalive_s
        if self.keep_s:
            due = min(due, self._keep_at())
        if self.owed_since is not None:
            patience = self._patience()
            if self.is_held:
                return self.owed_since + max(2 * patience, self.hold_s)
            due = min(due, self.owed_since + (2 * patience if self.probed else patience))
            if self._is_retried():
                due = min(due, self.owed_since + self.retry_s)
            return due
        if self.is_ours_to_ask:
            due = min(due, self._ask_at(keepalive_s))
        return min(due, self._check_at()) if is_used else due

    # --- questions -------------------------------------------------------------------------------

    @property
    def is_ours_to_ask(self) -> bool:
        """Is it for us to ask, when it was silent for long, whether the peer is there?

        A datagram link that the peer dialled may be closed; nobody needs a way over relays that is not used.
        """
        return not self.relayed and (self.dialled or not self.is_lossy)

    # --- inside ----------------------------------------------------------------------------------

    def _retry(self, jitter: Callable[[float], float]) -> None:
        """It is asked again."""
        if self.is_unproved:
            self.retry_s = 1.5 * self.retry_s + jitter(PUNCH_RETRY_S)
        elif self.relayed and not self.is_doubted:
            self.retry_s *= 2  # one lost probe is no reason to leave a way
            self.is_doubted = True
        else:
            self.retry_s = 2 * self.retry_s + RETRY_S
            # others carry meanwhile, where there are any: UDP may have been shut off
            self.probed = self.probed or not self.is_tentative

    def _patience(self) -> float:
        if self.is_unproved and (self.is_lossy or self.dialled):
            return PUNCH_S / 2
        return max(ANSWER_S, 4 * (self.rtt_s or 0.0))

    def _is_retried(self) -> bool:
        return self.is_lossy or self.relayed

    def _ask_at(self, keepalive_s: float) -> float:
        return max(self.heard_at, self.asked_at) + keepalive_s * (1.0 - self.early)

    def _keep_at(self) -> float:
        return self.sent_at + self.keep_s * (1.0 - self.early)

    def _check_at(self) -> float:
        at = max(self.heard_at, self.sent_at) + self.check_s
        return min(at, self.heard_at + FLOW_S) if self._is_flowing() else at

    def _is_flowing(self) -> bool:
        return self.flow >= FLOW_COUNT and self.dialled and not self.relayed
