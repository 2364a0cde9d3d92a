"""The TCP link: messages back to back on one connection (links/stream.py), and what the kernel holds of them.

Neither we nor the kernel hoard (TCP_NOTSENT_LOWAT), so that what is urgent does not wait for half a minute
in a socket's buffer. The first bytes of a connection look random, which some firewalls block; an
endpoint may ask for a *shape* of them:

    tcp://203.0.113.5:7000?shape=text

Then whoever dials sends one line of random letters first, and whoever listens drops it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import socket
import string
import struct
import sys
import termios
from collections.abc import Sequence
from typing import Final, cast

from uservpn.kit.endpoint import Endpoint
from uservpn.links.base import LinkCaps, LinkOwner
from uservpn.links.pipe import Below
from uservpn.links.stream import StreamLink, stream_caps
from uservpn.types import Buffer
from uservpn.wire.constants import HEADER_SIZE
from uservpn.wire.header import HeaderCodec

_NOT_SENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_OUTQ: Final = termios.TIOCOUTQ  # not acknowledged, not sent ones included
_OUTQ_NOT_SENT: Final = 0x894B  # Linux
_writev: Final = getattr(os, "writev", None)
_PARTS_MAX: Final = 1024
"""Buffers that one system call takes (IOV_MAX of Linux, the BSDs and macOS)."""
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
_RESENDS: Final = slice(2, 4)
"""Where Linux' `tcp_info` counts the time-outs, and the probes of a full reader, that nobody has answered."""
_RTO_MAX_MS: Final = 44  # Linux 6.15, <linux/tcp.h>
RESEND_MS: Final = 2000
"""While nobody acknowledges, the kernel sends again at least so often: a way that was cut carries soon after
it is whole, also for what only the other side could dial anew. (Others pause for up to two minutes.)"""
GIVE_UP_MS: Final = 924_000
"""When the kernel ends such a connection: as Linux does by itself, which counts its tries."""
KERNEL_KEEPALIVE_S: Final = 600
SHAPE: Final = "shape=text"
LINE_MIN: Final = 24
LINE_MAX: Final = 120
"""Letters of the first line: more than the twenty in a row that let a connection pass."""
_END: Final = b"\r\n"

_INFO: Final = struct.Struct("=16xI4xIIII28xI28xIQ8xQ16xII")
"""Of Linux' `struct tcp_info` (<linux/tcp.h>; it only ever grows): snd_mss; unacked, sacked, lost and
retrans, in segments; rtt; total_retrans; pacing_rate; bytes_acked; notsent_bytes; min_rtt. Times in us."""
_NO_RTT: Final = 0xFFFFFFFF
TELLS: Final = sys.platform == "linux"
"""Does the kernel tell what became of what a socket sent? Others have less to tell, and other layouts."""

_LOOPS: Final = ("asyncio", "uvloop")
"""Whose transports do nothing but pass bytes on: those of others, around them, must not be passed by."""

CAPS: Final = stream_caps("tcp", TELLS)
assert LINE_MAX + len(_END) > HEADER_SIZE


class SocketLink(StreamLink):
    """A stream on a TCP socket, whatever stands between them: what the kernel tells of it."""

    def __init__(
        self, caps: LinkCaps, codec: HeaderCodec, owner: LinkOwner, accepted: bool
    ) -> None:
        super().__init__(caps, codec, owner, accepted)
        self._sock: socket.socket | None = None

    def stands_on(self, sock: socket.socket) -> None:
        """This is its socket, which is set up for it."""
        self._sock = sock
        tune_socket(sock)

    def below(self) -> Below | None:
        """What TCP_INFO tells."""
        try:
            assert self._sock is not None
            return below_of(self._sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO.size))
        except OSError:
            return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the owner."""
        self._sock = None
        super().connection_lost(exc)

    def unsent_below(self) -> int:
        """What the kernel has not sent yet."""
        return self._kernel_holds(_OUTQ_NOT_SENT)

    def unacknowledged_below(self) -> int:
        """What the other side's kernel has not acknowledged yet."""
        return self._kernel_holds(_OUTQ)

    def is_resending(self) -> bool:
        """Did the kernel send the oldest bytes again? Who only does not read them acknowledges still."""
        try:
            assert self._sock is not None
            answer = self._sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RESENDS.stop)
        except OSError:
            return False
        return any(answer[_RESENDS])

    def limit_below(self, limit: int) -> None:
        """The kernel takes no more than so many bytes that it cannot send."""
        assert self._sock is not None
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, _NOT_SENT_LOWAT, limit)
        except OSError:
            return  # a kernel without it works, only less smoothly

    def _kernel_holds(self, request: int) -> int:
        """Bytes not sent, or not acknowledged; 0 where the system does not tell."""
        try:
            assert self._sock is not None
            answer = fcntl.ioctl(self._sock.fileno(), request, b"\0\0\0\0")
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)


class TcpLink(SocketLink):
    """One TCP connection to an adjacent node."""

    def __init__(
        self,
        codec: HeaderCodec,
        owner: LinkOwner,
        accepted: bool,
        is_shaped: bool = False,
        caps: LinkCaps = CAPS,
    ) -> None:
        super().__init__(caps, codec, owner, accepted)
        self._is_shaped = is_shaped
        self._is_bare = False  # nothing stands between this link and its socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the socket up."""
        self.stands_on(transport.get_extra_info("socket"))
        self.local = _name(transport.get_extra_info("sockname"))
        self.remote = _name(transport.get_extra_info("peername"))
        self._is_bare = type(transport).__module__.partition(".")[0] in _LOOPS
        super().connection_made(transport)
        if self._is_shaped and not self._accepted:
            self._is_shaped = False
            cast("asyncio.Transport", transport).write(first_line())

    def buffer_updated(self, nbytes: int) -> None:
        """Hands on every whole message; a first line that was asked for is dropped."""
        if not self._is_shaped:
            super().buffer_updated(nbytes)
            return
        end = self._end + nbytes
        at = self._buffer.find(_END, 0, min(end, LINE_MAX + len(_END)))
        if at < 0 and end < LINE_MAX + len(_END):
            self.bytes_in += nbytes
            self._end = end
            return
        self._is_shaped = False
        if at >= 0:  # else these are somebody else's bytes, as the header will tell
            self._start = at + len(_END)
        super().buffer_updated(nbytes)

    def send(self, batch: Sequence[Buffer]) -> None:
        """At once, while nothing waits: what the kernel takes from here need not be copied to be kept."""
        transport, sock = self._transport, self._sock
        if transport is None or sock is None or transport.is_closing():
            return
        if (
            _writev is None
            or not self._is_bare
            or len(batch) > _PARTS_MAX
            or transport.get_write_buffer_size()
        ):
            super().send(batch)
            return
        try:
            sent = _writev(sock.fileno(), batch)
        except OSError:  # it is full, or broken: the transport will find out
            sent = 0
        self.bytes_out += sent
        self._pipe.took(sent)
        self._watch_soon()
        rest = behind(batch, sent)
        if rest:
            super().send(rest)


def behind(parts: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What of `parts` follows the first `sent` bytes."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:] if sent else part, *parts[index + 1 :]]
        sent -= len(part)
    return []


def below_of(info: bytes) -> Below | None:
    """What `struct tcp_info` tells; None: too short, from a kernel before 4.6."""
    if len(info) < _INFO.size:
        return None
    (mss, unacked, sacked, lost, retrans, rtt, resent, pace, acked, unsent, rtt_min) = (
        _INFO.unpack_from(info)
    )
    inflight = max(0, unacked - sacked - lost + retrans) * mss
    known = rtt / 1e6 if rtt_min != _NO_RTT else 0.0
    shortest = min(known, rtt_min / 1e6)
    return Below(acked + sacked * mss, inflight, unsent, known, shortest, float(pace), resent * mss)


def first_line() -> bytes:
    """A line of random letters and its end."""
    size = LINE_MIN + secrets.randbelow(LINE_MAX - LINE_MIN + 1)
    return "".join(secrets.choice(string.ascii_letters) for _ in range(size)).encode() + _END


def tune_socket(sock: socket.socket) -> None:
    """No delay, the kernel's own keep-alive, and short pauses between its tries."""
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", None), KERNEL_KEEPALIVE_S),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), 30),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), 4),
    ]
    if TELLS:  # in this order: the first alone changes nothing, the second alone would end it early
        options += [
            (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None), GIVE_UP_MS),
            (socket.IPPROTO_TCP, _RTO_MAX_MS, RESEND_MS),
        ]
    for level, option, value in options:
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError:
                continue  # a kernel without it works, only less smoothly


def _name(address: object) -> str:
    if not isinstance(address, tuple):
        return ""
    return str(Endpoint("tcp", str(address[0]), int(address[1])))


class TcpPlugin:
    """Links of the form `tcp://`."""

    scheme = "tcp"

    def check(self, endpoint: Endpoint) -> None:
        """Raises ValueError for options that this protocol does not have."""
        if endpoint.options not in ("", f"?{SHAPE}"):
            raise ValueError(f"nothing behind the port, or ?{SHAPE}")

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> TcpLink:
        """Opens a connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        is_shaped = bool(endpoint.options)
        _, link = await loop.create_connection(
            lambda: TcpLink(codec, owner, accepted=False, is_shaped=is_shaped),
            endpoint.host,
            endpoint.port,
        )
        return link

    async def serve(
        self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner
    ) -> asyncio.AbstractServer:
        """Listens. Raises OSError."""
        loop = asyncio.get_running_loop()
        is_shaped = bool(endpoint.options)
        return await loop.create_server(
            lambda: TcpLink(codec, owner, accepted=True, is_shaped=is_shaped),
            endpoint.host,
            endpoint.port,
            backlog=256,
            reuse_address=True,
        )


PLUGIN = TcpPlugin()
