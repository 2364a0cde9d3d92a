"""One proxied TCP connection: a socket on one side, a tunnel's stream on the other.

Bytes that arrive on the socket go into one buffer shared by all pumps (they are copied into the tunnel's
message before the next read); bytes of the stream are written to the socket where they were decrypted.
A full socket stops credit, a full tunnel stops reading: memory is bounded by the stream's windows.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import struct
import sys
from typing import Final, Protocol, cast

from uservpn.errors import Fault
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.types import Buffer, NodeId
from uservpn.wire.constants import KIB

READ_SIZE: Final = 255 * KIB
"""Bytes read from a program or site at once: one message of the TCP link, header and frame included."""
FILLED_MAX: Final = READ_SIZE // 4
"""What is read fills messages of up to so many bytes; of longer ones a read is no burst."""
WRITE_HIGH: Final = 256 * KIB
WRITE_LOW: Final = 64 * KIB
_ABORT_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def _memory(size: int) -> memoryview:
    """Zeros that are no memory before they are used, and not in common with forked processes."""
    if sys.platform == "win32":
        return memoryview(mmap.mmap(-1, size))
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


SHARED: Final = _memory(READ_SIZE)
"""What is read goes here, and is dealt with before anybody else reads."""


class Carrier(Protocol):
    """Who carries streams: the mesh's driver, or a connection of this node's own."""

    def open(self, exit: NodeId, host: str, port: int, owner: StreamOwner | None) -> Stream:
        """A new stream. Raises StreamFault."""

    def write(self, stream: Stream, chunk: Buffer) -> bool:
        """Queues a copy; False: wait for `stream_room`."""

    def finish(self, stream: Stream) -> None:
        """No more will be written."""

    def reset(self, stream: Stream, fault: Fault) -> None:
        """Ends the stream now."""

    def consumed(self, stream: Stream, size: int) -> None:
        """Delivered bytes have gone on."""


class Pump(asyncio.BufferedProtocol):
    """Moves bytes between a transport and a stream, both ways, with half-close and back-pressure."""

    __slots__ = (
        "_eof_wanted",
        "_paused",
        "_read_done",
        "_unconsumed",
        "driver",
        "stream",
        "transport",
    )

    def __init__(self, driver: Carrier) -> None:
        self.driver = driver
        self.stream: Stream | None = None
        self.transport: asyncio.Transport | None = None
        self._paused = False
        self._unconsumed = 0
        self._read_done = False
        self._eof_wanted = False

    # --- the socket's side -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the socket up."""
        self.transport = stream = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        stream.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The shared buffer; of it what fills messages, where chunks are cut into many."""
        stream = self.stream
        if stream is None or not 0 < stream.piece <= FILLED_MAX:
            return SHARED
        return SHARED[: READ_SIZE - READ_SIZE % stream.piece]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes of the program or site."""
        stream = self.stream
        if stream is None:
            self.received(SHARED[:nbytes])
        elif not self.driver.write(stream, SHARED[:nbytes]) and self.transport is not None:
            self.transport.pause_reading()

    def received(self, chunk: memoryview) -> None:
        """Bytes that came while no stream is attached; copy what you keep."""

    def eof_received(self) -> bool:
        """The program or site will send no more; the other direction goes on."""
        self._read_done = True
        if self.stream is None:
            return False
        self.driver.finish(self.stream)
        return not self._eof_wanted  # both directions are done: close

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone: so is the stream, unless both ends had finished."""
        self.transport = None
        stream = self.stream
        if stream is not None:
            self.stream = None
            is_done = exc is None and self._read_done and self._eof_wanted
            if not stream.is_over and not is_done:  # done: what is queued still goes
                fault = Fault.CONNECTION_LOST if exc is not None else Fault.CANCELLED
                self.driver.reset(stream, fault)

    def pause_writing(self) -> None:
        """The socket is full: credit stops."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket has room: what was written counts as consumed."""
        self._paused = False
        if self._unconsumed and self.stream is not None:
            size = self._unconsumed
            self._unconsumed = 0
            self.driver.consumed(self.stream, size)

    # --- the stream's side (called by the driver) ------------------------------------------------

    def attach(self, stream: Stream) -> None:
        """From now on bytes flow both ways."""
        self.stream = stream
        stream.owner = self

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """The exit's answer to our OPEN."""

    def stream_data(self, chunk: Buffer) -> None:
        """Bytes of the stream, in order."""
        transport = self.transport
        if transport is None:
            return
        transport.write(chunk)
        if self._paused:
            self._unconsumed += len(chunk)
        elif self.stream is not None:
            self.driver.consumed(self.stream, len(chunk))

    def stream_room(self) -> None:
        """The tunnel takes more."""
        if self.transport is not None and not self._read_done:
            self.transport.resume_reading()

    def stream_finished(self) -> None:
        """The other end will send no more."""
        if self.transport is None:
            return
        if self._read_done:
            self.transport.close()
        else:
            self.transport.write_eof()
        self._eof_wanted = True

    def stream_reset(self, fault: Fault) -> None:
        """The stream is over: the program sees its connection reset."""
        self.stream = None
        self.abort()

    def abort(self) -> None:
        """Closes with RST, so that the other side cannot take it for an orderly end."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            sock = transport.get_extra_info("socket")
            if sock is not None:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT_ON_CLOSE)
                except OSError:
                    pass  # already gone
            transport.abort()
