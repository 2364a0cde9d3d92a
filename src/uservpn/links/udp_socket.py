"""One UDP socket and the links on it: batches out, batches in, and who sent what.

A link is a remote address here. A datagram is one message; one whose header does not open, or whose length
is not what the header says, is dropped without a word and costs no more than the attempt. Sending never
waits: what the kernel does not take now is queued, up to a bound, and links have no room until it went.
No error ends the socket: what the network says about one datagram is weather for that datagram.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from sys import byteorder
from typing import Any, Final, Protocol

from uservpn.kit.series import COUNT_MAX
from uservpn.kit.slots import Slots
from uservpn.links import gso
from uservpn.links.base import LinkCaps, LinkOwner
from uservpn.links.knock import Knock
from uservpn.types import Buffer, LinkId
from uservpn.wire.constants import HEADER_SIZE, KIB, MIB, TAG_SIZE
from uservpn.wire.header import RUN_MIN, HeaderCodec, Run
from uservpn.wire.train import Train

log: Final = logging.getLogger("uservpn")
ROOM: Final = 256 * KIB
"""What a link takes at once while the kernel takes what it is given."""
QUEUE_MAX: Final = 2 * MIB
"""Bytes that wait for the kernel, of all links of a socket; what comes beyond it is dropped."""
DATAGRAM_MAX: Final = 65_535
BUFFER_START: Final = DATAGRAM_MAX + 1
BUFFER_SIZE: Final = 8 * BUFFER_START
"""Read into by all sockets of a node, in turns; grows with the first large read."""
SEALING_SIZE: Final = BUFFER_START
"""All sockets of a node seal into so much, in turns: no system call takes more."""
TURN_SIZE: Final = MIB
"""Bytes read before the event loop has its turn."""
TURN_COUNT: Final = 256
TURN_MANY: Final = 8
"""Reads without a pause that are worth a larger buffer."""
PAUSE_S: Final = 1.0
"""A socket that cannot be read is left alone for so long."""
QUIET_S: Final = 1.0
"""Who sends more so long after what was not answered asks whether anybody is there."""
RECENT_S: Final = 10.0
"""...but not so long after: keep-alives are not answered."""
ASK_EVERY_S: Final = 4.0
MESSAGE_MIN: Final = HEADER_SIZE + TAG_SIZE
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(gso.PKTINFO6.size)
_NO_SEGMENTS: Final = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
"""The kernel or the network device cannot cut datagrams."""

Address = tuple[Any, ...]
"""As the socket module has it: host, port, and for IPv6 flow and scope."""


@dataclass(slots=True)
class Counters:
    """What became of datagrams that are nobody's message."""

    foreign: int = 0
    """Came, and are none of ours."""
    unsent: int = 0
    """The kernel refused, or the queue was full."""
    too_large: int = 0
    """Larger than what the local interface takes."""
    errors: int = 0
    """Reads that failed."""


class Landing:
    """Where all sockets of a node read into, in turns."""

    def __init__(self) -> None:
        self._resize(BUFFER_START)

    def grow(self) -> None:
        """Many reads, or large ones, are worth more room; what lies here is lost."""
        if len(self.view) < BUFFER_SIZE:
            self._resize(BUFFER_SIZE)

    def bodies(self, start: int, segment: int, count: int) -> list[memoryview]:
        """The payloads of so many datagrams of one size that lie side by side.

        Bursts lie at the same places again and again: those views are made once.
        """
        index, off = divmod(start, segment)
        if off or count < RUN_MIN:
            places = range(start, start + count * segment, segment)
            return [self.view[at + HEADER_SIZE : at + segment] for at in places]
        return self._slots.cut(segment, index, index + count, HEADER_SIZE)

    def _resize(self, size: int) -> None:
        self._slots = Slots(size)
        self.view = self._slots.view
        self.last = size - DATAGRAM_MAX
        """A read that begins there still has room for any datagram."""


@dataclass(slots=True)
class Stretch:
    """Datagrams that lie side by side, all of `segment` bytes but a shorter last one."""

    start: int
    end: int
    segment: int


class UdpLink:
    """All messages between one socket of ours and one address."""

    __slots__ = (
        "address",
        "ancillary",
        "asked_at",
        "bytes_in",
        "bytes_out",
        "caps",
        "id",
        "is_dialled",
        "is_unanswered",
        "knock",
        "local",
        "note",
        "owner",
        "remote",
        "sock",
    )

    def __init__(
        self,
        sock: UdpSocket,
        owner: LinkOwner,
        address: Address,
        remote: str,
        local: str,
        caps: LinkCaps,
        is_dialled: bool,
    ) -> None:
        self.id: LinkId = owner.new_link_id()
        self.caps = caps
        self.sock = sock
        self.owner = owner
        self.address = address
        self.remote = remote
        self.local = local
        self.is_dialled = is_dialled
        self.bytes_in = self.bytes_out = 0
        self.ancillary: gso.Ancillary = ()
        """Makes datagrams leave from the address that the peer knows."""
        self.note = b""
        """What the kernel said of the last datagram's destination."""
        self.is_unanswered = False
        """Something was sent, at `asked_at`, and nothing came since."""
        self.asked_at = 0.0
        self.knock: Knock | None = None
        """Asks the other machine whether anybody is there; the link being heard ends it."""

    def room(self) -> int:
        """Bytes; <= 0 while the socket has a queue."""
        return self.sock.room(self)

    def send(self, batch: Sequence[Buffer]) -> None:
        """Datagrams of one size leave together, where the kernel can."""
        self.sock.send(self, batch)

    def close(self) -> None:
        """The address is forgotten: whatever still comes from it makes a new link."""
        self.sock.forget(self)

    def ask(self) -> None:
        """Is anybody there? If not, the owner of a dialled link hears of it soon."""
        if self.is_dialled and self.knock is None:
            self.knock = Knock(self.sock.family, self.address, self._refused)

    def heard_nothing(self) -> None:
        """For a while, though there was something to answer."""
        if self.knock is not None:
            self.knock.cancel()
            self.knock = None
        self.ask()

    def heard(self) -> None:
        """Messages came."""
        self.is_unanswered = False
        if self.knock is not None:
            self.knock.cancel()
            self.knock = None

    def _refused(self) -> None:
        self.knock = None
        self.owner.link_refused(self)


class Acceptor(Protocol):
    """Makes links of genuine datagrams from new addresses."""

    landing: Landing
    sealing: Slots
    """What is about to be sent: sealed there, of SEALING_SIZE bytes."""

    def accept(self, sock: UdpSocket, address: Address) -> UdpLink:
        """A new link, known to its owner."""

    def too_large(self, link: UdpLink, size: int) -> None:
        """The local interface does not take datagrams of this size."""


class UdpSocket:
    """A bound socket on the event loop, and its links by address."""

    def __init__(
        self,
        sock: socket.socket,
        codec: HeaderCodec,
        owner: LinkOwner,
        acceptor: Acceptor,
        is_listening: bool,
    ) -> None:
        """Takes the socket over and begins to read it."""
        self.links: dict[Address, UdpLink] = {}
        self.owner = owner
        self.codec = codec
        self.family = sock.family
        self.is_listening = is_listening
        self.host, self.port = (str(sock.getsockname()[0]), int(sock.getsockname()[1]))
        self.counters = Counters()
        self.has_no_fragments = gso.forbid_fragments(sock)
        self.has_segments = gso.can_send_segments(sock)
        self.has_joined = gso.receive_joined(sock)
        self.receive_buffer, self.send_buffer = gso.size_buffers(sock)
        self.is_wildcard = self.host in ("0.0.0.0", "::")
        self._note_kind = gso.tell_destinations(sock) if self.is_wildcard else 0
        self._acceptor = acceptor
        self._landing = acceptor.landing
        self._sealing = acceptor.sealing
        self._sock = sock
        self._sendmsg = sock.sendmsg
        self._recvmsg_into = sock.recvmsg_into
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[UdpLink, Sequence[Buffer]]] = deque()
        self._queued = 0
        self._waiting: dict[LinkId, UdpLink] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def overrun_count(self) -> int:
        """Datagrams that came faster than they were read."""
        return gso.overrun_count(self._sock)

    def close(self) -> None:
        """Closes the socket; links on it are not told."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._queue:
            self._loop.remove_writer(self._sock.fileno())
        if self._pause is not None:
            self._pause.cancel()
        self._queue.clear()
        for link in self.links.values():
            link.heard()  # nobody waits for an answer any more
        self._sock.close()

    def forget(self, link: UdpLink, reason: str = "closed") -> None:
        """The link is no more; its owner is told soon."""
        if self.links.get(link.address) is link:
            del self.links[link.address]
        self._waiting.pop(link.id, None)
        if link.knock is not None:
            link.knock.cancel()
        self._loop.call_soon(link.owner.link_closed, link, reason)

    def adopt(self, link: UdpLink) -> None:
        """The link moves here from another socket."""
        old = link.sock
        if old.links.get(link.address) is link:
            del old.links[link.address]
        if old._waiting.pop(link.id, None) is not None:
            self._loop.call_soon(link.owner.link_writable, link)
        self.links[link.address] = link
        link.sock = self
        link.ancillary, link.note = (), b""

    # --- out -------------------------------------------------------------------------------------

    def room(self, link: UdpLink) -> int:
        """ROOM, or <= 0; then `link_writable` follows."""
        if not self._queue:
            return ROOM
        self._waiting[link.id] = link
        return -self._queued

    def send(self, link: UdpLink, batch: Sequence[Buffer]) -> None:
        """Headers and payloads in turns; whatever cannot go now is queued, beyond QUEUE_MAX dropped."""
        if self._is_closed:
            return
        now = self._loop.time()
        if not link.is_unanswered or now > link.asked_at + RECENT_S:
            link.is_unanswered = True
            link.asked_at = now
        elif now >= link.asked_at + QUIET_S:
            link.asked_at = now + ASK_EVERY_S
            link.heard_nothing()
        if type(batch) is Train:
            self._send_train(link, batch)
        elif self._queue:
            self._keep(link, batch)
        elif rest := self._write(link, batch):
            self._keep(link, rest)

    def _send_train(self, link: UdpLink, train: Train) -> None:
        """Each stretch is one system call, and gone (or copied) before the next one is sealed over it."""
        size = train.size
        for stretch in train.sealed(self._sealing, gso.segments_max(size)):
            step = len(stretch) if self.has_segments else size
            for at in range(0, len(stretch), step):
                some = stretch[at : at + step]
                if self._queue or not self._put(link, (some,), size if len(some) > size else 0):
                    self._keep(link, _in_turn(some, size))

    def _keep(self, link: UdpLink, rest: Sequence[Buffer]) -> None:
        """Queues what the kernel does not take now."""
        if self._queued >= QUEUE_MAX:
            self.counters.unsent += len(rest) // 2
            return
        if not self._queue:
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
        rest = [part if type(part) is bytes else bytes(part) for part in rest]  # may be kept
        self._queue.append((link, rest))
        self._queued += sum(map(len, rest))

    def _write(self, link: UdpLink, batch: Sequence[Buffer]) -> Sequence[Buffer]:
        """Sends until the kernel is full; what is left."""
        if len(batch) == 2:
            return () if self._put(link, batch, 0) else batch
        sizes = list(map(HEADER_SIZE.__add__, map(len, batch[1::2])))
        for start, end in gso.runs(sizes, self.has_segments):
            segment = sizes[start] if end - start > 1 else 0
            if not self._put(link, batch[2 * start : 2 * end], segment):
                return batch[2 * start :]
        return ()

    def _put(self, link: UdpLink, parts: Sequence[Buffer], segment: int) -> bool:
        """One system call: a datagram, or several of `segment` bytes. False: not now.

        `parts` are headers and payloads in turn, or all of that in one piece.
        """
        try:
            if segment:
                cut = (gso.SOL_UDP, gso.UDP_SEGMENT, gso.SEGMENT_SIZE.pack(segment))
                link.bytes_out += self._sendmsg(parts, (*link.ancillary, cut), 0, link.address)
            else:
                link.bytes_out += self._sendmsg(parts, link.ancillary, 0, link.address)
        except BlockingIOError:
            return False
        except OSError as error:
            if len(parts) == 1:
                parts = _in_turn(parts[0], segment or len(parts[0]))
            return self._refused(link, parts, segment, error.errno or 0)
        return True

    def _refused(self, link: UdpLink, parts: Sequence[Buffer], segment: int, number: int) -> bool:
        """The kernel does not take these; False: but perhaps later."""
        if link.ancillary and number != errno.EMSGSIZE:  # the address it came to may be gone
            link.ancillary, link.note = (), b""
            return self._put(link, parts, segment)
        if segment and (number in _NO_SEGMENTS or number == errno.EMSGSIZE):
            self._put_singly(link, parts, is_unable=number in _NO_SEGMENTS)
        elif number == errno.EMSGSIZE:
            self.counters.too_large += 1
            self._acceptor.too_large(link, sum(map(len, parts)))
        else:
            self.counters.unsent += len(parts) // 2
        return True

    def _put_singly(self, link: UdpLink, parts: Sequence[Buffer], is_unable: bool) -> None:
        """What did not go as segments: if it goes so, and was not just too large, segments never will."""
        too_large = self.counters.too_large
        unsent = self.counters.unsent
        for start in range(0, len(parts), 2):
            if not self._put(link, parts[start : start + 2], 0):
                self.counters.unsent += 1
        if is_unable and (too_large, unsent) == (self.counters.too_large, self.counters.unsent):
            self.has_segments = False
            log.info("this system cannot send several datagrams at once: one by one from now on")

    def _on_writable(self) -> None:
        queue = self._queue
        while queue:
            link, batch = queue.popleft()
            self._queued -= sum(map(len, batch))
            rest = self._write(link, batch) if link.sock is self else ()
            if rest:
                queue.appendleft((link, rest))
                self._queued += sum(map(len, rest))
                return
        self._loop.remove_writer(self._sock.fileno())
        waiting = self._waiting
        self._waiting = {}
        for link in waiting.values():
            link.owner.link_writable(link)

    # --- in --------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        """Reads what is there; datagrams that came from one address are handed on together."""
        landing = self._landing
        came: list[Stretch] = []
        source: tuple[Address, bytes] | None = None
        position = total = 0
        for turn in range(TURN_COUNT):
            try:
                size, ancillary, _, address = self._recvmsg_into(
                    (landing.view[position:],), _ANCILLARY_SIZE
                )
            except BlockingIOError:
                break
            except OSError as error:
                self._not_read(error)
                break
            note, segment = b"", size or 1
            for _, kind, data in ancillary:
                if kind == gso.UDP_GRO:
                    segment = int.from_bytes(data[:4], byteorder) or segment
                elif kind == self._note_kind:
                    note = data
            if source != (address, note):
                self._hand_on(source, came)
                source, came = (address, note), []
            last = came[-1] if came else None
            if last is not None and last.segment == segment and last.end == position:
                last.end += size
            else:
                came.append(Stretch(position, position + size, segment))
            position += -(-size // segment) * segment  # behind a shorter one, too: on the grid
            total += size
            if position > landing.last or total > TURN_SIZE:
                self._hand_on(source, came)
                came = []
                if total > TURN_SIZE or self._is_closed:
                    break
                if size >= BUFFER_START // 4 or turn >= TURN_MANY:
                    landing.grow()
                position = 0
        self._hand_on(source, came)

    def _hand_on(self, source: tuple[Address, bytes] | None, came: Sequence[Stretch]) -> None:
        """The genuine messages in what has come from there, to their link."""
        runs: list[Run] = []
        for stretch in came:
            self._open(stretch, runs)
        if source is None or not runs:
            return
        address, note = source
        link = self.links.get(address) or self._acceptor.accept(self, address)
        if note != link.note and not link.is_dialled:
            self._note_local(link, note)
        link.bytes_in += sum(stretch.end - stretch.start for stretch in came)
        link.heard()
        link.owner.link_runs(link, runs)

    def _open(self, stretch: Stretch, runs: list[Run]) -> None:
        """Appends the genuine messages."""
        start, end, segment = stretch.start, stretch.end, stretch.segment
        while start < end:
            count = min((end - start) // segment, COUNT_MAX)
            if not count:  # the last one
                count, segment = 1, end - start
            self._open_alike(start, segment, count, runs)
            start += count * segment

    def _open_alike(self, start: int, segment: int, count: int, runs: list[Run]) -> None:
        """Appends the genuine messages among datagrams of one size."""
        if segment < MESSAGE_MIN:
            self.counters.foreign += count
            return
        bodies = self._landing.bodies(start, segment, count)
        for header, length in self.codec.open_runs(self._landing.view[start:], count, segment):
            if header is not None and header.length == segment - HEADER_SIZE:
                runs.append(Run(header, bodies[:length]))
            else:
                self.counters.foreign += length
            bodies = bodies[length:]

    def _not_read(self, error: OSError) -> None:
        """A read failed: no reason to end, but none to spin either."""
        self.counters.errors += 1
        if self._pause is None and not self._is_closed:
            log.warning("cannot read from UDP port %d for now: %s", self.port, error.strerror)
            self._loop.remove_reader(self._sock.fileno())
            self._pause = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _note_local(self, link: UdpLink, note: bytes) -> None:
        """The peer sends to this address of ours: answers come from there."""
        link.note = note
        if note:
            host, link.ancillary = gso.arrived_at(self._note_kind, note)
            link.local = endpoint_text(host, self.port)


def _in_turn(stretch: Buffer, size: int) -> list[Buffer]:
    """Headers and payloads of datagrams of `size` bytes that lie side by side."""
    view = memoryview(stretch)
    starts = range(0, len(view), size)
    halves = ((view[at : at + HEADER_SIZE], view[at + HEADER_SIZE : at + size]) for at in starts)
    return list(chain.from_iterable(halves))


def endpoint_text(host: str, port: int) -> str:
    """As an `Endpoint` writes it."""
    return f"udp://[{host}]:{port}" if ":" in host else f"udp://{host}:{port}"
