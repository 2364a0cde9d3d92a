"""What one read has brought for others and goes on at once, from the buffer that it was read to.

Bulk comes many messages at a time that differ in number, stamps and payload only: what was found out about
the first of them, its *course*, holds for those behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from uservpn.node.relay import Counters, Flow
from uservpn.node.table import Peer
from uservpn.types import Buffer, LinkId
from uservpn.wire.header import NUMBER_AT, Header, HeaderCodec

Room = Callable[[LinkId], int]


@dataclass(slots=True)
class Outlet:
    """What goes on over one link of the driver."""

    carrier: LinkId
    room: int
    """What is left of it, bytes; <= 0: none."""
    parts: list[Buffer] = field(default_factory=list)
    """Headers and sealed payloads: to be sent before the buffers are used again."""

    def take(self) -> tuple[LinkId, list[Buffer]]:
        """What has gathered, for the driver."""
        parts, self.parts = self.parts, []
        return self.carrier, parts


@dataclass(slots=True)
class Course:
    """Where messages of one flow go on."""

    onward: Peer
    outlet: Outlet
    flow: Flow
    is_second: bool
    """This relay is the second one on the way."""


class Passing:
    """What goes on at once, of what one read has brought."""

    def __init__(self, room: Room, codec: HeaderCodec, stamp: bytes, counters: Counters) -> None:
        """`stamp`: what this relay puts into the headers."""
        self.room = room
        self.outlets: dict[LinkId, Outlet] = {}
        self._reseal = codec.reseal
        self._stamp = stamp
        self._counters = counters
        self._course: Course | None = None
        self._like = b""
        self._hops = 0, 0

    def outlet(self, carrier: LinkId) -> Outlet:
        """That of this link; its room is asked once."""
        outlet = self.outlets.get(carrier)
        if outlet is None:
            outlet = self.outlets[carrier] = Outlet(carrier, self.room(carrier))
        return outlet

    def follows(self, header: Header, body: Buffer) -> bool:
        """Was it like the last one, so that it is dealt with? Else it has to be looked at."""
        course = self._course
        if (
            course is None
            or course.outlet.room <= 0
            or header.associated[:NUMBER_AT] != self._like
            or (header.hop1, header.hop2) != self._hops
        ):
            return False
        if course.flow.admit(header.number):
            self.go(course, header, body)
        else:
            self._counters.stale += 1
        return True

    def go(self, course: Course, header: Header, body: Buffer) -> None:
        """An admitted message goes on, and those that are like it may follow."""
        outlet = course.outlet
        outlet.parts += (self._reseal(header, course.is_second, self._stamp), body)
        outlet.room -= header.length
        self._counters.passed += 1
        self._counters.passed_bytes += header.length
        if course is not self._course:
            self._course = course
            self._like = header.associated[:NUMBER_AT]
            self._hops = header.hop1, header.hop2

    def halt(self) -> None:
        """Nothing follows the last one: something waits, or the ways or a boot may be others now."""
        self._course = None
