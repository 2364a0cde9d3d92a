"""Connections that leave from this node itself, for targets that a rule sends `direct`.

To the entry one of them looks like a stream of the mesh (`pump.Carrier`). The address comes from an exit
(`chooser`): nothing is resolved here.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from uservpn.errors import Fault
from uservpn.runtime.descriptors import SHORTAGE
from uservpn.runtime.dialling import connect_any, fault_of
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.types import Buffer, NodeId
from uservpn.wire.constants import KIB

log: Final = logging.getLogger("uservpn")
CONNECT_LIMIT_S: Final = 10.0
EARLY_MAX: Final = 64 * KIB
"""Bytes kept until it is connected: then the program waits."""
UNCONSUMED_MAX: Final = 512 * KIB
"""Bytes that the program has not taken: then nothing more is read."""


class DirectDriver(asyncio.Protocol):
    """Carries one stream."""

    def __init__(self, loop: asyncio.AbstractEventLoop, addresses: tuple[str, ...]) -> None:
        self._loop = loop
        self._addresses = addresses
        self._stream = Stream(0, 0, is_mine=True, window=UNCONSUMED_MAX)
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._early = bytearray()
        self._unconsumed = 0
        self._is_full = False
        self._is_finished = False  # by the program
        self._is_ended = False  # by the site

    # --- what the entry does ---------------------------------------------------------------------

    def open(self, exit: NodeId, host: str, port: int, owner: StreamOwner | None) -> Stream:
        """Connects; the owner is told how that ended."""
        self._stream.owner = owner
        self._task = self._loop.create_task(self._connect(port))
        return self._stream

    def write(self, stream: Stream, chunk: Buffer) -> bool:
        """Queues a copy; False: wait for `stream_room`."""
        stream.sent_size += len(chunk)
        if self._transport is None:
            self._early += chunk
            return len(self._early) < EARLY_MAX
        self._transport.write(bytes(chunk))
        return not self._is_full

    def finish(self, stream: Stream) -> None:
        """The program sends no more."""
        self._is_finished = True
        if self._transport is not None:
            self._finish()

    def reset(self, stream: Stream, fault: Fault) -> None:
        """Ends it now."""
        stream.is_over = True
        if self._transport is not None:
            self._transport.abort()
        elif self._task is not None:
            self._task.cancel()

    def consumed(self, stream: Stream, size: int) -> None:
        """The program has taken so much."""
        was_full = self._unconsumed >= UNCONSUMED_MAX
        self._unconsumed -= size
        if was_full and self._unconsumed < UNCONSUMED_MAX and self._transport is not None:
            self._transport.resume_reading()

    # --- what the site does ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""
        self._transport = made = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        if self._stream.is_over:
            made.abort()
            return
        had_to_wait = len(self._early) >= EARLY_MAX
        if self._early:
            made.write(bytes(self._early))
            self._early.clear()
        owner = self._stream.owner
        if owner is not None:
            owner.stream_opened(Fault.NONE, b"")
            if had_to_wait and not self._is_full:
                owner.stream_room()
        if self._is_finished:
            self._finish()

    def data_received(self, data: bytes) -> None:
        """Bytes of the site."""
        stream = self._stream
        if stream.owner is None or stream.is_over:
            return
        stream.recv_offset += len(data)
        self._unconsumed += len(data)
        stream.owner.stream_data(data)
        if self._unconsumed >= UNCONSUMED_MAX and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The site sends no more; the program may."""
        self._is_ended = True
        if self._stream.owner is not None and not self._stream.is_over:
            self._stream.owner.stream_finished()
        return not self._is_finished

    def pause_writing(self) -> None:
        """The socket is full."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It has room."""
        self._is_full = False
        if self._stream.owner is not None and not self._stream.is_over:
            self._stream.owner.stream_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._transport = None
        stream = self._stream
        if stream.is_over:
            return
        stream.is_over = True
        if stream.owner is not None and not (self._is_ended and exc is None):
            stream.owner.stream_reset(Fault.CONNECTION_LOST)

    def _finish(self) -> None:
        assert self._transport is not None
        if self._is_ended:
            self._transport.close()
        else:
            self._transport.write_eof()

    async def _connect(self, port: int) -> None:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await connect_any(self._loop, lambda: self, self._addresses, port)
            return
        except OSError as error:
            SHORTAGE.met(error)
            fault = fault_of(error)
        except Exception:
            log.exception("a direct connection failed in a way nobody thought of")
            fault = Fault.FAILED
        stream = self._stream
        if not stream.is_over:
            stream.is_over = True
            if stream.owner is not None:
                stream.owner.stream_opened(fault, b"")
