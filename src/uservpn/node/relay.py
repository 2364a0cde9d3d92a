"""Relaying: messages of others, taken from one neighbour and handed to the next.

A relay opens only the header: it checks that the message came from the hop before it, was not seen and
is not of a boot that is gone, puts its stamp in, seals the header again and passes the payload on
unread. What waits for a neighbour is bounded, and origins take turns by bytes (deficit round robin:
Shreedhar and Varghese, 1995), so that one busy origin does not starve the others; what waited too
long is dropped, as the tunnel above has sent it again by then.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from uservpn.types import NodeId
from uservpn.wire.header import Header
from uservpn.wire.replay import ReplayWindow

QUEUE_MAX: Final = 4 << 20
"""Bytes that wait for one neighbour; beyond it the origin with most of them loses its newest."""
COUNT_MAX: Final = 8192
"""Messages that wait for one neighbour, as small ones cost far more memory than their bytes; beyond it the
origin with most of them loses its newest."""
QUEUE_S: Final = 2.0
QUANTUM: Final = 64 << 10
FLOWS_MAX: Final = 1024
"""(origin, destination) pairs with a replay window; of others only the newest number is known."""
WINDOW_MAX: Final = 4096
ENDED_MAX: Final = 1 << 16
"""All pairs that 254 nodes can make."""


class Reason(enum.IntEnum):
    """Why a message did not go on; told to its origin."""

    NO_LINK = 1
    TOO_LARGE = 2
    OLD_BOOT = 3
    """One of the same origin with a higher boot has passed here."""


class Waiting(NamedTuple):
    """A message on its way through."""

    header: Header
    body: bytes
    is_second: bool
    at: float


@dataclass(slots=True)
class Flow:
    """What one origin has sent to one destination through this relay."""

    boot: int
    window: ReplayWindow
    newest: int = -1

    def admit(self, number: int) -> bool:
        """Is the message of this boot with this number new?"""
        if not self.window.admit(number):
            return False
        if number > self.newest:
            self.newest = number
        return True


@dataclass(slots=True)
class Counters:
    """What became of the messages of others."""

    passed: int = 0
    passed_bytes: int = 0
    stale: int = 0
    misrouted: int = 0
    unreachable: int = 0
    dropped: int = 0


def next_hop(header: Header, me: int) -> tuple[int, int] | None:
    """(previous, next) node of a message that goes over this one; None: it cannot be on its way here."""
    origin, hop1, hop2, destination = header.origin, header.hop1, header.hop2, header.destination
    nodes = (origin, hop1, hop2, destination) if hop2 else (origin, hop1, destination)
    if not hop1 or len(set(nodes)) != len(nodes) or hop1 == 255 or hop2 == 255:
        return None
    if hop1 == me:
        return origin, hop2 or destination
    return (hop1, destination) if hop2 == me else None


class Freshness:
    """Which messages a relay has passed on already: none passes twice."""

    def __init__(self) -> None:
        self._flows: OrderedDict[tuple[int, int], Flow] = OrderedDict()
        self._ended: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        """Pairs with a window."""
        return len(self._flows)

    def boot_of(self, origin: int, destination: int) -> int:
        """The newest boot of this origin that has passed to this destination; 0: none."""
        key = origin, destination
        flow = self._flows.get(key)
        return flow.boot if flow is not None else self._ended.get(key, (0, -1))[0]

    def admit(self, header: Header) -> bool:
        """Is it new? (Its header is genuine.)."""
        key = header.origin, header.destination
        flow = self._flows.get(key)
        if flow is None:
            boot, newest = self._ended.pop(key, (0, -1))
            if (header.boot, header.number) <= (boot, newest):
                self._ended[key] = boot, newest
                return False
            flow = self._flows[key] = Flow(header.boot, ReplayWindow(WINDOW_MAX))
            if len(self._flows) > FLOWS_MAX:
                old, ended = self._flows.popitem(last=False)
                self._ended[old] = ended.boot, ended.newest
                if len(self._ended) > ENDED_MAX:
                    self._ended.popitem(last=False)
        elif header.boot != flow.boot:
            if header.boot < flow.boot:
                return False
            flow = self._flows[key] = Flow(header.boot, ReplayWindow(WINDOW_MAX))
        else:
            self._flows.move_to_end(key)
        return flow.admit(header.number)

    def flow_of(self, header: Header) -> Flow:
        """That of a message that was admitted just now."""
        return self._flows[header.origin, header.destination]


@dataclass(slots=True)
class RelayQueue:
    """What waits for one neighbour: a queue for each origin, taken in turns."""

    size: int = 0
    count: int = 0
    _queues: dict[int, deque[Waiting]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    _turns: deque[int] = field(default_factory=deque)
    _credit: int = 0

    def put(self, waiting: Waiting) -> int:
        """Adds a message; returns how many were dropped for it."""
        origin = waiting.header.origin
        queue = self._queues.get(origin)
        if queue is None:
            queue = self._queues[origin] = deque()
            self._sizes[origin] = 0
            self._turns.append(origin)
        queue.append(waiting)
        self._sizes[origin] += len(waiting.body)
        self.size += len(waiting.body)
        self.count += 1
        dropped = 0
        while self.size > QUEUE_MAX:
            longest = max(self._sizes, key=self._sizes.__getitem__)
            self._remove(longest, self._queues[longest].pop())
            dropped += 1
        if self.count > COUNT_MAX:
            longest = max(self._queues, key=lambda origin: len(self._queues[origin]))
            self._remove(longest, self._queues[longest].pop())
            dropped += 1
        return dropped

    def take(self, room: int, now: float) -> tuple[list[Waiting], int]:
        """Messages for `room` bytes (the last may exceed it), and how many were too old."""
        taken: list[Waiting] = []
        dropped = 0
        while self._turns and room > 0:
            origin = self._turns[0]
            if self._credit <= 0:
                self._credit += QUANTUM
            waiting = self._queues[origin].popleft()
            self._remove(origin, waiting)
            if now - waiting.at > QUEUE_S:
                dropped += 1
                continue
            taken.append(waiting)
            room -= len(waiting.body)
            self._credit -= len(waiting.body)
            if self._credit <= 0 and len(self._turns) > 1 and self._turns[0] == origin:
                self._turns.rotate(-1)
        return taken, dropped

    def drop_all(self) -> list[Waiting]:
        """Empties the queue: the neighbour is gone. Returns what waited."""
        lost = [waiting for queue in self._queues.values() for waiting in queue]
        self._queues.clear()
        self._sizes.clear()
        self._turns.clear()
        self.size = self.count = 0
        return lost

    def _remove(self, origin: int, waiting: Waiting) -> None:
        self.size -= len(waiting.body)
        self.count -= 1
        self._sizes[origin] -= len(waiting.body)
        if not self._queues[origin]:
            del self._queues[origin], self._sizes[origin]
            self._turns.remove(origin)


class Relay:
    """The queues of one relay. The node asks `admit`, then `put`, and takes per neighbour."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.counters = Counters()
        self.queues: dict[int, RelayQueue] = {}
        """By neighbour; only those that something waits for."""
        self.freshness = Freshness()

    def put(self, header: Header, body: bytes, to: int, now: float) -> None:
        """Queues an admitted message for its next node."""
        queue = self.queues.get(to)
        if queue is None:
            queue = self.queues[to] = RelayQueue()
        waiting = Waiting(header, body, header.hop2 == self.me, now)
        self.counters.dropped += queue.put(waiting)

    def take(self, to: int, room: int, now: float) -> list[Waiting]:
        """What goes to this neighbour now."""
        queue = self.queues[to]
        taken, dropped = queue.take(room, now)
        self.counters.dropped += dropped
        self.counters.passed += len(taken)
        self.counters.passed_bytes += sum(len(waiting.body) for waiting in taken)
        if not queue.size:
            del self.queues[to]
        return taken

    def drop(self, to: int) -> list[Waiting]:
        """The neighbour is gone: what waited for it."""
        queue = self.queues.pop(to, None)
        lost = queue.drop_all() if queue else []
        self.counters.dropped += len(lost)
        return lost
