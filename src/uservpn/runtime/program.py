"""One program's connection at the entry: from its first byte to its last.

The first byte tells the protocol; what speaks none of them is closed without a word. A program hears
`success` at once when its target connected before through the same exit (`optimistic`), else when the
exit has really connected, so that error codes are true. An answer that turned out too optimistic ends
the connection with a reset and makes the next one honest. What a program sends ahead of its answer
already flows to the exit. A site's first connection may have to wait for a test of the exits (at most
`chooser.testing.WAIT_S`); nothing is read from its program meanwhile.

The code for HTTP is loaded with the first program that speaks it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from uservpn.chooser.cases import Choice
from uservpn.chooser.measure import Trip
from uservpn.errors import Fault, StreamFault
from uservpn.runtime.clock import monotonic
from uservpn.runtime.descriptors import SHORTAGE
from uservpn.runtime.pump import SHARED, Carrier, Pump
from uservpn.socks.handshake import Handshake, Request, State
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer

if TYPE_CHECKING:
    from uservpn.runtime.entry import Entry
    from uservpn.runtime.http_proxy import HttpSession

_LETTERS: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


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
        SHORTAGE.look(transport.get_extra_info("socket").fileno())
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
