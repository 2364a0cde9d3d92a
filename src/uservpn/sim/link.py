"""Links of simulated nodes: what a link plug-in would make of the made-up network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uservpn.kit.endpoint import Address, Endpoint
from uservpn.sim.network import Batch, End
from uservpn.types import LinkId
from uservpn.wire.constants import HEADER_SIZE, KIB, TAG_SIZE

if TYPE_CHECKING:
    from uservpn.sim.member import Member

TCP_SIZE_MAX: Final = 256 * KIB + TAG_SIZE + KIB
UDP_SIZE_MAX: Final = 1500 - 28 - HEADER_SIZE
UDP_SIZE_BASE: Final = 1152
QUEUE_S: Final = 0.1
QUEUE_MIN: Final = 4 * KIB
"""As the real ones (links/backlog.py): a tenth of a second may wait."""
TCP_OVERHEAD: Final = 40
UDP_OVERHEAD: Final = 28
"""Bytes of IPv4 and TCP or UDP around one message; counted apart from the messages."""


class TcpLink:
    """One end of a connection, as the node's driver has it."""

    overhead = TCP_OVERHEAD

    def __init__(self, member: Member, link: LinkId) -> None:
        self.id = link
        self.member = member
        self.end: End
        self.is_watched = False

    def room(self) -> int:
        """Bytes that may be sent now."""
        rate = self.member.world.network.weather.rate
        room = max(QUEUE_MIN, int(rate * QUEUE_S)) - self.end.queued_size()
        if room <= 0 and not self.is_watched:
            self.is_watched = True
            self.member.world.agenda.after(QUEUE_S / 2, self._look)
        return room

    def send(self, batch: Batch) -> None:
        """Sends in order."""
        self.end.send(batch)

    def close(self) -> None:
        """Closes at once; the node is told."""
        if self.end.is_open:
            self.end.abort()
            self.member.link_closed(self, "closed")

    def _look(self) -> None:
        """Whether there is room again."""
        self.is_watched = False
        if self.end.is_open and self.room() > 0:
            self.member.link_writable(self)

    # --- EndOwner --------------------------------------------------------------------------------

    def messages(self, end: End, batch: Batch) -> None:
        """They came."""
        self.member.messages(self, batch)

    def stalled(self, end: End, silent_s: float) -> None:
        """What was sent is not acknowledged."""
        self.member.link_stalled(self, silent_s)

    def closed(self, end: End, reason: str) -> None:
        """The other end, or the kernel, ended it."""
        self.member.link_closed(self, reason)


class UdpLink:
    """The node's socket and one remote address."""

    overhead = UDP_OVERHEAD

    def __init__(self, member: Member, link: LinkId, port: int, remote: Address) -> None:
        self.id = link
        self.member = member
        self.port = port
        self.remote = remote
        self.is_watched = False
        self._busy_until = 0.0

    def room(self) -> int:
        """Bytes that may be sent now."""
        world = self.member.world
        queued_s = max(0.0, self._busy_until - world.agenda.now)
        rate = world.network.weather.rate
        room = max(QUEUE_MIN, int(rate * QUEUE_S)) - int(queued_s * rate)
        if room <= 0 and not self.is_watched:
            self.is_watched = True
            world.agenda.after(QUEUE_S / 2, self._look)
        return room

    def send(self, batch: Batch) -> None:
        """Each message is a datagram; what is larger than the path takes is lost."""
        world = self.member.world
        host = self.member.seat.host
        rate = world.network.weather.rate
        self._busy_until = max(self._busy_until, world.agenda.now)
        for head, body in batch:
            self._busy_until += (len(head) + len(body)) / rate
            wait = self._busy_until - world.agenda.now
            world.network.send(host, self.port, self.remote, head, body, wait)

    def close(self) -> None:
        """Forgets the remote address; the node is told."""
        self.member.link_closed(self, "closed")

    def _look(self) -> None:
        self.is_watched = False
        if self.member.links.get(self.id) is self and self.room() > 0:
            self.member.link_writable(self)


Link = TcpLink | UdpLink


def remote_text(protocol: str, address: Address) -> str:
    """As the real links name their remote ends."""
    return str(Endpoint(protocol, address.host, address.port))
