"""HTTP on the entry's port: CONNECT, and plain `http://` requests that are forwarded.

A program's connection is one `HttpSession`. CONNECT hands the connection over to the same rules as
SOCKS. `GET /proxy.pac` to the proxy itself answers with its proxy auto-configuration. Every other
request goes to its own site: through the stream that the request before used, if
it is the same site by the same exit and the stream is still good, else through a new one. Requests go
in origin form and without the headers that belong to one connection; bodies stream both ways, with
back-pressure; 101 (WebSocket) turns the connection into bytes both ways.

A program that sends its requests ahead is read only as far as the present one, and only requests that
are safe to repeat use a stream again, so that one which its site has just closed costs nothing but a
second try. What goes wrong before the answer has begun is told in plain text; what goes wrong later
resets the connection, so that half an answer cannot be taken for a whole one.

This module and h11 are loaded with the first HTTP request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import h11

from uservpn.chooser.cases import Choice
from uservpn.errors import Fault, StreamFault
from uservpn.runtime.http_origin import HEAD_MAX, Origin
from uservpn.socks.handshake import Kind, Request
from uservpn.socks.http_head import (
    ESTABLISHED,
    PAC_PATH,
    Headers,
    Target,
    absolute_target,
    complaint,
    connect_target,
    error_answer,
    fault_answer,
    login,
    named_host,
    pac_answer,
    quoted_line,
    request_headers,
    response_headers,
    upgrade_headers,
)
from uservpn.types import Buffer

if TYPE_CHECKING:
    from uservpn.runtime.program import EntryConnection

_REPEATABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


class HttpSession:
    """One program's HTTP connection, from its first byte until it ends or turns into bytes.

    Limits: a head has 64 KiB and the entry's time limit; beside it, at most what one read brings is
    kept.
    """

    __slots__ = (
        "_asked",
        "_body_waits",
        "_is_over",
        "_is_raw",
        "_method",
        "_next_waits",
        "_origin",
        "_program",
        "_repeat",
        "_target",
        "_users",
        "connection",
    )

    def __init__(self, connection: EntryConnection, users: Mapping[str, str]) -> None:
        self.connection = connection
        self._users = users
        self._program = _new_program()
        self._origin: Origin | None = None
        self._target = ("", 0)
        self._method = b""
        self._repeat: h11.Request | None = None  # what a second try would send
        self._asked: h11.Request | None = None  # what waits until its exit is chosen
        self._body_waits = False  # the site does not take the body
        self._next_waits = False  # more requests than the present one were sent
        self._is_over = False
        self._is_raw = False  # bytes that are not ASCII came: perhaps in the next request's line

    @property
    def is_idle(self) -> bool:
        """No request is being served."""
        return self._program.our_state is h11.IDLE

    # --- the program -----------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes of the program."""
        if not self._is_over:
            self._is_raw = self._is_raw or not data.isascii()
            self._program.receive_data(data)
            self._read_program()

    def ended(self) -> bool:
        """The program sends no more; False: nothing is on its way to it either."""
        if not self._is_over:
            self._program.receive_data(b"")
            self._read_program()
        return not self._is_over

    def program_room(self) -> None:
        """The program has taken what it was sent: credit for the site."""
        origin = self._origin
        if origin is not None:
            origin.credit()

    def lost(self) -> None:
        """The program is gone."""
        self._is_over = True
        self._drop_origin()

    def answer(self, fault: Fault, detail: str = "") -> bytes:
        """The answer to CONNECT."""
        return fault_answer(fault, *self._target, b"CONNECT", detail) if fault else ESTABLISHED

    def _read_program(self) -> None:
        while not self._is_over and self._asked is None:
            if self._is_raw:
                self._quote_line()
            try:
                event = self._program.next_event()
            except h11.RemoteProtocolError as error:
                self._bad_request(error)
                return
            if isinstance(event, h11.Request):
                self._on_request(event)
            elif isinstance(event, h11.Data):
                self._repeat = None
                self._send_origin(event)
            elif isinstance(event, h11.EndOfMessage):
                self._send_origin(h11.EndOfMessage())
            elif isinstance(event, h11.ConnectionClosed):
                if not self._is_answering:
                    self._end()
                return
            else:
                self._wait(event is h11.PAUSED)
                return

    def _quote_line(self) -> None:
        """Makes an URL of the request's line that some programs write as it is shown, such as curl.

        h11 takes no such line, and gives none back that it has taken: from this request on another one reads.
        """
        if self._program.their_state is not h11.IDLE:
            return
        data, is_ended = self._program.trailing_data
        line, end, rest = data.partition(b"\n")
        if not end:
            return
        self._is_raw = not rest.isascii()
        if not line.isascii():
            self._program = _new_program()
            self._program.receive_data(quoted_line(line) + end + rest)
            if is_ended:
                self._program.receive_data(b"")

    @property
    def _is_answering(self) -> bool:
        return self._program.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)

    def _wait(self, is_paused: bool) -> None:
        """All that can be read now has been read."""
        if not (is_paused or self.is_idle) or not self._program.trailing_data[0]:
            return
        if is_paused:
            self._next_waits = True
            self._regulate()
        else:
            self.connection.entry.watch(self.connection)  # a head has begun

    def _regulate(self) -> None:
        """Reads from the program as far as there is somebody to take it."""
        transport = self.connection.transport
        if transport is not None and not transport.is_closing():
            if self._body_waits or self._next_waits or self._asked is not None:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def _on_request(self, event: h11.Request) -> None:
        self.connection.entry.unwatch(self.connection)
        self._method = event.method
        user = login(event.headers, self._users)
        if event.method in (b"GET", b"HEAD") and event.target == PAC_PATH:
            proxy = named_host(event.headers) or str(self.connection.entry.address)
            self._last(pac_answer(proxy, event.method))  # holds no secret
        elif user is None:
            self._refuse(407, "a user name and password are needed")
        elif event.method == b"CONNECT":
            self._connect(event, user)
        else:
            target = absolute_target(event.method, event.target)
            if target is None:
                self._refuse(400, "this is a proxy: it takes CONNECT host:port and http:// URLs")
            else:
                self._forward(event, target, user)

    def _connect(self, event: h11.Request, user: str) -> None:
        found = connect_target(event.target)
        if found is None or not isinstance(self._program.next_event(), h11.EndOfMessage):
            self._refuse(400, "write CONNECT host:port, without a body")
            return
        self._drop_origin()
        self._is_over = True
        self._target = found
        connection = self.connection
        connection.detach_http()
        kind = Kind.IPV6 if ":" in found[0] else Kind.NAME
        early = self._program.trailing_data[0]
        connection.go(self, Request(kind, *found, user, 0), early)

    def _forward(self, event: h11.Request, target: Target, user: str) -> None:
        headers = request_headers(event.headers.raw_items(), target.authority)
        request = h11.Request(method=event.method, target=target.path, headers=headers)
        self._target = (target.host, target.port)
        chooser = self.connection.entry.chooser
        choice = chooser.choose(target.host, target.port, user, self)
        if choice is not None:
            self._send_to(choice, request)
        else:
            self._asked = request
            self._regulate()

    def chosen(self, choice: Choice) -> None:
        """The exits were asked: on with the request, if somebody still waits for its answer."""
        request, self._asked = self._asked, None
        if self._is_over or request is None:
            return
        self._send_to(choice, request)
        self._regulate()
        self._read_program()

    def _send_to(self, choice: Choice, request: h11.Request) -> None:
        if choice.fault:
            self._tell(choice.fault, choice.detail)
            return
        is_repeatable = request.method in _REPEATABLE
        self._repeat = request if is_repeatable else None
        origin = self._origin
        if origin is not None and is_repeatable and origin.serves(choice, *self._target):
            origin.is_used = True
            origin.has_answered = False
            self._send_origin(request)
        else:
            self._open(choice, request)

    def _open(self, choice: Choice, request: h11.Request) -> bool:
        """A new stream, and the head of `request` on it; False: the program was told why not."""
        self._drop_origin()
        self._body_waits = False
        try:
            self._origin = Origin(self, choice, *self._target)
        except StreamFault as error:
            self.connection.entry.chooser.failed(choice, *self._target, error.fault)
            self._tell(error.fault, error.detail)
            return False
        self._send_origin(request)
        return True

    def _send_origin(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        origin = self._origin
        if origin is None or self._is_over:
            return
        try:
            has_room = origin.ask(event)
        except h11.LocalProtocolError as error:
            self._refuse(400, f"the request makes no sense: {error}")
            return
        if not has_room:
            self._body_waits = True
            self._regulate()

    # --- the site --------------------------------------------------------------------------------

    def origin_room(self) -> None:
        """The site takes more of the body."""
        if self._body_waits:
            self._body_waits = False
            self._regulate()

    def origin_data(self, origin: Origin, chunk: Buffer) -> None:
        """Bytes of an answer."""
        size = len(chunk)
        if origin is not self._origin:
            return
        if self.is_idle:  # nobody asked: some sites say that time is up before they close
            self._drop_origin()
            return
        origin.has_answered = True
        origin.http.receive_data(bytes(chunk))
        self._read_origin(origin)
        connection = self.connection
        if connection.stream is origin.stream:
            connection.count_consumed(size)
        elif self._origin is origin:
            origin.count_consumed(size, not connection.is_full)

    def origin_ended(self, origin: Origin) -> None:
        """The site sends no more: the end of an answer, or of a stream that waited for work."""
        if origin is not self._origin:
            return
        if self.is_idle:
            self._drop_origin()
        elif not origin.has_answered:
            self.origin_failed(origin, Fault.CANCELLED)
        else:
            origin.http.receive_data(b"")
            self._read_origin(origin)

    def origin_failed(self, origin: Origin, fault: Fault) -> None:
        """There is no answer, or no more of it."""
        if origin is not self._origin or self._is_over:
            return
        repeat = self._repeat
        self._origin = None
        origin.leave(fault)
        if self.is_idle:
            return
        if origin.is_used and not origin.has_answered and repeat is not None:
            is_open = self._open(origin.choice, repeat)
            if is_open and self._program.their_state is not h11.SEND_BODY:
                self._send_origin(h11.EndOfMessage())
        else:
            self._tell(fault)

    def _read_origin(self, origin: Origin) -> None:
        try:
            while self._origin is origin and not self._is_over:
                event = origin.http.next_event()
                if isinstance(event, h11.Data):
                    self._send_program(event)
                elif isinstance(event, h11.Response):
                    self._send_program(
                        h11.Response(
                            status_code=event.status_code,
                            headers=response_headers(event.headers.raw_items()),
                            reason=event.reason,
                        )
                    )
                elif isinstance(event, h11.InformationalResponse):
                    self._inform(origin, event)
                elif isinstance(event, h11.EndOfMessage):
                    self._answered(origin)
                    return
                else:
                    return
        except h11.ProtocolError:
            self.origin_failed(origin, Fault.PROTOCOL)

    def _inform(self, origin: Origin, event: h11.InformationalResponse) -> None:
        raw = event.headers.raw_items()
        headers: Headers = response_headers(raw)
        if event.status_code == 101:
            headers += upgrade_headers(raw)
        elif self._program.their_http_version == b"1.0":
            return  # it knows only final answers
        self._send_program(
            h11.InformationalResponse(
                status_code=event.status_code, headers=headers, reason=event.reason
            )
        )
        if event.status_code == 101:
            self._switch(origin)

    def _switch(self, origin: Origin) -> None:
        """Another protocol from here on: what each side already sent of it goes first."""
        early, answer = self._program.trailing_data[0], origin.http.trailing_data[0]
        self._is_over = True
        self._origin = None
        self._body_waits = self._next_waits = False
        connection = self.connection
        request = Request(Kind.NAME, origin.host, origin.port, "", 0)
        connection.take_over(
            origin.driver, origin.stream, request, origin.choice, origin.unconsumed
        )
        if connection.transport is not None and answer:
            connection.transport.write(answer)
        self._regulate()
        if early:
            connection.write_early(origin.stream, early)

    def _answered(self, origin: Origin) -> None:
        """The answer is complete; on to the next request, if both sides can."""
        self._send_program(h11.EndOfMessage())
        program = self._program
        if not origin.next_cycle():
            self._drop_origin()
        if program.our_state is h11.DONE and program.their_state is h11.DONE:
            program.start_next_cycle()
            self._repeat = None
            self._body_waits = self._next_waits = False
            self._regulate()
            self._read_program()
        elif program.their_state is h11.SEND_BODY:
            self._drop_origin()
            self._is_over = True
            self.connection.linger(b"", is_refusal=False)
        else:
            self._end()

    # --- to the program --------------------------------------------------------------------------

    def _send_program(
        self,
        event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage,
    ) -> None:
        transport = self.connection.transport
        data = self._program.send(event)
        if data and transport is not None:
            transport.write(data)

    def _bad_request(self, error: h11.RemoteProtocolError) -> None:
        if self._program.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            code = 431 if error.error_status_hint == 431 else 400
            self._refuse(code, f"the request was not understood: {complaint(str(error))}")
        else:
            self._break()

    def _tell(self, fault: Fault, detail: str = "") -> None:
        """No answer from the site: says why, or breaks off where an answer has begun."""
        if self._program.our_state is h11.SEND_RESPONSE:
            self._last(fault_answer(fault, *self._target, self._method, detail))
        else:
            self._break()

    def _refuse(self, code: int, text: str) -> None:
        self._last(error_answer(code, text, self._method))

    def _last(self, reply: bytes) -> None:
        self._is_over = True
        self._drop_origin()
        self.connection.linger(reply)

    def _break(self) -> None:
        self._is_over = True
        self._drop_origin()
        self.connection.abort()

    def _end(self) -> None:
        self._is_over = True
        self._drop_origin()
        self.connection.finish()

    def _drop_origin(self) -> None:
        origin = self._origin
        if origin is not None:
            self._origin = None
            origin.leave(Fault.NONE)


def _new_program() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
