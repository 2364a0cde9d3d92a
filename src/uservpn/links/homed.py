"""Datagrams of a listening socket, each answered from the address to which it came, at wildcards too.

A machine may have several addresses. What a wildcard socket sends leaves from the one that the system
prefers, and whoever had sent to another one does not know the answer for an answer. So each datagram tells
its arrival address (IP_PKTINFO), and what is sent back names it. asyncio's transports cannot do that.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Final

from uservpn.links import gso

SIZE_MAX: Final = 2048
"""Longer datagrams come cut, and are nobody's."""
TURN_COUNT: Final = 32
"""Datagrams that are read before the event loop has its turn."""
QUEUE_MAX: Final = 1 << 20
"""Bytes that wait for the kernel; what comes beyond it is lost, as on any path."""
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(gso.PKTINFO6.size)
NAMES_MAX: Final = 1024


class Remote(tuple[Any, ...]):
    """An address as the socket module has it, with the one of ours that it knows."""

    local: str
    ancillary: gso.Ancillary


class HomedTransport:
    """What a datagram protocol uses of asyncio's transports; addresses that come are `Remote`."""

    def __init__(self, sock: socket.socket, kind: int, protocol: asyncio.DatagramProtocol) -> None:
        """Takes the socket over; `kind` is what `gso.tell_destinations` said; 0: one address is bound."""
        self._sock = sock
        self._kind = kind
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._remotes: dict[tuple[Any, bytes], Remote] = {}
        self._queue: deque[tuple[bytes, Any]] = deque()
        self._queued = 0
        self._is_closed = False
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def get_extra_info(self, name: str) -> Any:
        """`socket` and `sockname`, as asyncio's transports."""
        return self._sock if name == "socket" else self._sock.getsockname()

    def sendto(self, data: bytes, addr: Any) -> None:
        """Never waits; no error of the network is told."""
        if self._queue:
            self._keep(data, addr)
        elif not self._is_closed and not self._put(data, addr):
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
            self._keep(data, addr)

    def close(self) -> None:
        """Closes the socket."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._queue.clear()
            self._sock.close()

    abort = close

    # --- inside ----------------------------------------------------------------------------------

    def _put(self, data: bytes, addr: Any) -> bool:
        """False: not now."""
        ancillary: gso.Ancillary = addr.ancillary if type(addr) is Remote else ()
        try:
            self._sock.sendmsg((data,), ancillary, 0, addr)
        except BlockingIOError:
            return False
        except OSError as error:  # such as that our address is gone: no other would do
            self._protocol.error_received(error)
        return True

    def _keep(self, data: bytes, addr: Any) -> None:
        if self._queued < QUEUE_MAX:
            self._queue.append((data, addr))
            self._queued += len(data)

    def _on_writable(self) -> None:
        while self._queue:
            data, addr = self._queue[0]
            if not self._put(data, addr):
                return
            self._queue.popleft()
            self._queued -= len(data)
        self._loop.remove_writer(self._sock.fileno())

    def _on_readable(self) -> None:
        for _ in range(TURN_COUNT):
            if self._is_closed:
                return
            try:
                data, notes, _, address = self._sock.recvmsg(SIZE_MAX, _ANCILLARY_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._protocol.error_received(error)
                return
            note = next((note for _, kind, note in notes if kind == self._kind), b"")
            remote = self._remotes.get((address, note)) or self._remember(address, note)
            self._protocol.datagram_received(data, remote)

    def _remember(self, address: Any, note: bytes) -> Remote:
        if len(self._remotes) >= NAMES_MAX:
            self._remotes.clear()
        remote = self._remotes[address, note] = Remote(address)
        remote.local, remote.ancillary = gso.arrived_at(self._kind, note) if note else ("", ())
        return remote
