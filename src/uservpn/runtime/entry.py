"""The entry: where programs come in, by SOCKS5, SOCKS4/4a or HTTP on one port.

The first byte tells the protocol; what speaks none of them is closed without a word. A program hears
`success` at once when its target connected before through the same exit (`optimistic`), else when the
exit has really connected, so that error codes are true. An answer that turned out too optimistic ends
the connection with a reset and makes the next one honest. What a program sends ahead of its answer
already flows to the exit. A site's first connection may have to wait for a test of the exits (at most
`chooser.testing.WAIT_S`); nothing is read from its program meanwhile.

Limits: so many connections at once (more are closed as they come), and so many seconds for whatever a
program has to do before anything can be done for it: to shake hands, to end the head of a request, to
take its last answer. One timer serves all of them, and there is none while nobody is waited for.
The code for HTTP is loaded with the first program that speaks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from uservpn.chooser.cases import Choice
from uservpn.chooser.measure import Trip
from uservpn.errors import Fault, StreamFault
from uservpn.kit.endpoint import Address
from uservpn.runtime.clock import monotonic
from uservpn.runtime.driver import Driver
from uservpn.runtime.pump import SHARED, Carrier, Pump
from uservpn.socks.handshake import Handshake, Request, State
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer, NodeId

if TYPE_CHECKING:
    from uservpn.runtime.http_proxy import HttpSession

HANDSHAKE_LIMIT_S: Final = 15.0
CONNECTIONS_MAX: Final = 16_384
BACKLOG: Final = 1024
_LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_EPSILON_S: Final = 0.01
"""Timers may fire a little early."""

Optimistic = Literal["auto"] | bool


class Waiter(Protocol):
    """Who waits for a choice."""

    def chosen(self, choice: Choice) -> None:
        """It is made; perhaps nobody needs it any more."""


class Choosing(Protocol):
    """What the entry asks of the chooser, and tells it (`runtime.choosing`)."""

    def choose(self, host: str, port: int, user: str, waiter: Waiter) -> Choice | None:
        """Where this target's connection goes; None: the waiter is told, soon."""

    def knows(self, exit: NodeId, host: str, port: int) -> bool:
        """Has it connected there before?"""

    def connected(self, choice: Choice, host: str, port: int) -> None:
        """It has."""

    def failed(self, choice: Choice, host: str, port: int, fault: Fault) -> None:
        """It has not."""

    def replied(self, choice: Choice, trip: Trip) -> None:
        """The first data came back."""

    def unanswered(self, choice: Choice, trip: Trip, is_broken: bool) -> None:
        """The connection ended without a reply; `is_broken`: by the site's side."""

    def ended(self, choice: Choice, stream: Stream) -> None:
        """The connection is over."""

    def driver_of(self, choice: Choice) -> Carrier:
        """Who opens its stream: the mesh's driver, or the one that dials from here."""


class Entry:
    """The listener for programs, and the limits on all their connections."""

    def __init__(
        self,
        listen: Address,
        users: Mapping[str, str],
        driver: Driver,
        chooser: Choosing,
        optimistic: Optimistic,
        *,
        handshake_limit_s: float = HANDSHAKE_LIMIT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.driver = driver
        self.chooser = chooser
        self.users = users
        self.optimistic = optimistic
        self.connections: set[EntryConnection] = set()
        self.accepted_count = 0
        """Programs that came in, refused ones too."""
        self.refused_count = 0
        """Connections turned away: no place, no or a wrong handshake, no way to the target."""
        self._listen = listen
        self._handshake_limit_s = handshake_limit_s
        self._connections_max = connections_max
        self._server: asyncio.Server | None = None
        self._waiting: dict[EntryConnection, float] = {}  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None  # not None: closing

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens. Raises OSError."""
        self._server = await self.driver.loop.create_server(
            lambda: EntryConnection(self), self._listen.host, self._listen.port, backlog=BACKLOG
        )

    async def close(self, drain_s: float) -> None:
        """Stops listening, gives connections in use `drain_s` to finish, then resets them."""
        self.leave()
        self._emptied = asyncio.Event()
        for connection in list(self.connections):
            connection.retire()
        if self.connections and drain_s > 0:
            try:
                async with asyncio.timeout(drain_s):
                    await self._emptied.wait()
            except TimeoutError:
                pass  # they had their time
        for connection in list(self.connections):
            connection.cut()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.sleep(0)  # sockets that were aborted are closed in the loop's next turn

    def leave(self) -> None:
        """Stops listening; connections go on, under the limits they came in with."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def reconfigure(self, users: Mapping[str, str], optimistic: Optimistic) -> None:
        """From the next handshake on; connections that stand are not touched."""
        self.users = users
        self.optimistic = optimistic

    # --- questions -------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """Where it listens; the real port where 0 was asked for."""
        if self._server is None:
            return self._listen
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def snapshot(self) -> dict[str, Any]:
        """Counts for the status document."""
        return {
            "open": len(self.connections),
            "accepted": self.accepted_count,
            "refused": self.refused_count,
        }

    def direct_rows(self, node: NodeId) -> list[dict[str, Any]]:
        """Connections that leave from this node itself, for the status document."""
        return [
            {
                "id": "direct",
                "target": connection.target,
                "exit": node,
                "client": node,
                "bytes_out": connection.stream.sent_size,
                "bytes_in": connection.stream.recv_offset,
            }
            for connection in self.connections
            if connection.is_direct and connection.stream is not None
        ]

    # --- its connections -------------------------------------------------------------------------

    def add(self, connection: EntryConnection) -> bool:
        """A program came in; False: there is no place for it."""
        self.accepted_count += 1
        if len(self.connections) >= self._connections_max or self._emptied is not None:
            self.refused_count += 1
            return False
        self.connections.add(connection)
        self.watch(connection)
        return True

    def remove(self, connection: EntryConnection) -> None:
        """It is gone."""
        self._waiting.pop(connection, None)
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def watch(self, connection: EntryConnection) -> None:
        """It is reset unless `unwatch` or its end comes within the limit; watched: nothing new."""
        if connection not in self._waiting:
            until = self.driver.loop.time() + self._handshake_limit_s
            self._waiting[connection] = until
            if self._timer is None:
                self._timer = self.driver.loop.call_at(until, self._expire)

    def unwatch(self, connection: EntryConnection) -> None:
        """What was waited for has come."""
        self._waiting.pop(connection, None)

    def _expire(self) -> None:
        """Resets those whose time is up; the timer stands for the first of the others."""
        self._timer = None
        now = self.driver.loop.time() + _EPSILON_S
        for connection, until in list(self._waiting.items()):
            if until > now:
                self._timer = self.driver.loop.call_at(until, self._expire)
                return
            del self._waiting[connection]
            connection.expired()


class EntryConnection(Pump):
    """One program's connection: first a handshake, then bytes; or a session of HTTP requests."""

    __slots__ = (
        "_choice",
        "_early",
        "_entry",
        "_handshake",
        "_http",
        "_is_answered",
        "_is_confirmed",
        "_is_refused",
        "_request",
        "_trip",
    )

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.driver)
        self._entry = entry
        self._handshake: Handshake | HttpSession | None = None  # until the answer
        self._http: HttpSession | None = None  # while it has the socket
        self._request: Request | None = None
        self._choice: Choice | None = None
        self._early: bytes | None = None  # not None: waiting for a choice, with what was sent
        self._trip: Trip | None = None  # until its first round trip is over
        self._is_answered = False  # the program was told success
        self._is_confirmed = False  # the exit has told its result
        self._is_refused = False

    @property
    def target(self) -> str:
        """host:port, for status; "" while there is none."""
        return f"{self._request.host}:{self._request.port}" if self._request else ""

    @property
    def is_direct(self) -> bool:
        """Does it leave from this node itself?"""
        return self._choice is not None and self._choice.is_direct

    @property
    def entry(self) -> Entry:
        """Whose program this is."""
        return self._entry

    @property
    def is_full(self) -> bool:
        """The program does not take what it was sent."""
        return self._paused

    # --- the program's side ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A program came in."""
        super().connection_made(transport)
        if not self._entry.add(self):
            self._is_refused = True
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The program is gone."""
        self._entry.remove(self)
        self._handshake = None
        if self._http is not None:
            self._http.lost()
            self._http = None
        stream = self.stream
        super().connection_lost(exc)
        if stream is not None:
            self._leave(stream, False)

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes of the program; when the last ones before the reply went is remembered."""
        stream = self.stream
        if stream is None:
            self.received(SHARED[:nbytes])
            return
        if self._trip is not None:
            self._trip.sent(monotonic())
        if not self.driver.write(stream, SHARED[:nbytes]) and self.transport is not None:
            self.transport.pause_reading()

    def received(self, chunk: memoryview) -> None:
        """Bytes of a handshake or of HTTP; what follows a refusal is thrown away."""
        if self._http is not None:
            self._http.receive(bytes(chunk))
            return
        if self._is_refused:
            return
        handshake = self._handshake
        if handshake is None:
            first = chunk[0]
            if first in _LETTERS:
                self._speak_http(bytes(chunk))
                return
            if first != 5 and first != 4:
                self.refuse(b"")
                return
            handshake = self._handshake = Handshake(self._entry.users)
        assert isinstance(handshake, Handshake)
        reply = handshake.receive(bytes(chunk))
        state = handshake.state
        if state is State.FAILED:
            self.refuse(reply)
            return
        if reply and self.transport is not None:
            self.transport.write(reply)
        if state is State.DONE:
            assert handshake.request is not None
            self.go(handshake, handshake.request, handshake.rest)

    def eof_received(self) -> bool:
        """The program sends no more; an answer may still be on its way to it."""
        if self._http is None:
            return super().eof_received()
        self._read_done = True
        return self._http.ended()

    def resume_writing(self) -> None:
        """The program takes more."""
        super().resume_writing()
        if self._http is not None:
            self._http.program_room()

    # --- from request to answer ------------------------------------------------------------------

    def go(self, handshake: Handshake | HttpSession, request: Request, early: bytes) -> None:
        """Opens the stream; `handshake` answers when it is time, `early` goes along."""
        entry = self._entry
        entry.unwatch(self)
        self._handshake = handshake
        self._request = request
        choice = entry.chooser.choose(request.host, request.port, request.user, self)
        if choice is not None:
            self._open(choice, early)
        else:
            self._early = early
            if self.transport is not None:
                self.transport.pause_reading()

    def chosen(self, choice: Choice) -> None:
        """The exits were asked: on with the connection, if it is still there."""
        early, self._early = self._early, None
        transport = self.transport
        if transport is None or transport.is_closing() or early is None or self._is_refused:
            return
        transport.resume_reading()
        self._open(choice, early)

    def _open(self, choice: Choice, early: bytes) -> None:
        handshake, request, entry = self._handshake, self._request, self._entry
        assert handshake is not None and request is not None
        if choice.fault:
            self.refuse(handshake.answer(choice.fault, choice.detail))
            return
        _, host, port, _, _ = request
        self._choice = choice
        chosen = choice.exit
        self.driver = entry.chooser.driver_of(choice)
        try:
            stream = self.driver.open(chosen, host, port, self)
        except StreamFault as error:
            self._tell_failed(error.fault)
            self.refuse(handshake.answer(error.fault, error.detail))
            return
        self._trip = Trip()
        self.attach(stream)
        optimistic = entry.optimistic
        if optimistic is True or (optimistic and entry.chooser.knows(chosen, host, port)):
            self._grant()
        if early:
            self.write_early(stream, early)

    def detach_http(self) -> None:
        """The session has read its last request."""
        self._http = None

    def take_over(
        self, driver: Carrier, stream: Stream, request: Request, choice: Choice, unconsumed: int
    ) -> None:
        """From HTTP to bytes both ways, on a stream that already works."""
        self._http = self._handshake = None
        self._request = request
        self._choice = choice
        self.driver = driver
        self._unconsumed += unconsumed
        self._is_answered = self._is_confirmed = True
        self.attach(stream)
        if self._read_done:
            self.driver.finish(stream)

    def refuse(self, reply: bytes) -> None:
        """The program's last answer; then its connection is closed."""
        self._is_refused = True
        self._handshake = None
        self._entry.refused_count += 1
        transport = self.transport
        if transport is not None:
            if reply:
                transport.write(reply)
            self._entry.watch(self)
            transport.close()

    def linger(self, reply: bytes, is_refusal: bool = True) -> None:
        """The last answer to a program that may still be sending, which a reset would destroy."""
        self._http = self._handshake = None
        if is_refusal:
            self._entry.refused_count += 1
        self._is_refused = True
        transport = self.transport
        if transport is not None:
            if reply:
                transport.write(reply)
            self._entry.watch(self)
            if self._read_done:
                transport.close()
            else:
                transport.write_eof()
                transport.resume_reading()

    def finish(self) -> None:
        """An orderly end, in the time that a program has to take its last bytes."""
        self._http = None
        if self.transport is not None:
            self._entry.watch(self)
            self.transport.close()

    def retire(self) -> None:
        """The entry closes: over if nothing is going on."""
        if (
            self.stream is None
            and self._early is None
            and (self._http is None or self._http.is_idle)
        ):
            self.abort()

    def expired(self) -> None:
        """The program's time is up."""
        if not self._is_refused:
            self._is_refused = True
            self._entry.refused_count += 1
        self.cut()

    def cut(self) -> None:
        """As `abort`, also where an orderly end is under way and not taken."""
        if self.transport is not None and self.transport.is_closing():
            self.transport.abort()
        else:
            self.abort()

    # --- the stream's side -----------------------------------------------------------------------

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """The exit's result."""
        if fault:
            self._fail(fault)
        else:
            self._confirm()

    def stream_data(self, chunk: Buffer) -> None:
        """Bytes of the site; over several links they may come ahead of the exit's result."""
        if not self._is_confirmed:
            self._confirm()
        if self._trip is not None and self._choice is not None:
            self._entry.chooser.replied(self._choice, self._trip)
            self._trip = None
        super().stream_data(chunk)

    def stream_finished(self) -> None:
        """The site sends no more."""
        if not self._is_confirmed:
            self._confirm()
        super().stream_finished()

    def stream_reset(self, fault: Fault) -> None:
        """The stream is over; before the answer that is a refusal."""
        if self._is_confirmed:
            if self.stream is not None:
                self._leave(self.stream, fault is Fault.CONNECTION_LOST)
            if fault is Fault.EXIT_DEAD:
                self._tell_failed(fault)
            super().stream_reset(fault)
        else:
            self._fail(fault)

    def _confirm(self) -> None:
        request = self._request
        if self._is_confirmed or request is None:
            return
        self._is_confirmed = True
        if self._trip is not None:
            self._trip.opened(monotonic())
        assert self._choice is not None
        self._entry.chooser.connected(self._choice, request.host, request.port)
        if not self._is_answered:
            self._grant()

    def _fail(self, fault: Fault) -> None:
        request, handshake = self._request, self._handshake
        self.stream = None
        if request is not None and not self._is_confirmed:
            self._is_confirmed = True
            self._tell_failed(fault)
        if handshake is None:
            self._is_refused = True
            self._entry.refused_count += 1
            self.abort()
        else:
            self.refuse(handshake.answer(fault))

    def _tell_failed(self, fault: Fault) -> None:
        if self._choice is not None and self._request is not None:
            host, port = self._request.host, self._request.port
            self._entry.chooser.failed(self._choice, host, port, fault)

    def _leave(self, stream: Stream, is_broken: bool) -> None:
        """The stream is over, or left behind: what is learned from that."""
        choice, trip = self._choice, self._trip
        self._trip = None
        if choice is not None:
            if trip is not None:
                self._entry.chooser.unanswered(choice, trip, is_broken)
            self._entry.chooser.ended(choice, stream)

    def _grant(self) -> None:
        handshake = self._handshake
        self._is_answered = True
        self._handshake = None
        if handshake is not None and self.transport is not None:
            self.transport.write(handshake.answer(Fault.NONE))

    def count_consumed(self, size: int) -> None:
        """Delivered bytes have gone to the program, or wait in its socket."""
        if self._paused:
            self._unconsumed += size
        elif self.stream is not None:
            self.driver.consumed(self.stream, size)

    def write_early(self, stream: Stream, early: bytes) -> None:
        """What the program sent of its data before the stream was attached."""
        if self._trip is not None:
            self._trip.sent(monotonic())
        if not self.driver.write(stream, early) and self.transport is not None:
            self.transport.pause_reading()

    def _speak_http(self, data: bytes) -> None:
        from uservpn.runtime.http_proxy import HttpSession

        self._http = HttpSession(self, self._entry.users)
        self._http.receive(data)
