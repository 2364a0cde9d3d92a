"""KCP links: an ordered, reliable stream over UDP that resends early, where UDP passes and TCP crawls.

The protocol is that of the KCP library (ikcp, by way of the `siokcp` package, an extra: `uservpn[kcp]`);
inside the stream messages stand back to back, as on TCP. KCP's own segments would be easy to recognise, so
every datagram is sealed whole, with AES-SIV under the header key (`HeaderCodec.seal_datagram`).

KCP has no congestion control that stands random loss. So it gets no more here than the path holds, by what
it tells of its segments (links/pipe.py); its own window, which a single missing segment stops, is far wider.
Sessions are named by the dialler's random conversation number and both addresses; a session that stays
silent is given up by the node.

Whoever recorded a genuine datagram can send it again, from anywhere, and it opens. So an accepted session
sends nothing, no acknowledgement either, before the node answers or knows whose it is: the node judges what
comes at once, and its answer carries the acknowledgement. Sessions of which nobody has proved to be the owner
are bounded; those that had no answer go first.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, cast
from weakref import WeakSet

import siokcp

from uservpn.kit.endpoint import Address, Endpoint
from uservpn.links import gso
from uservpn.links.base import LinkOwner
from uservpn.links.homed import HomedTransport, Remote
from uservpn.links.pipe import Below, Pipe
from uservpn.links.stream import StreamLink, stream_caps
from uservpn.types import Buffer
from uservpn.wire.header import HeaderCodec

CAPS: Final = stream_caps("kcp", True, is_costly=True)
MTU: Final = 1350
"""Of KCP's segments; with the seal, UDP and IPv6 a packet of 1,418 bytes."""
INTERVAL_MS: Final = 10
ANSWER_S: Final = 0.001
"""Acknowledgements, and what they let leave, go out at most once in so long: each costs a datagram and, at
both ends, a walk along all segments under way."""
RESENT_S: Final = 0.3
"""What was sent again has so long (or two round trips) to be answered: one lost segment is no silence."""
WINDOW: Final = 8192
"""Segments from the first missing one on, either way: 11 MB."""
HEAD: Final = 24
"""Of a segment."""
MINRTO_MS: Final = 30
MANY: Final = 64
"""Beyond so many segments under way later ones tell soon which is missing: the time-out is a last resort."""
SEND_MAX: Final = 64 * (MTU - HEAD)
"""KCP takes no more than 128 segments at a time."""
SMALL: Final = 2 * (MTU - HEAD)
"""Bytes of a batch that are sent at once."""
SESSIONS_MAX: Final = 1024
"""Proved sessions of one listener; for one more the oldest ends."""
UNPROVED_MAX: Final = 128
"""Accepted ones beside them that nobody has proved to be his."""
MUTE_MAX: Final = 64 << 10
"""A session that may not answer yet ends after so many bytes. None is lost: none was acknowledged."""
PUSH: Final = 81
"""The kind of a segment with bytes of the stream."""
PAD_BELOW: Final = 512
PAD_MAX: Final = 127
"""Datagrams with less than PAD_BELOW bytes of segments get up to PAD_MAX bytes more."""
_NODELAY: Final = (1, INTERVAL_MS, 2, 1)
"""No slow-start on timeouts, resend after two acknowledged later ones, no window of its own."""


class KcpLink(StreamLink):
    """A stream whose transport is a KCP session."""

    def __init__(self, codec: HeaderCodec, owner: LinkOwner, accepted: bool) -> None:
        super().__init__(CAPS, codec, owner, accepted, Pipe(is_always=True))
        self.session: KcpSession | None = None

    def below(self) -> Below | None:
        """What KCP tells of its segments."""
        return self.session.below() if self.session is not None else None

    def unacknowledged_below(self) -> int:
        """What KCP keeps, sent or not."""
        return self.session.held() if self.session is not None else 0

    def is_resending(self) -> bool:
        """Did KCP send something again, and got no answer to that?"""
        return self.session is not None and self.session.is_resending()


class KcpSession:
    """One conversation: KCP on one side, a StreamLink on the other, whose transport it is."""

    def __init__(
        self,
        conversation: int,
        put: Callable[[bytes], None],
        ended: Callable[[], None],
        is_proved: Callable[[], bool] | None = None,
    ) -> None:
        """`is_proved` is given for an accepted one: is it known whose it is?"""
        self._put = put
        self._ended = ended
        self._is_proved = is_proved
        self.is_mute = is_proved is not None
        """Nothing may leave yet, no acknowledgement either."""
        self._heard = 0  # bytes, while it is mute
        self._loop = asyncio.get_running_loop()
        self._kcp = kcp = siokcp.KCPConnection(conversation, self._output, _no_log)
        kcp.stream = 1
        kcp.setmtu(MTU)
        kcp.nodelay(*_NODELAY)
        kcp.wndsize(WINDOW, WINDOW)
        self._timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None
        self._answer: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self._is_closed = False
        self._numbers = 0  # of segments sent at least once; KCP's own wrap
        self._bytes_put = 0
        self._timeouts = 0
        """KCP's count of them when a segment was last acknowledged, in order or not."""
        self._resent_at: float | None = None
        """When KCP first sent something again since then."""
        self.link: KcpLink | None = None

    # --- the transport of its link ---------------------------------------------------------------

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        """As asyncio's transports; never reached, since `below` tells of all that waits."""

    def get_write_buffer_size(self) -> int:
        """As asyncio's transports: nothing waits here, but in KCP."""
        return 0

    def is_closing(self) -> bool:
        """As asyncio's transports."""
        return self._is_closed

    def writelines(self, batch: Sequence[Buffer]) -> None:
        """Queues a batch; it leaves at the end of this turn, or at once if it is small.

        So bulk of one session does not go before what is urgent on another.
        """
        self.is_mute = False
        data = memoryview(b"".join(batch))
        for start in range(0, len(data), SEND_MAX):
            self._kcp.send(data[start : start + SEND_MAX])
        if len(data) <= SMALL:
            self._news()
        else:
            self._soon()

    def abort(self) -> None:
        """Ends the session; KCP has no goodbye, so the other side gives up by itself."""
        if not self._is_closed:
            self._is_closed = True
            for handle in (self._timer, self._turn, self._answer):
                if handle is not None:
                    handle.cancel()
            self._ended()
            self._loop.call_soon(self._part)

    def _part(self) -> None:
        """The link is told. Circles through KCP's object, of which the collector knows nothing, are cut."""
        link, self.link = self.link, None
        if link is not None:
            link.connection_lost(None)
            link.session = None
        del self._kcp  # it knows where its output goes

    # --- what KCP tells --------------------------------------------------------------------------

    def held(self) -> int:
        """Bytes that were not acknowledged."""
        waiting: int = self._kcp.waitsnd()
        return waiting * (MTU - HEAD)

    def is_resending(self) -> bool:
        """Was something sent again after a time-out, and nothing at all acknowledged in the time for that?"""
        if self._resent_at is None:
            return False
        answer_s: float = max(RESENT_S, 2 * self._kcp.rx_srtt / 1000)
        return self._loop.time() >= self._resent_at + answer_s

    def below(self) -> Below:
        """Segments as bytes. What was sent again is what left beyond one datagram for each segment."""
        kcp, size = self._kcp, MTU - HEAD
        self._numbers += (kcp.snd_nxt - self._numbers) & 0xFFFFFFFF
        rtt_s = kcp.rx_srtt / 1000
        return Below(
            (self._numbers - kcp.nsnd_buf) * size,
            kcp.nsnd_buf * size,
            kcp.nsnd_que * size,
            rtt_s,
            rtt_s,
            0.0,
            max(0, self._bytes_put - self._numbers * MTU),
        )

    # --- datagrams -------------------------------------------------------------------------------

    def receive(self, segments: bytes) -> None:
        """Segments of this conversation came."""
        if self._is_closed:
            return
        # else round trips are measured to the last update
        self._kcp.current = int(self._loop.time() * 1000) & 0xFFFFFFFF
        under_way = self._kcp.nsnd_buf
        if self._kcp.receive_data(segments) < 0:
            return
        if self._kcp.nsnd_buf < under_way:
            self._timeouts = self._kcp.xmit
            self._resent_at = None
        while (data := self._kcp.next_event()) is not None:
            if self.link is not None:
                self.link.feed(data)
        if not self._stays_mute(len(segments)):
            self._answer_soon()

    def _stays_mute(self, size: int) -> bool:
        """`size` bytes more were judged by the owner: may they still not be answered?"""
        if self.is_mute and self._is_proved is not None:
            self._heard += size
            self.is_mute = not self._is_proved()
            if self.is_mute and self._heard > MUTE_MAX:
                self.abort()
        return self.is_mute

    def _output(self, segments: bytes) -> int:
        if len(segments) > MTU // 2:  # others are acknowledgements, or a short segment
            self._bytes_put += len(segments)
        try:  # whatever is raised here would come back as a SystemError out of the C code
            self._put(segments)
        except OSError:
            return 0  # lost, as on any path
        return 0

    def _soon(self) -> None:
        """One update at the end of this turn."""
        if self._turn is None:
            self._turn = self._loop.call_soon(self._news)

    def _answer_soon(self) -> None:
        """The same, but if there was one just now a moment later: until then more may come to be answered."""
        if self._turn is None and self._answer is None:
            wait_s = self._flushed_at + ANSWER_S - self._loop.time()
            if wait_s > 0:
                self._answer = self._loop.call_later(wait_s, self._news)
            else:
                self._soon()

    def _news(self) -> None:
        for handle in (self._turn, self._answer):
            if handle is not None:
                handle.cancel()
        self._turn = self._answer = None
        self._flushed_at = self._loop.time()
        self._update(True)

    def _on_timer(self) -> None:
        self._timer = None
        self._update(False)

    def _update(self, is_news: bool) -> None:
        """KCP's clock: sends, resends, acknowledges; comes back when it has to."""
        if self._is_closed or self.is_mute:
            return
        kcp = self._kcp
        # KCP's own time-out follows the round trip's variance, which a queue outruns: then all is sent twice
        kcp.rx_minrto = 2 * kcp.rx_srtt if kcp.nsnd_buf > MANY else MINRTO_MS
        now_ms = int(self._loop.time() * 1000) & 0xFFFFFFFF
        kcp.update(now_ms)
        if is_news:
            kcp.flush()
        if self._resent_at is None and kcp.xmit != self._timeouts:
            self._resent_at = self._loop.time()
        if kcp.state & 0x80000000:  # a segment was resent too often: nobody is there
            self.abort()
            return
        if kcp.waitsnd() and self._timer is None:  # an idle session has no timer
            delay_ms = max(1, kcp.check(now_ms) - now_ms)
            self._timer = self._loop.call_later(delay_ms / 1000, self._on_timer)


def _no_log(text: str) -> None:
    """KCP's own log is not kept."""


class KcpDialler(asyncio.DatagramProtocol):
    """The socket of one dialled session."""

    def __init__(self, codec: HeaderCodec, link: KcpLink) -> None:
        self._codec = codec
        self._link = link
        self._session: KcpSession | None = None
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The session begins; nothing is sent by that."""
        self._transport = datagrams = cast("asyncio.DatagramTransport", transport)
        gso.size_buffers(transport.get_extra_info("socket"))
        codec = self._codec
        self._session = session = KcpSession(
            secrets.randbits(32), lambda data: datagrams.sendto(_sealed(codec, data)), self._ended
        )
        session.link = self._link
        self._link.session = session
        self._link.local = _name(transport.get_extra_info("sockname"))
        self._link.remote = _name(transport.get_extra_info("peername"))
        self._link.connection_made(cast("asyncio.BaseTransport", session))

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Foreign ones have no effect."""
        segments = self._codec.open_datagram(data)
        if segments is not None and self._session is not None:
            self._session.receive(segments)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there (yet): as if it had been lost."""

    def _ended(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Way:
    """Where a session's datagrams go."""

    __slots__ = ("addr", "listener")

    def __init__(self, listener: KcpListener, addr: Any) -> None:
        self.listener = listener
        self.addr = addr

    def put(self, segments: bytes) -> None:
        """One datagram."""
        self.listener.put(segments, self.addr)


class KcpListener(asyncio.DatagramProtocol):
    """The socket of all sessions that others dialled. They may go on with another socket at its port."""

    def __init__(self, codec: HeaderCodec, owner: LinkOwner) -> None:
        self._codec = codec
        self._sessions: OrderedDict[tuple[Any, int], KcpSession] = OrderedDict()
        self._unproved: dict[tuple[Any, int], KcpSession] = {}  # oldest first
        self._ways: dict[tuple[Any, int], _Way] = {}
        self._transport: asyncio.DatagramTransport | HomedTransport | None = None
        self._is_closing = False
        self.owner = owner
        self.address: Address | None = None
        """Where it listens, or would if the port had not been taken; None: not yet, or no more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self.stands_on(cast("asyncio.DatagramTransport", transport))

    def stands_on(self, transport: asyncio.DatagramTransport | HomedTransport) -> None:
        """The socket is open."""
        self._transport = transport
        self._is_closing = False
        gso.size_buffers(transport.get_extra_info("socket"))

    def listen(self, address: Address) -> None:
        """Opens a socket; of one that was closed the sessions go on with this one. Raises OSError.

        Then they have their old address; if that cannot be had either, they wait for the next one.
        """
        old = self.address
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        try:
            sock = _bound(*address)
        except OSError:
            if old is not None:
                with suppress(OSError):
                    self._stand(_bound(*old), old)
                self._is_closing = True
            raise
        self._stand(sock, address)
        for way in self._ways.values():
            way.addr = tuple(way.addr)  # which address of ours it knows is told anew

    def _stand(self, sock: socket.socket, address: Address) -> None:
        kind = gso.tell_destinations(sock) if address.is_wildcard else 0
        self.address = Address(address.host, sock.getsockname()[1])
        self.stands_on(HomedTransport(sock, kind, self))

    def is_in_the_way_of(self, address: Address, owner: LinkOwner) -> bool:
        """Does it listen no more, and has its port for its sessions alone?"""
        if not self._is_closing or self.owner is not owner or self.address is None:
            return False
        return self.address.collides(address)

    def vacate(self) -> None:
        """Its sessions end, and with them its socket if it listens no more."""
        for session in list(self._sessions.values()):
            session.abort()

    def put(self, segments: bytes, addr: Any) -> None:
        """A datagram for a session's other end."""
        if self._transport is not None:
            self._transport.sendto(_sealed(self._codec, segments), addr)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """To its session, or to a new one. Foreign ones have no effect and no answer."""
        segments = self._codec.open_datagram(data)
        if segments is None or len(segments) < HEAD:
            return
        name = addr, siokcp.getconv(segments)
        session = self._sessions.get(name)
        if session is None:
            if self._is_closing or not _is_first(segments):
                return
            session = self._accept(*name)
        way = self._ways[name]
        if type(way.addr) is tuple:
            way.addr = addr
        session.receive(segments)

    def error_received(self, exc: Exception) -> None:
        """A client has gone: its session ends by itself."""

    def close(self) -> None:
        """Accepts no more; the socket closes with the last session."""
        self._is_closing = True
        self._close_if_empty()

    def _accept(self, addr: Any, conversation: int) -> KcpSession:
        self._make_place()
        transport, codec, owner = self._transport, self._codec, self.owner
        assert transport is not None
        name = addr, conversation
        link = KcpLink(codec, owner, accepted=True)
        way = self._ways[name] = _Way(self, addr)
        session = self._sessions[name] = self._unproved[name] = KcpSession(
            conversation,
            way.put,
            lambda: self._forget(name),
            lambda: owner.link_is_proved(link),
        )
        session.link = link
        link.session = session
        host, port = transport.get_extra_info("sockname")[:2]
        link.local = _name((addr.local or host, port) if isinstance(addr, Remote) else (host, port))
        link.remote = _name(addr)
        link.connection_made(cast("asyncio.BaseTransport", session))
        return session

    def _make_place(self) -> None:
        """Fewer than UNPROVED_MAX sessions are of nobody. A proved one ends only for another proved one."""
        if len(self._unproved) < UNPROVED_MAX:
            return
        for name, session in list(self._unproved.items()):
            if session.link is not None and self.owner.link_is_proved(session.link):
                del self._unproved[name]
        while len(self._unproved) >= UNPROVED_MAX:
            unproved = self._unproved.values()
            next((s for s in unproved if s.is_mute), next(iter(unproved))).abort()
        while len(self._sessions) - len(self._unproved) > SESSIONS_MAX:
            proved = (s for name, s in self._sessions.items() if name not in self._unproved)
            next(proved).abort()

    def _forget(self, name: tuple[Any, int]) -> None:
        self._sessions.pop(name, None)
        self._unproved.pop(name, None)
        self._ways.pop(name, None)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._is_closing and not self._sessions:
            if self._transport is not None:
                self._transport.close()
            self._transport = self.address = None


def _is_first(segments: bytes) -> bool:
    """Do they begin with the first segment of a stream? Only that one begins a session."""
    return segments[4] == PUSH and not any(segments[12:16])


def _sealed(codec: HeaderCodec, segments: bytes) -> bytes:
    """A datagram; acknowledgements, which are all of one size, get another one each time."""
    padding = secrets.randbelow(PAD_MAX + 1) if len(segments) < PAD_BELOW else 0
    return codec.seal_datagram(segments, padding)


def _name(address: Any) -> str:
    return f"kcp://{Address(str(address[0]), int(address[1]))}" if address else ""


class KcpPlugin:
    """Links of the form `kcp://`."""

    scheme = "kcp"

    def __init__(self) -> None:
        self._listeners: WeakSet[KcpListener] = WeakSet()

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> StreamLink:
        """Opens a socket; that somebody answers is seen by the first message. Raises OSError."""
        loop = asyncio.get_running_loop()
        link = KcpLink(codec, owner, accepted=False)
        await loop.create_datagram_endpoint(
            lambda: KcpDialler(codec, link), remote_addr=(endpoint.host, endpoint.port)
        )
        return link

    async def serve(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> KcpListener:
        """Listens. Raises OSError."""
        parting = (one for one in self._listeners if one.is_in_the_way_of(endpoint.address, owner))
        listener = next(parting, None) or KcpListener(codec, owner)
        listener.listen(endpoint.address)
        self._listeners.add(listener)
        return listener

    def vacate(self, address: Address, owner: LinkOwner) -> bool:
        """Ends the sessions of listeners that were closed and have this port still. False: there are none."""
        parting = [one for one in self._listeners if one.is_in_the_way_of(address, owner)]
        for listener in parting:
            listener.vacate()
        return bool(parting)


def _bound(host: str, port: int) -> socket.socket:
    """A socket for one address family alone. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


PLUGIN: Final = KcpPlugin()
