"""The exit: dials what clients ask for, within its policy, and tells the true result.

While a connection is being made its stream belongs to a `Dial`, which keeps early data (bounded
by the stream's early credit) and an early end. The moment the socket stands, before anything is
read from it, the stream passes to an `ExitConnection` and what was kept is written. A stream that
is reset takes its dial along.

New connections per second matter, so the usual dial (one numeric address) is one task around the
loop's own `create_connection`, which measured cheapest of several ways; one timer serves the time
limit of all dials, which end in the order in which they began.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from uservpn.errors import Fault, StreamFault
from uservpn.exits.policy import Policy
from uservpn.runtime.descriptors import SHORTAGE
from uservpn.runtime.dialling import ADDRESSES_MAX, connect_any, fault_of
from uservpn.runtime.driver import Driver
from uservpn.runtime.kept import KeptConnections, Waiting
from uservpn.runtime.pump import Pump
from uservpn.runtime.resolver import Resolver
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer

log: Final = logging.getLogger("uservpn")

CONNECT_LIMIT_S: Final = 10.0
"""Resolving and connecting together."""
STREAMS_PER_CLIENT_MAX: Final = 16_384


class Dial:
    """Owns a stream while its connection is being made."""

    __slots__ = ("deadline", "early", "exit", "finished", "host", "port", "stream", "task")

    def __init__(self, exit: Exit, stream: Stream, host: str, port: int, deadline: float) -> None:
        self.exit = exit
        self.stream = stream
        self.host = host
        self.port = port
        self.deadline = deadline
        self.early: list[bytes] = []
        self.finished = False
        self.task: asyncio.Task[None] | None = None

    def connection(self) -> ExitConnection:
        """The protocol for a socket that now stands."""
        return ExitConnection(self)

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """Never comes: this side answers."""

    def stream_data(self, chunk: Buffer) -> None:
        """Early data: a copy is kept, and not counted as consumed until it has gone on."""
        self.early.append(bytes(chunk))

    def stream_room(self) -> None:
        """Nothing has been written, nothing waits."""

    def stream_finished(self) -> None:
        """The program has already said all."""
        self.finished = True

    def stream_reset(self, fault: Fault) -> None:
        """The program is gone: nobody wants the connection."""
        self.exit.cancelled(self)


class ExitConnection(Pump):
    """A connection to a site; counted with its exit until its socket is gone."""

    __slots__ = ("_dial", "_exit", "host", "peer", "port")

    def __init__(self, dial: Dial) -> None:
        super().__init__(dial.exit.driver)
        self.host = dial.host
        self.port = dial.port
        self.peer = dial.stream.peer
        self._dial: Dial | None = dial
        self._exit: Exit | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the stream over; the loop reads only after this."""
        super().connection_made(transport)
        dial = self._dial
        assert dial is not None
        self._dial = None
        if dial.exit.connected(dial, self):
            self._exit = dial.exit
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        super().connection_lost(exc)
        if self._exit is not None:
            self._exit.ended(self.peer)
            self._exit = None


class Exit:
    """Dials for the clients of one node.

    A client has at most `streams_per_client` connections, dials included: beyond, LIMIT. Nothing
    raises out of a dial: its fault goes to the client.
    """

    def __init__(
        self,
        driver: Driver,
        policy: Policy,
        resolver: Resolver,
        connect_timeout_s: float = CONNECT_LIMIT_S,
        streams_per_client: int = STREAMS_PER_CLIENT_MAX,
        kept: KeptConnections | None = None,
    ) -> None:
        """`kept` are connections that tests have made, for streams that come for them."""
        self.driver = driver
        self.open_counts: dict[int, int] = {}
        """Connections and dials per client."""
        self._policy = policy
        self._resolver = resolver
        self._connect_timeout_s = connect_timeout_s
        self._streams_per_client = streams_per_client
        self._kept = kept
        self._loop = driver.loop
        self._dials: dict[Dial, None] = {}  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._connected_count = 0
        self._cancelled_count = 0
        self._refused_counts: Counter[Fault] = Counter()

    # --- commands --------------------------------------------------------------------------------

    def offer(self, stream: Stream, host: str, port: int) -> None:
        """A client asks for a connection; the answer is `accept` or `refuse`, unless it resets."""
        peer = stream.peer
        count = self.open_counts.get(peer, 0)
        if count >= self._streams_per_client:
            self._refuse(stream, Fault.LIMIT)
            return
        may = self._policy.verdict(host)
        if may is False or port == 0:
            self._refuse(stream, Fault.NOT_ALLOWED)
            return
        self.open_counts[peer] = count + 1
        deadline = self._loop.time() + self._connect_timeout_s
        dial = Dial(self, stream, host, port, deadline)
        stream.owner = dial
        self._dials[dial] = None
        waiting = self._kept.take(peer, host, port) if self._kept is not None else None
        if waiting is not None:
            self._adopt(dial, waiting)
            return
        dial.task = self._loop.create_task(self._run(dial, may is None))
        if self._timer is None:
            self._timer = self._loop.call_later(self._connect_timeout_s, self._expire)

    def reconfigure(self, policy: Policy, resolver: Resolver | None = None) -> None:
        """For every address dialled from now on; connections that stand are not touched."""
        self._policy = policy
        if resolver is not None:
            self._resolver = resolver

    def close(self) -> None:
        """Ends every dial without a word; connections end with their tunnels."""
        for dial in list(self._dials):
            self.cancelled(dial)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- questions -------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Counts for the status document."""
        dialing = len(self._dials)
        return {
            "open": sum(self.open_counts.values()) - dialing,
            "dialing": dialing,
            "clients": len(self.open_counts),
            "connected": self._connected_count,
            "cancelled": self._cancelled_count,
            "refused": {fault.name.lower(): n for fault, n in self._refused_counts.items()},
        }

    # --- dials -----------------------------------------------------------------------------------

    async def _run(self, dial: Dial, is_name: bool) -> None:
        try:
            if is_name:
                addresses = await self._resolver.resolve(dial.host)
                await self.connect(dial.connection, addresses, dial.port)
            else:  # both kinds of loop set TCP_NODELAY by themselves
                await self._loop.create_connection(dial.connection, dial.host, dial.port)
            return
        except StreamFault as error:
            fault = error.fault
        except OSError as error:
            SHORTAGE.met(error)
            fault = fault_of(error)
        except Exception:
            log.exception("a dial failed in a way nobody thought of")
            fault = Fault.FAILED
        self._fail(dial, fault)

    async def resolve(self, host: str) -> list[str]:
        """Numeric addresses; of one, itself. Raises StreamFault."""
        return (
            [host] if self._policy.verdict(host) is not None else await self._resolver.resolve(host)
        )

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], addresses: list[str], port: int
    ) -> None:
        """A connection to whichever of the addresses answers first, within the policy.

        Raises:
            StreamFault: the policy refuses all of them.
            OSError: none could be connected to.
        """
        check = self._policy.check
        allowed = [address for address in addresses if check(address, port)][:ADDRESSES_MAX]
        if not allowed:
            raise StreamFault(Fault.NOT_ALLOWED, "the exit's policy refuses the address")
        await connect_any(self._loop, factory, allowed, port)

    def _adopt(self, dial: Dial, waiting: Waiting) -> None:
        """The connection that a test made is this dial's, with what the site has already said."""
        transport = waiting.transport
        assert transport is not None
        connection = dial.connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if not waiting.early or self.driver.write(dial.stream, waiting.early):
            transport.resume_reading()
        if waiting.is_ended and not connection.eof_received():
            transport.close()

    def connected(self, dial: Dial, connection: ExitConnection) -> bool:
        """The socket stands: what was kept goes first. False: nobody wants it any more."""
        if dial not in self._dials:
            return False
        del self._dials[dial]
        stream = dial.stream
        if stream.is_over:
            self.ended(stream.peer)
            return False
        self._connected_count += 1
        self.driver.accept(stream, connection)
        if dial.early:
            for chunk in dial.early:
                connection.stream_data(chunk)
        if dial.finished:
            connection.stream_finished()
        return True

    def cancelled(self, dial: Dial) -> None:
        """Gives the dial up; nobody is told."""
        if self._forget(dial):
            self._cancelled_count += 1

    def ended(self, peer: int) -> None:
        """A connection or a dial of this client is over."""
        count = self.open_counts[peer] - 1
        if count:
            self.open_counts[peer] = count
        else:
            del self.open_counts[peer]

    def _fail(self, dial: Dial, fault: Fault) -> None:
        if self._forget(dial) and not dial.stream.is_over:
            self._refuse(dial.stream, fault)

    def _forget(self, dial: Dial) -> bool:
        """Ends a dial, its task included. False: it had ended."""
        if dial not in self._dials:
            return False
        del self._dials[dial]
        self.ended(dial.stream.peer)
        dial.early.clear()
        if dial.task is not None and not dial.task.done():
            dial.task.cancel()
        return True

    def _refuse(self, stream: Stream, fault: Fault) -> None:
        self._refused_counts[fault] += 1
        self.driver.refuse(stream, fault)

    def _expire(self) -> None:
        """Ends the dials whose time is up; the timer stands for the first of the others."""
        self._timer = None
        now = self._loop.time()
        for dial in list(self._dials):
            if dial.deadline > now + 0.005:
                self._timer = self._loop.call_later(dial.deadline - now, self._expire)
                return
            self._fail(dial, Fault.TIMEOUT)
