"""Two tunnels over one simulated path: a bottleneck with a bounded queue, delay, random loss, and company.

Deterministic: one seed, simulated time. The shipped `Tunnel`, `Path` and controllers run unchanged; what
they see is a queue that drains at a rate, datagrams that get lost behind it, and optionally a TCP flow
(`Reno` or `Cubic`, in the fluid-free packet form of RFC 5681 and RFC 9438) in the same queue. The driver's
coarse timer is part of the model: nobody is called more often than once in a millisecond.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.events import Data, Offered
from uservpn.tunnel.path import Path
from uservpn.tunnel.tunnel import Tunnel

WIRE = 92
"""IP, UDP, header and tag, beside a message."""
SIZE_MAX = 1408
TICK_S = 0.001


class Clock:
    """Simulated time and what is due."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list = []
        self._serial = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, action))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until


@dataclass
class Conditions:
    rate: float = 12.5e6
    """Bytes/s of the bottleneck."""
    rtt_s: float = 0.1
    queue: int = 1_250_000
    loss: float = 0.0
    jitter_s: float = 0.0
    keeps_order: bool = False
    """Nothing overtakes: what comes later than it might waits together with what is late (Wi-Fi, mobile)."""
    slot_s: float = 0.0
    """What leaves the queue within so long is late by the same."""


class Bottleneck:
    """One direction: a drop-tail queue at a rate, then delay; loss after the queue, as on a far link."""

    def __init__(self, clock: Clock, conditions: Conditions, rng: random.Random) -> None:
        self.clock = clock
        self.now_is = conditions
        self.rng = rng
        self.free_at = 0.0
        self.dropped = 0
        self.is_hole = False
        self.delays: list[float] = []
        self._last_at = self._late_s = 0.0
        self._slot: float | None = None

    def backlog(self) -> float:
        return max(0.0, self.free_at - self.clock.now) * self.now_is.rate

    def send(self, size: int, arrive: Callable[[], None]) -> None:
        here, clock = self.now_is, self.clock
        if self.backlog() + size > here.queue:
            self.dropped += 1
            return
        self.free_at = max(self.free_at, clock.now) + size / here.rate
        self.delays.append(self.free_at - clock.now)
        if self.is_hole or self.rng.random() < here.loss:
            return
        slot = self.free_at // here.slot_s if here.slot_s else None
        if slot is None or slot != self._slot:
            self._slot, self._late_s = slot, self.rng.random() * here.jitter_s
        when = self.free_at + here.rtt_s / 2 + self._late_s
        if here.keeps_order:
            when = self._last_at = max(self._last_at, when)
        clock.at(when, arrive)


class End:
    """A tunnel with the driver's habits: a flush soon after anything happened, and one coarse timer."""

    def __init__(self, clock: Clock, me: int, peer: int, rng: random.Random, path: Path) -> None:
        self.clock = clock
        self.tunnel = Tunnel(me, peer, rng.randrange)
        self.tunnel.path_up(path, False)
        self.path = path
        self.other: End | None = None
        self.link: Bottleneck | None = None
        self.size_max = SIZE_MAX
        self.got = 0
        self.trips: list[float] = []
        self.on_data: Callable[[object, bytes], None] | None = None
        self._flush_at: float | None = None
        self._timer_at: float | None = None

    def kick(self) -> None:
        if self._flush_at is None:
            self._flush_at = self.clock.now
            self.clock.at(self.clock.now, self._flush)

    def receive(self, kind: int, payload: bytes) -> None:
        self.tunnel.receive(kind, payload, self.clock.now, self.path.is_lossy)
        self.kick()

    def _flush(self) -> None:
        self._flush_at = None
        now = self.clock.now
        tunnel, path = self.tunnel, self.path
        tunnel.on_deadline(now)
        tunnel.rtt_s = path.rtt_s or 0.1
        for _ in range(4):
            room = 1 << 19
            tunnel.paced = None
            if path.controller is not None:
                room = min(room, path.budget(now))
                tunnel.paced = path
                path.is_held = True
            batch = tunnel.take_messages(room, self.size_max, path, now)
            for kind, payload in batch:
                data = bytes(payload)
                self.link.send(len(data) + WIRE, partial(self.other.receive, kind, data))
            events = tunnel.take_events()
            for event in events:
                if type(event) is Data:
                    self.got += len(event.chunk)
                    tunnel.consumed(event.stream, len(event.chunk), now)
                    if self.on_data:
                        self.on_data(event.stream, bytes(event.chunk))
                elif type(event) is Offered:
                    tunnel.accept(event.stream)
                elif type(event).__name__ == "Room" and event.stream.owner:
                    event.stream.owner()
            if not batch and not events:
                break
        self._set_timer(tunnel.next_deadline())

    def _set_timer(self, due: float | None) -> None:
        if due is None:
            return
        now = self.clock.now
        when = max(due, now + TICK_S)
        if self._timer_at is None or self._timer_at <= now or when < self._timer_at:
            self._timer_at = when
            self.clock.at(when, self._on_timer)

    def _on_timer(self) -> None:
        if self._timer_at is not None and self._timer_at <= self.clock.now:
            self._timer_at = None
            self.kick()


class Line:
    """A source and a sink; `fill` keeps a bulk stream busy, `ask` measures an interactive one beside it."""

    def __init__(self, conditions=None, controller=Bbr, seed=1, clock=None, forth=None) -> None:
        self.clock = clock or Clock()
        self.rng = random.Random(seed)
        conditions = conditions or Conditions()
        self.forth = forth or Bottleneck(self.clock, conditions, self.rng)
        self.back = Bottleneck(
            self.clock,
            replace(conditions, rate=1e9, queue=1 << 30),
            self.rng,
        )
        self.path = Path(1, controller())
        self.source = End(self.clock, 1, 7, self.rng, self.path)
        self.sink = End(self.clock, 7, 1, self.rng, Path(1, controller()))
        self.source.other, self.sink.other = self.sink, self.source
        self.source.link, self.sink.link = self.forth, self.back
        self.trips: list[float] = []
        self._asked_at: dict[int, float] = {}

    def fill(self) -> None:
        tunnel = self.source.tunnel
        stream = tunnel.open("bulk.test", 80, None)
        chunk = bytes(65536)

        def more() -> None:
            while tunnel.write(stream, chunk):
                pass
            self.source.kick()

        stream.owner = more
        more()

    def ask(self, every_s: float = 0.05) -> None:
        """The source asks one byte, the sink answers it: round trips go to `trips`."""
        tunnel = self.source.tunnel
        stream = tunnel.open("ask.test", 80, None)
        sent: list[float] = []

        def heard(stream_, chunk) -> None:
            if stream_.id == stream.id:
                for _ in chunk:
                    self.sink.tunnel.write(stream_, b"a")
                self.sink.kick()

        def answered(stream_, chunk) -> None:
            if stream_.id == stream.id:
                for _ in chunk:
                    self.trips.append(self.clock.now - sent.pop(0))

        self.sink.on_data = heard
        self.source.on_data = answered

        def one() -> None:
            sent.append(self.clock.now)
            tunnel.write(stream, b"q")
            self.source.kick()
            self.clock.at(self.clock.now + every_s * (0.5 + self.rng.random()), one)

        one()

    def goodput(self, start: float, end: float) -> float:
        """Bytes/s that the sink got between these times, of what the path carries at best."""
        self.clock.run(start)
        before = self.sink.got
        self.clock.run(end)
        return (self.sink.got - before) / (end - start)
