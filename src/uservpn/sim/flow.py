"""Streams with known contents between simulated clients and exits.

Both directions of a flow are slices of one random block, so that any piece can be checked where it
arrives: what is delivered is what was sent, from the start, without a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from uservpn.errors import Fault
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer

if TYPE_CHECKING:
    from uservpn.sim.member import Member

_BLOCK: Final = 1 << 16
CHUNK_MAX: Final = 1 << 16


class Pattern:
    """Endless bytes of which any slice is known."""

    def __init__(self, rng: Random) -> None:
        self._bytes = memoryview(rng.randbytes(_BLOCK) * 2)

    def matches(self, at: int, chunk: Buffer) -> bool:
        """Are these the bytes from `at` on?"""
        view = memoryview(chunk)
        for start in range(0, len(view), _BLOCK):
            piece = view[start : start + _BLOCK]
            place = (at + start) % _BLOCK
            if piece != self._bytes[place : place + len(piece)]:
                return False
        return True

    def take(self, at: int, size: int) -> memoryview:
        """The bytes from `at` on, at most CHUNK_MAX of them."""
        place = at % _BLOCK
        return self._bytes[place : place + min(size, CHUNK_MAX)]


@dataclass(slots=True)
class Flow:
    """One connection of a program through an exit."""

    number: int
    client: int
    exit: int
    up_size: int
    down_size: int
    opened_at: float
    dial_s: float
    """How long the exit takes to connect."""
    is_refused: bool = False
    near: FlowEnd | None = None
    far: FlowEnd | None = None
    exit_start: int = 0
    """Which start of the exit's node it was opened to."""
    fault: Fault | None = None
    """How it ended before its time, at the client."""
    is_done: bool = False

    @property
    def is_over(self) -> bool:
        """At the client."""
        return self.is_done or self.fault is not None


class FlowEnd:
    """One end of a flow: writes its own bytes, checks the other's. A `StreamOwner`."""

    def __init__(self, member: Member, flow: Flow, stream: Stream, is_client: bool) -> None:
        self.member = member
        self.flow = flow
        self.stream = stream
        self.is_client = is_client
        self.size = flow.up_size if is_client else flow.down_size
        self.sent = 0
        self.received = 0
        self.moved_at = member.world.agenda.now
        self.has_finished = False
        self.was_reset = False
        self._start = flow.number * 7919 + (0 if is_client else _BLOCK // 2)
        self._their_start = flow.number * 7919 + (_BLOCK // 2 if is_client else 0)
        self._is_finish_sent = False

    def write(self) -> None:
        """As much as goes."""
        tunnel = self.member.node.tunnel(self.stream)
        pattern = self.member.world.pattern
        while self.sent < self.size:
            chunk = pattern.take(self._start + self.sent, self.size - self.sent)
            self.sent += len(chunk)
            if not tunnel.write(self.stream, chunk):
                return
        if not self._is_finish_sent:
            self._is_finish_sent = True
            tunnel.finish(self.stream)

    # --- StreamOwner -----------------------------------------------------------------------------

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """The exit's answer."""
        world = self.member.world
        self.moved_at = world.agenda.now
        if fault:
            self._over(fault)
        elif self.flow.is_refused:
            world.broken(f"flow {self.flow.number} was refused and opened")

    def stream_data(self, chunk: Buffer) -> None:
        """Checks them, and lets credit go back."""
        world = self.member.world
        world.delivered_size += len(chunk)
        self.moved_at = world.agenda.now
        other = self.flow.far if self.is_client else self.flow.near
        end = self.received + len(chunk)
        if other is None or end > other.sent:
            world.broken(f"flow {self.flow.number}: {end} bytes came, fewer were sent")
        if not world.pattern.matches(self._their_start + self.received, chunk):
            world.broken(f"flow {self.flow.number}: other bytes than were sent, at {self.received}")
        self.received = end
        tunnel = self.member.node.tunnel(self.stream)
        tunnel.consumed(self.stream, len(chunk), world.agenda.now)

    def stream_room(self) -> None:
        """Goes on."""
        self.write()

    def stream_finished(self) -> None:
        """All of the other end's bytes came."""
        flow = self.flow
        expected = flow.down_size if self.is_client else flow.up_size
        if self.received != expected:
            self.member.world.broken(
                f"flow {flow.number}: finished after {self.received} of {expected} bytes"
            )
        self.has_finished = True
        self.moved_at = self.member.world.agenda.now
        if self.is_client:
            flow.is_done = True

    def stream_reset(self, fault: Fault) -> None:
        """It is over."""
        self._over(fault)

    def _over(self, fault: Fault) -> None:
        self.was_reset = True
        if self.is_client and not self.flow.is_done:
            self.flow.fault = fault
            self.member.world.note(self.member.seat.node, "flow over", self.flow.number, fault.name)
