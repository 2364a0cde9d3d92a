"""A tunnel with two links: for the choice alone, or over one simulated bottleneck that both share."""

from __future__ import annotations

import random
from collections import deque
from functools import partial

from paths import SIZE_MAX, WIRE, Bottleneck, Clock, Conditions, End
from references import Cubic
from uservpn.mesh.liveness import LinkState
from uservpn.node.scheduling import Schedule
from uservpn.tunnel.bbr import Bbr
from uservpn.tunnel.congestion import Sample
from uservpn.tunnel.path import Path
from uservpn.tunnel.tunnel import ALL_LANES, ASK_ONLY, BULK_ONLY, PROBE_ONLY

TCP, UDP = 2, 4


class Settled(Bbr):
    """A controller that knows its path's rate, which it paces to less than that just now."""

    is_starting = False

    def __init__(self) -> None:
        super().__init__()
        self.pace = 1e6


def state_of(link: int, protocol: str, rtt_s: float = 0.1, now: float = 0.0) -> LinkState:
    """A link that was dialled and has just been heard."""
    state = LinkState(link, protocol, True, f"{protocol}://x", now, now, now)
    state.rtt_s = rtt_s
    return state


def direct_links(rtt_s: float = 0.1) -> list[tuple[LinkState, Path]]:
    return [
        (state_of(TCP, "tcp", rtt_s), Path(TCP, None, rtt_s)),
        (state_of(UDP, "udp", rtt_s), Path(UDP, Settled(), rtt_s)),
    ]


class Connection:
    """A kernel's TCP with CUBIC: a send buffer, packets in the bottleneck, lost ones resent, in order."""

    BUFFER = 1 << 17
    MSS = 1448
    RTO_S = 0.3

    def __init__(self, clock: Clock, bottleneck: Bottleneck, rtt_s: float, deliver) -> None:
        self.clock, self.bottleneck, self.rtt_s, self.deliver = clock, bottleneck, rtt_s, deliver
        self.cubic = Cubic(10 * self.MSS, self.MSS)
        self._inflight = 0
        self._messages: deque = deque()
        self._end = 0
        """Of the bytes that messages filled so far."""
        self._next_byte = 0
        self._arrived: dict[int, int] = {}
        self._in_order = 0
        self._again: deque[tuple[int, int]] = deque()
        self._sent: dict[int, tuple[float, int, int]] = {}
        self._number = 0
        self._round_end = 0

    def room(self) -> int:
        return self.BUFFER - (self._end - self._next_byte)

    def send(self, kind: int, payload: bytes) -> None:
        self._end += len(payload) + 64
        self._messages.append((self._end, kind, payload))
        self._push()

    def _push(self) -> None:
        while self._inflight + self.MSS <= self.cubic.window:
            if self._again:
                start, size = self._again.popleft()
            elif self._next_byte < self._end:
                start, size = self._next_byte, min(self.MSS, self._end - self._next_byte)
                self._next_byte += size
            else:
                return
            number = self._number
            self._number += 1
            self._sent[number] = (self.clock.now, start, size)
            self._inflight += size
            self.bottleneck.send(size + 52, partial(self._arrives, number, start, size))
            self.clock.at(self.clock.now + self.RTO_S, partial(self._times_out, number))

    def _arrives(self, number: int, start: int, size: int) -> None:
        self._arrived[start] = size
        while self._in_order in self._arrived:
            self._in_order += self._arrived.pop(self._in_order)
        while self._messages and self._messages[0][0] <= self._in_order:
            _, kind, payload = self._messages.popleft()
            self.deliver(kind, payload)
        self.clock.at(self.clock.now + self.rtt_s / 2, partial(self._confirmed, number))

    def _lose(self, number: int) -> int:
        _, start, size = self._sent.pop(number)
        self._inflight -= size
        self._again.append((start, size))
        return size

    def _confirmed(self, number: int) -> None:
        if number not in self._sent:
            return
        sent_at, _, size = self._sent.pop(number)
        self._inflight -= size
        lost = sum(self._lose(other) for other in list(self._sent) if other < number - 3)
        is_round = number >= self._round_end
        if is_round:
            self._round_end = self._number
        now = self.clock.now
        self.cubic.on_sample(
            Sample(now, size, lost, self._inflight, now - sent_at, None, False, is_round)
        )
        self._push()

    def _times_out(self, number: int) -> None:
        if number in self._sent:
            self._lose(number)
            self.cubic.on_silence(self.clock.now)
            self._push()


class TwoLinkEnd(End):
    """A source of bulk whose schedule chooses between datagrams and a connection, as node/sending.py does."""

    def __init__(self, clock: Clock, rng: random.Random, rtt_s: float) -> None:
        udp = Path(UDP, Bbr(), rtt_s)
        super().__init__(clock, 1, 7, rng, udp)
        self.tcp = Path(TCP, None, rtt_s)
        self.tunnel.path_up(self.tcp, False)
        self.schedule = Schedule()
        self.links = [
            (state_of(path.link, name, rtt_s), path)
            for path, name in ((self.tcp, "tcp"), (udp, "udp"))
        ]
        self._by_link = {state.link: path for state, path in self.links}
        self.connection: Connection | None = None
        self.is_throttled = False
        self.limit = 0.0
        """Bytes/s of datagrams that are let through while they are throttled..."""
        self._tokens = 0.0
        self._tokens_at = 0.0
        self.log: list[tuple[float, int]] = []
        """Whenever the link in use changed: when, and to which one."""

    def receive(self, kind: int, payload: bytes) -> None:
        for state, _ in self.links:
            state.heard(self.clock.now)
        super().receive(kind, payload)

    def _passes(self, size: int) -> bool:
        if not self.is_throttled:
            return True
        now = self.clock.now
        self._tokens = min(self._tokens + (now - self._tokens_at) * self.limit, 30_000)
        self._tokens_at = now
        if self._tokens < size:
            return False
        self._tokens -= size
        return True

    def _take(self, path: Path, lanes: int) -> bool:
        now, tunnel = self.clock.now, self.tunnel
        room = 0
        if lanes not in (ASK_ONLY, PROBE_ONLY):
            room = self.connection.room() if path is self.tcp else min(1 << 19, path.budget(now))
        path.is_held = path is self.path
        batch = tunnel.take_messages(room, SIZE_MAX, path, now, lanes)
        for kind, payload in batch:
            data = bytes(payload)
            if path is self.tcp:
                self.connection.send(kind, data)
            elif self._passes(len(data)):
                self.link.send(len(data) + WIRE, partial(self.other.receive, kind, data))
        return bool(batch)

    def _flush(self) -> None:
        self._flush_at = None
        now, tunnel = self.clock.now, self.tunnel
        tunnel.on_deadline(now)
        tunnel.rtt_s = self.path.rtt_s or 0.1
        for _ in range(4):
            choice = self.schedule.choose(self.links, tunnel.has_bulk(), now)
            if not self.log or self.log[-1][1] != self.schedule.current:
                self.log.append((now, self.schedule.current))
            if choice.left is not None:
                tunnel.path_left(choice.left, now)
            taken = self._take(choice.path, ALL_LANES)
            if choice.ask is not None:
                self._take(self._by_link[choice.ask.link], ASK_ONLY)
            tunnel.paced = choice.path if choice.path.is_lossy else None
            if choice.beside is not None and tunnel.has_bulk():
                taken = self._take(choice.beside[1], BULK_ONLY) or taken
            for path in (self.tcp, self.path):
                if path.is_probe_due and path is not choice.path:
                    self._take(path, PROBE_ONLY)
            events = tunnel.take_events()
            for event in events:
                if type(event).__name__ == "Room" and event.stream.owner:
                    event.stream.owner()
            if not taken and not events:
                break
        due = tunnel.next_deadline()
        self._set_timer(min(due or now + 0.01, now + 0.01) if tunnel.has_bulk() else due)


class TwoLinks:
    """Bulk from a `TwoLinkEnd` to a sink; reports come back over a path of their own."""

    def __init__(self, conditions: Conditions, seed: int) -> None:
        self.clock = Clock()
        rng = random.Random(seed)
        self.forth = Bottleneck(self.clock, conditions, rng)
        back = Conditions(1e9, conditions.rtt_s, 1 << 30, conditions.loss)
        self.source = TwoLinkEnd(self.clock, rng, conditions.rtt_s)
        self.sink = End(self.clock, 7, 1, rng, Path(1, Bbr()))
        self.source.other, self.sink.other = self.sink, self.source
        self.source.link = self.forth
        self.sink.link = Bottleneck(self.clock, back, rng)
        self.source.connection = Connection(
            self.clock, self.forth, conditions.rtt_s, self.sink.receive
        )
        tunnel = self.source.tunnel
        self._stream = tunnel.open("bulk.test", 80, None)
        chunk = bytes(65536)

        def more() -> None:
            while tunnel.write(self._stream, chunk):
                pass
            self.source.kick()

        self._stream.owner = more
        more()
