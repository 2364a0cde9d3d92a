"""How much may be under way on a stream link, by what the layer below it tells.

Below a stream link somebody else controls congestion (the kernel's TCP) or nobody does (KCP), and each keeps
its order: behind one lost packet all waits, although the path goes on carrying. So the tunnel's reports
cannot tell a queue from a repair; the layer below can. It knows what was delivered (out of order, too),
what is on its way and what it has not sent. From that the controller of the datagram links
(tunnel/bbr.py) measures rate and shortest round trip, and a `Pipe` says how much more the layer may get:

- no more on its way than the path holds, and QUEUE_S for bursts, so that the router's queue stays short;
- no more unsent than UNSENT_S takes, so that what is urgent is not queued in the kernel.

The window follows the controller's pace, which is a quarter above the rate in one round trip of eight. (Its
own window is always that much larger: nothing paces here, and it would all stand in the queue.)

While a kernel resends and the round trip shows no queue, what is on its way is the kernel's: its loss has
made its window small, and Linux' BBR takes a source that has nothing unsent for the reason of a low rate and
does not look for a higher one. Then, and while the rate is still looked for, UNSENT_OWN_S may wait unsent.

A source with little to say tells nothing of the path's rate, and nothing of its length while a queue stands,
which may be somebody else's. But what left together and came apart made its queue itself (`Spread`): then
that little was enough. Sans-I/O: time comes in.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from uservpn.tunnel.bbr import MESSAGE, WINDOW_MIN, WINDOW_START, Bbr, State
from uservpn.tunnel.congestion import Sample
from uservpn.tunnel.limits import FAR_RTT_S
from uservpn.wire.constants import KIB

LOOK_S: Final = 0.005
"""The layer below is looked at this often while much is sent."""
LOOK_NEAR_S: Final = 0.1
"""The same where nothing is bounded: only to see that the path has become a long one."""
QUEUE_S: Final = 0.010
UNSENT_S: Final = 0.010
UNSENT_OWN_S: Final = 0.050
UNSENT_MIN: Final = 4 * KIB
TURN: Final = WINDOW_START // 2
TURN_S: Final = 0.001
TURN_GAIN: Final = 1.25
LATE_S: Final = 0.025
"""Where each segment is our own work, the layer below gets so much at a time, and what else waits has its
turn before the next. A late loop finds many acknowledgements: room for a burst that makes it later. It
is the window that bounds the rate, so turns may follow each other somewhat faster, and make up for LATE_S."""
PAUSE_S: Final = 0.2
LOSSY_ROUNDS: Final = 16
"""For so many round trips after something was resent the path counts as one that loses."""
LITTLE_S: Final = 0.5
"""When a source had little for so long, a low rate may be that of its last burst: it is looked for anew."""
RACING: Final = 1.6
"""A kernel that paces this much above the rate looks for more still, as Linux' BBR does for seconds when its
buffer is too small for its start: it would fill the queue."""
APART_SIZE: Final = 8 * MESSAGE
APART_S: Final = 0.05
APART: Final = 4.0
"""So many bytes that came APART times as slowly as they left, and by so much (answers are held back for 40
ms), stood in a queue of their own."""
MARKS_MAX: Final = 1024
"""Longer round trips than these last are measured too short, which makes the window smaller."""


class Below(NamedTuple):
    """What the layer below tells, bytes and seconds."""

    delivered: int
    """That the other side has, whatever is missing before them; since the link's start."""
    inflight: int
    """Sent, neither delivered nor found lost."""
    unsent: int
    rtt_s: float
    """The smoothed round trip; 0: not measured."""
    rtt_min_s: float
    """The shortest one it knows."""
    pace: float
    """Bytes/s at which it would send; 0: as it gets them."""
    resent: int
    """That it has sent again, as far as it can tell; since the link's start."""


class Spread:
    """Does what left together come apart? Then it made the queue it stood in, which is nobody else's."""

    def __init__(self) -> None:
        self._left: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        self._came: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        """When which sums had been sent and delivered, back to APART_SIZE before what was delivered last."""

    def note(self, now: float, left: int, came: int) -> None:
        """So much was sent and delivered by now."""
        if not self._left or left > self._left[-1][1]:
            self._left.append((now, left))
        if self._came and came == self._came[-1][1]:
            return
        self._came.append((now, came))
        while len(self._came) > 1 and self._came[1][1] <= came - APART_SIZE:
            self._came.popleft()
        while len(self._left) > 1 and self._left[0][1] < self._came[0][1]:
            self._left.popleft()

    def is_apart(self) -> bool:
        """Did the last APART_SIZE bytes take much longer to come than to leave?"""
        start, first = self._came[0]
        end, last = self._came[-1]
        if last - first < APART_SIZE:
            return False
        left_at = next((at for at, sent in self._left if sent >= last), self._left[-1][0])
        return end - start > APART * (left_at - self._left[0][0]) + APART_S


class Pipe:
    """The bound of one link. `look` before a batch if `is_due`, `took` after it."""

    def __init__(self, is_always: bool = False) -> None:
        """`is_always`: nobody else controls congestion, so it bounds near paths as well."""
        self.is_bounding = False
        self.room = 0
        """Bytes that the layer below may get now, if `is_bounding`."""
        self.pause_s = LOOK_S
        """Where there is no more room, it is time for another look after so long."""
        self._is_always = is_always
        self._bbr = Bbr(shares=False)
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        """When which sum had been delivered, back to a round trip ago."""
        self._sends: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        """When which sum had been sent, back to what was delivered a round trip ago."""
        self._spread = Spread()
        self._look_at = 0.0
        self._looked_at = 0.0
        self._credit = 0.0
        """Bytes that the pace allows by now, where nobody else paces."""
        self._delivered = 0
        self._round_end = 0
        self._limited_until = -1
        """What is delivered up to here left while the source had too little for all the room..."""
        self._little_until = -1
        """...or for half of it: a queue, if there is one, is somebody else's, unless it came apart in it."""
        self._offered = 0
        self._filled_at = 0.0
        """When the source last took most of what was offered."""
        self._quiet_since: float | None = None
        self._resent = 0
        self._lossy_rounds = 0
        """So many rounds from now on the path counts as one that loses."""

    @property
    def window(self) -> int:
        """Bytes that may be on their way."""
        bbr = self._bbr
        rtt_s = bbr.rtt_min_s
        if bbr.state is State.PROBE_RTT or not bbr.rate or rtt_s is None:
            return bbr.window
        return min(bbr.window, max(int(bbr.pace * rtt_s + QUEUE_S * bbr.rate), WINDOW_MIN))

    def is_due(self, now: float) -> bool:
        """Is it time for a look?"""
        return now >= self._look_at

    def be_due(self) -> None:
        """`pause_s` have gone by, and others had their turn: the next one may begin."""
        if self._is_always:
            self._look_at = 0.0

    def took(self, size: int) -> None:
        """The layer below got so many bytes."""
        self.room -= size
        self._credit -= size

    def filled(self) -> None:
        """Something above the layer below takes no more: it is not the source that has too little."""
        self.room = min(self.room, 0)

    def look(self, now: float, below: Below) -> None:
        """What the layer below tells now: a sample for the controller, and the room until the next look."""
        self.is_bounding = self._is_always or below.rtt_min_s >= FAR_RTT_S
        if self.room > 0:
            self._limited_until = below.delivered + below.inflight + below.unsent
        if 2 * self.room > self._offered:
            self._little_until = self._limited_until
        else:
            if now > self._filled_at + LITTLE_S and self._is_low():
                self._bbr.look_on()
            self._filled_at = now
        self._look_at = now + (LOOK_S if self.is_bounding else LOOK_NEAR_S)
        if below.inflight == 0 and below.unsent == 0:
            self._rest(now)
        elif self._quiet_since is not None:
            if now > self._quiet_since + PAUSE_S:
                self._bbr.on_restart(now)
            self._quiet_since = None
        self._learn(now, below)
        self.room = self._room(below)
        if self._is_always:
            self._pace(now)
        self._offered = self.room

    # --- inside ----------------------------------------------------------------------------------

    def _room(self, below: Below) -> int:
        """Bytes that the layer below may get until the next look."""
        free = self.window - below.inflight - below.unsent
        if self._is_always:
            return free + int(below.inflight * self._bbr.loss)
        is_starting = self._bbr.state is State.START
        is_kernels = is_starting or self._is_repairing(below)
        span = UNSENT_OWN_S if is_kernels else UNSENT_S
        most = max(int(span * max(below.pace, self._bbr.rate)), UNSENT_MIN) - below.unsent
        if is_starting:
            free += self.window
        elif is_kernels:
            free = most
        # what is too much on its way is past help: the unsent alone may make what is urgent wait
        return min(max(free, 0), most)

    def _pace(self, now: float) -> None:
        """The room is a turn's at most, and what the pace allows since the last look."""
        pace = TURN_GAIN * self._bbr.pace
        most = max(TURN, pace * LATE_S)
        self._credit = min(self._credit + pace * (now - self._looked_at), most)
        self._looked_at = now
        self.pause_s = LOOK_S
        if self.room > (allowed := min(int(self._credit), TURN)):
            self.room = allowed
            # until what is left after this turn makes a whole one again
            self.pause_s = min(max((2 * TURN - self._credit) / pace, 0.0), LOOK_S)
            self._look_at = now + max(self.pause_s, TURN_S)

    def _is_low(self) -> bool:
        """Is the rate so low that a start begins with more?"""
        bbr = self._bbr
        return bbr.state is not State.START and bbr.rate * (bbr.rtt_min_s or 0.0) < WINDOW_START

    def _is_repairing(self, below: Below) -> bool:
        """Is what is on its way left to the kernel? It loses packets, leaves no queue, and does not race."""
        return (
            self._lossy_rounds > 0
            and not self._is_queued(below)
            and below.pace < RACING * self._bbr.rate
        )

    def _is_queued(self, below: Below) -> bool:
        """Does a queue stand on the path, whosoever it is?"""
        rtt_s = self._bbr.rtt_min_s or below.rtt_min_s
        return below.rtt_s >= rtt_s * 1.125 + QUEUE_S

    def _rest(self, now: float) -> None:
        """Nothing is under way: what is delivered from now on begins a new account."""
        if self._quiet_since is None:
            self._quiet_since = now
        self._marks.clear()
        self._sends.clear()

    def _learn(self, now: float, below: Below) -> None:
        acked = below.delivered - self._delivered
        self._delivered = max(below.delivered, self._delivered)
        if not self._marks:
            self._marks.append((now, self._delivered))
        if self._is_always:
            self._sends.append((now, self._delivered + below.inflight))
        self._spread.note(now, self._delivered + below.inflight, self._delivered)
        if acked <= 0 or below.rtt_s <= 0.0:
            return
        is_round = below.delivered >= self._round_end
        if is_round:
            self._round_end = below.delivered + below.inflight
            self._lossy_rounds = max(0, self._lossy_rounds - 1)
        lost = below.resent - self._resent
        self._resent = below.resent
        if lost > 0:
            self._lossy_rounds = LOSSY_ROUNDS
        # the first bytes may have made a queue of their own, which is not the path's length
        is_first = self._bbr.rtt_min_s is None
        rtt_s: float | None = below.rtt_min_s if is_first else below.rtt_s
        is_queued = self._is_queued(below)
        is_little = below.delivered < self._little_until and not (
            is_queued and self._spread.is_apart()
        )
        if is_little and is_queued:
            rtt_s = None  # in somebody else's queue
        self._bbr.on_sample(
            Sample(
                now,
                acked,
                max(0, lost),
                below.inflight,
                rtt_s,
                self._rate(now, below),
                # what made a queue was enough, though there was some room at every look
                is_little or (below.delivered < self._limited_until and not is_queued),
                is_round,
            )
        )

    def _rate(self, now: float, below: Below) -> float | None:
        """Of what was delivered in the last round trip or a little more; None: it was shorter than that."""
        marks = self._marks
        span = self._bbr.rtt_min_s or below.rtt_s
        while len(marks) > 1 and marks[1][0] <= now - span:
            marks.popleft()
        then, delivered = marks[0]
        marks.append((now, self._delivered))
        took = now - then
        if took < span:
            return None
        if self._is_always:
            took = max(took, self._sending_s(delivered, self._delivered))
        return (self._delivered - delivered) / took

    def _sending_s(self, start: int, end: int) -> float:
        """How long it took to send these bytes.

        Where our own loop takes acknowledgements, many at once when it is late, that is the better measure
        (Cheng et al., draft-cheng-iccrg-delivery-rate-estimation).
        """
        sends = self._sends
        while len(sends) > 1 and sends[1][1] <= start:
            sends.popleft()
        first = sends[0][0]
        return next((at for at, sent in sends if sent >= end), first) - first
