"""The site's side of an HTTP session: one stream, the HTTP spoken on it, and what is learned from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11

from uservpn.chooser.cases import Choice
from uservpn.chooser.measure import Trip
from uservpn.errors import Fault
from uservpn.runtime.clock import monotonic
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer

if TYPE_CHECKING:
    from uservpn.runtime.http_proxy import HttpSession

HEAD_MAX: Final = 64 * 1024
"""Bytes of a head, a program's or a site's."""


class Origin:
    """The stream to one site, and the HTTP spoken on it; owned by its session."""

    __slots__ = (
        "choice",
        "driver",
        "has_answered",
        "host",
        "http",
        "is_confirmed",
        "is_used",
        "port",
        "session",
        "stream",
        "trip",
        "unconsumed",
    )

    def __init__(self, session: HttpSession, choice: Choice, host: str, port: int) -> None:
        """Opens the stream. Raises StreamFault."""
        self.session = session
        self.choice = choice
        self.driver = session.connection.entry.chooser.driver_of(choice)
        self.host = host
        self.port = port
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
        self.is_confirmed = False
        self.is_used = False
        """A request before the present one went this way."""
        self.has_answered = False
        """Something of the present answer has come."""
        self.unconsumed = 0
        """Bytes that the program has not taken yet."""
        self.trip: Trip | None = Trip()
        """Until its first round trip is over."""
        self.stream: Stream = self.driver.open(choice.exit, host, port, self)

    @property
    def target(self) -> str:
        """host:port, for status."""
        return f"{self.host}:{self.port}"

    def stream_opened(self, fault: Fault, detail: bytes) -> None:
        """The exit's result."""
        if fault:
            self.session.origin_failed(self, fault)
        else:
            self._confirm()

    def stream_data(self, chunk: Buffer) -> None:
        """Bytes of the site."""
        if len(chunk):
            self._confirm()
            if self.trip is not None:
                self.session.connection.entry.chooser.replied(self.choice, self.trip)
                self.trip = None
            self.session.origin_data(self, chunk)

    def stream_room(self) -> None:
        """The site takes more."""
        self.session.origin_room()

    def stream_finished(self) -> None:
        """The site sends no more."""
        self._confirm()
        self.session.origin_ended(self)

    def stream_reset(self, fault: Fault) -> None:
        """The stream is over."""
        self.session.origin_failed(self, fault)

    def _confirm(self) -> None:
        if not self.is_confirmed:
            self.is_confirmed = True
            if self.trip is not None:
                self.trip.opened(monotonic())
            chooser = self.session.connection.entry.chooser
            chooser.connected(self.choice, self.host, self.port)

    def write(self, data: bytes) -> bool:
        """Bytes for the site; False: it takes no more for now."""
        if self.trip is not None:
            self.trip.sent(monotonic())
        return self.driver.write(self.stream, data)

    def ask(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> bool:
        """Sends a part of the request; False: the site takes no more for now.

        Raises h11.LocalProtocolError: the request makes no sense.
        """
        data = self.http.send(event)
        return not data or self.write(data)

    def serves(self, choice: Choice, host: str, port: int) -> bool:
        """Could it carry a request that goes there?"""
        return (self.choice.exit, self.host, self.port) == (choice.exit, host, port)

    def count_consumed(self, size: int, is_taken: bool) -> None:
        """Bytes were handed to the program; credit for the site as soon as it has taken them."""
        self.unconsumed += size
        if is_taken:
            self.credit()

    def credit(self) -> None:
        """The program has taken what it was sent."""
        if self.unconsumed:
            size, self.unconsumed = self.unconsumed, 0
            self.driver.consumed(self.stream, size)

    def next_cycle(self) -> bool:
        """The answer is complete; False: this stream is good for no other request."""
        http = self.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        # else it is closing, or it said more than it was asked for
        return http.our_state is h11.IDLE and not any(http.trailing_data)

    def leave(self, fault: Fault) -> None:
        """Nobody waits for it any more; `fault`: the site's side ended it."""
        stream = self.stream
        stream.owner = None
        if not stream.is_over:
            self.driver.reset(stream, Fault.CANCELLED)
        chooser = self.session.connection.entry.chooser
        if fault and (not self.is_confirmed or fault is Fault.EXIT_DEAD):
            chooser.failed(self.choice, self.host, self.port, fault)
        elif self.trip is not None:
            chooser.unanswered(self.choice, self.trip, fault is Fault.CONNECTION_LOST)
        chooser.ended(self.choice, stream)
