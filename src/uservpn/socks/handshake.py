"""The server side of SOCKS5 (RFC 1928, RFC 1929) and SOCKS4/4a as a machine: bytes in, reply bytes out.

`receive` takes whatever has arrived, in any split, and returns what to answer; once `request` is set the
program's target is known and `answer` gives the final reply. Names are passed on unresolved. Limits: no
request is longer than 1 KiB; what comes behind it is early data and is left in `rest`.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Final, NamedTuple

from uservpn.errors import Fault

SIZE_MAX: Final = 1024
_REPLY_CODES: Final = {
    Fault.NONE: 0,
    Fault.NOT_ALLOWED: 2,
    Fault.NETWORK_UNREACHABLE: 3,
    Fault.HOST_UNREACHABLE: 4,
    Fault.REFUSED: 5,
    Fault.TIMEOUT: 6,
}
"""RFC 1928 section 6; every other fault is 01, general failure."""
_BAD_COMMAND: Final = b"\x05\x07\x00\x01\0\0\0\0\0\0"
_BAD_ADDRESS: Final = b"\x05\x08\x00\x01\0\0\0\0\0\0"
_GRANTED_5: Final = b"\x05\x00\x00\x01\0\0\0\0\0\0"
_GRANTED_4: Final = b"\x00\x5a\0\0\0\0\0\0"
_REFUSED_4: Final = b"\x00\x5b\0\0\0\0\0\0"


class Request(NamedTuple):
    """Where a program wants to go."""

    host: str
    port: int
    user: str
    version: int


class State(enum.Enum):
    """What the machine waits for."""

    GREETING = 1
    LOGIN = 2
    REQUEST = 3
    DONE = 4
    FAILED = 5


class Handshake:
    """One program's handshake. `users` empty: any user name is taken, with any password."""

    __slots__ = ("_data", "_user", "_users", "request", "rest", "state")

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users
        self._data = b""
        self._user = ""
        self.state = State.GREETING
        self.request: Request | None = None
        self.rest = b""

    def receive(self, data: bytes) -> bytes:
        """Takes bytes of the program; returns what to answer (state FAILED: then close)."""
        data = self._data + data if self._data else data
        out = b""
        while data and self.state not in (State.DONE, State.FAILED):
            step = _STEPS[self.state] if data[0] != 4 or self.state is State.LOGIN else _four
            used, reply = step(self, data)
            out += reply
            if not used:
                break
            data = data[used:]
        if self.state is State.DONE:
            self.rest = data
            self._data = b""
        elif self.state is not State.FAILED:
            self._data = data
            if len(data) > SIZE_MAX:
                self.state = State.FAILED
        return out

    def answer(self, fault: Fault) -> bytes:
        """The final reply: granted, or the reason why not."""
        request = self.request
        if request is not None and request.version == 4:
            return _REFUSED_4 if fault else _GRANTED_4
        if not fault:
            return _GRANTED_5
        return bytes((5, _REPLY_CODES.get(fault, 1))) + _GRANTED_5[2:]

    def _greeting(self, data: bytes) -> tuple[int, bytes]:
        if data[0] != 5:
            return self._fail(b"")
        if len(data) < 2 or len(data) < 2 + data[1]:
            return 0, b""
        methods = data[2 : 2 + data[1]]
        if 2 in methods and (self._users or 0 not in methods):
            self.state = State.LOGIN
            return 2 + data[1], b"\x05\x02"
        if 0 in methods and not self._users:
            self.state = State.REQUEST
            return 2 + data[1], b"\x05\x00"
        return self._fail(b"\x05\xff")

    def _login(self, data: bytes) -> tuple[int, bytes]:
        if data[0] != 1:
            return self._fail(b"\x01\x01")
        if len(data) < 2 or len(data) < 3 + data[1]:
            return 0, b""
        end = 3 + data[1] + data[2 + data[1]]
        if len(data) < end:
            return 0, b""
        user = data[2 : 2 + data[1]]
        password = data[3 + data[1] : end]
        self._user = user.decode("utf-8", "replace")
        if not is_user(self._users, self._user, password):
            return self._fail(b"\x01\x01")
        self.state = State.REQUEST
        return end, b"\x01\x00"

    def _request(self, data: bytes) -> tuple[int, bytes]:
        if data[0] != 5:
            return self._fail(b"")
        if len(data) < 5:
            return 0, b""
        kind = data[3]
        if kind == 1:
            end = 10
        elif kind == 3:
            end = 7 + data[4]
        elif kind == 4:
            end = 22
        else:
            return self._fail(_BAD_ADDRESS)
        if len(data) < end:
            return 0, b""
        if data[1] != 1:
            return self._fail(_BAD_COMMAND)
        port = data[end - 2] << 8 | data[end - 1]
        host: str | None
        if kind == 1:
            host = ".".join(map(str, data[4:8]))
        elif kind == 3:
            host = host_name(data[5 : end - 2])
        else:
            host = str(ipaddress.IPv6Address(data[4:20]))
        return self._found(host, port, 5, end)

    def _found(self, host: str | None, port: int, version: int, used: int) -> tuple[int, bytes]:
        self.request = Request(host or "", port, self._user, version)
        if host is None or not port:
            return self._fail(self.answer(Fault.HOST_UNREACHABLE))
        self.state = State.DONE
        return used, b""

    def _fail(self, reply: bytes) -> tuple[int, bytes]:
        self.state = State.FAILED
        return 0, reply


def _four(handshake: Handshake, data: bytes) -> tuple[int, bytes]:
    """SOCKS4 and 4a: one message with the user's name, and for 4a the host's."""
    if handshake.state is not State.GREETING:
        return handshake._fail(b"")
    end_user = data.find(b"\0", 8)
    if len(data) < 9 or end_user < 0:
        return 0, b""
    handshake._user = data[8:end_user].decode("utf-8", "replace")
    used = end_user + 1
    host: str | None = ".".join(map(str, data[4:8]))
    if data[4:7] == b"\0\0\0" and data[7]:
        end_host = data.find(b"\0", used)
        if end_host < 0:
            return 0, b""
        host = host_name(data[used:end_host])
        used = end_host + 1
    if data[1] != 1 or handshake._users:  # SOCKS4 has no password
        return handshake._fail(_REFUSED_4)
    return handshake._found(host, data[2] << 8 | data[3], 4, used)


_STEPS: Final = {
    State.GREETING: Handshake._greeting,
    State.LOGIN: Handshake._login,
    State.REQUEST: Handshake._request,
}


def host_name(raw: bytes) -> str | None:
    """A host as a program wrote it, or None where it cannot be one."""
    try:
        host = raw.decode()
    except UnicodeDecodeError:
        return None
    if not 0 < len(raw) <= 255 or not host.isprintable() or " " in host:
        return None
    return host


def is_user(users: Mapping[str, str], name: str, password: bytes) -> bool:
    """May this user in? Compared in constant time; everybody may where there are no users."""
    if not users:
        return True
    expected = users.get(name)
    return hmac.compare_digest((expected or "").encode(), password) and expected is not None
