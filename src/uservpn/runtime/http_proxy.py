"""HTTP on the entry's port: CONNECT (RFC 9110 section 9.3.6), with Basic authentication where users are set.

The request head is parsed by h11, imported with the first HTTP request: an idle daemon has none of it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

from uservpn.errors import Fault
from uservpn.socks.handshake import Request, State, host_name, is_user

HEAD_MAX: Final = 64 * 1024
_STATUS: Final = {
    Fault.NOT_ALLOWED: (403, "Forbidden", "the exit's policy does not allow this target"),
    Fault.TIMEOUT: (504, "Gateway Timeout", "the target did not answer in time"),
    Fault.REFUSED: (502, "Bad Gateway", "the target refused the connection"),
    Fault.HOST_UNREACHABLE: (502, "Bad Gateway", "the host was not found or cannot be reached"),
    Fault.NETWORK_UNREACHABLE: (502, "Bad Gateway", "the target's network cannot be reached"),
    Fault.EXIT_DEAD: (502, "Bad Gateway", "the exit cannot be reached"),
}


def _response(code: int, reason: str, text: str, header: str = "") -> bytes:
    body = text + "\n"
    return (
        f"HTTP/1.1 {code} {reason}\r\n{header}Content-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


class HttpConnect:
    """One CONNECT request; the same questions as a SOCKS handshake."""

    __slots__ = ("_connection", "_h11", "_users", "request", "rest", "state")

    def __init__(self, users: Mapping[str, str]) -> None:
        import h11

        self._h11: Any = h11
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._users = users
        self.state = State.REQUEST
        self.request: Request | None = None
        self.rest = b""

    def receive(self, data: bytes) -> bytes:
        """Takes bytes of the program; returns what to answer (state FAILED: then close)."""
        h11 = self._h11
        try:
            self._connection.receive_data(data)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            return self._fail(_response(400, "Bad Request", f"not understood: {error}"))
        if event is h11.NEED_DATA:
            return b""
        if not isinstance(event, h11.Request):
            return self._fail(_response(400, "Bad Request", "a request was expected"))
        if event.method != b"CONNECT":
            return self._fail(
                _response(
                    501, "Not Implemented", "only CONNECT is served here; use SOCKS5 for http://"
                )
            )
        user = self._login(event.headers)
        if user is None:
            wanted = 'Proxy-Authenticate: Basic realm="uservpn"\r\n'
            text = "a user name and password are needed"
            return self._fail(_response(407, "Proxy Authentication Required", text, wanted))
        raw_host, _, raw_port = event.target.rpartition(b":")
        host = host_name(raw_host.strip(b"[]"))
        if host is None or not raw_port.isdigit() or not 0 < int(raw_port) < 65536:
            return self._fail(_response(400, "Bad Request", "write CONNECT host:port"))
        self.request = Request(host, int(raw_port), user, 0)
        self.state = State.DONE
        self._connection.next_event()
        self.rest = self._connection.trailing_data[0]
        return b""

    def answer(self, fault: Fault) -> bytes:
        """200, or what went wrong."""
        if not fault:
            return b"HTTP/1.1 200 Connection established\r\n\r\n"
        code, reason, text = _STATUS.get(fault, (502, "Bad Gateway", "the connection failed"))
        return _response(code, reason, text)

    def _login(self, headers: Any) -> str | None:
        """The user's name; None: not let in."""
        value = dict(headers).get(b"proxy-authorization", b"")
        scheme, _, encoded = value.partition(b" ")
        name, password = "", b""
        if scheme.lower() == b"basic":
            try:
                raw_name, _, password = base64.b64decode(encoded, validate=True).partition(b":")
                name = raw_name.decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
        return name if is_user(self._users, name, password) else None

    def _fail(self, reply: bytes) -> bytes:
        self.state = State.FAILED
        return reply
