"""The exit: dials what clients ask for, within its policy, and tells the true result."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from typing import Final

from uservpn.errors import Fault, StreamFault
from uservpn.exits.policy import Policy
from uservpn.runtime.driver import Driver
from uservpn.runtime.pump import Pump
from uservpn.runtime.resolver import Resolver, is_numeric
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer

CONNECT_LIMIT_S: Final = 10.0
STREAMS_PER_CLIENT_MAX: Final = 16_384
_FAULTS: Final = {
    errno.ECONNREFUSED: Fault.REFUSED,
    errno.EHOSTUNREACH: Fault.HOST_UNREACHABLE,
    errno.ENETUNREACH: Fault.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Fault.NETWORK_UNREACHABLE,
    errno.ETIMEDOUT: Fault.TIMEOUT,
}


class PendingDial:
    """Owns a stream while its connection is being made: keeps early data, which credit bounds."""

    __slots__ = ("early", "finished", "task")

    def __init__(self) -> None:
        self.early: list[Buffer] = []
        self.finished = False
        self.task: asyncio.Task[None] | None = None

    def stream_data(self, chunk: Buffer) -> None:
        """Early data."""
        self.early.append(chunk)

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """Not for streams the peer opened."""

    def stream_room(self) -> None:
        """Nothing was written yet."""

    def stream_finished(self) -> None:
        """The program has already said all."""
        self.finished = True

    def stream_reset(self, fault: Fault) -> None:
        """The program is gone: so is the dial."""
        if self.task is not None:
            self.task.cancel()


class Exit:
    """Dials for the clients of one node."""

    def __init__(self, driver: Driver, policy: Policy, resolver: Resolver) -> None:
        self.driver = driver
        self.policy = policy
        self.open_counts: Counter[int] = Counter()
        self._resolver = resolver
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, policy: Policy) -> None:
        """From the next dial on."""
        self.policy = policy

    def offer(self, stream: Stream, host: str, port: int) -> None:
        """A client asks for a connection."""
        if len(self.driver.node.tunnel(stream).streams) > STREAMS_PER_CLIENT_MAX:
            self.driver.refuse(stream, Fault.LIMIT)
            return
        pending = PendingDial()
        stream.owner = pending
        task = self.driver.loop.create_task(self._dial(stream, pending, host, port))
        pending.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self, stream: Stream, pending: PendingDial, host: str, port: int) -> None:
        try:
            addresses = [host] if is_numeric(host) else await self._resolver.resolve(host)
            allowed = [address for address in addresses if self.policy.allows(address)]
            if not allowed:
                raise StreamFault(Fault.NOT_ALLOWED, "the exit's policy refuses the address")
            pump = await self._connect(allowed, port, f"{host}:{port}")
        except StreamFault as fault:
            self._refuse(stream, fault.fault)
            return
        except OSError as error:
            self._refuse(stream, _FAULTS.get(error.errno or 0, Fault.FAILED))
            return
        except TimeoutError:
            self._refuse(stream, Fault.TIMEOUT)
            return
        except asyncio.CancelledError:
            return
        if stream.is_over:
            pump.abort()
            return
        self.driver.accept(stream, pump)
        for chunk in pending.early:
            pump.stream_data(chunk)
        if pending.finished:
            pump.stream_finished()

    def _refuse(self, stream: Stream, fault: Fault) -> None:
        if not stream.is_over:
            self.driver.refuse(stream, fault)

    async def _connect(self, addresses: list[str], port: int, target: str) -> ExitConnection:
        loop = self.driver.loop
        if len(addresses) == 1:
            sock = socket.socket(
                socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET, socket.SOCK_STREAM
            )
            sock.setblocking(False)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    await loop.sock_connect(sock, (addresses[0], port))
            except BaseException:
                sock.close()
                raise
        else:
            import aiohappyeyeballs

            infos = [
                (
                    socket.AF_INET6 if ":" in address else socket.AF_INET,
                    socket.SOCK_STREAM,
                    socket.IPPROTO_TCP,
                    "",
                    (address, port, 0, 0) if ":" in address else (address, port),
                )
                for address in addresses
            ]
            async with asyncio.timeout(CONNECT_LIMIT_S):
                sock = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=0.25)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, pump = await loop.create_connection(lambda: ExitConnection(self, target), sock=sock)
        return pump


class ExitConnection(Pump):
    """A connection to a site."""

    __slots__ = ("target",)

    def __init__(self, exit: Exit, target: str) -> None:
        super().__init__(exit.driver)
        self.target = target

    def eof_received(self) -> bool:
        """The site may finish before the stream is attached."""
        super().eof_received()
        return True

    def attach(self, stream: Stream) -> None:
        """From now on bytes flow."""
        super().attach(stream)
        if self._read_done:
            self.driver.finish(stream)
        if self.transport is not None:
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Reads nothing until the stream is attached."""
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
